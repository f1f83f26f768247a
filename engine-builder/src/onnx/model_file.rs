//! The `.onnx` file and the files of external data beside it: every stored tensor as a checked slice of a memory map.

use std::{
    cell::RefCell,
    collections::HashMap,
    path::{Component, Path, PathBuf},
};

use bytes::Bytes;
use prost::Message;

use super::{dtype::Dtype, mapping, proto};
use crate::{BuildError, Result};

/// A stored tensor: type, dimensions and little-endian bytes whose length has been checked against both.
#[derive(Debug, Clone)]
pub struct StoredTensor {
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first; empty for a scalar.
    pub dims: Vec<usize>,
    /// The elements.
    pub bytes: Bytes,
}

impl StoredTensor {
    /// Product of the dimensions.
    pub fn num_elements(&self) -> usize {
        self.dims.iter().product()
    }
}

/// The parsed model with its folder.
#[derive(Debug)]
pub struct ModelFile {
    /// Everything in it; large inline tensors still point into the map.
    pub model: proto::ModelProto,
    external: ExternalFiles,
}

/// Maps of external files, opened once each.
#[derive(Debug)]
pub struct ExternalFiles {
    folder: PathBuf,
    maps: RefCell<HashMap<String, Bytes>>,
}

impl ModelFile {
    /// Maps and parses `path`.
    ///
    /// # Errors
    /// When the file cannot be read or is not an ONNX model.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = mapping::map(path)?;
        let source = |fact: String| BuildError::Source { path: path.to_owned(), fact };
        let model = proto::ModelProto::decode(bytes).map_err(|error| {
            source(format!("not an ONNX model, or a truncated one ({error}); export or download it again"))
        })?;
        if model.graph.is_none() {
            return Err(source("an ONNX model without a graph".into()));
        }
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        Ok(Self { model, external: ExternalFiles { folder, maps: RefCell::default() } })
    }

    /// The files of external data.
    pub fn external(&self) -> &ExternalFiles {
        &self.external
    }
}

impl ExternalFiles {
    /// The data of `tensor`, wherever it is stored.
    ///
    /// # Errors
    /// [`BuildError::Tensor`] for unknown types, absurd dimensions, a location outside the model's folder, or a length that does
    /// not fit; [`BuildError::Io`] when an external file is missing.
    pub fn stored(&self, tensor: &proto::TensorProto) -> Result<StoredTensor> {
        let name = tensor.name.clone().unwrap_or_default();
        let fail = |fact: String| BuildError::Tensor { name: name.clone(), fact };
        let dtype = Dtype::from_number(tensor.data_type.unwrap_or(0))
            .map_err(|what| fail(format!("{what} is not supported")))?;
        let dims = dimensions(&tensor.dims)
            .ok_or_else(|| fail(format!("dimensions {:?} are not those of a tensor", tensor.dims)))?;
        let count: usize = dims.iter().product();
        let expected = count
            .checked_mul(dtype.bits())
            .map(|bits| bits.div_ceil(8))
            .ok_or_else(|| fail("larger than memory".into()))?;
        let bytes = if tensor.data_location == Some(1) {
            self.slice(tensor, expected).map_err(|error| match error {
                SliceError::Fact(fact) => fail(fact),
                SliceError::Build(error) => error,
            })?
        } else {
            inline_bytes(tensor, dtype)
        };
        if bytes.len() != expected {
            return Err(fail(format!(
                "{} bytes stored, {expected} expected for {dtype:?} {dims:?}",
                bytes.len()
            )));
        }
        Ok(StoredTensor { dtype, dims, bytes })
    }

    fn slice(&self, tensor: &proto::TensorProto, expected: usize) -> Result<Bytes, SliceError> {
        let entry = |key: &str| {
            tensor
                .external_data
                .iter()
                .find(|e| e.key.as_deref() == Some(key))
                .and_then(|e| e.value.as_deref())
        };
        let number = |key: &str| {
            entry(key)
                .map(|text| {
                    text.trim()
                        .parse::<usize>()
                        .map_err(|_| SliceError::Fact(format!("external data with {key} {text:?}")))
                })
                .transpose()
        };
        let location =
            entry("location").ok_or_else(|| SliceError::Fact("external data without a location".into()))?;
        let map = self.map(location)?;
        let offset = number("offset")?.unwrap_or(0);
        let length = number("length")?.unwrap_or(expected);
        let end = offset.checked_add(length).filter(|end| *end <= map.len());
        let Some(end) = end else {
            return Err(SliceError::Fact(format!(
                "bytes {offset} + {length} of {location:?}, but that file has {} bytes; it is truncated or belongs to another model",
                map.len()
            )));
        };
        Ok(map.slice(offset..end))
    }

    fn map(&self, location: &str) -> Result<Bytes, SliceError> {
        let relative = Path::new(location);
        let inside = !location.is_empty()
            && relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if !inside {
            return Err(SliceError::Fact(format!(
                "external data at {location:?}: only files inside the model's folder are read"
            )));
        }
        if let Some(map) = self.maps.borrow().get(location) {
            return Ok(map.clone());
        }
        let map = mapping::map(&self.folder.join(relative)).map_err(SliceError::Build)?;
        self.maps.borrow_mut().insert(location.to_owned(), map.clone());
        Ok(map)
    }
}

enum SliceError {
    Fact(String),
    Build(BuildError),
}

/// Dimensions as `usize`, when none is negative and their product and its bytes fit.
fn dimensions(dims: &[i64]) -> Option<Vec<usize>> {
    let dims: Vec<usize> = dims.iter().map(|d| usize::try_from(*d).ok()).collect::<Option<_>>()?;
    // The product without the zeros: a later product of any subset must not overflow either.
    dims.iter()
        .filter(|d| **d != 0)
        .try_fold(1_usize, |all, d| all.checked_mul(*d))
        .filter(|all| *all <= usize::MAX / 64)?;
    (dims.len() <= 16).then_some(dims)
}

/// Bytes of a tensor stored inside the message: raw, or in one of the typed fields.
fn inline_bytes(tensor: &proto::TensorProto, dtype: Dtype) -> Bytes {
    if let Some(raw) = &tensor.raw_data {
        return raw.clone();
    }
    let narrow = |bytes: usize| -> Vec<u8> {
        tensor.int32_data.iter().flat_map(|v| v.to_le_bytes().into_iter().take(bytes)).collect()
    };
    let bytes: Vec<u8> = match dtype {
        Dtype::F32 => tensor.float_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::F64 => tensor.double_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::I64 => tensor.int64_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::U64 => tensor.uint64_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::U32 => tensor.uint64_data.iter().flat_map(|v| v.to_le_bytes().into_iter().take(4)).collect(),
        Dtype::I32 => narrow(4),
        Dtype::F16 | Dtype::Bf16 | Dtype::U16 | Dtype::I16 => narrow(2),
        Dtype::U8 | Dtype::I8 | Dtype::Bool | Dtype::F8E4M3 | Dtype::U4 | Dtype::I4 | Dtype::F4E2M1 => {
            narrow(1)
        }
    };
    bytes.into()
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Seek, SeekFrom, Write},
    };

    use super::*;

    fn entry(key: &str, value: &str) -> proto::StringStringEntryProto {
        proto::StringStringEntryProto { key: Some(key.into()), value: Some(value.into()) }
    }

    fn external(folder: &Path) -> ExternalFiles {
        ExternalFiles { folder: folder.to_owned(), maps: RefCell::default() }
    }

    #[test]
    fn a_tensor_beyond_two_gibibytes_of_its_file_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let offset = (1_u64 << 31) + 4096;
        let mut file = File::create(folder.path().join("weights.bin")).unwrap();
        file.seek(SeekFrom::Start(offset)).unwrap();
        file.write_all(&1.5_f32.to_le_bytes()).unwrap();
        file.write_all(&(-2.0_f32).to_le_bytes()).unwrap();
        let tensor = proto::TensorProto {
            dims: vec![2],
            data_type: Some(1),
            data_location: Some(1),
            external_data: vec![
                entry("location", "weights.bin"),
                entry("offset", &offset.to_string()),
                entry("length", "8"),
            ],
            ..Default::default()
        };
        let stored = external(folder.path()).stored(&tensor).unwrap();
        let values: Vec<Option<f64>> = (0..3).map(|idx| stored.dtype.element(&stored.bytes, idx)).collect();
        assert_eq!(values, [Some(1.5), Some(-2.0), None]);
    }

    #[test]
    fn absurd_dimensions_and_offsets_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        File::create(folder.path().join("weights.bin")).unwrap().write_all(&[0; 16]).unwrap();
        let refused = |dims: Vec<i64>, offset: &str, expected: &str| {
            let external_data = vec![entry("location", "weights.bin"), entry("offset", offset)];
            let tensor = proto::TensorProto {
                dims,
                data_type: Some(1),
                data_location: Some(1),
                external_data,
                ..Default::default()
            };
            let error = external(folder.path()).stored(&tensor).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        refused(vec![i64::MAX, i64::MAX], "0", "not those of a tensor");
        refused(vec![-1], "0", "not those of a tensor");
        refused(vec![1 << 56], "0", "that file has 16 bytes");
        refused(vec![4], "18446744073709551615", "that file has 16 bytes");
        refused(vec![4], "many", "offset");
    }

    #[test]
    fn typed_fields_hold_what_raw_data_would() {
        let folder = tempfile::tempdir().unwrap();
        let half = proto::TensorProto {
            dims: vec![2],
            data_type: Some(10),
            int32_data: vec![0x3c00, 0xc000],
            ..Default::default()
        };
        let nibbles = proto::TensorProto {
            dims: vec![3],
            data_type: Some(22),
            int32_data: vec![0x7f, 0x08],
            ..Default::default()
        };
        for (tensor, expected) in [(half, vec![1.0, -2.0]), (nibbles, vec![-1.0, 7.0, -8.0])] {
            let stored = external(folder.path()).stored(&tensor).unwrap();
            let values: Vec<f64> =
                (0..expected.len()).map(|idx| stored.dtype.element(&stored.bytes, idx).unwrap()).collect();
            assert_eq!(values, expected);
        }
    }
}
