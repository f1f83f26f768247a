//! A head's weights from its folder, under either of the published namings.
#![expect(unsafe_code, reason = "memory-mapping a file")]

use std::{fs::File, path::Path};

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use takt_engine::{EngineError, Result};

use super::config::corrupt;
use crate::{
    BuildError,
    checkpoint::{Tensor, TensorSource},
};

const FILE: &str = "model.safetensors";
/// What the layer is called in an engine.
const LAYER: &str = "layer.";
/// What the layer is called: SafeAILab, SpecForge, AngelSlim; vLLM, speculators.
const LAYER_PREFIXES: [&str; 2] = ["midlayer.", "layers.0."];
/// The map from draft to target tokens: the same two worlds.
const TOKEN_MAPS: [&str; 2] = ["d2t", "draft_id_to_target_id"];

/// A head's file, memory-mapped, under canonical names (those of [`takt_engine::draft::DraftSpec::parts`]).
#[derive(Debug)]
pub(super) struct HeadTensors {
    map: Mmap,
    layer_prefix: &'static str,
}

impl HeadTensors {
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        if !path.exists() && folder.join("pytorch_model.bin").exists() {
            return Err(EngineError::Unsupported(format!(
                "{}: only pytorch_model.bin, a pickle, which could run any code: convert it once, python3 -c \"import torch; from \
                 safetensors.torch import save_file; save_file(torch.load('pytorch_model.bin', weights_only=True), '{FILE}')\"",
                folder.display()
            )));
        }
        let map = map_file(&path)?;
        let layer_prefix = {
            let all = SafeTensors::deserialize(&map).map_err(|error| corrupt(&path, error.to_string()))?;
            let names = all.names();
            let prefix =
                LAYER_PREFIXES.into_iter().find(|prefix| names.iter().any(|name| name.starts_with(prefix)));
            let Some(prefix) = prefix else {
                let fact = "no midlayer.* and no layers.0.*: this is no EAGLE-3 head".to_owned();
                return Err(corrupt(&path, fact));
            };
            prefix
        };
        Ok(Self { map, layer_prefix })
    }

    fn all(&self) -> Result<SafeTensors<'_>> {
        // Checked when the file was opened; only the header is read.
        SafeTensors::deserialize(&self.map).map_err(|error| wrong(FILE, error.to_string()))
    }

    /// The file's name for a canonical one.
    fn published(&self, name: &str) -> String {
        match name.strip_prefix(LAYER) {
            Some(part) => format!("{}{part}", self.layer_prefix),
            None => name.to_owned(),
        }
    }

    /// Values of a tensor, finite and of `shape`.
    pub fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let name = self.published(name);
        let all = self.all()?;
        let tensor = all.tensor(&name).map_err(|_| wrong(&name, "missing: the head is incomplete".into()))?;
        floats(&name, &tensor, shape)
    }

    /// Whether it has an embedding of its own.
    pub fn has_embedding(&self) -> bool {
        self.contains("embed_tokens.weight")
    }

    /// `d2t` under either name; `None` when the head proposes every token.
    pub fn token_offsets(&self, draft_vocab_size: usize) -> Result<Option<Vec<i64>>> {
        let all = self.all()?;
        let Some((name, tensor)) =
            TOKEN_MAPS.into_iter().find_map(|name| Some((name, all.tensor(name).ok()?)))
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
        let all = self.all()?;
        let Ok(tensor) = all.tensor("t2d") else { return Ok(None) };
        match tensor.dtype() {
            Dtype::BOOL | Dtype::U8 => Ok(Some(tensor.data().iter().map(|byte| *byte != 0).collect())),
            other => Err(wrong("t2d", format!("{other:?}, expected BOOL"))),
        }
    }
}

impl TensorSource for HeadTensors {
    fn load(&self, name: &str, shape: &[usize]) -> Result<Tensor, BuildError> {
        Ok(Tensor { shape: shape.to_vec(), values: self.values(name, shape)? })
    }

    fn contains(&self, name: &str) -> bool {
        self.all().is_ok_and(|all| all.tensor(&self.published(name)).is_ok())
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

fn map_file(path: &Path) -> Result<Mmap> {
    let io_error = |source| EngineError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io_error)?;
    // SAFETY: the mapping is read-only and private to us; a file changed underneath would change the bytes we see, never memory we own, and
    // all bytes are valid.
    unsafe { Mmap::map(&file) }.map_err(io_error)
}

fn wrong(name: &str, fact: String) -> EngineError {
    EngineError::Tensor { name: name.to_owned(), fact }
}
