//! `generation.json`: what the checkpoint says about ending and sampling, and the names of its special tokens.

use std::{collections::BTreeMap, fs, path::Path};

use serde::{Deserialize, Serialize};

use crate::{EngineError, Result, TokenId, sampler::SamplingParams};

/// Defaults that come with a model; written by the builder, read with the tokenizer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenerationDefaults {
    /// Tokens that end an answer.
    pub eos_token_ids: Vec<TokenId>,
    /// Token that starts a text, where the model has one.
    #[serde(default)]
    pub bos_token_id: Option<TokenId>,
    /// `bos_token`, `eos_token`, `pad_token`, …: their texts, as chat templates name them.
    #[serde(default)]
    pub special_tokens: BTreeMap<String, String>,
    /// How the model's makers sample.
    #[serde(default)]
    pub sampling: SamplingDefaults,
}

/// The makers' sampling; a missing temperature means greedy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplingDefaults {
    /// As in [`SamplingParams`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// As in [`SamplingParams`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// As in [`SamplingParams`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// As in [`SamplingParams`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
}

impl SamplingDefaults {
    /// Parameters of one request with these defaults.
    #[must_use]
    pub fn params(&self, seed: u64) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature.unwrap_or(0.0),
            top_k: self.top_k,
            top_p: self.top_p.unwrap_or(1.0),
            min_p: self.min_p.unwrap_or(0.0),
            seed,
        }
    }
}

impl GenerationDefaults {
    /// The file's name in an engine directory.
    pub const FILE: &str = "generation.json";

    /// Reads `generation.json`.
    ///
    /// # Errors
    /// [`EngineError::Io`] when the file cannot be read; [`EngineError::Corrupt`] when it is not this format or a sampling default is out
    /// of its range.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).map_err(|source| EngineError::Io { path: path.into(), source })?;
        let corrupt = |fact: String| EngineError::Corrupt { path: path.into(), fact };
        let defaults: Self = serde_json::from_slice(&bytes).map_err(|error| corrupt(error.to_string()))?;
        defaults.sampling.params(0).validate().map_err(|error| corrupt(error.to_string()))?;
        Ok(defaults)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<GenerationDefaults> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(GenerationDefaults::FILE);
        fs::write(&path, json).unwrap();
        GenerationDefaults::read(&path)
    }

    #[test]
    fn the_documented_form_is_read_and_written_back() {
        let json = r#"{"eos_token_ids":[2],"bos_token_id":null,"special_tokens":{"eos_token":"<|im_end|>"},"sampling":{"top_k":20}}"#;
        let defaults = read(json).unwrap();
        assert_eq!((defaults.eos_token_ids.as_slice(), defaults.sampling.top_k), ([2].as_slice(), Some(20)));
        assert_eq!(serde_json::to_string(&defaults).unwrap(), json);
    }

    #[test]
    fn no_temperature_means_greedy() {
        assert_eq!(
            SamplingDefaults::default().params(7),
            SamplingParams { seed: 7, ..SamplingParams::default() }
        );
    }

    #[test]
    fn unknown_keys_and_impossible_values_are_refused_with_the_reason() {
        for (json, expected) in [
            (r#"{"eos_token_ids":[2],"eos":1}"#, "unknown field `eos`"),
            (r#"{"eos_token_ids":[-2]}"#, "invalid value"),
            (r#"{"eos_token_ids":[2],"sampling":{"top_p":1.5}}"#, "top_p is 1.5"),
            (r#"{"eos_token_ids":[2"#, "EOF"),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.is_corrupt() && error.to_string().contains(expected), "{json}: {error}");
        }
    }
}
