//! What every front end delivers: a decoder description, its tensors under canonical names, and the text files beside them.

use std::path::PathBuf;

use takt_engine::{TokenId, spec::DecoderSpec};

use crate::Result;

/// A model ready to be quantized.
pub struct Checkpoint {
    /// The architecture, validated.
    pub spec: DecoderSpec,
    /// Its tensors.
    pub tensors: Box<dyn TensorSource>,
    /// Tokenizer, template, defaults.
    pub text: TextFiles,
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checkpoint")
            .field("spec", &self.spec)
            .field("text", &self.text)
            .finish_non_exhaustive()
    }
}

/// One tensor's values, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Values; exact for bf16, f16 and f32 checkpoints.
    pub values: Vec<f32>,
}

/// Gives one tensor at a time, so that memory stays bounded by the largest tensor.
pub trait TensorSource {
    /// The tensor under its canonical name (see [`DecoderSpec`]): linear weights are `[out, in]`, whatever the source stores.
    ///
    /// # Errors
    /// When the tensor is absent, has another shape than `shape`, or cannot be read.
    fn load(&self, name: &str, shape: &[usize]) -> Result<Tensor>;

    /// Whether the tensor exists (an output head of its own, say).
    fn contains(&self, name: &str) -> bool;
}

/// The files that make tokens of text, and the model's own defaults.
#[derive(Debug, Clone, Default)]
pub struct TextFiles {
    /// `tokenizer.json`.
    pub tokenizer: Option<PathBuf>,
    /// Jinja source of the chat template, wherever it was found (own file or `tokenizer_config.json`).
    pub chat_template: Option<String>,
    /// Tokens that end an answer.
    pub eos_token_ids: Vec<TokenId>,
    /// Token that starts every text, when the tokenizer configuration asks for one.
    pub bos_token_id: Option<TokenId>,
    /// Strings the chat template refers to: `bos_token`, `eos_token`, …
    pub special_tokens: Vec<(String, String)>,
    /// Sampling defaults of the checkpoint (`temperature`, `top_k`, `top_p`, `min_p`), where given.
    pub sampling: Vec<(String, f64)>,
}
