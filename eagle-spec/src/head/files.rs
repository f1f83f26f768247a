//! A head's weights from its folder, under either of the published namings.

use std::path::Path;

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use takt_engine::{EngineError, Result};

use super::{config::corrupt, matrix::Matrix};

const FILE: &str = "model.safetensors";
/// What the layer is called: SafeAILab, SpecForge, AngelSlim; vLLM, speculators.
const LAYER_PREFIXES: [&str; 2] = ["midlayer.", "layers.0."];
/// The map from draft to target tokens: the same two worlds.
const TOKEN_MAPS: [&str; 2] = ["d2t", "draft_id_to_target_id"];

/// A head's file in memory.
pub(super) struct Files {
    bytes: Vec<u8>,
}

/// Its tensors by canonical name.
pub(super) struct Tensors<'a> {
    all: SafeTensors<'a>,
    layer_prefix: &'static str,
}

impl Files {
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        if !path.exists() && folder.join("pytorch_model.bin").exists() {
            return Err(EngineError::Unsupported(format!(
                "{}: only pytorch_model.bin, a pickle, which could run any code: convert it once, python3 -c \"import torch; from \
                 safetensors.torch import save_file; save_file(torch.load('pytorch_model.bin', weights_only=True), '{FILE}')\"",
                folder.display()
            )));
        }
        let bytes = std::fs::read(&path).map_err(|source| EngineError::Io { path, source })?;
        Ok(Self { bytes })
    }

    pub fn tensors(&self, folder: &Path) -> Result<Tensors<'_>> {
        let path = folder.join(FILE);
        let all = SafeTensors::deserialize(&self.bytes).map_err(|error| corrupt(&path, error.to_string()))?;
        let names = all.names();
        let prefix =
            LAYER_PREFIXES.into_iter().find(|prefix| names.iter().any(|name| name.starts_with(prefix)));
        let Some(layer_prefix) = prefix else {
            let fact = "no midlayer.* and no layers.0.*: this is no EAGLE-3 head".to_owned();
            return Err(corrupt(&path, fact));
        };
        Ok(Tensors { all, layer_prefix })
    }
}

impl<'a> Tensors<'a> {
    /// A matrix of the layer, `[num_rows, num_cols]`.
    pub fn layer_matrix(&self, name: &str, num_rows: usize, num_cols: usize) -> Result<Matrix> {
        self.matrix(&format!("{}{name}", self.layer_prefix), num_rows, num_cols)
    }

    /// A norm of the layer.
    pub fn layer_vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        self.vector(&format!("{}{name}", self.layer_prefix), len)
    }

    pub fn matrix(&self, name: &str, num_rows: usize, num_cols: usize) -> Result<Matrix> {
        Ok(Matrix { num_cols, values: floats(name, &self.get(name)?, &[num_rows, num_cols])? })
    }

    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        floats(name, &self.get(name)?, &[len])
    }

    /// `d2t` under either name; `None` when the head proposes every token.
    pub fn token_offsets(&self, draft_vocab_size: usize) -> Result<Option<Vec<i64>>> {
        let Some((name, tensor)) =
            TOKEN_MAPS.into_iter().find_map(|name| Some((name, self.all.tensor(name).ok()?)))
        else {
            return Ok(None);
        };
        check_shape(name, &tensor, &[draft_vocab_size])?;
        let bytes = tensor.data();
        match tensor.dtype() {
            Dtype::I64 => {
                Ok(Some(bytes.as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect()))
            }
            Dtype::I32 => {
                let offsets =
                    bytes.as_chunks::<4>().0.iter().map(|bytes| i64::from(i32::from_le_bytes(*bytes)));
                Ok(Some(offsets.collect()))
            }
            other => Err(wrong(name, format!("{other:?}, expected I64 or I32 offsets"))),
        }
    }

    /// `t2d`, where the file has it.
    pub fn members(&self) -> Result<Option<Vec<bool>>> {
        let Ok(tensor) = self.all.tensor("t2d") else { return Ok(None) };
        match tensor.dtype() {
            Dtype::BOOL | Dtype::U8 => Ok(Some(tensor.data().iter().map(|byte| *byte != 0).collect())),
            other => Err(wrong("t2d", format!("{other:?}, expected BOOL"))),
        }
    }

    /// The head's own embedding, where it has one.
    pub fn own_embedding(&self, vocab_size: usize, hidden_size: usize) -> Result<Option<Matrix>> {
        let found = self.all.names().into_iter().any(|name| name == "embed_tokens.weight");
        found.then(|| self.matrix("embed_tokens.weight", vocab_size, hidden_size)).transpose()
    }

    fn get(&self, name: &str) -> Result<TensorView<'a>> {
        self.all.tensor(name).map_err(|_| wrong(name, "missing: the head is incomplete".into()))
    }
}

fn check_shape(name: &str, tensor: &TensorView<'_>, shape: &[usize]) -> Result<()> {
    if tensor.shape() == shape {
        return Ok(());
    }
    Err(wrong(
        name,
        format!(
            "shape {:?}, expected {shape:?}: a head for another target, or another config.json",
            tensor.shape()
        ),
    ))
}

fn floats(name: &str, tensor: &TensorView<'_>, shape: &[usize]) -> Result<Vec<f32>> {
    check_shape(name, tensor, shape)?;
    let bytes = tensor.data();
    let halves = || bytes.as_chunks::<2>().0.iter();
    let values: Vec<f32> = match tensor.dtype() {
        Dtype::BF16 => halves().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect(),
        Dtype::F16 => halves().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect(),
        Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        other => return Err(wrong(name, format!("{other:?}, expected BF16, F16 or F32"))),
    };
    match values.iter().position(|value| !value.is_finite()) {
        Some(position) => {
            Err(wrong(name, format!("{} at position {position}: the weights are damaged", values[position])))
        }
        None => Ok(values),
    }
}

fn wrong(name: &str, fact: String) -> EngineError {
    EngineError::Tensor { name: name.to_owned(), fact }
}
