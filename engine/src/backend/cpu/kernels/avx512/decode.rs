//! What a tile holds, as registers: columns in F32, quads of columns in bytes, scales.
//!
//! No closure with intrinsics is handed to a function of `core` (`map`, `for_each`), here and in the kernels: that is compiled
//! without these instruction sets, so the closure becomes a call (three times slower, measured 2026-11-22).

use std::arch::x86_64::*;

use super::super::super::packed::{BLOCKS_PER_GROUP, TILE_ROWS, Tile};
use crate::quant::WeightKind;

/// Line `line_idx` (64 bytes) of the tile's codes.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn line(tile: &Tile<'_>, line_idx: usize) -> __m512i {
    debug_assert!(line_idx * 64 + 64 <= tile.codes.len());
    // SAFETY: `check_shapes`: the codes hold all lines of all blocks.
    unsafe { _mm512_loadu_si512(tile.codes.as_ptr().add(line_idx * 64).cast()) }
}

/// The 2 columns of one line.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn bf16_columns(line: __m512i) -> [__m512; 2] {
    let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    let (even, odd) = (_mm512_slli_epi32::<16>(line), _mm512_and_si512(line, high));
    [_mm512_castsi512_ps(even), _mm512_castsi512_ps(odd)]
}

/// The 4 columns of one line.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,f16c")]
pub(super) fn fp8_columns(line: __m512i) -> [__m512; 4] {
    // Sign, exponent and mantissa of E4M3 at their places in F16, the sign's copy in bit 14 masked away.
    let mask = _mm512_set1_epi16(0xbf80_u16 as i16);
    let low = _mm512_and_si512(_mm512_srai_epi16::<1>(_mm512_slli_epi16::<8>(line)), mask);
    let high = _mm512_and_si512(_mm512_srai_epi16::<1>(line), mask);
    [
        _mm512_cvtph_ps(_mm512_castsi512_si256(low)),
        _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(low)),
        _mm512_cvtph_ps(_mm512_castsi512_si256(high)),
        _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(high)),
    ]
}

/// What the 4-bit codes of `kind` stand for.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn nibble_values(kind: WeightKind) -> __m512 {
    if kind == WeightKind::Nvfp4 {
        _mm512_setr_ps(0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
    } else {
        _mm512_setr_ps(-8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
    }
}

/// The 8 columns of one line. `vpermps` looks at the low 4 bits of each lane only, so a shift is the decoding.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn nibble_columns(line: __m512i, values: __m512) -> [__m512; 8] {
    [
        _mm512_permutexvar_ps(line, values),
        _mm512_permutexvar_ps(_mm512_srli_epi32::<8>(line), values),
        _mm512_permutexvar_ps(_mm512_srli_epi32::<16>(line), values),
        _mm512_permutexvar_ps(_mm512_srli_epi32::<24>(line), values),
        _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(line), values),
        _mm512_permutexvar_ps(_mm512_srli_epi32::<12>(line), values),
        _mm512_permutexvar_ps(_mm512_srli_epi32::<20>(line), values),
        _mm512_permutexvar_ps(_mm512_srli_epi32::<28>(line), values),
    ]
}

/// The integer forms of the 4-bit codes of `kind`, plus 12, so that one bias serves both kinds.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn integer_table(kind: WeightKind) -> __m512i {
    _mm512_broadcast_i32x4(if kind == WeightKind::Nvfp4 {
        _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0)
    } else {
        _mm_setr_epi8(4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19)
    })
}

/// The 4 quads of columns of a block of 4-bit codes, through `table`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn integer_quads(tile: &Tile<'_>, block: usize, table: __m512i) -> [__m512i; 4] {
    let low_nibbles = _mm512_set1_epi8(0xf);
    let low = |codes| _mm512_shuffle_epi8(table, _mm512_and_si512(codes, low_nibbles));
    let lines = [line(tile, block * 2), line(tile, block * 2 + 1)];
    [
        low(lines[0]),
        low(_mm512_srli_epi16::<4>(lines[0])),
        low(lines[1]),
        low(_mm512_srli_epi16::<4>(lines[1])),
    ]
}

/// E4M3 read as F16.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx2,f16c")]
pub(super) fn nvfp4_scale(tile: &Tile<'_>, block: usize) -> __m512 {
    debug_assert!((block + 1) * TILE_ROWS <= tile.scales.len());
    // SAFETY: `check_shapes`: 16 scales for each block.
    let codes = unsafe { _mm_loadu_si128(tile.scales.as_ptr().add(block * TILE_ROWS).cast()) };
    _mm512_cvtph_ps(_mm256_slli_epi16::<7>(_mm256_cvtepu8_epi16(codes)))
}

#[inline]
#[target_feature(enable = "avx512f,avx2")]
pub(super) fn int4_scale(tile: &Tile<'_>, block: usize) -> __m512 {
    let at = block / BLOCKS_PER_GROUP * TILE_ROWS * 2;
    debug_assert!(at + 32 <= tile.scales.len());
    // SAFETY: `check_shapes`: 16 F16 scales for each group of blocks.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(tile.scales.as_ptr().add(at).cast()) })
}

/// Of any kind; 1 where the row scale says it all.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx2,f16c")]
pub(super) fn block_scale(tile: &Tile<'_>, block: usize) -> __m512 {
    match tile.kind {
        WeightKind::Bf16 | WeightKind::Fp8 => _mm512_set1_ps(1.0),
        WeightKind::Nvfp4 => nvfp4_scale(tile, block),
        WeightKind::Int4 => int4_scale(tile, block),
    }
}

/// What a sum is multiplied with in the end.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn row_factors(tile: &Tile<'_>, unit: f32) -> __m512 {
    // SAFETY: 16 row scales.
    let row_scales = unsafe { _mm512_loadu_ps(tile.row_scales.as_ptr()) };
    _mm512_mul_ps(row_scales, _mm512_set1_ps(unit))
}
