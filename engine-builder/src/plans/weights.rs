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
    BuildError, Result,
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
    /// [`BuildError::Io`], [`BuildError::Source`].
    pub fn open(onnx: &Path) -> Result<Self> {
        Ok(Self { file: ModelFile::open(onnx)? })
    }

    /// BLAKE3 of the model without the values of the constants `taken`: operators, names, types and shapes, the values of all others.
    ///
    /// # Errors
    /// [`BuildError::Tensor`], [`BuildError::Io`].
    pub fn rest_blake3(&self, taken: &[Weights]) -> Result<String> {
        let taken: BTreeSet<&str> = taken.iter().map(|weights| weights.name.as_str()).collect();
        let mut model = self.file.model.clone();
        // Another version of takt may write the same.
        (model.producer_version, model.metadata_props) = (None, Vec::new());
        let mut hasher = blake3::Hasher::new();
        for tensor in model.graph.iter_mut().flat_map(|graph| &mut graph.initializer) {
            if !taken.contains(name(tensor)) {
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

    /// Large constants of real numbers that are not among `taken`.
    pub fn large_others(&self, taken: &[Weights]) -> Vec<String> {
        let is_taken = |tensor: &TensorProto| taken.iter().any(|weights| weights.name == name(tensor));
        let is_large = |tensor: &TensorProto| {
            let num_elements = tensor.dims.iter().try_fold(1_i64, |all, dim| all.checked_mul(*dim));
            num_elements.is_none_or(|num| num >= NUM_LARGE as i64) && real_type(tensor).is_some()
        };
        let constants = self.file.model.graph.iter().flat_map(|graph| &graph.initializer);
        constants.filter(|it| is_large(it) && !is_taken(it)).map(|it| name(it).to_owned()).collect()
    }

    /// The values of the constants `taken`.
    ///
    /// # Errors
    /// [`BuildError::Unsupported`] with the names that the model has none of; [`BuildError::Tensor`], [`BuildError::Io`].
    pub fn values(&self, taken: &[Weights]) -> Result<Vec<Given>> {
        let constants = self.file.model.graph.iter().flat_map(|graph| &graph.initializer);
        let by_name: BTreeMap<&str, &TensorProto> = constants.map(|tensor| (name(tensor), tensor)).collect();
        let unknown: Vec<_> = taken.iter().filter(|weights| !by_name.contains_key(&*weights.name)).collect();
        if let [first, ..] = unknown[..] {
            return Err(BuildError::Unsupported(format!(
                "the plan takes {} weights under names that the model has not, the first {:?}: build a plan of its own, without --plan-refit-from",
                unknown.len(),
                first.name
            )));
        }
        taken.iter().map(|weights| self.given(by_name[&*weights.name])).collect()
    }

    /// Every constant of real numbers.
    #[cfg(test)]
    pub fn all(&self) -> Vec<Weights> {
        let constants = self.file.model.graph.iter().flat_map(|graph| &graph.initializer);
        let weights = |tensor: &TensorProto| {
            let num_elements =
                tensor.dims.iter().map(|dim| usize::try_from(*dim).ok()).product::<Option<usize>>()?;
            Some(Weights { name: name(tensor).into(), data_type: real_type(tensor)?, num_elements })
        };
        constants.filter_map(weights).collect()
    }

    fn given(&self, tensor: &TensorProto) -> Result<Given> {
        let stored = self.file.external().stored(tensor)?;
        let data_type = real_type(tensor).ok_or_else(|| BuildError::Tensor {
            name: name(tensor).into(),
            fact: format!("is of {:?}, which no plan is given anew", stored.dtype),
        })?;
        Ok(Given { name: name(tensor).into(), data_type, bytes: stored.bytes })
    }
}

fn name(tensor: &TensorProto) -> &str {
    tensor.name.as_deref().unwrap_or_default()
}

/// Of real numbers.
fn real_type(tensor: &TensorProto) -> Option<DataType> {
    match Dtype::from_number(tensor.data_type.unwrap_or(0)).ok()? {
        Dtype::F32 => Some(DataType::F32),
        Dtype::F16 => Some(DataType::F16),
        Dtype::Bf16 => Some(DataType::Bf16),
        Dtype::F8E4M3 => Some(DataType::F8E4M3),
        Dtype::I4 => Some(DataType::I4),
        Dtype::F4E2M1 => Some(DataType::F4E2M1),
        _ => None,
    }
}
