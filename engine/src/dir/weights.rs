//! `weights.safetensors`: header written and checked against the layout, data memory-mapped.
#![expect(unsafe_code, reason = "memory-mapping a file")]

use std::{collections::HashMap, fs::File, ops::Range, path::Path};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors, tensor::TensorInfo};
use serde_json::{Map, Value, json};

use super::{Part, StoredTensor, corrupt, finite, io_error, lay_out};
use crate::{
    EngineError, Result, TokenId,
    quant::{MatrixData, MatrixView, WeightKind},
};

/// A safetensors file starts with the header's length in a little-endian u64.
const LENGTH_BYTES: usize = 8;

/// The mapped weights and where each tensor lies.
#[derive(Debug)]
pub(super) struct Weights {
    map: Mmap,
    /// Bytes of the file by tensor name.
    tensors: HashMap<String, (Dtype, Range<usize>)>,
    /// Shape `[N, K]` and format by matrix name, without `.weight`.
    matrices: HashMap<String, (usize, usize, WeightKind)>,
}

impl Weights {
    /// Maps `path` and checks its header: exactly the tensors of `parts` with their shapes, types and places.
    pub(super) fn map(path: &Path, parts: Vec<Part>) -> Result<Self> {
        let map = map_file(path)?;
        let expected = lay_out(&parts)?;
        let data_start = check_header(path, &map, &expected)?;
        let place = |tensor: StoredTensor| {
            let start = data_start + tensor.offset;
            (tensor.name, (tensor.dtype, start..start + tensor.byte_len))
        };
        let matrices = parts.into_iter().filter_map(|part| match part {
            Part::Matrix(part) => Some((part.name, (part.num_rows, part.num_cols, part.kind))),
            Part::Vector(_) | Part::Tokens(_) => None,
        });
        Ok(Self { tensors: expected.into_iter().map(place).collect(), matrices: matrices.collect(), map })
    }

    /// The whole file.
    pub(super) fn file_bytes(&self) -> &[u8] {
        &self.map
    }

    /// Checks that no value or scale is NaN or infinite.
    pub(super) fn check_finite(&self, path: &Path) -> Result<()> {
        for (name, (dtype, range)) in &self.tensors {
            let bytes = &self.map[range.clone()];
            let all_finite = match dtype {
                Dtype::F32 => finite::f32(bytes),
                Dtype::F16 => finite::f16(bytes),
                Dtype::BF16 => finite::bf16(bytes),
                Dtype::F8_E4M3 => finite::e4m3(bytes),
                _ => true,
            };
            if !all_finite {
                return Err(corrupt(path, format!("tensor {name:?} holds NaN or infinity")));
            }
        }
        Ok(())
    }

    pub(super) fn matrix(&self, name: &str) -> Result<MatrixView<'_>> {
        let Some(&(num_rows, num_cols, kind)) = self.matrices.get(name) else {
            return Err(no_tensor(name, "matrix"));
        };
        let weight = self.bytes(&format!("{name}.weight"))?;
        let scale_name = format!("{name}.weight_scale");
        let data = match kind {
            WeightKind::Bf16 => MatrixData::Bf16(weight),
            WeightKind::Fp8 => MatrixData::Fp8 { codes: weight, scales: self.bytes(&scale_name)? },
            WeightKind::Int4 => MatrixData::Int4 { packed: weight, scales: self.bytes(&scale_name)? },
            WeightKind::Nvfp4 => MatrixData::Nvfp4 {
                packed: weight,
                scales: self.bytes(&scale_name)?,
                scale_2: self.scalar(&format!("{name}.weight_scale_2"))?,
            },
        };
        Ok(MatrixView { num_rows, num_cols, data })
    }

    pub(super) fn vector(&self, name: &str) -> Result<Vec<f32>> {
        match self.tensors.get(name) {
            Some((Dtype::F32, range)) => Ok(f32_values(&self.map[range.clone()]).collect()),
            _ => Err(no_tensor(name, "F32 vector")),
        }
    }

    pub(super) fn tokens(&self, name: &str) -> Result<Vec<TokenId>> {
        match self.tensors.get(name) {
            Some((Dtype::U32, range)) => Ok(u32_values(&self.map[range.clone()]).collect()),
            _ => Err(no_tensor(name, "U32 vector")),
        }
    }

    fn scalar(&self, name: &str) -> Result<f32> {
        f32_values(self.bytes(name)?).next().ok_or_else(|| no_tensor(name, "scalar"))
    }

    fn bytes(&self, name: &str) -> Result<&[u8]> {
        let (_, range) = self.tensors.get(name).ok_or_else(|| no_tensor(name, "tensor"))?;
        Ok(&self.map[range.clone()])
    }
}

/// The file's first bytes: header length and JSON header, padded with spaces so that the data starts at a multiple of 8.
#[must_use]
pub fn safetensors_header(tensors: &[StoredTensor]) -> Vec<u8> {
    let entry = |tensor: &StoredTensor| {
        let offsets = [tensor.offset, tensor.offset + tensor.byte_len];
        let facts =
            json!({"dtype": tensor.dtype.to_string(), "shape": tensor.shape, "data_offsets": offsets});
        (tensor.name.clone(), facts)
    };
    let mut header = Value::Object(tensors.iter().map(entry).collect::<Map<_, _>>()).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(LENGTH_BYTES), b' ');
    let mut file_start = (header.len() as u64).to_le_bytes().to_vec();
    file_start.append(&mut header);
    file_start
}

/// Maps a file that nobody changes while it is open.
pub(super) fn map_file(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(|e| io_error(path, e))?;
    // SAFETY: the mapping is read-only and private to us. A file changed underneath would change the bytes we see, never
    // memory we own; every read is of plain bytes, for which all bit patterns are valid. Truncating it while it is mapped
    // faults the process; the engine directory's documentation forbids that.
    unsafe { Mmap::map(&file) }.map_err(|e| io_error(path, e))
}

/// Checks the header against `expected` and gives the data section's first byte.
fn check_header(path: &Path, file: &[u8], expected: &[StoredTensor]) -> Result<usize> {
    let (header_len, metadata) = SafeTensors::read_metadata(file)
        .map_err(|e| corrupt(path, format!("not a whole safetensors file: {e}")))?;
    let found = metadata.tensors();
    check_types(path, &found, expected)?;
    if found.len() != expected.len() {
        let extra = found.keys().find(|name| !expected.iter().any(|tensor| &tensor.name == *name));
        return Err(corrupt(path, format!("unknown tensor {:?}", extra.map_or("", String::as_str))));
    }
    for tensor in expected {
        let start = found.get(&tensor.name).map(|info| info.data_offsets.0);
        if start != Some(tensor.offset) {
            let (name, start, expected) = (&tensor.name, start.unwrap_or_default(), tensor.offset);
            return Err(corrupt(
                path,
                format!("tensor {name:?} starts at byte {start}, expected {expected}"),
            ));
        }
    }
    Ok(LENGTH_BYTES + header_len)
}

/// Checks that every expected tensor is there, with its type and shape (and so with its size, which the header's own
/// validation has compared with them).
fn check_types(path: &Path, found: &HashMap<String, &TensorInfo>, expected: &[StoredTensor]) -> Result<()> {
    for tensor in expected {
        let name = &tensor.name;
        let Some(info) = found.get(name) else {
            return Err(corrupt(path, format!("tensor {name:?} is missing")));
        };
        if info.dtype != tensor.dtype || info.shape != tensor.shape {
            let found = format!("{} {:?}", info.dtype, info.shape);
            let expected = format!("{} {:?}", tensor.dtype, tensor.shape);
            return Err(corrupt(path, format!("tensor {name:?} is {found}, expected {expected}")));
        }
    }
    Ok(())
}

fn no_tensor(name: &str, what: &str) -> EngineError {
    EngineError::Tensor { name: name.into(), fact: format!("the engine has no such {what}") }
}

fn f32_values(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.chunks_exact(4).map(|raw| f32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]))
}

fn u32_values(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.as_chunks::<4>().0.iter().map(|raw| u32::from_le_bytes(*raw))
}
