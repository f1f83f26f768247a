//! A draft head's weights in memory, packed for the kernels.

use crate::{
    EngineError, Result, TokenId,
    backend::cpu::{
        aligned::AlignedVec,
        model::{Layer, check_shape, copied, fused_of, vector_of},
        packed::PackedMatrix,
    },
    draft::{DraftSource, DraftSpec, NUM_CAPTURED, target_tokens},
    quant::{MatrixData, WeightKind},
};

/// All weights of a head; it owns its memory.
#[derive(Debug)]
pub(super) struct DraftModel {
    /// `[h, 3 · H]`.
    pub fc: PackedMatrix,
    /// A norm for each captured feature `[H]`; empty without.
    pub fc_norms: Vec<Vec<f32>>,
    /// Norm of what stands beside the embedding `[h]`; the embedding's own is the layer's `input_norm`.
    pub hidden_norm: Vec<f32>,
    pub layer: Layer,
    /// K and V of the layer alone `[2 · G · d, 2 · h]`: all that a row that is read needs.
    pub kv: PackedMatrix,
    /// `[h]`.
    pub norm: Vec<f32>,
    /// `[Vd, h]`.
    pub lm_head: PackedMatrix,
    /// The target's token of every draft token.
    pub targets: Vec<TokenId>,
    /// Its own embedding, bf16 `[V, h]`.
    pub embedding: Option<AlignedVec<u8>>,
}

impl DraftModel {
    pub fn load(spec: &DraftSpec, source: &dyn DraftSource) -> Result<Self> {
        let (h, f) = (spec.hidden_size, spec.intermediate_size);
        let norm = |name: &str, len| vector_of(name, source.vector(name)?, len);
        let packed = |parts: &[(&str, usize)], num_cols| {
            fused_of(parts, num_cols, |name| source.matrix(name), source.watch())
        };
        let qkv = [
            ("layer.self_attn.q_proj", spec.q_dim()),
            ("layer.self_attn.k_proj", spec.kv_dim()),
            ("layer.self_attn.v_proj", spec.kv_dim()),
        ];
        let layer = Layer {
            input_norm: norm("layer.input_layernorm.weight", h)?,
            qkv: packed(&qkv, 2 * h)?,
            qkv_bias: Vec::new(),
            qk_norm: None,
            o: packed(&[("layer.self_attn.o_proj", h)], spec.q_dim())?,
            o_bias: Vec::new(),
            post_attention_norm: norm("layer.post_attention_layernorm.weight", h)?,
            gate_up: packed(&[("layer.mlp.gate_proj", f), ("layer.mlp.up_proj", f)], h)?,
            gate_up_bias: Vec::new(),
            down: packed(&[("layer.mlp.down_proj", h)], f)?,
            down_bias: Vec::new(),
        };
        let num_norms = if spec.fc_norm { NUM_CAPTURED } else { 0 };
        let fc_norm = |i| norm(&format!("fc_norm.{i}.weight"), spec.target_hidden_size);
        Ok(Self {
            fc: packed(&[("fc", h)], spec.features_len())?,
            fc_norms: (0..num_norms).map(fc_norm).collect::<Result<_>>()?,
            hidden_norm: norm("layer.hidden_norm.weight", h)?,
            layer,
            kv: packed(&qkv[1..], 2 * h)?,
            norm: norm("norm.weight", h)?,
            lm_head: packed(&[("lm_head", spec.draft_vocab_size)], h)?,
            targets: target_tokens(spec, source)?,
            embedding: spec.own_embedding.then(|| own_embedding(spec, source)).transpose()?,
        })
    }

    /// How its linear layers are stored.
    pub fn weight_kind(&self) -> WeightKind {
        self.layer.down.kind()
    }
}

fn own_embedding(spec: &DraftSpec, source: &dyn DraftSource) -> Result<AlignedVec<u8>> {
    let view = source.matrix("embed_tokens")?;
    check_shape("embed_tokens", &view, spec.vocab_size, spec.hidden_size)?;
    match view.data {
        MatrixData::Bf16(bytes) => Ok(copied(bytes, source.watch())),
        _ => {
            Err(EngineError::Unsupported(format!("a draft head's {} embedding, expected bf16", view.kind())))
        }
    }
}
