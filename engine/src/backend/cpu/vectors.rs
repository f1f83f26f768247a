//! Arithmetic written once and compiled for each instruction set.
//!
//! Reductions keep [`LANES`] independent partial sums. The order of additions depends on lengths only, so that a row's result is the same alone or in a batch.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "calls of functions compiled for an instruction set found at run time")
)]

#[cfg(target_arch = "aarch64")]
use super::simd::Neon;
#[cfg(not(target_arch = "aarch64"))]
use super::simd::Plain;
#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{LANES, Simd, reduce};

/// What every machine of the architecture has.
#[cfg(target_arch = "aarch64")]
pub(super) type Baseline = Neon;
/// What every machine of the architecture has.
#[cfg(not(target_arch = "aarch64"))]
pub(super) type Baseline = Plain;

/// Instruction set that the plain loops are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Vectors {
    /// What every machine of the architecture has: SSE2, NEON.
    Baseline,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Vectors {
    /// The best this machine has.
    pub(super) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let has_avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            let has_avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            if has_avx2 {
                return if has_avx512 { Self::Avx512 } else { Self::Avx2 };
            }
        }
        Self::Baseline
    }

    /// Every instruction set of this machine, for tests that compare them.
    #[cfg(test)]
    pub(super) fn available() -> Vec<Self> {
        #[cfg(target_arch = "x86_64")]
        let all = match Self::detect() {
            Self::Baseline => vec![Self::Baseline],
            Self::Avx2 => vec![Self::Baseline, Self::Avx2],
            Self::Avx512 => vec![Self::Baseline, Self::Avx2, Self::Avx512],
        };
        #[cfg(not(target_arch = "x86_64"))]
        let all = vec![Self::Baseline];
        all
    }

    /// Runs `body` compiled for this instruction set. `body` must be `#[inline(always)]` all the way down.
    #[inline]
    pub(super) fn run<K: Kernel>(self, body: K) {
        match self {
            Self::Baseline => body.run::<Baseline>(),
            // SAFETY: `Avx2` is only made by `detect`, which found the features.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { run_avx2(body) },
            // SAFETY: `Avx512` is only made by `detect`, which found the features.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { run_avx512(body) },
        }
    }
}

/// A computation to be compiled for each instruction set.
pub(super) trait Kernel {
    /// Computes with the registers of `S`.
    fn run<S: Simd>(self);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn run_avx2<K: Kernel>(body: K) {
    body.run::<Avx2>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn run_avx512<K: Kernel>(body: K) {
    body.run::<Avx512>();
}

/// `a · b + c`.
#[inline(always)]
pub(super) fn mul_add<S: Simd>(a: f32, b: f32, c: f32) -> f32 {
    if S::FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Scalar product.
#[inline(always)]
pub(super) fn dot<S: Simd>(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = S::zero();
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        sums = S::mul_add(S::load(a), S::load(b), sums);
    }
    finish_dot::<S>(sums, a_rest, b_rest)
}

/// Adds the products of what is left after whole chunks, then the lanes.
#[inline(always)]
pub(super) fn finish_dot<S: Simd>(sums: S::Lanes, a_rest: &[f32], b_rest: &[f32]) -> f32 {
    if a_rest.is_empty() {
        return S::sum(sums);
    }
    let mut sums = S::to_array(sums);
    for ((sum, &a), &b) in sums.iter_mut().zip(a_rest).zip(b_rest) {
        *sum = mul_add::<S>(a, b, *sum);
    }
    reduce(sums)
}

/// eˣ to about 1 ulp in `[-87.33, 88.37]` (Cephes' `expf`: x = n·ln 2 + r, polynomial in r); 0 to the left, ∞ to the
/// right, NaN for NaN.
#[inline(always)]
pub(super) fn exp<S: Simd>(x: f32) -> f32 {
    // Adding 1.5·2^23 rounds to an integer in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x > 88.37 { 88.37 } else { x };
    let clamped = if clamped < -87.33 { -87.33 } else { clamped };
    let shifted = mul_add::<S>(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = mul_add::<S>(n, -0.693_359_4, clamped);
    let r = mul_add::<S>(n, 2.121_944_4e-4, r);
    let mut poly = 1.987_569_1e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        poly = mul_add::<S>(poly, r, coefficient);
    }
    let value = mul_add::<S>(poly, r * r, r) + 1.0;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    let value = if x > 88.37 { f32::INFINITY } else { value * power };
    if x < -87.33 { 0.0 } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Apply<'a>(&'a [f32], &'a mut [f32]);

    impl Kernel for Apply<'_> {
        #[inline(always)]
        fn run<S: Simd>(self) {
            for (out, &x) in self.1.iter_mut().zip(self.0) {
                *out = exp::<S>(x);
            }
        }
    }

    #[test]
    fn exp_matches_f64_within_two_ulp_on_every_instruction_set() {
        let xs: Vec<f32> = (-8700..8830).map(|i| i as f32 * 0.01 + 0.003).collect();
        for vectors in Vectors::available() {
            let mut out = vec![0.0; xs.len()];
            vectors.run(Apply(&xs, &mut out));
            for (&x, &y) in xs.iter().zip(&out) {
                let exact = f64::from(x).exp();
                assert!(
                    (f64::from(y) / exact - 1.0).abs() < 2.4e-7,
                    "{vectors:?} exp({x}) = {y}, exactly {exact}"
                );
            }
        }
    }

    #[test]
    fn exp_of_the_far_ends_is_zero_infinite_or_nan() {
        let mut out = [0.0; 5];
        Vectors::detect().run(Apply(&[f32::NEG_INFINITY, -1e9, 0.0, 1e9, f32::NAN], &mut out));
        assert_eq!(out[..3], [0.0, 0.0, 1.0]);
        assert!(out[3] == f32::INFINITY && out[4].is_nan());
    }

    struct Dot<'a>(&'a [f32], &'a [f32], &'a mut f32);

    impl Kernel for Dot<'_> {
        #[inline(always)]
        fn run<S: Simd>(self) {
            *self.2 = dot::<S>(self.0, self.1);
        }
    }

    #[test]
    fn dot_matches_f64_for_every_remainder() {
        for len in 0..70 {
            let a: Vec<f32> = (0..len).map(|i| (i as f32 * 0.37).sin()).collect();
            let b: Vec<f32> = (0..len).map(|i| (i as f32 * 0.73).cos()).collect();
            let exact: f64 = a.iter().zip(&b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
            for vectors in Vectors::available() {
                let mut out = 0.0;
                vectors.run(Dot(&a, &b, &mut out));
                assert!((f64::from(out) - exact).abs() < 1e-5, "{vectors:?} {len}");
            }
        }
    }
}
