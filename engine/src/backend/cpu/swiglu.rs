//! SwiGLU (Shazeer 2020): the gate of the feed-forward layer.

use super::{
    simd::Simd,
    vectors::{Kernel, exp},
};

/// `out = silu(gate) · up` for any run of features.
#[derive(Debug)]
pub(super) struct SwiGlu<'a> {
    pub gate: &'a [f32],
    pub up: &'a [f32],
    pub out: &'a mut [f32],
}

impl Kernel for SwiGlu<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        for ((out, &gate), &up) in self.out.iter_mut().zip(self.gate).zip(self.up) {
            *out = gate / (1.0 + exp::<S>(-gate)) * up;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::vectors::Vectors;

    #[test]
    fn swiglu_matches_the_formula_in_f64_up_to_the_far_ends() {
        let gate: Vec<f32> = (-300..300).map(|i| i as f32 * 0.4).chain([-1e30, 1e30]).collect();
        let up: Vec<f32> = (0..gate.len()).map(|i| 1.0 + (i as f32).sin()).collect();
        for vectors in Vectors::available() {
            let mut out = vec![f32::NAN; gate.len()];
            vectors.run(SwiGlu { gate: &gate, up: &up, out: &mut out });
            for i in 0..gate.len() {
                let exact = f64::from(gate[i]) / (1.0 + (-f64::from(gate[i])).exp()) * f64::from(up[i]);
                assert!(
                    (f64::from(out[i]) - exact).abs() <= 1e-6 * exact.abs() + 1e-30,
                    "{vectors:?} {}: {}",
                    gate[i],
                    out[i]
                );
            }
        }
    }
}
