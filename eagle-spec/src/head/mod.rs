//! EAGLE-3 draft heads: one decoder layer over the target's own features (Li et al., "EAGLE-3", arXiv 2503.01840).
//!
//! Row `i` of a draft takes the target's features of token `i` and the embedding of token `i + 1`, at RoPE position `i`, and says what
//! token `i + 2` may be. Proposed rows take the head's own output of the row before instead of features.

mod config;
mod drafter;
mod embedding;
mod files;
mod forward;
mod matrix;
mod vocabulary;

pub use config::{HeadConfig, LayerNumbering};
pub use drafter::{Embeddings, HeadDrafter};
pub use forward::{DraftHead, DraftLane};
