//! A head's shape and habits, and which tensors it has.

use serde::{Deserialize, Serialize};

use crate::{
    EngineError, Result,
    dir::{MatrixPart, Part, Role, VectorPart},
    quant::WeightKind,
    spec::{DecoderSpec, RopePairing, RopeSpec},
};

/// Target layers whose features a head takes.
pub const NUM_CAPTURED: usize = 3;
/// Widest head a backend takes.
const MAX_HEAD_DIM: usize = 1 << 10;
/// Name of the tensor that leads from draft tokens to the target's.
pub const TARGET_TOKENS: &str = "target_tokens";

/// What a draft head is; h is its width, H the target's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DraftSpec {
    /// Width h of the head.
    pub hidden_size: usize,
    /// Width H of the target's residual stream.
    pub target_hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Query heads.
    pub num_q_heads: usize,
    /// Key/value heads.
    pub num_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// The target's vocabulary V.
    pub vocab_size: usize,
    /// Tokens the head can propose, Vd.
    pub draft_vocab_size: usize,
    /// Epsilon of every RMSNorm.
    pub norm_eps: f32,
    /// RoPE base.
    pub rope_theta: f64,
    /// Positions the head was trained for.
    pub max_positions: usize,
    /// The residual is the normed hidden (speculators' `norm_before_residual`).
    pub norm_before_residual: bool,
    /// The output after the last norm is fed back (EAGLE-3.1).
    pub norm_output: bool,
    /// Each captured feature has a norm of its own (EAGLE-3.1).
    pub fc_norm: bool,
    /// It has an embedding of its own; otherwise it uses the target's.
    pub own_embedding: bool,
    /// Inputs of the target's layers it takes as features; the number of layers stands for the last one's output.
    pub captured: [usize; NUM_CAPTURED],
}

impl DraftSpec {
    /// Columns of Q.
    #[must_use]
    pub fn q_dim(&self) -> usize {
        self.num_q_heads * self.head_dim
    }

    /// Columns of K and of V.
    #[must_use]
    pub fn kv_dim(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// Values of one token's features, 3 · H.
    #[must_use]
    pub fn features_len(&self) -> usize {
        NUM_CAPTURED * self.target_hidden_size
    }

    /// Checks every count and relation, and that the head belongs to `target`.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] naming the first fact that does not hold.
    pub fn validate(&self, target: &DecoderSpec) -> Result<()> {
        let fail = |fact: String| Err(EngineError::Unsupported(fact));
        // Before frequencies are made of it.
        if self.head_dim == 0 || self.head_dim > MAX_HEAD_DIM || !self.head_dim.is_multiple_of(2) {
            return fail(format!(
                "a draft head of head_dim {}, expected an even one up to {MAX_HEAD_DIM}",
                self.head_dim
            ));
        }
        self.layer().validate()?;
        let pairs = [
            ("hidden size", self.target_hidden_size, target.hidden_size),
            ("vocabulary", self.vocab_size, target.vocab_size),
        ];
        if let Some((what, own, targets)) = pairs.into_iter().find(|(_, own, targets)| own != targets) {
            return fail(format!(
                "a draft head for a target with a {what} of {own}, this one has {targets}: it belongs to another model"
            ));
        }
        if let Some(layer) = self.captured.iter().find(|&&layer| layer > target.num_layers) {
            return fail(format!(
                "a draft head that takes features at the input of layer {layer}, the target has {} layers: it belongs to another model",
                target.num_layers
            ));
        }
        if self.draft_vocab_size > self.vocab_size {
            let (draft, all) = (self.draft_vocab_size, self.vocab_size);
            return fail(format!("a draft vocabulary of {draft} tokens, the target has {all}"));
        }
        if !self.own_embedding && self.hidden_size != self.target_hidden_size {
            let (own, targets) = (self.hidden_size, self.target_hidden_size);
            return fail(format!(
                "a draft head of width {own} without an embedding, its target's is {targets} wide"
            ));
        }
        Ok(())
    }

    /// Its layer as a decoder of one layer, whose vocabulary are the draft tokens. The embedding stands beside the hidden: projections of Q, K
    /// and V take 2 · h, which the description does not say.
    #[must_use]
    pub fn layer(&self) -> DecoderSpec {
        let half = self.head_dim / 2;
        let exponent = |i: usize| -(i as f64) / half as f64;
        DecoderSpec {
            family: "eagle3".into(),
            num_layers: 1,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_q_heads: self.num_q_heads,
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            vocab_size: self.draft_vocab_size,
            max_context: self.max_positions,
            norm_eps: self.norm_eps,
            attention_scale: 1.0 / (self.head_dim as f32).sqrt(),
            rope: RopeSpec {
                theta: self.rope_theta,
                scaling: "default".into(),
                inv_freq: (0..half).map(|i| self.rope_theta.powf(exponent(i)) as f32).collect(),
                attention_factor: 1.0,
                pairing: RopePairing::Half,
            },
            qk_norm: false,
            qkv_bias: false,
            o_bias: false,
            mlp_bias: false,
            tied_embeddings: false,
            windows: Vec::new(),
        }
    }

    /// Its tensors in the order of the forward pass: linear layers as `weights`, the output head as `lm_head`, an own embedding in bf16, norms
    /// in F32. [`TARGET_TOKENS`] is not among them.
    #[must_use]
    pub fn parts(&self, weights: WeightKind, lm_head: WeightKind) -> Vec<Part> {
        let (h, f, q, kv) = (self.hidden_size, self.intermediate_size, self.q_dim(), self.kv_dim());
        let matrix = |name: &str, role, (num_rows, num_cols), kind| {
            Part::Matrix(MatrixPart { name: name.into(), role, num_rows, num_cols, kind })
        };
        let vector = |name: String, len| Part::Vector(VectorPart { name, len });
        let mut parts = Vec::new();
        if self.own_embedding {
            parts.push(matrix("embed_tokens", Role::Embedding, (self.vocab_size, h), WeightKind::Bf16));
        }
        if self.fc_norm {
            let norm = |i| vector(format!("fc_norm.{i}.weight"), self.target_hidden_size);
            parts.extend((0..NUM_CAPTURED).map(norm));
        }
        parts.extend([
            matrix("fc", Role::Fc, (h, self.features_len()), weights),
            vector("layer.input_layernorm.weight".into(), h),
            vector("layer.hidden_norm.weight".into(), h),
            matrix("layer.self_attn.q_proj", Role::Q, (q, 2 * h), weights),
            matrix("layer.self_attn.k_proj", Role::K, (kv, 2 * h), weights),
            matrix("layer.self_attn.v_proj", Role::V, (kv, 2 * h), weights),
            matrix("layer.self_attn.o_proj", Role::O, (h, q), weights),
            vector("layer.post_attention_layernorm.weight".into(), h),
            matrix("layer.mlp.gate_proj", Role::Gate, (f, h), weights),
            matrix("layer.mlp.up_proj", Role::Up, (f, h), weights),
            matrix("layer.mlp.down_proj", Role::Down, (h, f), weights),
            vector("norm.weight".into(), h),
            matrix("lm_head", Role::LmHead, (self.draft_vocab_size, h), lm_head),
        ]);
        parts
    }
}
