//! Activations to 8 bits, one block a register.

use std::arch::x86_64::*;

use super::super::{
    super::{activations::QuantizedBlock, packed::BLOCK_COLS},
    quantize::{ROUNDING, WEIGHT_OFFSET, quantize_block},
};

/// As [`super::super::quantize::quantize_row`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma")]
pub(in super::super) fn quantize_row(row: &[f32], to: &mut [QuantizedBlock]) {
    for (x, to) in row.as_chunks::<BLOCK_COLS>().0.iter().zip(to) {
        // SAFETY: 16 values.
        let values = unsafe { _mm512_loadu_ps(x.as_ptr()) };
        let magnitudes = _mm512_and_si512(_mm512_castps_si512(values), _mm512_set1_epi32(0x7fff_ffff));
        let amax = f32::from_bits(_mm512_reduce_max_epu32(magnitudes));
        let inverse = 127.0 / amax;
        if !(inverse.is_finite() && inverse > 0.0) {
            quantize_block(x, to);
            continue;
        }
        // The sum's low byte is the code in two's complement.
        let shifted = _mm512_add_ps(_mm512_mul_ps(values, _mm512_set1_ps(inverse)), _mm512_set1_ps(ROUNDING));
        let codes = _mm512_cvtepi32_epi8(_mm512_castps_si512(shifted));
        // SAFETY: 16 codes.
        unsafe { _mm_storeu_si128(to.codes.as_mut_ptr().cast(), codes) };
        to.scale = amax / 127.0;
        to.bias = -WEIGHT_OFFSET * sum_of(codes);
    }
}

/// Sum of 16 signed bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma")]
fn sum_of(codes: __m128i) -> i32 {
    let quads = _mm_dpbusd_epi32(_mm_setzero_si128(), _mm_set1_epi8(1), codes);
    let pairs = _mm_add_epi32(quads, _mm_shuffle_epi32::<0b00_00_11_10>(quads));
    _mm_cvtsi128_si32(_mm_add_epi32(pairs, _mm_shuffle_epi32::<0b01>(pairs)))
}
