//! One decoder layer, of the target or of a draft head.

use takt_engine::quant::WeightKind;

use super::{activation::Bounds, graph::Value, mask::Visibility, rotary::Rotation, writer::Writer};
use crate::Result;

/// What a layer is written with.
pub(super) struct LayerInputs<'a> {
    /// `model.layers.3`, `layer`.
    pub prefix: &'a str,
    /// Which cache it has.
    pub layer_idx: usize,
    /// The format of its linear layers.
    pub kind: WeightKind,
    pub rotation: &'a Rotation,
    pub visibility: &'a Visibility,
    /// How large what goes into products may get; `None` where it does not matter.
    pub bounds: Option<Bounds>,
}

impl Writer<'_> {
    /// Attention and feed-forward: `normed` is what Q, K and V read, `residual` what is added to; both 32 bits, `[batch, sequence, …]`.
    pub(super) fn layer(&mut self, layer: &LayerInputs<'_>, normed: &str, residual: &str) -> Result<Value> {
        let residual = self.attention_block(layer, normed, residual)?;
        self.feed_forward(layer, &residual)
    }

    fn attention_block(&mut self, layer: &LayerInputs<'_>, normed: &str, residual: &str) -> Result<Value> {
        let name = |part: &str| format!("{}.self_attn.{part}", layer.prefix);
        let (spec, bounds) = (self.spec, &layer.bounds);
        let x = self.operand(normed, layer.kind, bounds.as_ref().map(|bounds| bounds.attention_input))?;
        let q = self.heads(&name("q"), &x, spec.num_q_heads, Some(layer.rotation))?;
        let q = self.scaled(&name("q.scaled"), &q)?;
        let k = self.heads(&name("k"), &x, spec.num_kv_heads, Some(layer.rotation))?;
        let v = self.heads(&name("v"), &x, spec.num_kv_heads, None)?;
        let [q, k, v] = [q, k, v].map(|heads| self.narrowed(&heads));
        let attended = self.attend(&name("attention"), layer.layer_idx, &q, [&k, &v], layer.visibility)?;
        let rows = self.transpose(&name("rows"), &attended, &[0, 2, 1, 3]);
        let rows = self.reshape(&name("joined"), &rows, &[0, 0, spec.q_dim() as i64])?;
        let x = self.operand_of_compute(&rows, layer.kind, bounds.as_ref().map(|bounds| bounds.attended))?;
        let out = self.linear_f32(&name("o_proj"), &x, spec.o_bias)?;
        Ok(self.graph.op("Add", &format!("{}.after_attention", layer.prefix), &[residual, &out], &[]))
    }

    /// The projection `label`_proj as heads `[batch, heads, sequence, d]`, normed and rotated where that is wanted; 32 bits.
    fn heads(
        &mut self,
        label: &str,
        x: &str,
        num_heads: usize,
        rotation: Option<&Rotation>,
    ) -> Result<Value> {
        let (has_bias, head_dim) = (self.spec.qkv_bias, self.spec.head_dim as i64);
        let projected = self.linear_f32(&format!("{label}_proj"), x, has_bias)?;
        let heads =
            self.reshape(&format!("{label}.heads"), &projected, &[0, 0, num_heads as i64, head_dim])?;
        let Some(rotation) = rotation else {
            return Ok(self.transpose(&format!("{label}.by_head"), &heads, &[0, 2, 1, 3]));
        };
        let heads = match self.spec.qk_norm {
            true => self.rms_norm(&format!("{label}.normed"), &heads, &format!("{label}_norm.weight"))?,
            false => heads,
        };
        let heads = self.transpose(&format!("{label}.by_head"), &heads, &[0, 2, 1, 3]);
        self.rotate(&format!("{label}.rotated"), &heads, rotation)
    }

    /// Queries times the scale of the scores. Left to `Attention`, TensorRT's parser would multiply the keys too: the whole cache, at every step.
    fn scaled(&mut self, label: &str, q: &str) -> Result<Value> {
        let scale = self.graph.float(self.spec.attention_scale)?;
        Ok(self.graph.op("Mul", label, &[q, &scale], &[]))
    }

    fn feed_forward(&mut self, layer: &LayerInputs<'_>, residual: &str) -> Result<Value> {
        let name = |part: &str| format!("{}.mlp.{part}", layer.prefix);
        let (has_bias, bounds) = (self.spec.mlp_bias, &layer.bounds);
        let norm = format!("{}.post_attention_layernorm.weight", layer.prefix);
        let normed = self.rms_norm(&name("normed"), residual, &norm)?;
        let x = self.operand(&normed, layer.kind, bounds.as_ref().map(|bounds| bounds.feed_forward_input))?;
        let gate = self.linear_f32(&name("gate_proj"), &x, has_bias)?;
        let up = self.linear_f32(&name("up_proj"), &x, has_bias)?;
        let open = self.graph.op("Sigmoid", &name("open"), &[&gate], &[]);
        let gate = self.graph.op("Mul", &name("gate"), &[&gate, &open], &[]);
        let inner = self.graph.op("Mul", &name("inner"), &[&gate, &up], &[]);
        let x = self.operand(&inner, layer.kind, bounds.as_ref().map(|bounds| bounds.gated))?;
        let out = self.linear_f32(&name("down_proj"), &x, has_bias)?;
        Ok(self.graph.op("Add", &format!("{}.out", layer.prefix), &[residual, &out], &[]))
    }
}
