//! What goes into products with quantized weights, quantized too where that is asked for; and how large it can get at most.
//!
//! Scales of activations must be known when a plan is built. They are usually measured on a calibration set. Here they follow from the weights:
//! behind an RMSNorm a vector's length is at most `√D`, so every element, every value of `V` and every product of the feed-forward layer has a
//! bound (Cauchy and Schwarz). Nothing saturates then, whatever the prompt. A bound lies above what is met, usually by a factor of some ten to a
//! few thousand: a float pays for that in its exponent alone as long as its exponent's range lasts, an integer would not. So there are quantized
//! activations for the float formats only.

use takt_engine::quant::{MatrixView, NVFP4_BLOCK, WeightKind, e4m3};

use super::{
    graph::{Attribute, TENSORRT_DOMAIN, Value},
    options::{Activations, Compute},
    port::{Dim, ElementType, Port},
    tensors::Tensors,
    writer::Writer,
};
use crate::{BuildError, Result};

/// Largest E2M1 value.
const E2M1_MAX: f32 = 6.0;
/// What is fed has been rounded itself, E4M3 by up to 1/16 of each value.
const FP8_MARGIN: f32 = 1.125;
/// E2M1 makes 6 of what is above 5, 1.2 times as much; the scale of a block and 16-bit types round as well.
const NVFP4_MARGIN: f32 = 1.3;
/// `-x · sigmoid(x)` is never larger.
const SILU_DIP: f32 = 0.2785;

/// Largest magnitudes of what a layer multiplies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Bounds {
    /// Into Q, K and V.
    pub attention_input: f32,
    /// Into the output projection: a mean of values.
    pub attended: f32,
    /// Into gate and up.
    pub feed_forward_input: f32,
    /// Into down.
    pub gated: f32,
}

impl Bounds {
    /// Of the layer `prefix`, whose Q, K and V read the outputs of RMSNorms with `norms`, beside each other.
    pub(super) fn of(
        tensors: &dyn Tensors,
        prefix: &str,
        norms: &[Vec<f32>],
        biased: [bool; 2],
    ) -> Result<Self> {
        let [has_v_bias, has_mlp_bias] = biased;
        let input: Vec<f32> = norms.concat();
        let ffn_norm = tensors.vector(&format!("{prefix}.post_attention_layernorm.weight"))?;
        let bias = |name: &str, wanted: bool, len: usize| match wanted {
            true => tensors.vector(&format!("{prefix}.{name}.bias")),
            false => Ok(vec![0.0; len]),
        };
        let v = tensors.matrix(&format!("{prefix}.self_attn.v_proj"))?;
        let v_bias = bias("self_attn.v_proj", has_v_bias, v.num_rows)?;
        let gate = tensors.matrix(&format!("{prefix}.mlp.gate_proj"))?;
        let up = tensors.matrix(&format!("{prefix}.mlp.up_proj"))?;
        let gate_bias = bias("mlp.gate_proj", has_mlp_bias, gate.num_rows)?;
        let up_bias = bias("mlp.up_proj", has_mlp_bias, up.num_rows)?;
        Ok(Self {
            attention_input: element_bound(&input) * (norms.len() as f32).sqrt().recip(),
            attended: rows_bound(&v, &v_bias, &input) * margin(v.kind()),
            feed_forward_input: element_bound(&ffn_norm),
            gated: gated_bound([&gate, &up], [&gate_bias, &up_bias], &ffn_norm)
                * margin(gate.kind())
                * margin(up.kind()),
        })
    }
}

/// How much longer a vector can get when it is rounded as what weights of `kind` are multiplied with.
pub(super) fn margin(kind: WeightKind) -> f32 {
    match kind {
        WeightKind::Nvfp4 => NVFP4_MARGIN,
        _ => FP8_MARGIN,
    }
}

/// Largest element of a vector of length `√D` times `weights` `[D]`.
pub(super) fn element_bound(weights: &[f32]) -> f32 {
    (weights.len() as f32).sqrt() * weights.iter().fold(0.0, |max: f32, weight| max.max(weight.abs()))
}

/// Largest element of `W·(w ∘ x) + b` for `‖x‖ ≤ √K`.
pub(super) fn rows_bound(matrix: &MatrixView<'_>, bias: &[f32], weights: &[f32]) -> f32 {
    let radius = (weights.len() as f32).sqrt();
    let mut row = vec![0.0; matrix.num_cols];
    (0..matrix.num_rows).fold(0.0, |max: f32, idx| {
        matrix.dequantize_row(idx, &mut row);
        max.max(weighted(&mut row, weights).sqrt() * radius + bias[idx].abs())
    })
}

/// Largest magnitude of `silu(g)·u` for `g = G·(w ∘ x)`, `u = U·(w ∘ x)` and `‖x‖ ≤ √K`. Where `g` is positive it is below `g·u`, which is at most
/// `K (‖g‖‖u‖ + |g·u|) / 2` over a sphere; elsewhere silu is small.
fn gated_bound([gate, up]: [&MatrixView<'_>; 2], [gate_bias, up_bias]: [&[f32]; 2], weights: &[f32]) -> f32 {
    let radius = (weights.len() as f32).sqrt();
    let (mut g, mut u) = (vec![0.0; gate.num_cols], vec![0.0; up.num_cols]);
    (0..gate.num_rows).fold(0.0, |max: f32, idx| {
        gate.dequantize_row(idx, &mut g);
        up.dequantize_row(idx, &mut u);
        let lengths = [weighted(&mut g, weights).sqrt(), weighted(&mut u, weights).sqrt()];
        let angle: f32 = g.iter().zip(&u).map(|(g, u)| g * u).sum();
        let [largest_g, largest_u] = lengths.map(|length| length * radius);
        let (bias_g, bias_u) = (gate_bias[idx].abs(), up_bias[idx].abs());
        let product = radius * radius * (lengths[0] * lengths[1] + angle.abs()) / 2.0;
        let positive = product + largest_g * bias_u + largest_u * bias_g + bias_g * bias_u;
        max.max(positive).max(SILU_DIP * (largest_u + bias_u))
    })
}

/// `row ∘ weights` in `row`'s place, and the square of its length.
fn weighted(row: &mut [f32], weights: &[f32]) -> f32 {
    row.iter_mut().zip(weights).for_each(|(value, weight)| *value *= weight);
    row.iter().map(|value| value * value).sum()
}

/// The smallest power of two that takes `bound` into E4M3's range: exact in every type, and in a float's code exact as well.
pub(super) fn fp8_scale(bound: f32) -> f32 {
    let mut scale = 1.0f32;
    while scale * e4m3::MAX < bound && scale < 1e30 {
        scale *= 2.0;
    }
    while scale * e4m3::MAX >= 2.0 * bound && scale > 1e-30 {
        scale /= 2.0;
    }
    scale
}

impl Writer<'_> {
    /// `x`, 32 bits, as a product with weights of `kind` takes it; `bound` is its largest magnitude.
    pub(super) fn operand(&mut self, x: &str, kind: WeightKind, bound: Option<f32>) -> Result<Value> {
        let x = self.narrowed(x);
        self.operand_of_compute(&x, kind, bound)
    }

    /// [`Self::operand`] of an `x` in the type that is computed in.
    pub(super) fn operand_of_compute(
        &mut self,
        x: &str,
        kind: WeightKind,
        bound: Option<f32>,
    ) -> Result<Value> {
        match (self.activations, kind, bound) {
            (Activations::Quantized, WeightKind::Fp8, Some(bound)) => self.through_fp8(x, fp8_scale(bound)),
            (Activations::Quantized, WeightKind::Nvfp4, Some(bound)) => {
                self.through_fp4(x, bound / (E2M1_MAX * e4m3::MAX))
            }
            _ => Ok(x.to_owned()),
        }
    }

    fn through_fp8(&mut self, x: &str, scale: f32) -> Result<Value> {
        let largest_f16 = half::f16::MAX.to_f32();
        if self.compute == Compute::F16 && !(1.0 / largest_f16..=largest_f16).contains(&scale) {
            return Err(BuildError::Unsupported(format!(
                "quantized activations in f16: {x} takes a scale of {scale:e}, beyond that type; use bf16 (--dtype, of plans --plan-dtype), or plain activations"
            )));
        }
        let (scale, zero) = (self.scale_of_compute(&format!("{x}.scale"), scale)?, self.fp8_zero()?);
        let codes = self.graph.op("QuantizeLinear", &format!("{x}.fp8"), &[x, &scale, &zero], &[]);
        Ok(self.graph.op("DequantizeLinear", &format!("{x}.from_fp8"), &[&codes, &scale], &[]))
    }

    /// One scale, a power of two, in the type that is computed in.
    pub(super) fn scale_of_compute(&mut self, name: &str, scale: f32) -> Result<Value> {
        let raw = match self.compute.element() {
            ElementType::F16 => half::f16::from_f32(scale).to_le_bytes().to_vec(),
            ElementType::Bf16 => half::bf16::from_f32(scale).to_le_bytes().to_vec(),
            _ => scale.to_le_bytes().to_vec(),
        };
        self.graph.constant(name, self.compute.element(), &[], &raw)
    }

    /// The zero point that says E4M3, made once.
    pub(super) fn fp8_zero(&mut self) -> Result<Value> {
        let zero = "fp8.zero";
        match self.graph.knows(zero) {
            true => Ok(zero.to_owned()),
            false => self.graph.constant(zero, ElementType::F8E4M3, &[], &[0]),
        }
    }

    /// Blocks of 16 along the last axis, their scales found while running.
    fn through_fp4(&mut self, x: &str, global_scale: f32) -> Result<Value> {
        let part = |what: &str| format!("{x}.{what}");
        let scale = self.graph.floats(&part("scale"), &[], &[global_scale])?;
        let (codes, scales) = (part("fp4"), part("fp4_scales"));
        self.graph.node(
            &format!("{TENSORRT_DOMAIN}:TRT_FP4DynamicQuantize"),
            &codes,
            &[x, &scale],
            &[
                ("axis", Attribute::Int(-1)),
                ("block_size", Attribute::Int(NVFP4_BLOCK as i64)),
                ("scale_type", Attribute::Int(ElementType::F8E4M3 as i64)),
            ],
            &[&codes, &scales],
        );
        let shape: [Dim; 2] = ["batch".into(), "sequence".into()];
        // No inference knows this operator; ranks are what those behind it need.
        let told = |name: &str, element, last: &str| {
            Port::new(
                name,
                element,
                &[shape[0].clone(), shape[1].clone(), format!("{x}.{last}").as_str().into()],
            )
        };
        let (codes_port, scales_port) =
            (told(&codes, ElementType::F4E2M1, "width"), told(&scales, ElementType::F8E4M3, "blocks"));
        self.graph.tell(codes_port);
        self.graph.tell(scales_port);
        let scales = self.graph.op("DequantizeLinear", &part("fp4_block_scales"), &[&scales, &scale], &[]);
        let attributes = [("axis", Attribute::Int(-1)), ("block_size", Attribute::Int(NVFP4_BLOCK as i64))];
        let values = self.graph.op("DequantizeLinear", &part("from_fp4"), &[&codes, &scales], &attributes);
        Ok(self.narrowed(&values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use takt_engine::quant::{QuantizedMatrix, quantize};

    fn matrix(rows: usize, cols: usize, seed: u32) -> QuantizedMatrix {
        let mut state = seed;
        let mut value = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let values: Vec<f32> = (0..rows * cols).map(|_| value()).collect();
        quantize(WeightKind::Bf16, (rows, cols), &values, 1).unwrap()
    }

    fn row(matrix: &QuantizedMatrix, idx: usize) -> Vec<f32> {
        let mut row = vec![0.0; matrix.num_cols];
        matrix.view().dequantize_row(idx, &mut row);
        row
    }

    fn dot(a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    /// `x` at length `√len`, as an RMSNorm leaves it.
    fn normed(x: &[f32]) -> Vec<f32> {
        let factor = (x.len() as f32 / dot(x, x)).sqrt();
        x.iter().map(|value| value * factor).collect()
    }

    #[test]
    fn scales_take_the_bound_and_waste_less_than_a_bit() {
        for exponent in -30..60 {
            for bound in [1.0, 1.001, 1.99].map(|mantissa: f32| mantissa * 2.0f32.powi(exponent)) {
                let scale = fp8_scale(bound);
                let taken = scale * e4m3::MAX;
                assert!(taken >= bound && taken < 2.0 * bound, "{bound:e}: {scale:e}");
                assert_eq!(scale.to_bits() & 0x7f_ffff, 0, "{scale:e} is no power of two");
            }
        }
    }

    #[test]
    fn margins_take_what_rounding_adds_to_the_length() {
        // One value at the top of a block, all others just above 5 of its scale's 6: E2M1 makes 6 of each.
        let values: Vec<f32> = (0..16).map(|i| if i == 0 { 6.0 } else { 5.01 }).collect();
        let mut added = 0.0f32;
        for step in 0..64 {
            let values: Vec<f32> = values.iter().map(|value| value * (1.0 + step as f32 / 64.0)).collect();
            for kind in [WeightKind::Fp8, WeightKind::Nvfp4] {
                let rounded = row(&quantize(kind, (1, 16), &values, 1).unwrap(), 0);
                let longer = (dot(&rounded, &rounded) / dot(&values, &values)).sqrt();
                assert!(longer <= margin(kind), "{kind}: {longer}");
                added = added.max(longer);
            }
        }
        assert!(added > FP8_MARGIN, "{added} is not the worst");
    }

    #[test]
    fn no_input_exceeds_the_bounds_and_the_worst_input_meets_that_of_values() {
        let weights: Vec<f32> = (0..24).map(|i| 0.5 + (i as f32 * 0.7).sin()).collect();
        let (gate, up) = (matrix(10, 24, 1), matrix(10, 24, 2));
        let bias: Vec<f32> = (0..10).map(|i| (i as f32 - 4.0) * 0.3).collect();
        let of_rows = rows_bound(&gate.view(), &bias, &weights);
        let of_gates = gated_bound([&gate.view(), &up.view()], [&bias, &bias], &weights);
        let (mut largest_row, mut largest_gate) = (0.0f32, 0.0f32);
        // Along every row, against it, and along sums of two: the worst inputs are among or near these.
        for target in 0..10 {
            for sign in [1.0, -1.0] {
                let along: Vec<f32> =
                    row(&gate, target).iter().zip(&weights).map(|(g, w)| sign * g * w).collect();
                let other = row(&up, target);
                let between: Vec<f32> =
                    along.iter().zip(other.iter().zip(&weights)).map(|(a, (u, w))| a + u * w).collect();
                for x in [normed(&along), normed(&between)] {
                    let fed: Vec<f32> = x.iter().zip(&weights).map(|(x, w)| x * w).collect();
                    for (idx, bias) in bias.iter().enumerate() {
                        let g = dot(&row(&gate, idx), &fed) + bias;
                        let u = dot(&row(&up, idx), &fed) + bias;
                        largest_row = largest_row.max(g.abs());
                        largest_gate = largest_gate.max((g / (1.0 + (-g).exp()) * u).abs());
                    }
                }
            }
        }
        assert!(
            largest_row <= of_rows * 1.0001 && largest_row >= of_rows * 0.99,
            "{largest_row} of {of_rows}"
        );
        assert!(largest_gate <= of_gates && largest_gate >= of_gates * 0.2, "{largest_gate} of {of_gates}");
    }
}
