//! `weights.safetensors`: header written and checked against the layout, data memory-mapped.
#![expect(unsafe_code, reason = "memory-mapping a file")]

use std::{collections::HashMap, fs::File, ops::Range, path::Path, sync::Arc};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors, tensor::TensorInfo};
use serde_json::{Map, Value, json};

use super::{
    FileEntry, Part, StoredTensor,
    contents::{Contents, Placed},
    corrupt, io_error, lay_out, verify,
};
use crate::{
    EngineError, Result, TokenId,
    quant::{MatrixData, MatrixView, WeightKind},
    weights::ReadWatch,
};

/// A safetensors file starts with the header's length in a little-endian u64.
const LENGTH_BYTES: usize = 8;
/// What the data section begins at a multiple of: the header is padded. A multiple of [`TENSOR_ALIGNMENT`](super::TENSOR_ALIGNMENT).
const DATA_ALIGNMENT: usize = 64;
/// The kernel maps up to so many bytes around a page that is asked for, aligned: giving back less would leave those behind.
const FAULT_AROUND_BYTES: usize = 64 << 10;

/// The mapped weights and where each tensor lies.
#[derive(Debug)]
pub(super) struct Weights {
    map: Arc<Mmap>,
    /// Bytes of the file by tensor name.
    tensors: HashMap<String, (Dtype, Range<usize>)>,
    /// Shape `[N, K]` and format by matrix name, without `.weight`.
    matrices: HashMap<String, (usize, usize, WeightKind)>,
    contents: Contents,
}

impl Weights {
    /// Maps `path` and checks its header: exactly the tensors of `parts` with their shapes and types, each aligned to its elements.
    pub(super) fn map(path: &Path, parts: Vec<Part>) -> Result<Self> {
        let map = map_file(path)?;
        // Where memory is locked, all of the file was made resident, to stay.
        #[cfg(unix)]
        let _ = map.unlock();
        release(&map, &map);
        let tensors = check_header(path, &map, &lay_out(&parts)?)?;
        let matrices = parts.into_iter().filter_map(|part| match part {
            Part::Matrix(part) => Some((part.name, (part.num_rows, part.num_cols, part.kind))),
            Part::Vector(_) | Part::Tokens(_) => None,
        });
        let placed = |(name, (dtype, range)): (&String, &(Dtype, Range<usize>))| Placed {
            name: name.clone(),
            dtype: *dtype,
            range: range.clone(),
        };
        let contents = Contents::new(map.len(), tensors.iter().map(placed).collect());
        Ok(Self { tensors, matrices: matrices.collect(), contents, map: Arc::new(map) })
    }

    /// The whole file.
    pub(super) fn file_bytes(&self) -> &[u8] {
        &self.map
    }

    /// The file as it is mapped, for whoever reads in it longer than `self` is there.
    pub(super) fn mapping(&self) -> Arc<Mmap> {
        Arc::clone(&self.map)
    }

    /// Checks that the file has the hash of `entry` and that no value or scale is NaN or infinite; what was read through [`ReadWatch`] has been
    /// looked at already.
    pub(super) fn check(&self, path: &Path, entry: &FileEntry) -> Result<()> {
        let (hash, broken) = self.contents.finish(&self.map, |bytes| release(&self.map, bytes));
        verify::compare_hash(path, entry, hash)?;
        broken.map_or(Ok(()), |name| Err(corrupt(path, format!("tensor {name:?} holds NaN or infinity"))))
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

impl ReadWatch for Weights {
    /// What is about to be read is checked now, for the cache's sake.
    fn before_read(&self, bytes: &[u8]) {
        let start = bytes.as_ptr().addr().saturating_sub(self.map.as_ptr().addr());
        self.contents.look_at(&self.map, start..start + bytes.len());
    }

    /// Gives back the memory behind `bytes`; read again, they come from the file again.
    fn after_read(&self, bytes: &[u8]) {
        release(&self.map, bytes);
    }
}

/// The file's first bytes: header length and JSON header, padded with spaces so that the data starts at a multiple of 64.
#[must_use]
pub fn safetensors_header(tensors: &[StoredTensor]) -> Vec<u8> {
    let entry = |tensor: &StoredTensor| {
        let offsets = [tensor.offset, tensor.offset + tensor.byte_len];
        let facts =
            json!({"dtype": tensor.dtype.to_string(), "shape": tensor.shape, "data_offsets": offsets});
        (tensor.name.clone(), facts)
    };
    let mut header = Value::Object(tensors.iter().map(entry).collect::<Map<_, _>>()).to_string().into_bytes();
    let data_start = (LENGTH_BYTES + header.len()).next_multiple_of(DATA_ALIGNMENT);
    header.resize(data_start - LENGTH_BYTES, b' ');
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

/// Checks the header against `expected` and gives every tensor's type and bytes of the file. Their order is the file's own: it was another in
/// earlier versions. That they follow each other without gaps is part of the format.
fn check_header(
    path: &Path,
    file: &[u8],
    expected: &[StoredTensor],
) -> Result<HashMap<String, (Dtype, Range<usize>)>> {
    let (header_len, metadata) = SafeTensors::read_metadata(file)
        .map_err(|e| corrupt(path, format!("not a whole safetensors file: {e}")))?;
    let found = metadata.tensors();
    check_types(path, &found, expected)?;
    if found.len() != expected.len() {
        let extra = found.keys().find(|name| !expected.iter().any(|tensor| &tensor.name == *name));
        return Err(corrupt(path, format!("unknown tensor {:?}", extra.map_or("", String::as_str))));
    }
    let data_start = LENGTH_BYTES + header_len;
    let placed = |(name, info): (String, &TensorInfo)| {
        let start = data_start + info.data_offsets.0;
        let element_bytes = info.dtype.bitsize() / 8;
        if !start.is_multiple_of(element_bytes.max(1)) {
            let fact =
                format!("tensor {name:?} starts at byte {start}, expected a multiple of {element_bytes}");
            return Err(corrupt(path, fact));
        }
        Ok((name, (info.dtype, start..data_start + info.data_offsets.1)))
    };
    found.into_iter().map(placed).collect()
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
