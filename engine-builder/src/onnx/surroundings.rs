//! The files beside an `.onnx` file: tokenizer, chat template, generation defaults, context length.

use std::path::Path;

use serde_json::Value;

use super::model_file::ModelFile;
use crate::{BuildError, Result, checkpoint::TextFiles, hf};

/// What the files beside a model say.
#[derive(Debug, Default)]
pub struct Surroundings {
    /// Context length in tokens, where a file tells.
    pub max_context: Option<usize>,
    /// The text side.
    pub text: TextFiles,
}

/// Reads `folder`, and the model's own metadata.
///
/// # Errors
/// When a file is there but cannot be read or is not JSON.
pub fn read(folder: &Path, model: &ModelFile) -> Result<Surroundings> {
    let config = json(&folder.join("config.json"))?;
    let tokenizer = json(&folder.join("tokenizer_config.json"))?;
    let genai = json(&folder.join("genai_config.json"))?;
    let count = |value: &Option<Value>, pointer: &str| {
        value
            .as_ref()
            .and_then(|v| v.pointer(pointer))
            .and_then(Value::as_u64)
            .and_then(|n| usize::try_from(n).ok())
    };
    let metadata = model
        .model
        .metadata_props
        .iter()
        .find(|p| matches!(p.key.as_deref(), Some("context_length" | "max_position_embeddings")));
    let from_metadata = metadata.and_then(|p| p.value.as_deref()).and_then(|v| v.trim().parse().ok());
    let max_context = count(&genai, "/model/context_length")
        .or_else(|| count(&config, "/max_position_embeddings"))
        // Tokenizers without a limit say 10³⁰.
        .or_else(|| count(&tokenizer, "/model_max_length").filter(|n| *n <= 1 << 24))
        .or(from_metadata);
    Ok(Surroundings { max_context: max_context.filter(|n| *n > 0), text: hf::text_around_onnx(folder)? })
}

fn json(path: &Path) -> Result<Option<Value>> {
    if !path.is_file() {
        return Ok(None);
    }
    let text = std::fs::read(path).map_err(|source| BuildError::Io {
        action: "read",
        path: path.to_owned(),
        source,
    })?;
    let value = serde_json::from_slice(&text).map_err(|error| BuildError::Source {
        path: path.to_owned(),
        fact: format!("is not JSON: {error}"),
    })?;
    Ok(Some(value))
}
