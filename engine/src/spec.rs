//! The decoder description: what every front end of the builder produces and every backend consumes.

use serde::{Deserialize, Serialize};

use crate::{EngineError, Result};

/// A decoder-only transformer of the Llama family: RMSNorm → attention → residual → RMSNorm → SwiGLU → residual.
///
/// Tensor names in an engine's `weights.safetensors` follow Hugging Face: `model.embed_tokens.weight` `[V, D]`,
/// `model.layers.{i}.{input_layernorm,post_attention_layernorm}.weight` `[D]`,
/// `model.layers.{i}.self_attn.{q,k,v,o}_proj.weight` (`[H·d, D]`, `[G·d, D]`, `[G·d, D]`, `[D, H·d]`),
/// `model.layers.{i}.self_attn.{q,k}_norm.weight` `[d]` when `qk_norm`,
/// `model.layers.{i}.mlp.{gate,up,down}_proj.weight` (`[F, D]`, `[F, D]`, `[D, F]`), `model.norm.weight` `[D]`,
/// `lm_head.weight` `[V, D]` (absent when the head is the bf16 embedding itself). A `.bias` (F32) follows its `.weight` where the flags say so.
/// Norm weights and biases are stored as F32.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecoderSpec {
    /// Where the description came from, for people: `llama`, `mistral`, `qwen2`, `qwen3`, `onnx-decoder`.
    pub family: String,
    /// Decoder layers.
    pub num_layers: usize,
    /// Residual stream width D.
    pub hidden_size: usize,
    /// Width F of the feed-forward layer.
    pub intermediate_size: usize,
    /// Query heads H.
    pub num_q_heads: usize,
    /// Key/value heads G; divides `num_q_heads`.
    pub num_kv_heads: usize,
    /// Width d of one head; independent of `hidden_size / num_q_heads`.
    pub head_dim: usize,
    /// Vocabulary V: rows of the embedding.
    pub vocab_size: usize,
    /// Positions the model was made for, in tokens.
    pub max_context: usize,
    /// Epsilon of every RMSNorm.
    pub norm_eps: f32,
    /// Factor of the attention scores, usually `1/√d`.
    pub attention_scale: f32,
    /// Rotary position embedding.
    pub rope: RopeSpec,
    /// RMSNorm over each head of Q and K before RoPE (Qwen3).
    pub qk_norm: bool,
    /// Q, K and V projections have a bias (Qwen2).
    pub qkv_bias: bool,
    /// The output projection has a bias.
    pub o_bias: bool,
    /// The three feed-forward projections have a bias.
    pub mlp_bias: bool,
    /// The checkpoint shares the embedding with the output head.
    pub tied_embeddings: bool,
    /// Per layer, how many last positions (the own one included) attention sees; empty when every layer sees all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<Option<usize>>,
}

/// Rotary position embedding with its scaling already resolved into frequencies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RopeSpec {
    /// Base before scaling, for people.
    pub theta: f64,
    /// Scaling by name, for people: `default`, `linear`, `llama3`, `yarn`, `onnx-cache`.
    pub scaling: String,
    /// Radians a position turns each pair, after scaling; `rotary_dim / 2` values.
    pub inv_freq: Vec<f32>,
    /// Factor of cos and sin (YaRN's temperature); 1 otherwise.
    pub attention_factor: f32,
    /// Which elements form a pair.
    pub pairing: RopePairing,
}

/// Which two elements of a head rotate together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RopePairing {
    /// `(i, i + rotary_dim/2)`: Hugging Face's `rotate_half`.
    Half,
    /// `(2i, 2i + 1)`.
    Interleaved,
}

impl DecoderSpec {
    /// Columns of Q: `num_q_heads · head_dim`.
    #[must_use]
    pub fn q_dim(&self) -> usize {
        self.num_q_heads * self.head_dim
    }

    /// Columns of K and of V: `num_kv_heads · head_dim`.
    #[must_use]
    pub fn kv_dim(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// How many last positions layer `layer_idx` sees; `None` for all.
    #[must_use]
    pub fn window(&self, layer_idx: usize) -> Option<usize> {
        self.windows.get(layer_idx).copied().flatten()
    }

    /// Checks every count and relation, so that later arithmetic on them cannot overflow or divide by zero.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] naming the first field that does not hold.
    pub fn validate(&self) -> Result<()> {
        let fail = |fact: String| Err(EngineError::Unsupported(fact));
        let counts = [
            ("num_layers", self.num_layers, 1 << 10),
            ("hidden_size", self.hidden_size, 1 << 17),
            ("intermediate_size", self.intermediate_size, 1 << 20),
            ("num_q_heads", self.num_q_heads, 1 << 10),
            ("num_kv_heads", self.num_kv_heads, 1 << 10),
            ("head_dim", self.head_dim, 1 << 10),
            ("vocab_size", self.vocab_size, 1 << 22),
            ("max_context", self.max_context, 1 << 24),
        ];
        for (name, value, limit) in counts {
            if value == 0 || value > limit {
                return fail(format!("{name} is {value}, expected 1..={limit}"));
            }
        }
        if !self.num_q_heads.is_multiple_of(self.num_kv_heads) {
            return fail(format!(
                "{} query heads do not divide among {} key/value heads",
                self.num_q_heads, self.num_kv_heads
            ));
        }
        if self.rope.inv_freq.is_empty() || self.rope.inv_freq.len() * 2 > self.head_dim {
            return fail(format!(
                "{} RoPE frequencies for head_dim {}",
                self.rope.inv_freq.len(),
                self.head_dim
            ));
        }
        let floats = [self.norm_eps, self.attention_scale, self.rope.attention_factor];
        if floats.iter().chain(&self.rope.inv_freq).any(|v| !v.is_finite()) || self.norm_eps < 0.0 {
            return fail("a constant of the decoder description is not finite".into());
        }
        if !self.windows.is_empty() && self.windows.len() != self.num_layers {
            return fail(format!("{} attention windows for {} layers", self.windows.len(), self.num_layers));
        }
        if self.windows.contains(&Some(0)) {
            return fail("an attention window of 0 tokens".into());
        }
        Ok(())
    }
}
