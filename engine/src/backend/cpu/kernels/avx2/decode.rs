//! What half a tile holds, as registers: columns in F32, quads of columns in bytes, scales.

use std::arch::x86_64::*;

use super::super::super::packed::{BLOCKS_PER_GROUP, TILE_ROWS, Tile};
use crate::quant::WeightKind;

/// Rows of half a tile.
pub(super) const HALF_ROWS: usize = TILE_ROWS / 2;

/// Half a tile: rows `[8 · idx, 8 · idx + 8)`.
#[derive(Clone, Copy)]
pub(super) struct Half<'a> {
    pub(super) tile: &'a Tile<'a>,
    pub(super) idx: usize,
}

/// The half's 32 bytes of line `line_idx` of the codes.
#[inline]
#[target_feature(enable = "avx2")]
fn line(half: Half<'_>, line_idx: usize) -> __m256i {
    let at = line_idx * 64 + half.idx * 32;
    debug_assert!(at + 32 <= half.tile.codes.len());
    // SAFETY: `check_shapes`: the codes hold all lines of all blocks.
    unsafe { _mm256_loadu_si256(half.tile.codes.as_ptr().add(at).cast()) }
}

/// The 2 columns of line `line_idx`.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn bf16_columns(half: Half<'_>, line_idx: usize) -> [__m256; 2] {
    let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
    let codes = line(half, line_idx);
    [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(codes)), _mm256_castsi256_ps(_mm256_and_si256(codes, high))]
}

/// The 4 columns of line `line_idx`.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn fp8_columns(half: Half<'_>, line_idx: usize) -> [__m256; 4] {
    // 16 bytes are 8 rows of column k in the low and of k + 2 in the high bytes. Sign, exponent and mantissa of E4M3 move
    // to their places in F16, the sign's copy in bit 14 masked away.
    let mask = _mm256_set1_epi16(0xbf80_u16 as i16);
    let at = line_idx * 64 + half.idx * 16;
    debug_assert!(at + 48 <= half.tile.codes.len());
    // SAFETY: `check_shapes`: the line's 64 bytes are inside the codes.
    let codes = unsafe {
        let start = half.tile.codes.as_ptr().add(at);
        _mm256_set_m128i(_mm_loadu_si128(start.add(32).cast()), _mm_loadu_si128(start.cast()))
    };
    let low = _mm256_and_si256(_mm256_srai_epi16::<1>(_mm256_slli_epi16::<8>(codes)), mask);
    let high = _mm256_and_si256(_mm256_srai_epi16::<1>(codes), mask);
    [
        _mm256_cvtph_ps(_mm256_castsi256_si128(low)),
        _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(low)),
        _mm256_cvtph_ps(_mm256_castsi256_si128(high)),
        _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(high)),
    ]
}

/// The whole values of the 4-bit codes of `kind`; those of E2M1 are doubled, which [`nvfp4_value_scale`] takes back.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn value_table(kind: WeightKind) -> __m256i {
    _mm256_broadcastsi128_si256(if kind == WeightKind::Nvfp4 {
        _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
    } else {
        _mm_setr_epi8(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7)
    })
}

/// The integer forms of the 4-bit codes of `kind`, plus 12, so that one bias serves both kinds.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn integer_table(kind: WeightKind) -> __m256i {
    _mm256_broadcastsi128_si256(if kind == WeightKind::Nvfp4 {
        _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0)
    } else {
        _mm_setr_epi8(4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19)
    })
}

/// The 4 + 4 columns of line `line_idx` through a byte table: low nibbles, high nibbles.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn quads(half: Half<'_>, line_idx: usize, table: __m256i) -> [__m256i; 2] {
    let low_nibbles = _mm256_set1_epi8(0xf);
    let codes = line(half, line_idx);
    let low = |codes| _mm256_shuffle_epi8(table, _mm256_and_si256(codes, low_nibbles));
    [low(codes), low(_mm256_srli_epi16::<4>(codes))]
}

/// The 4 quads of columns of a block of 4-bit codes, through a byte table.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn integer_quads(half: Half<'_>, block: usize, table: __m256i) -> [__m256i; 4] {
    let [a, b] = quads(half, block * 2, table);
    let [c, d] = quads(half, block * 2 + 1, table);
    [a, b, c, d]
}

/// The 4 columns of a quad of signed bytes.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn quad_columns(quad: __m256i) -> [__m256; 4] {
    let value = |shifted| _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(shifted));
    [
        value(_mm256_slli_epi32::<24>(quad)),
        value(_mm256_slli_epi32::<16>(quad)),
        value(_mm256_slli_epi32::<8>(quad)),
        value(quad),
    ]
}

/// E4M3 read as F16.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn nvfp4_scale(half: Half<'_>, block: usize) -> __m256 {
    let at = block * TILE_ROWS + half.idx * HALF_ROWS;
    debug_assert!(at + 8 <= half.tile.scales.len());
    // SAFETY: `check_shapes`: 16 scales for each block.
    let codes = unsafe { _mm_loadl_epi64(half.tile.scales.as_ptr().add(at).cast()) };
    _mm256_cvtph_ps(_mm_slli_epi16::<7>(_mm_cvtepu8_epi16(codes)))
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn int4_scale(half: Half<'_>, block: usize) -> __m256 {
    let at = (block / BLOCKS_PER_GROUP * TILE_ROWS + half.idx * HALF_ROWS) * 2;
    debug_assert!(at + 16 <= half.tile.scales.len());
    // SAFETY: `check_shapes`: 16 F16 scales for each group of blocks.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(half.tile.scales.as_ptr().add(at).cast()) })
}

/// Of a 4-bit kind, for its integer form.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn integer_scale(half: Half<'_>, block: usize) -> __m256 {
    if half.tile.kind == WeightKind::Nvfp4 { nvfp4_scale(half, block) } else { int4_scale(half, block) }
}

/// Of any kind, for its columns in F32; 1 where the row scale says it all.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn column_scale(half: Half<'_>, block: usize) -> __m256 {
    match half.tile.kind {
        WeightKind::Bf16 | WeightKind::Fp8 => _mm256_set1_ps(1.0),
        WeightKind::Nvfp4 => nvfp4_value_scale(half, block),
        WeightKind::Int4 => int4_scale(half, block),
    }
}

/// The block's scales for values of [`value_table`]. Halving one is exact.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn nvfp4_value_scale(half: Half<'_>, block: usize) -> __m256 {
    _mm256_mul_ps(nvfp4_scale(half, block), _mm256_set1_ps(0.5))
}

/// What a sum is multiplied with in the end.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn row_factors(half: Half<'_>, unit: f32) -> __m256 {
    // SAFETY: 8 of the 16 row scales.
    let row_scales = unsafe { _mm256_loadu_ps(half.tile.row_scales.as_ptr().add(half.idx * HALF_ROWS)) };
    _mm256_mul_ps(row_scales, _mm256_set1_ps(unit))
}
