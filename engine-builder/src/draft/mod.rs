//! Published EAGLE-3 heads → the draft head of an engine.
//!
//! | file | concept |
//! |---|---|
//! | `config` | `config.json` in the forms it is published in |
//! | `tensors`, `vocabulary` | the weights under either naming; which target tokens can be proposed |
//! | `convert` | quantized into the engine directory |
//! | `canary` | which reading of an ambiguous file is the right one, and what its proposals are worth |

mod canary;
mod config;
mod convert;
mod prompts;
mod tensors;
mod vocabulary;

use std::path::Path;

use takt_engine::{
    EngineError, Result, TokenId,
    draft::{DraftSpec, NUM_CAPTURED},
};

pub use canary::{Acceptance, measure_acceptance};
pub use config::{HeadConfig, LayerNumbering};
pub use convert::DraftOptions;
pub(crate) use convert::{Added, add_draft, draft_warnings};
pub use prompts::canary_prompts;
use tensors::HeadTensors;

/// A head as it is published: `config.json` and `model.safetensors`.
#[derive(Debug)]
pub struct PublishedHead {
    config: HeadConfig,
    tensors: HeadTensors,
    targets: Vec<TokenId>,
}

/// How to read what a file leaves open.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    /// RoPE base.
    pub rope_theta: f64,
    /// Inputs of the target's layers that are captured.
    pub captured: [usize; NUM_CAPTURED],
}

impl PublishedHead {
    /// Opens the head in `folder` and checks its configuration and its map of tokens; weights are checked as they are loaded.
    ///
    /// # Errors
    /// [`EngineError::Io`], [`EngineError::Corrupt`], [`EngineError::Tensor`] naming the tensor, [`EngineError::Unsupported`].
    pub fn open(folder: &Path) -> Result<Self> {
        let config = HeadConfig::read(&folder.join("config.json"))?;
        let tensors = HeadTensors::open(folder)?;
        let HeadConfig { hidden_size, target_hidden_size, vocab_size, draft_vocab_size, .. } = config;
        let targets = match tensors.token_offsets(draft_vocab_size)? {
            Some(offsets) => vocabulary::target_tokens(&offsets, tensors.members()?.as_deref(), vocab_size)?,
            None if draft_vocab_size == vocab_size => {
                vocabulary::target_tokens(&vec![0; vocab_size], None, vocab_size)?
            }
            None => {
                let fact =
                    format!("missing, and the head proposes {draft_vocab_size} of {vocab_size} tokens");
                return Err(EngineError::Tensor { name: "d2t".into(), fact });
            }
        };
        if !tensors.has_embedding() && target_hidden_size != hidden_size {
            let fact = format!("missing: the head is {hidden_size} wide and its target {target_hidden_size}");
            return Err(EngineError::Tensor { name: "embed_tokens.weight".into(), fact });
        }
        Ok(Self { config, tensors, targets })
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &HeadConfig {
        &self.config
    }

    /// The target's token of every draft token.
    #[must_use]
    pub fn targets(&self) -> &[TokenId] {
        &self.targets
    }

    /// Values of a tensor under the engine's name for it, `fc.weight`, `layer.mlp.up_proj.weight`; row-major.
    ///
    /// # Errors
    /// [`EngineError::Tensor`] when it is missing, misshapen or not finite.
    pub fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.tensors.values(name, shape)
    }

    /// Every plausible reading for a target of `num_layers`, the one the files suggest first.
    ///
    /// # Errors
    /// [`EngineError::Input`] when the files suggest layers the target does not have.
    pub fn readings(&self, num_layers: usize) -> Result<Vec<Reading>> {
        let suggested = self.config.numbering();
        let other = match suggested {
            LayerNumbering::Inputs => LayerNumbering::Outputs,
            LayerNumbering::Outputs => LayerNumbering::Inputs,
        };
        let mut all = Vec::new();
        let first = self.config.captured_as(num_layers, suggested)?;
        // The other way round may name a layer that is not there: then it is not meant.
        let captures = [Some(first), self.config.captured_as(num_layers, other).ok()];
        for captured in captures.into_iter().flatten() {
            // Trainers are known that never read `rope_theta` and always use 10000.
            for rope_theta in [self.config.rope_theta, 10_000.0] {
                let reading = Reading { rope_theta, captured };
                if !all.contains(&reading) {
                    all.push(reading);
                }
            }
        }
        Ok(all)
    }

    /// The head by `reading`.
    #[must_use]
    pub fn spec(&self, reading: Reading) -> DraftSpec {
        let config = &self.config;
        DraftSpec {
            hidden_size: config.hidden_size,
            target_hidden_size: config.target_hidden_size,
            intermediate_size: config.intermediate_size,
            num_q_heads: config.num_q_heads,
            num_kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            vocab_size: config.vocab_size,
            draft_vocab_size: config.draft_vocab_size,
            norm_eps: config.norm_eps,
            rope_theta: reading.rope_theta,
            max_positions: config.max_positions,
            norm_before_residual: config.norm_before_residual,
            norm_output: config.norm_output,
            fc_norm: config.fc_norm,
            own_embedding: self.tensors.has_embedding(),
            captured: reading.captured,
        }
    }
}
