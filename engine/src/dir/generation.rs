//! `generation.json`: what a checkpoint says about using it.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};

use super::{GENERATION_FILE, corrupt, read_small};
use crate::{EngineError, Result, TokenId};

/// Largest `generation.json` that is read at all; a real one is a few hundred bytes.
const MAX_GENERATION_BYTES: u64 = 1 << 20;

/// End tokens, strings the chat template refers to, and the checkpoint's own sampling defaults.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generation {
    /// Tokens that end an answer.
    pub eos_token_ids: Vec<TokenId>,
    /// Token that starts every text, when the tokenizer configuration asks for one.
    pub bos_token_id: Option<TokenId>,
    /// `bos_token`, `eos_token`, … by their names in chat templates.
    pub special_tokens: BTreeMap<String, String>,
    /// `temperature`, `top_k`, `top_p`, `min_p`, where the checkpoint gives them.
    pub sampling: BTreeMap<String, f64>,
}

impl Generation {
    /// Reads `dir/generation.json`.
    ///
    /// # Errors
    /// [`EngineError::Corrupt`] when it does not parse; [`EngineError::Io`].
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(GENERATION_FILE);
        let json = read_small(&path, MAX_GENERATION_BYTES)?;
        serde_json::from_slice(&json).map_err(|e| corrupt(&path, format!("does not parse: {e}")))
    }

    /// The bytes of `generation.json`.
    ///
    /// # Errors
    /// [`EngineError::Input`] when a number cannot be written as JSON.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        let mut json = serde_json::to_vec_pretty(self)
            .map_err(|e| EngineError::Input(format!("generation.json cannot be written: {e}")))?;
        json.push(b'\n');
        Ok(json)
    }
}
