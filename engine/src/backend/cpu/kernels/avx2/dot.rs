//! What the integer kernels share: half a block of weights times a token's 16 activations.

use std::arch::x86_64::*;

use super::super::super::activations::QuantizedBlock;

/// `sum + scale · x.scale · Σ weights · x`, for the 4 quads of [`super::decode::integer_quads`].
/// `vpmaddubsw` sums pairs in 16 bits: at most 4 · 2 · 24 · 127 = 24,384 here, so nothing saturates.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn add_block(weights: &[__m256i; 4], scale: __m256, x: &QuantizedBlock, sum: __m256) -> __m256 {
    let codes = x.codes.as_ptr().cast::<i32>();
    let pairs = |quad: usize| {
        // SAFETY: 4 of the block's 16 codes.
        _mm256_maddubs_epi16(weights[quad], _mm256_set1_epi32(unsafe { codes.add(quad).read_unaligned() }))
    };
    let pairs = _mm256_add_epi16(_mm256_add_epi16(pairs(0), pairs(1)), _mm256_add_epi16(pairs(2), pairs(3)));
    let fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    let part = _mm256_add_epi32(fours, _mm256_set1_epi32(x.bias));
    let scale = _mm256_mul_ps(scale, _mm256_set1_ps(x.scale));
    _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(part), sum)
}
