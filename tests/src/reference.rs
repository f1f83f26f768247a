//! The decoder written the slow, obvious way in F64: an oracle for every option of [`DecoderSpec`].
//!
//! Straight from the formulas: full score rows, plain softmax, no batching, no fusing. Keys and values are rounded as the
//! cache format says, so that what remains is the backend's own arithmetic. Shares no code with the backend but reading the
//! quantized weights.

use takt_engine::{
    TokenId,
    kv::KvKind,
    quant::e4m3,
    spec::{DecoderSpec, RopePairing},
    weights::WeightSource,
};

use crate::memory_weights::MemoryWeights;

type Rows = Vec<Vec<f64>>;

/// What keys and values are rounded to.
#[derive(Debug, Clone, Copy)]
pub enum Stored<'a> {
    /// As an engine's own cache: each head's key or value has a scale.
    ByRow(KvKind),
    /// E4M3 with a scale for all keys of a layer, and one for its values.
    ByLayer(&'a [[f32; 2]]),
}

impl From<KvKind> for Stored<'_> {
    fn from(kv: KvKind) -> Self {
        Self::ByRow(kv)
    }
}

impl Stored<'_> {
    /// What storing and reading makes of a head's key (0) or value (1).
    fn round(self, (layer, what): (usize, usize), head: &mut [f64]) {
        match self {
            Self::ByRow(kv) => round(kv, head),
            Self::ByLayer(scales) => {
                let scale = f64::from(scales[layer][what]);
                let code = |value: f64| e4m3::encode((value / scale) as f32);
                head.iter_mut().for_each(|v| *v = f64::from(e4m3::decode(code(*v))) * scale);
            }
        }
    }
}

/// Logits of every position, `[num_tokens][vocab_size]`, over a cache that holds what is `stored`.
///
/// # Panics
/// When a tensor is missing.
#[must_use]
pub fn logits<'s>(
    spec: &DecoderSpec,
    weights: &MemoryWeights,
    stored: impl Into<Stored<'s>>,
    tokens: &[TokenId],
) -> Rows {
    let stored = stored.into();
    let embedding = weights.values("model.embed_tokens");
    let hidden = spec.hidden_size;
    let mut x: Rows = tokens
        .iter()
        .map(|&token| embedding[token as usize * hidden..][..hidden].iter().map(|&v| f64::from(v)).collect())
        .collect();
    for layer in 0..spec.num_layers {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let normed = norm_rows(spec, weights, &name("input_layernorm.weight"), &x);
        let attended = attention(spec, weights, stored, (layer, &normed));
        let delta = linear(weights, &name("self_attn.o_proj"), spec.o_bias, &attended);
        add(&mut x, &delta);
        let normed = norm_rows(spec, weights, &name("post_attention_layernorm.weight"), &x);
        let gate = linear(weights, &name("mlp.gate_proj"), spec.mlp_bias, &normed);
        let up = linear(weights, &name("mlp.up_proj"), spec.mlp_bias, &normed);
        let silu = |g: f64| g / (1.0 + (-g).exp());
        let inner = gate
            .iter()
            .zip(&up)
            .map(|(g, u)| g.iter().zip(u).map(|(&g, &u)| silu(g) * u).collect())
            .collect();
        let delta = linear(weights, &name("mlp.down_proj"), spec.mlp_bias, &inner);
        add(&mut x, &delta);
    }
    linear(weights, "lm_head", false, &norm_rows(spec, weights, "model.norm.weight", &x))
}

fn attention(
    spec: &DecoderSpec,
    weights: &MemoryWeights,
    stored: Stored<'_>,
    (layer, x): (usize, &Rows),
) -> Rows {
    let name = |part: &str| format!("model.layers.{layer}.self_attn.{part}");
    let d = spec.head_dim;
    let prepare = |projection: &str, norm: &str| -> Vec<Rows> {
        let rows = linear(weights, &name(projection), spec.qkv_bias, x);
        let prepare_head = |(position, head): (usize, &[f64])| {
            let head = if spec.qk_norm {
                let weight = weights.vector(&name(norm)).expect("a norm");
                rms_norm(head, &weight, spec.norm_eps)
            } else {
                head.to_vec()
            };
            rotate(spec, position, &head)
        };
        rows.iter()
            .enumerate()
            .map(|(at, row)| row.chunks(d).map(|head| prepare_head((at, head))).collect())
            .collect()
    };
    let (q, mut k) = (prepare("q_proj", "q_norm.weight"), prepare("k_proj", "k_norm.weight"));
    let mut v = linear(weights, &name("v_proj"), spec.qkv_bias, x);
    k.iter_mut().flatten().for_each(|head| stored.round((layer, 0), head));
    v.iter_mut().for_each(|row| row.chunks_mut(d).for_each(|head| stored.round((layer, 1), head)));
    let group = spec.num_q_heads / spec.num_kv_heads;
    (0..x.len())
        .map(|at| {
            let first = spec.window(layer).map_or(0, |window| (at + 1).saturating_sub(window));
            (0..spec.num_q_heads)
                .flat_map(|head| {
                    let g = head / group;
                    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                    let scores: Vec<f64> = (first..=at)
                        .map(|t| dot(&q[at][head], &k[t][g]) * f64::from(spec.attention_scale))
                        .collect();
                    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                    let sum: f64 = weights.iter().sum();
                    let value = |i: usize| {
                        weights
                            .iter()
                            .zip(first..)
                            .map(|(w, t): (&f64, usize)| w / sum * v[t][g * d + i])
                            .sum::<f64>()
                    };
                    (0..d).map(value).collect::<Vec<f64>>()
                })
                .collect()
        })
        .collect()
}

/// What storing and reading a head's key or value makes of it.
fn round(kv: KvKind, head: &mut [f64]) {
    let max = head.iter().fold(0.0f64, |max, v| max.max(v.abs()));
    head.iter_mut().for_each(|v| match kv {
        KvKind::Bf16 => *v = (*v * 32767.0 / max).round_ties_even() * max / 32767.0,
        KvKind::Fp8 => *v = f64::from(e4m3::decode(e4m3::encode((*v * 448.0 / max) as f32))) * max / 448.0,
        KvKind::Int8 => *v = (*v * 127.0 / max).round_ties_even() * max / 127.0,
    });
}

fn rotate(spec: &DecoderSpec, position: usize, head: &[f64]) -> Vec<f64> {
    let rope = &spec.rope;
    let mut out = head.to_vec();
    for (pair, &freq) in rope.inv_freq.iter().enumerate() {
        let angle = f64::from(position as f32 * freq);
        let factor = f64::from(rope.attention_factor);
        let (cos, sin) = (angle.cos() * factor, angle.sin() * factor);
        let (a, b) = match rope.pairing {
            RopePairing::Half => (pair, pair + rope.inv_freq.len()),
            RopePairing::Interleaved => (2 * pair, 2 * pair + 1),
        };
        out[a] = head[a] * cos - head[b] * sin;
        out[b] = head[b] * cos + head[a] * sin;
    }
    out
}

fn linear(weights: &MemoryWeights, name: &str, has_bias: bool, x: &Rows) -> Rows {
    let matrix = weights.values(name);
    let bias = has_bias.then(|| weights.vector(&format!("{name}.bias")).expect("a bias"));
    x.iter()
        .map(|row| {
            let sum = |w: &[f32]| w.iter().zip(row).map(|(&w, x)| f64::from(w) * x).sum::<f64>();
            let bias = |n: usize| bias.as_ref().map_or(0.0, |bias| f64::from(bias[n]));
            matrix.chunks(row.len()).enumerate().map(|(n, w)| sum(w) + bias(n)).collect()
        })
        .collect()
}

fn norm_rows(spec: &DecoderSpec, weights: &MemoryWeights, name: &str, x: &Rows) -> Rows {
    let weight = weights.vector(name).expect("a norm");
    x.iter().map(|row| rms_norm(row, &weight, spec.norm_eps)).collect()
}

fn rms_norm(x: &[f64], weight: &[f32], eps: f32) -> Vec<f64> {
    let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
    x.iter().zip(weight).map(|(v, &w)| v / (mean + f64::from(eps)).sqrt() * f64::from(w)).collect()
}

fn add(x: &mut Rows, delta: &Rows) {
    x.iter_mut().zip(delta).for_each(|(x, delta)| x.iter_mut().zip(delta).for_each(|(x, d)| *x += d));
}
