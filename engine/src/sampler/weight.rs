//! Probabilities as integers: sums of them are the same in whatever order they are taken, so that a GPU chooses what the host chooses.
//!
//! A token weighs `⌊2⁴⁴ · 2^y⌋` with `y = (logit − largest) · log2(e) / temperature` in F32: the likeliest exactly 2⁴⁴, one with `y < −44` nothing. Every
//! operation is an addition or multiplication of F32 rounded by itself, or one of integers; `kernels-cu/cu/common/token_weight.cuh` repeats them bit for bit.

use std::f32::consts::LN_2;

/// Weight of the likeliest token.
pub(super) const LARGEST_WEIGHT: u64 = 1 << 44;
/// Below it nothing weighs anything.
const LOWEST: f32 = -45.0;
/// 1.5 · 2²³: what is added to it is rounded to an integer, in the low bits of the sum.
const ROUNDING: f32 = 12_582_912.0;
/// ln(2)ⁿ / n! from n = 7 down to 1: Taylor's series of 2^r by Horner; the first term left out is below 6e-9 for |r| ≤ ½.
const SERIES: [f32; 7] =
    [1.525_273_4e-5, 1.540_353_1e-4, 1.333_355_8e-3, 9.618_129e-3, 5.550_411e-2, 0.240_226_5, LN_2];
/// Bins of a row's tokens by likelihood: 16 for each halving, as far as there is a weight.
pub(super) const NUM_BINS: usize = 721;

/// Weighs the tokens of one row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weigher {
    largest: f32,
    scale: f32,
}

impl Weigher {
    /// For a row with the `largest` logit, which is finite, and [`scale`] of a temperature.
    pub fn new(largest: f32, scale: f32) -> Self {
        Self { largest, scale }
    }

    /// What a token weighs that has `logit`, at most the largest; −∞ for one that is excluded.
    #[inline]
    pub fn weight(self, logit: f32) -> u64 {
        let below = self.halvings(logit);
        let rounded = below + ROUNDING;
        let rest = below - (rounded - ROUNDING);
        let power = SERIES.iter().fold(0.0_f32, |sum, term| (sum + term) * rest) + 1.0;
        // A power is in [2^−½, 2^½], so it has at most 24 bits behind the point.
        let fixed = u64::from((power * 16_777_216.0) as i32 as u32);
        (fixed << 20) >> (ROUNDING.to_bits().wrapping_sub(rounded.to_bits()) & 63)
    }

    /// The bin of `logit`, from 0 for the largest; a smaller logit has the same or one behind it.
    #[inline]
    pub fn bin(self, logit: f32) -> usize {
        let rounded = self.halvings(logit) * 16.0 + ROUNDING;
        (ROUNDING.to_bits().wrapping_sub(rounded.to_bits()) as usize).min(NUM_BINS - 1)
    }

    /// Log2 of the likelihood relative to the largest's, from 0 down to [`LOWEST`].
    #[inline]
    fn halvings(self, logit: f32) -> f32 {
        let below = (logit - self.largest) * self.scale;
        if below > LOWEST { below } else { LOWEST }
    }
}

/// By which a difference of logits is multiplied at `temperature`, above 0; finite.
pub(super) fn scale(temperature: f32) -> f32 {
    ((std::f64::consts::LOG2_E / f64::from(temperature)) as f32).min(f32::MAX)
}

/// A probability of at most 1 in units of 2⁻⁵³.
pub(super) fn fraction(probability: f32) -> u64 {
    (f64::from(probability) * (1_u64 << 53) as f64) as u64
}

/// The least weight that is at least `min_p` of the likeliest token's.
pub(super) fn min_weight(min_p: f32) -> u64 {
    (f64::from(min_p) * LARGEST_WEIGHT as f64).ceil() as u64
}

/// The least weight that is at least `fraction` · 2⁻⁵³ of `total`; never nothing.
pub(super) fn goal(fraction: u64, total: u64) -> u64 {
    let product = u128::from(fraction) * u128::from(total);
    // At most `total`: a fraction is at most 2^53.
    (product.div_ceil(1 << 53) as u64).max(1)
}

/// Where in `[0, total)` a number of 53 bits points.
pub(super) fn point(number: u64, total: u64) -> u64 {
    // Below `total`, since the number is below 2^53.
    ((u128::from(number) * u128::from(total)) >> 53) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_powers_of_two_within_a_few_units_of_f32() {
        let weigher = Weigher::new(0.0, 1.0);
        let mut last = LARGEST_WEIGHT;
        for step in 0..=2_000_000_u32 {
            let below = -(f64::from(step) / 100_000.0) as f32;
            let exact = f64::from(below).exp2() * LARGEST_WEIGHT as f64;
            let weight = weigher.weight(below);
            assert!(
                (weight as f64 / exact - 1.0).abs() < 3.0 / 8_388_608.0,
                "2^{below}: {weight}, exactly {exact}"
            );
            assert!(weight <= last + (last >> 22), "falls, but for rounding");
            last = weight;
        }
    }

    #[test]
    fn the_largest_weighs_two_to_the_44_and_what_is_far_below_nothing() {
        for largest in [0.0, -0.0, 17.3, -3e38, 3e38, 1e-45] {
            for temperature in [1e-45, 1e-3, 0.7, 1.0, 80.0, f32::MAX] {
                let weigher = Weigher::new(largest, scale(temperature));
                assert_eq!(weigher.weight(largest), LARGEST_WEIGHT, "{largest}, {temperature}");
                assert_eq!(weigher.weight(f32::NEG_INFINITY), 0);
                assert_eq!((weigher.bin(largest), weigher.bin(f32::NEG_INFINITY)), (0, NUM_BINS - 1));
            }
        }
        let weigher = Weigher::new(0.0, 1.0);
        let at = |below: f32| weigher.weight(below);
        assert_eq!([at(-1.0), at(-43.0), at(-44.0)], [1 << 43, 2, 1]);
        assert_eq!([at((-44.0_f32).next_down()), at(-44.4), at(-44.6), at(-1e30)], [0; 4]);
        assert_eq!([at(-43.6), at(-43.4)], [1, 1]);
    }

    #[test]
    fn bins_are_in_the_order_of_logits() {
        let weigher = Weigher::new(2.5, scale(0.7));
        let mut last = 0;
        for step in 0..60_000_u16 {
            let bin = weigher.bin(2.5 - f32::from(step) / 2000.0);
            assert!((last..NUM_BINS).contains(&bin));
            last = bin;
        }
        assert_eq!(last, NUM_BINS - 1);
    }

    #[test]
    fn parts_of_a_total_are_exact() {
        let one = 1_u64 << 53;
        assert_eq!((fraction(1.0), fraction(0.5), fraction(1e-45)), (one, one / 2, 0));
        assert_eq!((goal(one, 77), goal(one / 2, 77), goal(one / 2, 78), goal(0, 77)), (77, 39, 39, 1));
        assert_eq!((goal(one, u64::MAX), goal(one / 4 + 1, 4)), (u64::MAX, 2));
        assert_eq!((point(0, 9), point(one - 1, 9), point(one - 1, u64::MAX)), (0, 8, u64::MAX - 2048));
        assert_eq!(
            (min_weight(0.0), min_weight(1.0), min_weight(0.5)),
            (0, LARGEST_WEIGHT, LARGEST_WEIGHT / 2)
        );
        assert_eq!(min_weight(f32::from_bits(1)), 1);
    }
}
