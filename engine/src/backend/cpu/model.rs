//! A model's weights in memory, packed for the kernels.

use super::{
    aligned::AlignedVec,
    packed::{PackedMatrix, RELEASED_BYTES},
};
use crate::{
    EngineError, Result, TokenId,
    quant::{MatrixData, MatrixView, WeightKind},
    spec::DecoderSpec,
    weights::{ReadWatch, WeightSource},
};

/// Bytes copied at a time, so that they are still in the cache after whatever is done before they are read.
const READ_BYTES: usize = 128 << 10;

/// Weights of a step that a last-level cache may hold until the next: twice what a desktop's has. A model that is between the cache's size and this only
/// loses a hint.
const CACHED_BYTES: u64 = 64 << 20;

/// All weights of a decoder. Owns its memory: the source may be closed (unmapped) after loading.
#[derive(Debug)]
pub(super) struct Model {
    /// `None` when it is the output head, whose packed rows then serve for both.
    pub(super) embedding: Option<Embedding>,
    pub layers: Vec<Layer>,
    /// `[D]`.
    pub final_norm: Vec<f32>,
    /// `[V, D]`.
    pub lm_head: PackedMatrix,
}

/// One decoder layer. Biases are empty where the model has none.
#[derive(Debug)]
pub(super) struct Layer {
    /// `[D]`.
    pub input_norm: Vec<f32>,
    /// Q, K, V fused: `[(H + 2·G) · d, D]`.
    pub qkv: PackedMatrix,
    /// `[(H + 2·G) · d]`.
    pub qkv_bias: Vec<f32>,
    /// Norm weights of Q and K, `[d]` each.
    pub qk_norm: Option<(Vec<f32>, Vec<f32>)>,
    /// `[D, H · d]`.
    pub o: PackedMatrix,
    /// `[D]`.
    pub o_bias: Vec<f32>,
    /// `[D]`.
    pub post_attention_norm: Vec<f32>,
    /// Gate and up fused: `[2·F, D]`.
    pub gate_up: PackedMatrix,
    /// `[2·F]`.
    pub gate_up_bias: Vec<f32>,
    /// `[D, F]`.
    pub down: PackedMatrix,
    /// `[D]`.
    pub down_bias: Vec<f32>,
}

impl Model {
    /// Writes the embedding of `token` (in the vocabulary) to `out` `[D]`.
    pub(super) fn embed(&self, token: TokenId, out: &mut [f32]) {
        match &self.embedding {
            Some(embedding) => embedding.row(token).dequantize_row(0, out),
            None => self.lm_head.read_bf16_row(token as usize, out),
        }
    }

    /// How the layers' matrices are stored.
    pub(super) fn weight_kind(&self) -> WeightKind {
        self.layers.first().map_or(self.lm_head.kind(), |layer| layer.down.kind())
    }

    /// Bytes of packed weights one decode step reads (of the embedding only one row).
    pub(super) fn bytes_per_step(&self) -> u64 {
        let linears =
            self.layers.iter().flat_map(|layer| [&layer.qkv, &layer.o, &layer.gate_up, &layer.down]);
        linears.chain([&self.lm_head]).map(|matrix| matrix.num_bytes() as u64).sum()
    }

    /// Tells the matrices whether they come from memory in each step.
    pub(super) fn note_streaming(&mut self) {
        let is_streamed = self.bytes_per_step() > CACHED_BYTES;
        let linears = self
            .layers
            .iter_mut()
            .flat_map(|layer| [&mut layer.qkv, &mut layer.o, &mut layer.gate_up, &mut layer.down]);
        linears.chain([&mut self.lm_head]).for_each(|matrix| matrix.is_streamed = is_streamed);
    }
}

impl Layer {
    pub(super) fn load(spec: &DecoderSpec, source: &dyn WeightSource, layer_idx: usize) -> Result<Self> {
        let (hidden, inner) = (spec.hidden_size, spec.intermediate_size);
        let name = |part: &str| format!("model.layers.{layer_idx}.{part}");
        let qkv = [("q_proj", spec.q_dim()), ("k_proj", spec.kv_dim()), ("v_proj", spec.kv_dim())]
            .map(|(part, num_rows)| (name(&format!("self_attn.{part}")), num_rows));
        let o = [(name("self_attn.o_proj"), hidden)];
        let gate_up = ["gate_proj", "up_proj"].map(|part| (name(&format!("mlp.{part}")), inner));
        let down = [(name("mlp.down_proj"), hidden)];
        let qk_norm = if spec.qk_norm {
            let q_norm = vector(source, &name("self_attn.q_norm.weight"), spec.head_dim)?;
            Some((q_norm, vector(source, &name("self_attn.k_norm.weight"), spec.head_dim)?))
        } else {
            None
        };
        Ok(Self {
            input_norm: vector(source, &name("input_layernorm.weight"), hidden)?,
            qkv: fused(source, &qkv, hidden)?,
            qkv_bias: fused_bias(source, &qkv, spec.qkv_bias)?,
            qk_norm,
            o: fused(source, &o, spec.q_dim())?,
            o_bias: fused_bias(source, &o, spec.o_bias)?,
            post_attention_norm: vector(source, &name("post_attention_layernorm.weight"), hidden)?,
            gate_up: fused(source, &gate_up, hidden)?,
            gate_up_bias: fused_bias(source, &gate_up, spec.mlp_bias)?,
            down: fused(source, &down, inner)?,
            down_bias: fused_bias(source, &down, spec.mlp_bias)?,
        })
    }
}

/// The embedding, bf16 `[V, D]`: copied, so that no step can fault on the mapped file.
#[derive(Debug)]
pub(super) struct Embedding {
    rows: AlignedVec<u8>,
    hidden_size: usize,
}

impl Embedding {
    pub(super) fn load(spec: &DecoderSpec, source: &dyn WeightSource) -> Result<Self> {
        let rows = copied(bf16_rows(spec, &source.embedding()?)?, source.watch());
        Ok(Self { rows, hidden_size: spec.hidden_size })
    }

    fn row(&self, token: TokenId) -> MatrixView<'_> {
        let width = self.hidden_size * 2;
        let at = token as usize * width;
        MatrixView {
            num_rows: 1,
            num_cols: self.hidden_size,
            data: MatrixData::Bf16(&self.rows.as_slice()[at..at + width]),
        }
    }
}

/// The embedding's bytes, checked.
pub(super) fn bf16_rows<'a>(spec: &DecoderSpec, view: &MatrixView<'a>) -> Result<&'a [u8]> {
    check_shape("model.embed_tokens", view, spec.vocab_size, spec.hidden_size)?;
    let MatrixData::Bf16(bytes) = view.data else {
        return Err(tensor_error("model.embed_tokens", format!("{} embedding, expected bf16", view.kind())));
    };
    let num_bytes = spec.vocab_size * spec.hidden_size * 2;
    bytes.get(..num_bytes).ok_or_else(|| {
        tensor_error("model.embed_tokens", format!("{} bytes, expected {num_bytes}", bytes.len()))
    })
}

/// A copy of `bytes`, of which `watch` hears piece by piece.
pub(super) fn copied(bytes: &[u8], watch: &dyn ReadWatch) -> AlignedVec<u8> {
    let mut copy = AlignedVec::zeroed(bytes.len());
    for (to, from) in copy.as_mut_slice().chunks_mut(RELEASED_BYTES).zip(bytes.chunks(RELEASED_BYTES)) {
        for (to, from) in to.chunks_mut(READ_BYTES).zip(from.chunks(READ_BYTES)) {
            watch.before_read(from);
            to.copy_from_slice(from);
        }
        watch.after_read(from);
    }
    copy
}

/// Matrices `(name, num_rows)` of `num_cols` columns as one packed matrix.
fn fused(source: &dyn WeightSource, parts: &[(String, usize)], num_cols: usize) -> Result<PackedMatrix> {
    fused_of(parts, num_cols, |name| source.matrix(name), source.watch())
}

/// [`fused`], of whatever gives a matrix by its name.
pub(super) fn fused_of<'a, N: AsRef<str>>(
    parts: &[(N, usize)],
    num_cols: usize,
    matrix: impl Fn(&str) -> Result<MatrixView<'a>>,
    watch: &dyn ReadWatch,
) -> Result<PackedMatrix> {
    let views = parts
        .iter()
        .map(|(name, num_rows)| {
            let name = name.as_ref();
            let view = matrix(name)?;
            check_shape(name, &view, *num_rows, num_cols)?;
            Ok(view)
        })
        .collect::<Result<Vec<_>>>()?;
    PackedMatrix::pack_watched(&views, watch)
}

/// The biases of `parts` one after another; empty when the model has none.
fn fused_bias(source: &dyn WeightSource, parts: &[(String, usize)], has_bias: bool) -> Result<Vec<f32>> {
    let mut all = Vec::new();
    for (name, num_rows) in parts.iter().filter(|_| has_bias) {
        all.extend(vector(source, &format!("{name}.bias"), *num_rows)?);
    }
    Ok(all)
}

pub(super) fn vector(source: &dyn WeightSource, name: &str, len: usize) -> Result<Vec<f32>> {
    vector_of(name, source.vector(name)?, len)
}

/// `values`, which must be `len`.
pub(super) fn vector_of(name: &str, values: Vec<f32>, len: usize) -> Result<Vec<f32>> {
    if values.len() != len {
        return Err(tensor_error(name, format!("{} values, expected {len}", values.len())));
    }
    Ok(values)
}

pub(super) fn check_shape(name: &str, view: &MatrixView<'_>, num_rows: usize, num_cols: usize) -> Result<()> {
    if (view.num_rows, view.num_cols) != (num_rows, num_cols) {
        let fact = format!("shape [{}, {}], expected [{num_rows}, {num_cols}]", view.num_rows, view.num_cols);
        return Err(tensor_error(name, fact));
    }
    Ok(())
}

pub(super) fn tensor_error(name: &str, fact: String) -> EngineError {
    EngineError::Tensor { name: name.into(), fact }
}
