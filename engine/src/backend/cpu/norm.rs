//! RMSNorm (Zhang and Sennrich 2019), as Hugging Face computes it: everything in F32.

use super::{
    simd::Simd,
    vectors::{Kernel, dot},
};

/// `out = x · rsqrt(mean(x²) + eps) · weight`, all `[width]`.
#[derive(Debug)]
pub(super) struct RmsNorm<'a> {
    pub x: &'a [f32],
    pub weight: &'a [f32],
    pub eps: f32,
    pub out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let factor = inverse_rms::<S>(self.x, self.eps);
        for ((out, &x), &weight) in self.out.iter_mut().zip(self.x).zip(self.weight) {
            *out = x * factor * weight;
        }
    }
}

/// RMSNorm in place of consecutive heads `[num_heads, head_dim]` with one weight `[head_dim]` (Qwen3).
#[inline(always)]
pub(super) fn norm_heads<S: Simd>(heads: &mut [f32], weight: &[f32], eps: f32) {
    for head in heads.chunks_exact_mut(weight.len()) {
        let factor = inverse_rms::<S>(head, eps);
        for (x, &weight) in head.iter_mut().zip(weight) {
            *x = *x * factor * weight;
        }
    }
}

/// `x += delta`; an empty `delta` changes nothing.
#[inline(always)]
pub(super) fn add(x: &mut [f32], delta: &[f32]) {
    for (x, &delta) in x.iter_mut().zip(delta) {
        *x += delta;
    }
}

#[inline(always)]
fn inverse_rms<S: Simd>(x: &[f32], eps: f32) -> f32 {
    1.0 / (dot::<S>(x, x) / x.len() as f32 + eps).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::vectors::Vectors;

    #[test]
    fn rms_norm_matches_the_formula_in_f64_on_every_instruction_set() {
        for width in [1, 7, 16, 64, 100] {
            let x: Vec<f32> = (0..width).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
            let weight: Vec<f32> = (0..width).map(|i| 1.0 + i as f32 * 0.01).collect();
            let mean = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / width as f64;
            for vectors in Vectors::available() {
                let mut out = vec![0.0; width];
                vectors.run(RmsNorm { x: &x, weight: &weight, eps: 1e-5, out: &mut out });
                for i in 0..width {
                    let exact = f64::from(x[i]) / (mean + 1e-5).sqrt() * f64::from(weight[i]);
                    assert!(
                        (f64::from(out[i]) - exact).abs() < 2e-6 * (1.0 + exact.abs()),
                        "{vectors:?} {width} {i}"
                    );
                }
            }
        }
    }
}
