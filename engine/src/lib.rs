//! Takt's model runtime.
//!
//! An **engine directory** ([`dir`]) written by the builder is opened validated and memory-mapped. A [`backend::Backend`] runs
//! one [`step::StepPlan`] at a time over KV **lanes**; a [`sequence::Sequence`] turns logits into tokens, tokens into text and
//! decides when an answer is complete.
//!
//! | module | concept |
//! |---|---|
//! | [`spec`] | the decoder description every front end produces and every backend consumes |
//! | [`quant`] | number formats and how a tensor is quantized and read back |
//! | [`dir`] | the engine directory: manifest, validation, mapping |
//! | [`kv`] | cache formats, lanes and prefix snapshots |
//! | [`step`] | one unit of device work: what goes in, what comes out |
//! | [`rows`] | its logits: whole rows, or short lists of the likeliest tokens |
//! | [`backend`] | the trait, and one folder per implementation |
//! | [`engine`] | an opened directory with its backend |
//! | [`memory`] | what an engine takes, before it is opened |
//! | [`draft`] | EAGLE-3 draft heads: shape, tensors, one level of drafting |
//! | [`weights`], [`shapes`] | where weights come from; random ones of known shapes |
//! | [`score`] | likelihood of given tokens |
//! | [`text`] | tokenizer, chat template, streaming detokenizer, stop strings |
//! | [`sampler`] | from logits to a token |
//! | [`grammar`] | answers in a demanded form, valid whenever they are cut |
//! | [`sequence`] | one request's token timeline |
//!
//! Architecture invariant: this crate does no I/O but mapping an engine directory, reads no environment variable and no clock.

pub mod backend;
pub mod dir;
pub mod draft;
pub mod engine;
mod error;
mod generate;
pub mod grammar;
pub mod kv;
pub mod memory;
pub mod quant;
pub mod rows;
pub mod sampler;
pub mod score;
pub mod sequence;
pub mod shapes;
pub mod spec;
pub mod step;
pub mod text;
pub mod weights;

pub use engine::{Engine, EngineOptions};
pub use error::{EngineError, Result};
pub use generate::generate;

/// A token's index in the vocabulary.
pub type TokenId = u32;
