//! `weights.safetensors`: header written and checked against the layout, data memory-mapped.
#![expect(unsafe_code, reason = "memory-mapping a file")]

use std::{collections::HashMap, fs::File, ops::Range, path::Path};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors, tensor::TensorInfo};
use serde_json::{Map, Value, json};

use sha2::{Digest as _, Sha256};

use super::{FileEntry, Part, StoredTensor, corrupt, finite, io_error, lay_out, verify};
use crate::{
    EngineError, Result, TokenId,
    quant::{MatrixData, MatrixView, WeightKind},
};

/// A safetensors file starts with the header's length in a little-endian u64.
const LENGTH_BYTES: usize = 8;
/// Bytes hashed and looked at together: they stay in the second-level cache in between. A multiple of every element's size.
const CHECKED_BYTES: usize = 256 << 10;
/// Checked bytes that are released together.
const RELEASED_BYTES: usize = 4 << 20;
/// The kernel maps up to so many bytes around a page that is asked for, aligned: giving back less would leave those behind.
const FAULT_AROUND_BYTES: usize = 64 << 10;

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
        // Where memory is locked, all of the file was made resident, to stay.
        #[cfg(unix)]
        let _ = map.unlock();
        release(&map, &map);
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

    /// Checks that the file has the hash of `entry` and that no value or scale is NaN or infinite: in one pass, in the order of the file.
    pub(super) fn check(&self, path: &Path, entry: &FileEntry) -> Result<()> {
        let mut tensors: Vec<_> =
            self.tensors.iter().map(|(name, (dtype, range))| (range, *dtype, name)).collect();
        tensors.sort_unstable_by_key(|(range, ..)| range.start);
        let (mut hash, mut broken) = (Sha256::new(), None);
        let (mut hashed, mut released) = (0, 0);
        for (range, dtype, name) in tensors {
            // The header is before the first tensor; between tensors there is nothing.
            hash.update(&self.map[hashed..range.start]);
            hashed = range.start;
            for bytes in self.map[range.clone()].chunks(CHECKED_BYTES) {
                hash.update(bytes);
                if broken.is_none() && !finite::all(dtype, bytes) {
                    broken = Some(name);
                }
                hashed += bytes.len();
                if hashed - released >= RELEASED_BYTES {
                    self.release(&self.map[released..hashed]);
                    released = hashed;
                }
            }
        }
        hash.update(&self.map[hashed..]);
        self.release(&self.map[released..]);
        verify::compare_hash(path, entry, &hash.finalize())?;
        broken.map_or(Ok(()), |name| Err(corrupt(path, format!("tensor {name:?} holds NaN or infinity"))))
    }

    /// Gives back the memory behind `bytes` of the file; read again, they come from the file again.
    pub(super) fn release(&self, bytes: &[u8]) {
        release(&self.map, bytes);
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
    // SAFETY: the mapping is read-only. A file changed underneath would change the bytes we see, never
    // memory we own; every read is of plain bytes, for which all bit patterns are valid. Truncating it while it is mapped
    // faults the process; the engine directory's documentation forbids that.
    unsafe { Mmap::map(&file) }.map_err(|e| io_error(path, e))
}

/// Drops the pages of `map` that `bytes` (of the map, or nothing happens) lie in. Neighbours on the same pages are read anew when they are wanted.
fn release(map: &Mmap, bytes: &[u8]) {
    let (first, len) = (map.as_ptr().addr(), map.len());
    let from = (bytes.as_ptr().addr() / FAULT_AROUND_BYTES * FAULT_AROUND_BYTES).max(first);
    let until = (bytes.as_ptr().addr() + bytes.len()).next_multiple_of(FAULT_AROUND_BYTES).min(first + len);
    if bytes.is_empty() || from >= until {
        return;
    }
    // SAFETY: the mapping is shared, read-only and of a file that nobody changes: a page that is dropped and read again has the bytes it had,
    // so that no reader of any slice of it sees a change. Refused (where memory is locked), it costs memory alone.
    #[cfg(unix)]
    let _ =
        unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, from - first, until - from) };
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
