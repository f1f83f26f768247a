//! Models in memory: any spec, random or given F32 weights, quantized tensor by tensor.

use std::collections::HashMap;

use takt_engine::{
    EngineError, Result,
    quant::{MatrixView, QuantizedMatrix, WeightKind, quantize},
    spec::{DecoderSpec, RopePairing},
    weights::WeightSource,
};

/// A decoder's tensors in memory.
#[derive(Debug)]
pub struct MemoryWeights {
    matrices: HashMap<String, QuantizedMatrix>,
    vectors: HashMap<String, Vec<f32>>,
}

impl MemoryWeights {
    /// Takes every tensor `spec` needs from `tensor(name)` (row-major F32), linear layers quantized to `weights`,
    /// the head to `lm_head`, the embedding to bf16.
    ///
    /// # Panics
    /// When a tensor cannot be quantized.
    #[must_use]
    pub fn new(
        spec: &DecoderSpec,
        weights: WeightKind,
        lm_head: WeightKind,
        mut tensor: impl FnMut(&str, usize) -> Vec<f32>,
    ) -> Self {
        let mut all = Self { matrices: HashMap::new(), vectors: HashMap::new() };
        for (name, num_rows, num_cols) in linears(spec) {
            let values = tensor(&format!("{name}.weight"), num_rows * num_cols);
            let matrix = quantize(weights, (num_rows, num_cols), &values, 1).expect("quantizable");
            all.matrices.insert(name, matrix);
        }
        for (name, len) in vectors(spec) {
            all.vectors.insert(name.clone(), tensor(&name, len));
        }
        let (vocab_size, hidden) = (spec.vocab_size, spec.hidden_size);
        let embedding = tensor("model.embed_tokens.weight", vocab_size * hidden);
        let head = if spec.tied_embeddings {
            embedding.clone()
        } else {
            tensor("lm_head.weight", vocab_size * hidden)
        };
        for (name, kind, values) in
            [("model.embed_tokens", WeightKind::Bf16, embedding), ("lm_head", lm_head, head)]
        {
            let matrix = quantize(kind, (vocab_size, hidden), &values, 1).expect("quantizable");
            all.matrices.insert(name.into(), matrix);
        }
        all
    }

    /// Random weights of a trained model's magnitudes, the same for the same `seed`.
    #[must_use]
    pub fn random(spec: &DecoderSpec, weights: WeightKind, lm_head: WeightKind, seed: u64) -> Self {
        let mut state = seed;
        Self::new(spec, weights, lm_head, |name, len| {
            let (offset, spread) = match name {
                name if name.contains("norm") => (1.0, 0.3),
                name if name.ends_with(".bias") => (0.0, 0.4),
                _ => (0.0, 1.7 / (spec.hidden_size as f32).sqrt()),
            };
            (0..len).map(|_| offset + spread * uniform(&mut state)).collect()
        })
    }

    /// The dequantized values of linear layer `name`, row-major.
    ///
    /// # Panics
    /// When there is no such matrix.
    #[must_use]
    pub fn values(&self, name: &str) -> Vec<f32> {
        let view = self.matrices[name].view();
        let mut values = vec![0.0; view.num_rows * view.num_cols];
        values
            .chunks_exact_mut(view.num_cols)
            .enumerate()
            .for_each(|(row, out)| view.dequantize_row(row, out));
        values
    }
}

impl WeightSource for MemoryWeights {
    fn matrix(&self, name: &str) -> Result<MatrixView<'_>> {
        self.matrices.get(name).map(QuantizedMatrix::view).ok_or_else(|| missing(name))
    }

    fn vector(&self, name: &str) -> Result<Vec<f32>> {
        self.vectors.get(name).cloned().ok_or_else(|| missing(name))
    }

    fn embedding(&self) -> Result<MatrixView<'_>> {
        self.matrix("model.embed_tokens")
    }

    fn lm_head(&self) -> Result<MatrixView<'_>> {
        self.matrix("lm_head")
    }
}

fn missing(name: &str) -> EngineError {
    EngineError::Tensor { name: name.into(), fact: "not in memory".into() }
}

/// Uniform in [-1, 1) (Numerical Recipes' 64-bit LCG).
pub fn uniform(state: &mut u64) -> f32 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

fn linears(spec: &DecoderSpec) -> Vec<(String, usize, usize)> {
    let (hidden, inner, q, kv) = (spec.hidden_size, spec.intermediate_size, spec.q_dim(), spec.kv_dim());
    let parts = [
        ("self_attn.q_proj", q, hidden),
        ("self_attn.k_proj", kv, hidden),
        ("self_attn.v_proj", kv, hidden),
        ("self_attn.o_proj", hidden, q),
        ("mlp.gate_proj", inner, hidden),
        ("mlp.up_proj", inner, hidden),
        ("mlp.down_proj", hidden, inner),
    ];
    let of =
        |layer: usize| parts.map(|(part, rows, cols)| (format!("model.layers.{layer}.{part}"), rows, cols));
    (0..spec.num_layers).flat_map(of).collect()
}

fn vectors(spec: &DecoderSpec) -> Vec<(String, usize)> {
    let mut all = vec![("model.norm.weight".to_string(), spec.hidden_size)];
    for layer in 0..spec.num_layers {
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            all.push((format!("model.layers.{layer}.{norm}.weight"), spec.hidden_size));
        }
        for norm in ["q_norm", "k_norm"].iter().filter(|_| spec.qk_norm) {
            all.push((format!("model.layers.{layer}.self_attn.{norm}.weight"), spec.head_dim));
        }
    }
    let has_bias = |name: &str| match name.rsplit('.').next() {
        Some("q_proj" | "k_proj" | "v_proj") => spec.qkv_bias,
        Some("o_proj") => spec.o_bias,
        _ => spec.mlp_bias,
    };
    all.extend(
        linears(spec)
            .into_iter()
            .filter(|l| has_bias(&l.0))
            .map(|(name, rows, _)| (format!("{name}.bias"), rows)),
    );
    all
}

/// A small decoder with every option at its simplest, to be varied by tests.
///
/// # Panics
/// Never: the shape it starts from is a known one.
#[must_use]
pub fn small_spec() -> DecoderSpec {
    let mut spec = takt_engine::shapes::decoder_spec("llama-3.2-1b").expect("a known shape");
    spec.num_layers = 3;
    (spec.hidden_size, spec.intermediate_size, spec.vocab_size) = (64, 160, 96);
    (spec.num_q_heads, spec.num_kv_heads, spec.head_dim) = (4, 2, 32);
    spec.max_context = 256;
    spec.attention_scale = 1.0 / 32f32.sqrt();
    spec.rope = takt_engine::shapes::unscaled_rope(1e4, 32);
    spec.rope.pairing = RopePairing::Half;
    spec.tied_embeddings = false;
    spec
}
