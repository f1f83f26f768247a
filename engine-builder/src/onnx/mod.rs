//! Front end for ONNX: a decoder is recognised by what its graph computes, not by the names in it.
//!
//! 1. [`proto`], [`model_file`]: the file and its external data, mapped.
//! 2. [`graph`]: names resolved; [`linear`], [`weights`]: linear layers and embedding, with lazily read constants.
//! 3. [`trace`]: a trial run in which every linear layer's result is made up, so that everything *between* layers is computed
//!    by the small interpreter in [`evaluate`] without touching a weight.
//! 4. [`norm`], [`attention`], [`rope`], [`mask`], [`mlp`]: hypotheses read from the graph, each checked against the trial run.
//! 5. [`decoder`]: the residual stream followed from embedding to output head; [`tensors`]: canonical names onto constants.
//!
//! What agrees with the equations of a decoder is accepted in whatever operators the exporter wrote it; what does not, or uses
//! an operator the interpreter does not know, is refused by name.

mod array;
mod attention;
mod attention_core;
mod block_quantized;
mod compare;
mod decoder;
mod dtype;
mod evaluate;
mod graph;
mod heads;
mod inputs;
mod landmarks;
mod linear;
mod mapping;
mod mask;
mod mlp;
mod model_file;
mod norm;
pub(crate) mod proto;
mod rope;
mod surroundings;
mod tensors;
mod trace;
mod weights;

use std::path::{Path, PathBuf};

pub(crate) use dtype::Dtype;
pub(crate) use model_file::ModelFile;

use crate::{BuildError, Result, checkpoint::Checkpoint};

/// Opens the decoder in `path`: an `.onnx` file, or a folder with `model.onnx`; tokenizer, chat template and generation
/// defaults are taken from the files beside it, where there are any.
///
/// # Errors
/// [`BuildError::Unsupported`] naming the operator, node or input that is not understood; [`BuildError::Source`],
/// [`BuildError::Io`] and [`BuildError::Tensor`] for damaged or missing files.
pub fn open(path: &Path) -> Result<Checkpoint> {
    let file = model_path(path)?;
    let folder = file.parent().unwrap_or(Path::new("")).to_owned();
    let model = model_file::ModelFile::open(&file)?;
    let surroundings = surroundings::read(&folder, &model)?;
    let graph = graph::Graph::new(&model)?;
    drop(model);
    let decoder = decoder::recognise(&graph, surroundings.max_context)?;
    let tensors = tensors::OnnxTensors { graph, locations: decoder.locations };
    Ok(Checkpoint { spec: decoder.spec, tensors: Box::new(tensors), text: surroundings.text })
}

fn model_path(path: &Path) -> Result<PathBuf> {
    let file = if path.is_dir() { path.join("model.onnx") } else { path.to_owned() };
    if file.is_file() {
        return Ok(file);
    }
    let fact = if path.is_dir() {
        "a folder without model.onnx; give the path of the .onnx file itself"
    } else {
        "no such file"
    };
    Err(BuildError::Source { path: path.to_owned(), fact: fact.into() })
}
