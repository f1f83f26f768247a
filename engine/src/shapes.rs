//! Known model shapes with random weights, for measuring speed without a checkpoint.

use crate::{
    EngineError, Result,
    quant::{INT4_GROUP, MatrixData, MatrixView, NVFP4_BLOCK, WeightKind},
    spec::{DecoderSpec, RopePairing, RopeSpec},
    weights::WeightSource,
};

/// Names [`decoder_spec`] knows.
pub const NAMES: [&str; 6] =
    ["qwen3-0.6b", "qwen3-1.7b", "qwen3-4b", "qwen3-8b", "llama-3.2-1b", "llama-3.1-8b"];

/// The decoder of a published model by name. RoPE frequencies are unscaled: speed does not depend on them.
///
/// # Errors
/// [`EngineError::Input`] listing the known names.
pub fn decoder_spec(name: &str) -> Result<DecoderSpec> {
    match name {
        "qwen3-0.6b" => Ok(qwen3(28, 1024, 3072, 16, true)),
        "qwen3-1.7b" => Ok(qwen3(28, 2048, 6144, 16, true)),
        "qwen3-4b" => Ok(qwen3(36, 2560, 9728, 32, true)),
        "qwen3-8b" => Ok(qwen3(36, 4096, 12_288, 32, false)),
        "llama-3.2-1b" => Ok(llama3(16, 2048, 8192, 64, true)),
        "llama-3.1-8b" => Ok(llama3(32, 4096, 14_336, 128, false)),
        _ => Err(EngineError::Input(format!("unknown shape {name:?}: expected one of {}", NAMES.join(", ")))),
    }
}

fn qwen3(
    num_layers: usize,
    hidden: usize,
    intermediate: usize,
    num_q_heads: usize,
    tied: bool,
) -> DecoderSpec {
    DecoderSpec {
        family: "qwen3".into(),
        num_layers,
        hidden_size: hidden,
        intermediate_size: intermediate,
        num_q_heads,
        num_kv_heads: 8,
        head_dim: 128,
        vocab_size: 151_936,
        max_context: 40_960,
        norm_eps: 1e-6,
        attention_scale: 1.0 / 128f32.sqrt(),
        rope: unscaled_rope(1e6, 128),
        qk_norm: true,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        tied_embeddings: tied,
        windows: Vec::new(),
    }
}

fn llama3(num_layers: usize, hidden: usize, intermediate: usize, head_dim: usize, tied: bool) -> DecoderSpec {
    DecoderSpec {
        family: "llama".into(),
        num_q_heads: 32,
        head_dim,
        vocab_size: 128_256,
        max_context: 131_072,
        norm_eps: 1e-5,
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        rope: unscaled_rope(5e5, head_dim),
        qk_norm: false,
        ..qwen3(num_layers, hidden, intermediate, 32, tied)
    }
}

/// RoPE without scaling over the whole head.
#[must_use]
pub fn unscaled_rope(theta: f64, head_dim: usize) -> RopeSpec {
    let exponent = |pair: usize| (2 * pair) as f64 / head_dim as f64;
    RopeSpec {
        theta,
        scaling: "default".into(),
        inv_freq: (0..head_dim / 2).map(|pair| (1.0 / theta.powf(exponent(pair))) as f32).collect(),
        attention_factor: 1.0,
        pairing: RopePairing::Half,
    }
}

/// Random weights of any shape. Matrices of one kind share one buffer as long as the largest of them: backends pack their own
/// copies, so each matrix still has its own memory when it is timed. Values are finite and of the usual magnitude.
#[derive(Debug)]
pub struct RandomWeights {
    spec: DecoderSpec,
    weights: WeightKind,
    lm_head: WeightKind,
    layers: Buffers,
    head: Buffers,
    embedding: Buffers,
}

/// Bytes enough for the largest matrix of one kind.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    codes: Vec<u8>,
    scales: Vec<u8>,
}

impl RandomWeights {
    /// Random weights for `spec`, the same for the same `seed`.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] for an invalid decoder or a width the format does not divide.
    pub fn new(spec: &DecoderSpec, weights: WeightKind, lm_head: WeightKind, seed: u64) -> Result<Self> {
        spec.validate()?;
        let (hidden, inner) = (spec.hidden_size, spec.intermediate_size);
        for width in [hidden, inner, spec.q_dim()] {
            if weights == WeightKind::Nvfp4 && !width.is_multiple_of(NVFP4_BLOCK) || !width.is_multiple_of(2)
            {
                return Err(EngineError::Unsupported(format!("{weights} weights with {width} columns")));
            }
        }
        let shapes = [
            (spec.q_dim(), hidden),
            (spec.kv_dim(), hidden),
            (hidden, spec.q_dim()),
            (inner, hidden),
            (hidden, inner),
        ];
        let vocab = [(spec.vocab_size, hidden)];
        let shares_embedding = spec.tied_embeddings && lm_head == WeightKind::Bf16;
        Ok(Self {
            weights,
            lm_head,
            layers: Buffers::random(weights, &shapes, seed),
            head: if shares_embedding {
                Buffers::default()
            } else {
                Buffers::random(lm_head, &vocab, seed + 1)
            },
            embedding: Buffers::random(WeightKind::Bf16, &vocab, seed + 2),
            spec: spec.clone(),
        })
    }

    /// `[num_rows, num_cols]` of a linear layer by the last part of its name.
    fn shape(&self, name: &str) -> Option<(usize, usize)> {
        let spec = &self.spec;
        match name.rsplit('.').next()? {
            "q_proj" => Some((spec.q_dim(), spec.hidden_size)),
            "k_proj" | "v_proj" => Some((spec.kv_dim(), spec.hidden_size)),
            "o_proj" => Some((spec.hidden_size, spec.q_dim())),
            "gate_proj" | "up_proj" => Some((spec.intermediate_size, spec.hidden_size)),
            "down_proj" => Some((spec.hidden_size, spec.intermediate_size)),
            _ => None,
        }
    }
}

impl WeightSource for RandomWeights {
    fn matrix(&self, name: &str) -> Result<MatrixView<'_>> {
        let (num_rows, num_cols) = self.shape(name).ok_or_else(|| unknown(name))?;
        Ok(self.layers.view(self.weights, num_rows, num_cols))
    }

    fn vector(&self, name: &str) -> Result<Vec<f32>> {
        if let Some(linear) = name.strip_suffix(".bias") {
            let (num_rows, _) = self.shape(linear).ok_or_else(|| unknown(name))?;
            return Ok(vec![0.0; num_rows]);
        }
        let per_head = name.ends_with("q_norm.weight") || name.ends_with("k_norm.weight");
        Ok(vec![1.0; if per_head { self.spec.head_dim } else { self.spec.hidden_size }])
    }

    fn embedding(&self) -> Result<MatrixView<'_>> {
        Ok(self.embedding.view(WeightKind::Bf16, self.spec.vocab_size, self.spec.hidden_size))
    }

    fn lm_head(&self) -> Result<MatrixView<'_>> {
        let buffers = if self.head.codes.is_empty() { &self.embedding } else { &self.head };
        Ok(buffers.view(self.lm_head, self.spec.vocab_size, self.spec.hidden_size))
    }
}

fn unknown(name: &str) -> EngineError {
    EngineError::Tensor { name: name.into(), fact: "no such tensor in a decoder".into() }
}

/// Bytes of codes and of scales of one matrix.
fn sizes(kind: WeightKind, num_rows: usize, num_cols: usize) -> (usize, usize) {
    match kind {
        WeightKind::Bf16 => (num_rows * num_cols * 2, 0),
        WeightKind::Fp8 => (num_rows * num_cols, num_rows * 4),
        WeightKind::Nvfp4 => (num_rows * num_cols / 2, num_rows * num_cols / NVFP4_BLOCK),
        WeightKind::Int4 => (num_rows * num_cols / 2, num_rows * num_cols.div_ceil(INT4_GROUP) * 2),
    }
}

impl Buffers {
    /// Random numbers of `kind` for the largest of `shapes`, finite and of the usual magnitude.
    pub(crate) fn random(kind: WeightKind, shapes: &[(usize, usize)], seed: u64) -> Self {
        let of = |&(rows, cols): &(usize, usize)| sizes(kind, rows, cols);
        let num_codes = shapes.iter().map(|shape| of(shape).0).max().unwrap_or(0);
        let num_scales = shapes.iter().map(|shape| of(shape).1).max().unwrap_or(0);
        let mut codes = random_bytes(num_codes, seed);
        let mut scales = random_bytes(num_scales, seed ^ 0xa5a5);
        match kind {
            // Random sign and mantissa, magnitude 2^-6..2^-5.
            WeightKind::Bf16 => codes.iter_mut().enumerate().for_each(|(idx, byte)| {
                *byte = if idx % 2 == 0 { *byte | 0x80 } else { *byte & 0x80 | 0x3c };
            }),
            // Random sign and mantissa, magnitude 1..2, times 0.02.
            WeightKind::Fp8 => {
                codes.iter_mut().for_each(|byte| *byte = *byte & 0x87 | 0x38);
                scales.chunks_exact_mut(4).for_each(|raw| raw.copy_from_slice(&0.02f32.to_le_bytes()));
            }
            WeightKind::Nvfp4 => scales.iter_mut().for_each(|byte| *byte = *byte & 0x07 | 0x38),
            WeightKind::Int4 => {
                let scale = half::f16::from_f32(0.004).to_le_bytes();
                scales.chunks_exact_mut(2).for_each(|raw| raw.copy_from_slice(&scale));
            }
        }
        Self { codes, scales }
    }

    /// The first of them as a matrix; `kind` and shape are among those it was made for.
    pub(crate) fn view(&self, kind: WeightKind, num_rows: usize, num_cols: usize) -> MatrixView<'_> {
        let (num_codes, num_scales) = sizes(kind, num_rows, num_cols);
        let (codes, scales) = (&self.codes[..num_codes], &self.scales[..num_scales]);
        let data = match kind {
            WeightKind::Bf16 => MatrixData::Bf16(codes),
            WeightKind::Fp8 => MatrixData::Fp8 { codes, scales },
            WeightKind::Nvfp4 => MatrixData::Nvfp4 { packed: codes, scales, scale_2: 0.005 },
            WeightKind::Int4 => MatrixData::Int4 { packed: codes, scales },
        };
        MatrixView { num_rows, num_cols, data }
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014) as bytes.
fn random_bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(len.next_multiple_of(8));
    while bytes.len() < len {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_shape_is_valid() {
        for name in NAMES {
            decoder_spec(name).unwrap().validate().unwrap();
        }
        assert!(decoder_spec("gpt-5").unwrap_err().to_string().contains("qwen3-0.6b"));
    }

    #[test]
    fn random_weights_are_finite_and_of_usual_magnitude() {
        let spec = DecoderSpec {
            hidden_size: 64,
            intermediate_size: 160,
            vocab_size: 96,
            ..decoder_spec("llama-3.2-1b").unwrap()
        };
        for kind in WeightKind::ALL {
            let source = RandomWeights::new(&spec, kind, kind, 1).unwrap();
            for view in [source.matrix("model.layers.0.mlp.down_proj").unwrap(), source.lm_head().unwrap()] {
                let mut row = vec![0.0; view.num_cols];
                view.dequantize_row(view.num_rows - 1, &mut row);
                let mean_square = row.iter().map(|v| v * v).sum::<f32>() / row.len() as f32;
                assert!((0.005..0.06).contains(&mean_square.sqrt()), "{kind}: {}", mean_square.sqrt());
            }
        }
    }
}
