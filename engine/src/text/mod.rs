//! Text: tokenizer, chat template, streaming detokenizer, stop strings.

mod generation;

pub use generation::{GenerationDefaults, SamplingDefaults};
