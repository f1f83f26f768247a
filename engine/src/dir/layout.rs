//! Which tensors an engine has: derived from the decoder description alone, shared by writer and reader.

use safetensors::Dtype;

use super::Quantization;
use crate::{
    EngineError, Result,
    quant::{INT4_GROUP, NVFP4_BLOCK, WeightKind},
    spec::DecoderSpec,
};

/// Name of the embedding matrix.
pub(super) const EMBEDDING: &str = "model.embed_tokens";
/// Name of the output head.
pub(super) const LM_HEAD: &str = "lm_head";

/// What large tensors begin at a multiple of, in bytes: what a GPU loads at once, so that it can read them where the file is mapped.
pub const TENSOR_ALIGNMENT: usize = 16;

/// What a matrix does in the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Token embedding.
    Embedding,
    /// Query projection.
    Q,
    /// Key projection.
    K,
    /// Value projection.
    V,
    /// Attention output projection.
    O,
    /// Feed-forward gate.
    Gate,
    /// Feed-forward up.
    Up,
    /// Feed-forward down.
    Down,
    /// Output head.
    LmHead,
    /// A draft head's fusion of the target's features.
    Fc,
}

impl Role {
    /// Name in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Q => "attention q",
            Self::K => "attention k",
            Self::V => "attention v",
            Self::O => "attention o",
            Self::Gate => "mlp gate",
            Self::Up => "mlp up",
            Self::Down => "mlp down",
            Self::LmHead => "lm_head",
            Self::Fc => "draft fc",
        }
    }
}

/// A matrix of the model and how it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MatrixPart {
    /// Without `.weight`.
    pub name: String,
    /// What it does.
    pub role: Role,
    /// Output features N.
    pub num_rows: usize,
    /// Input features K.
    pub num_cols: usize,
    /// Format in the file.
    pub kind: WeightKind,
}

/// A norm's weights or a bias, F32.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VectorPart {
    /// Full name.
    pub name: String,
    /// Values.
    pub len: usize,
}

/// Token ids, U32.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokensPart {
    /// Full name.
    pub name: String,
    /// Ids.
    pub len: usize,
}

/// One tensor of the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Two-dimensional, in the engine's number format.
    Matrix(MatrixPart),
    /// One-dimensional, F32.
    Vector(VectorPart),
    /// One-dimensional, U32.
    Tokens(TokensPart),
}

/// One tensor of `weights.safetensors`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor {
    /// Name in the file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// First byte in the file's data section.
    pub offset: usize,
    /// Size in bytes.
    pub byte_len: usize,
}

/// The model's tensors in the order of the forward pass; a head that is the embedding itself is not among them.
#[must_use]
pub fn parts(spec: &DecoderSpec, quantization: &Quantization) -> Vec<Part> {
    let d = spec.hidden_size;
    let mut parts = vec![matrix(EMBEDDING, Role::Embedding, (spec.vocab_size, d), WeightKind::Bf16)];
    for layer_idx in 0..spec.num_layers {
        push_layer(&mut parts, &format!("model.layers.{layer_idx}"), spec, quantization.weights);
    }
    parts.push(vector("model.norm.weight".into(), d));
    if !(spec.tied_embeddings && quantization.lm_head == WeightKind::Bf16) {
        parts.push(matrix(LM_HEAD, Role::LmHead, (spec.vocab_size, d), quantization.lm_head));
    }
    parts
}

/// The tensors of `weights.safetensors` in file order: first those that are a multiple of [`TENSOR_ALIGNMENT`] long, so that each begins at
/// one; within them, and among the others, by falling element size, so that every tensor is aligned to its elements; then in the order of
/// [`parts`].
///
/// # Errors
/// [`EngineError::Unsupported`] when a matrix does not fit its number format; [`EngineError::Capacity`] when sizes overflow.
pub fn expected_tensors(spec: &DecoderSpec, quantization: &Quantization) -> Result<Vec<StoredTensor>> {
    lay_out(&parts(spec, quantization))
}

/// `parts` in file order, as [`expected_tensors`].
///
/// # Errors
/// As [`expected_tensors`].
pub fn lay_out(parts: &[Part]) -> Result<Vec<StoredTensor>> {
    let mut tensors = Vec::new();
    for part in parts {
        tensors.extend(part.stored()?);
    }
    let is_odd = |tensor: &StoredTensor| !tensor.byte_len.is_multiple_of(TENSOR_ALIGNMENT);
    tensors.sort_by_key(|tensor| (is_odd(tensor), std::cmp::Reverse(tensor.dtype.bitsize())));
    let mut offset = 0usize;
    for tensor in &mut tensors {
        tensor.offset = offset;
        offset = offset.checked_add(tensor.byte_len).ok_or_else(|| too_large(&tensor.name))?;
    }
    Ok(tensors)
}

impl Part {
    /// The tensors it is stored as, with their offsets still 0.
    ///
    /// # Errors
    /// See [`expected_tensors`].
    pub fn stored(&self) -> Result<Vec<StoredTensor>> {
        match self {
            Self::Vector(part) => Ok(vec![stored(part.name.clone(), Dtype::F32, vec![part.len])?]),
            Self::Tokens(part) => Ok(vec![stored(part.name.clone(), Dtype::U32, vec![part.len])?]),
            Self::Matrix(part) => part.stored(),
        }
    }
}

impl MatrixPart {
    fn stored(&self) -> Result<Vec<StoredTensor>> {
        let (n, k) = (self.num_rows, self.num_cols);
        self.check_format()?;
        let weight = |dtype, cols| stored(format!("{}.weight", self.name), dtype, vec![n, cols]);
        let scale = |dtype, shape| stored(format!("{}.weight_scale", self.name), dtype, shape);
        Ok(match self.kind {
            WeightKind::Bf16 => vec![weight(Dtype::BF16, k)?],
            WeightKind::Fp8 => vec![weight(Dtype::F8_E4M3, k)?, scale(Dtype::F32, vec![n])?],
            WeightKind::Nvfp4 => vec![
                weight(Dtype::U8, k / 2)?,
                scale(Dtype::F8_E4M3, vec![n, k / NVFP4_BLOCK])?,
                stored(format!("{}.weight_scale_2", self.name), Dtype::F32, Vec::new())?,
            ],
            WeightKind::Int4 => {
                vec![weight(Dtype::U8, k / 2)?, scale(Dtype::F16, vec![n, k.div_ceil(INT4_GROUP)])?]
            }
        })
    }

    fn check_format(&self) -> Result<()> {
        let multiple = self.kind.column_multiple();
        if self.num_cols.is_multiple_of(multiple) {
            return Ok(());
        }
        let (name, kind, k) = (&self.name, self.kind, self.num_cols);
        Err(EngineError::Unsupported(format!(
            "{kind} needs a multiple of {multiple} input features, {name} has {k}: use fp8 or bf16"
        )))
    }
}

fn push_layer(parts: &mut Vec<Part>, layer: &str, spec: &DecoderSpec, kind: WeightKind) {
    let (d, f, q, kv) = (spec.hidden_size, spec.intermediate_size, spec.q_dim(), spec.kv_dim());
    let mut linear = |name: &str, role, (n, k), has_bias| {
        let name = format!("{layer}.{name}");
        parts.push(matrix(&name, role, (n, k), kind));
        if has_bias {
            parts.push(vector(format!("{name}.bias"), n));
        }
    };
    linear("self_attn.q_proj", Role::Q, (q, d), spec.qkv_bias);
    linear("self_attn.k_proj", Role::K, (kv, d), spec.qkv_bias);
    linear("self_attn.v_proj", Role::V, (kv, d), spec.qkv_bias);
    linear("self_attn.o_proj", Role::O, (d, q), spec.o_bias);
    linear("mlp.gate_proj", Role::Gate, (f, d), spec.mlp_bias);
    linear("mlp.up_proj", Role::Up, (f, d), spec.mlp_bias);
    linear("mlp.down_proj", Role::Down, (d, f), spec.mlp_bias);
    parts.push(vector(format!("{layer}.input_layernorm.weight"), d));
    parts.push(vector(format!("{layer}.post_attention_layernorm.weight"), d));
    if spec.qk_norm {
        parts.push(vector(format!("{layer}.self_attn.q_norm.weight"), spec.head_dim));
        parts.push(vector(format!("{layer}.self_attn.k_norm.weight"), spec.head_dim));
    }
}

fn matrix(name: &str, role: Role, (num_rows, num_cols): (usize, usize), kind: WeightKind) -> Part {
    Part::Matrix(MatrixPart { name: name.into(), role, num_rows, num_cols, kind })
}

fn vector(name: String, len: usize) -> Part {
    Part::Vector(VectorPart { name, len })
}

fn stored(name: String, dtype: Dtype, shape: Vec<usize>) -> Result<StoredTensor> {
    let num_values = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    let byte_len =
        num_values.and_then(|n| n.checked_mul(dtype.bitsize() / 8)).ok_or_else(|| too_large(&name))?;
    Ok(StoredTensor { name, dtype, shape, offset: 0, byte_len })
}

fn too_large(name: &str) -> EngineError {
    EngineError::Capacity(format!("the size of tensor {name} overflows"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{kv::KvKind, shapes::decoder_spec};

    #[test]
    fn large_tensors_begin_where_a_gpu_loads_them_and_all_at_their_elements() {
        for weights in [WeightKind::Bf16, WeightKind::Fp8, WeightKind::Nvfp4, WeightKind::Int4] {
            // Scales of single values, an odd number of them, and a head of an odd number of rows.
            let spec = DecoderSpec {
                num_layers: 3,
                vocab_size: 1001,
                tied_embeddings: false,
                ..decoder_spec("llama-3.2-1b").unwrap()
            };
            let quantization = Quantization { weights, lm_head: WeightKind::Fp8, kv: KvKind::Bf16 };
            let tensors = expected_tensors(&spec, &quantization).unwrap();
            let mut end = 0;
            for tensor in &tensors {
                let StoredTensor { name, offset, byte_len, dtype, .. } = tensor;
                assert_eq!(*offset, end, "{name}");
                assert!(offset.is_multiple_of(dtype.bitsize() / 8), "{name} at {offset}");
                let is_large = byte_len.is_multiple_of(TENSOR_ALIGNMENT);
                assert!(!is_large || offset.is_multiple_of(TENSOR_ALIGNMENT), "{name} at {offset}");
                end += byte_len;
            }
            let is_odd = |tensor: &StoredTensor| !tensor.byte_len.is_multiple_of(TENSOR_ALIGNMENT);
            assert!(tensors.iter().any(is_odd), "{weights}: nothing was there to go wrong");
        }
    }
}
