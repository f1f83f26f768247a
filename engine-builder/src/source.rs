//! Which front end reads a source.

use std::path::Path;

use crate::{BuildError, Result, checkpoint::Checkpoint, hf, onnx};

/// Opens `source` with the front end it is for; the name goes into the manifest.
pub(crate) fn open(source: &Path) -> Result<(Checkpoint, &'static str)> {
    let refused = |fact: &str| Err(BuildError::Source { path: source.into(), fact: fact.into() });
    if !source.exists() {
        return refused(
            "does not exist; expected a Hugging Face folder, an .onnx file or a folder with model.onnx",
        );
    }
    if source.is_dir() {
        return open_folder(source);
    }
    match source.extension().and_then(|extension| extension.to_str()) {
        Some("onnx") => Ok((onnx::open(source)?, "onnx")),
        Some("gguf") => refused("GGUF is not read yet; give the Hugging Face folder it was made from"),
        Some("safetensors" | "json") => refused("is one file of a checkpoint; give the folder it is in"),
        _ => refused("is neither a folder nor an .onnx file"),
    }
}

/// A folder with safetensors weights is a Hugging Face checkpoint, also when an ONNX export lies beside them.
fn open_folder(folder: &Path) -> Result<(Checkpoint, &'static str)> {
    let has_safetensors = hf::WEIGHT_FILES.iter().any(|name| folder.join(name).exists());
    if !has_safetensors && folder.join("model.onnx").exists() {
        return Ok((onnx::open(folder)?, "onnx"));
    }
    Ok((hf::open(folder)?, "huggingface"))
}
