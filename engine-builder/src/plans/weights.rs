//! What of a model a plan takes anew, and what it does not.
//!
//! Which weights a plan takes is TensorRT's to say: it may have folded constants together, or into its kernels. A plan is given the weights of another
//! model only where the two models are one but for those: [`ModelWeights::rest_blake3`] is noted when the plan is built, and compared.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use bytes::Bytes;
use prost::Message;
use takt_tensorrt::{runtime::Weights, tensor::DataType};

use crate::{
    Result,
    onnx::{Dtype, ModelFile, proto::TensorProto},
};

/// Constants of fewer elements are shapes, axes and scales of what is computed, which models of one architecture share.
const NUM_LARGE: usize = 1024;

/// The constants of a model that was just written.
#[derive(Debug)]
pub(super) struct ModelWeights {
    file: ModelFile,
}

/// A constant as TensorRT takes it.
#[derive(Debug)]
pub(super) struct Given {
    pub name: String,
    pub data_type: DataType,
    /// Little-endian; of 4-bit types two a byte.
    pub bytes: Bytes,
}

impl ModelWeights {
    /// # Errors
    /// [`BuildError::Io`](crate::BuildError::Io), [`BuildError::Source`](crate::BuildError::Source).
    pub fn open(onnx: &Path) -> Result<Self> {
        Ok(Self { file: ModelFile::open(onnx)? })
    }

    /// BLAKE3 of the model without the values of the constants that a plan which takes `taken` is given: operators, names, types and shapes, the values
    /// of all others.
    ///
    /// # Errors
    /// [`BuildError::Tensor`](crate::BuildError::Tensor), [`BuildError::Io`](crate::BuildError::Io).
    pub fn rest_blake3(&self, taken: &[Weights]) -> Result<String> {
        let given: BTreeSet<&str> = self.given(taken).into_iter().map(|(tensor, _)| name(tensor)).collect();
        let mut model = self.file.model.clone();
        // Another version of takt may write the same.
        (model.producer_version, model.metadata_props) = (None, Vec::new());
        let mut hasher = blake3::Hasher::new();
        for tensor in model.graph.iter_mut().flat_map(|graph| &mut graph.initializer) {
            if !given.contains(name(tensor)) {
                let stored = self.file.external().stored(tensor)?;
                hasher.update(&(stored.bytes.len() as u64).to_le_bytes());
                hasher.update(&stored.bytes);
            }
            // Names, types and shapes stay.
            *tensor = TensorProto {
                dims: std::mem::take(&mut tensor.dims),
                data_type: tensor.data_type,
                name: tensor.name.take(),
                ..TensorProto::default()
            };
        }
        hasher.update(&model.encode_to_vec());
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// Large constants of real numbers that a plan which takes `taken` is not given.
    pub fn large_others(&self, taken: &[Weights]) -> Vec<String> {
        let given: BTreeSet<&str> = self.given(taken).into_iter().map(|(tensor, _)| name(tensor)).collect();
        let is_large = |tensor: &TensorProto| {
            let num_elements = tensor.dims.iter().try_fold(1_i64, |all, dim| all.checked_mul(*dim));
            num_elements.is_none_or(|num| num >= NUM_LARGE as i64) && real_type(tensor).is_some()
        };
        self.constants()
            .filter(|it| is_large(it) && !given.contains(name(it)))
            .map(|it| name(it).to_owned())
            .collect()
    }

    /// The values of the constants among `taken`, each read when its turn comes. Names that the model has not are TensorRT's own, as its parser makes for what it computes of constants:
    /// whatever they are made of is among the values that [`rest_blake3`](Self::rest_blake3) compares. The same is so of a constant that is listed as
    /// another type than it has.
    ///
    /// # Errors
    /// [`BuildError::Tensor`](crate::BuildError::Tensor), [`BuildError::Io`](crate::BuildError::Io).
    pub fn values(&self, taken: &[Weights]) -> impl Iterator<Item = Result<Given>> {
        let value = move |(tensor, data_type): (&TensorProto, DataType)| {
            let bytes = self.file.external().stored(tensor)?.bytes;
            Ok(Given { name: name(tensor).into(), data_type, bytes })
        };
        self.given(taken).into_iter().map(value)
    }

    /// Constants that a plan is given which takes `taken`, and their types.
    fn given(&self, taken: &[Weights]) -> Vec<(&TensorProto, DataType)> {
        let taken: BTreeMap<&str, DataType> =
            taken.iter().map(|weights| (weights.name.as_str(), weights.data_type)).collect();
        let of_type = |tensor| data_type(tensor).filter(|own| taken.get(name(tensor)) == Some(own));
        self.constants().filter_map(|tensor| Some((tensor, of_type(tensor)?))).collect()
    }

    fn constants(&self) -> impl Iterator<Item = &TensorProto> {
        self.file.model.graph.iter().flat_map(|graph| &graph.initializer)
    }

    /// Every constant that TensorRT has a type for.
    #[cfg(test)]
    pub fn all(&self) -> Vec<Weights> {
        let weights = |tensor: &TensorProto| {
            let num_elements =
                tensor.dims.iter().map(|dim| usize::try_from(*dim).ok()).product::<Option<usize>>()?;
            Some(Weights { name: name(tensor).into(), data_type: data_type(tensor)?, num_elements })
        };
        self.constants().filter_map(weights).collect()
    }
}

fn name(tensor: &TensorProto) -> &str {
    tensor.name.as_deref().unwrap_or_default()
}

fn dtype(tensor: &TensorProto) -> Option<Dtype> {
    Dtype::from_number(tensor.data_type.unwrap_or(0)).ok()
}

/// As TensorRT calls it; `None` for what it has not.
fn data_type(tensor: &TensorProto) -> Option<DataType> {
    match dtype(tensor)? {
        Dtype::U8 => Some(DataType::U8),
        Dtype::I8 => Some(DataType::I8),
        Dtype::I32 => Some(DataType::I32),
        Dtype::I64 => Some(DataType::I64),
        Dtype::Bool => Some(DataType::Bool),
        _ => real_type(tensor),
    }
}

/// Of real numbers.
fn real_type(tensor: &TensorProto) -> Option<DataType> {
    match dtype(tensor)? {
        Dtype::F32 => Some(DataType::F32),
        Dtype::F16 => Some(DataType::F16),
        Dtype::Bf16 => Some(DataType::Bf16),
        Dtype::F8E4M3 => Some(DataType::F8E4M3),
        Dtype::I4 => Some(DataType::I4),
        Dtype::F4E2M1 => Some(DataType::F4E2M1),
        _ => None,
    }
}
