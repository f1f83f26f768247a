//! AVX2 with FMA and F16C: one 256-bit register is one column of half a tile, or 4 columns of 8 rows in bytes.
#![expect(unsafe_code, reason = "SIMD intrinsics on raw pointers; bounds are checked once a tile")]

use std::arch::x86_64::*;

use super::{
    super::{
        activations::{QuantizedBlock, Tokens},
        packed::{BLOCK_COLS, BLOCKS_PER_GROUP, TILE_ROWS, Tile},
    },
    check_quantized, check_shapes, for_num_tokens, quantize,
    scalar::integer_unit,
};
use crate::quant::WeightKind;

type Sums = [[f32; TILE_ROWS]];

/// Rows of half a tile.
const HALF_ROWS: usize = TILE_ROWS / 2;

/// Half a tile: rows `[8 · idx, 8 · idx + 8)`.
#[derive(Clone, Copy)]
struct Half<'a> {
    tile: &'a Tile<'a>,
    idx: usize,
}

/// As [`super::scalar::multiply_f32`], for 1 to 4 tokens.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn multiply_f32(tile: &Tile<'_>, tokens: &Tokens<'_>, sums: &mut Sums) {
    check_shapes(tile, tokens, sums);
    for idx in 0..2 {
        let half = Half { tile, idx };
        match tile.kind {
            WeightKind::Bf16 => {
                for_num_tokens!(tokens.num_tokens, [1 2 3 4], M => bf16::<M>(half, tokens, sums))
            }
            WeightKind::Fp8 => {
                for_num_tokens!(tokens.num_tokens, [1 2 3 4], M => fp8::<M>(half, tokens, sums))
            }
            WeightKind::Nvfp4 => {
                let table = _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
                // The table is doubled; halving the scale takes it back exactly.
                let scale = |block| _mm256_mul_ps(nvfp4_scale(half, block), _mm256_set1_ps(0.5));
                for_num_tokens!(tokens.num_tokens, [1 2 3 4], M => nibbles::<M>(half, tokens, table, scale, sums));
            }
            WeightKind::Int4 => {
                let table = _mm_setr_epi8(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
                let scale = |block| int4_scale(half, block);
                for_num_tokens!(tokens.num_tokens, [1 2 3 4], M => nibbles::<M>(half, tokens, table, scale, sums));
            }
        }
    }
}

/// As [`super::scalar::multiply_int8`], for 1 to 4 tokens and the 4-bit kinds.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn multiply_int8(tile: &Tile<'_>, tokens: &Tokens<'_>, sums: &mut Sums) {
    check_shapes(tile, tokens, sums);
    check_quantized(tile, tokens);
    for idx in 0..2 {
        let half = Half { tile, idx };
        // Both tables are the integer form plus 12, so that one bias serves both kinds.
        if tile.kind == WeightKind::Nvfp4 {
            let table = _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0);
            let scale = |block| nvfp4_scale(half, block);
            for_num_tokens!(tokens.num_tokens, [1 2 3 4], M => integers::<M>(half, tokens, table, scale, sums));
        } else {
            let table = _mm_setr_epi8(4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19);
            let scale = |block| int4_scale(half, block);
            for_num_tokens!(tokens.num_tokens, [1 2 3 4], M => integers::<M>(half, tokens, table, scale, sums));
        }
    }
}

/// As [`quantize::quantize_row`].
#[target_feature(enable = "avx2,fma")]
pub(super) fn quantize_row(row: &[f32], to: &mut [QuantizedBlock]) {
    quantize::quantize_row(row, to);
}

/// The loop of every F32 kernel: `part` adds one block's products to `M` partial sums.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn sum_blocks<const M: usize>(
    half: Half<'_>,
    part: impl Fn(usize, &mut [__m256; M]),
    scale: impl Fn(usize) -> __m256,
    out: &mut Sums,
) {
    let mut sums = [_mm256_setzero_ps(); M];
    for block in 0..half.tile.num_blocks {
        let mut parts = [_mm256_setzero_ps(); M];
        part(block, &mut parts);
        let scale = scale(block);
        for m in 0..M {
            sums[m] = _mm256_fmadd_ps(parts[m], scale, sums[m]);
        }
    }
    store::<M>(half, 1.0, &sums, out);
}

#[inline]
#[target_feature(enable = "avx2")]
fn store<const M: usize>(half: Half<'_>, unit: f32, sums: &[__m256; M], out: &mut Sums) {
    let first = half.idx * HALF_ROWS;
    // SAFETY: 8 of the 16 row scales.
    let row_scales = unsafe { _mm256_loadu_ps(half.tile.row_scales.as_ptr().add(first)) };
    let factors = _mm256_mul_ps(row_scales, _mm256_set1_ps(unit));
    for (sum, out) in sums.iter().zip(out) {
        // SAFETY: 8 of the 16 values of `out`.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr().add(first), _mm256_mul_ps(*sum, factors)) };
    }
}

/// `parts[m] += w · x[m, k]`, `k` counted from the tile's first column.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_column<const M: usize>(tokens: &Tokens<'_>, k: usize, w: __m256, parts: &mut [__m256; M]) {
    for (m, part) in parts.iter_mut().enumerate() {
        // SAFETY: `check_shapes`: `M` rows of `row_len` values, and k < row_len.
        let x = unsafe { *tokens.rows.as_ptr().add(m * tokens.row_len + k) };
        *part = _mm256_fmadd_ps(w, _mm256_set1_ps(x), *part);
    }
}

/// 32 bytes of the tile's codes from `at` on.
#[inline]
#[target_feature(enable = "avx2")]
fn codes_at(tile: &Tile<'_>, at: usize) -> __m256i {
    debug_assert!(at + 32 <= tile.codes.len());
    // SAFETY: `check_shapes`: the codes hold all lines of all blocks.
    unsafe { _mm256_loadu_si256(tile.codes.as_ptr().add(at).cast()) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn bf16<const M: usize>(half: Half<'_>, tokens: &Tokens<'_>, sums: &mut Sums) {
    let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
    let part = |block: usize, parts: &mut [__m256; M]| {
        for pair in 0..BLOCK_COLS / 2 {
            let codes = codes_at(half.tile, (block * 8 + pair) * 64 + half.idx * 32);
            let k = block * BLOCK_COLS + 2 * pair;
            add_column(tokens, k, _mm256_castsi256_ps(_mm256_slli_epi32::<16>(codes)), parts);
            add_column(tokens, k + 1, _mm256_castsi256_ps(_mm256_and_si256(codes, high)), parts);
        }
    };
    sum_blocks::<M>(half, part, |_| _mm256_set1_ps(1.0), sums);
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn fp8<const M: usize>(half: Half<'_>, tokens: &Tokens<'_>, sums: &mut Sums) {
    // 16 bytes are 8 rows of column k in the low and of k + 2 in the high bytes. Sign, exponent and mantissa of E4M3 move
    // to their places in F16, the sign's copy in bit 14 masked away.
    let mask = _mm256_set1_epi16(0xbf80_u16 as i16);
    let part = |block: usize, parts: &mut [__m256; M]| {
        for quad in 0..BLOCK_COLS / 4 {
            let at = (block * 4 + quad) * 64 + half.idx * 16;
            debug_assert!(at + 48 <= half.tile.codes.len());
            // SAFETY: `check_shapes`: the line's 64 bytes are inside the codes.
            let codes = unsafe {
                let start = half.tile.codes.as_ptr().add(at);
                _mm256_set_m128i(_mm_loadu_si128(start.add(32).cast()), _mm_loadu_si128(start.cast()))
            };
            let k = block * BLOCK_COLS + 4 * quad;
            let low = _mm256_and_si256(_mm256_srai_epi16::<1>(_mm256_slli_epi16::<8>(codes)), mask);
            let high = _mm256_and_si256(_mm256_srai_epi16::<1>(codes), mask);
            add_column(tokens, k, _mm256_cvtph_ps(_mm256_castsi256_si128(low)), parts);
            add_column(tokens, k + 1, _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(low)), parts);
            add_column(tokens, k + 2, _mm256_cvtph_ps(_mm256_castsi256_si128(high)), parts);
            add_column(tokens, k + 3, _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(high)), parts);
        }
    };
    sum_blocks::<M>(half, part, |_| _mm256_set1_ps(1.0), sums);
}

/// Byte table lookups of the 4 + 4 columns of one line: low nibbles, high nibbles.
#[inline]
#[target_feature(enable = "avx2")]
fn look_up(half: Half<'_>, line_idx: usize, table: __m256i) -> [__m256i; 2] {
    let low_nibbles = _mm256_set1_epi8(0xf);
    let codes = codes_at(half.tile, line_idx * 64 + half.idx * 32);
    let low = |codes| _mm256_shuffle_epi8(table, _mm256_and_si256(codes, low_nibbles));
    [low(codes), low(_mm256_srli_epi16::<4>(codes))]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn nibbles<const M: usize>(
    half: Half<'_>,
    tokens: &Tokens<'_>,
    table: __m128i,
    scale: impl Fn(usize) -> __m256,
    sums: &mut Sums,
) {
    let table = _mm256_broadcastsi128_si256(table);
    let part = |block: usize, parts: &mut [__m256; M]| {
        for line in 0..2 {
            for (quad, values) in look_up(half, block * 2 + line, table).into_iter().enumerate() {
                let k = block * BLOCK_COLS + 8 * line + 4 * quad;
                let value = |shifted| _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(shifted));
                add_column(tokens, k, value(_mm256_slli_epi32::<24>(values)), parts);
                add_column(tokens, k + 1, value(_mm256_slli_epi32::<16>(values)), parts);
                add_column(tokens, k + 2, value(_mm256_slli_epi32::<8>(values)), parts);
                add_column(tokens, k + 3, value(values), parts);
            }
        }
    };
    sum_blocks::<M>(half, part, scale, sums);
}

/// `vpmaddubsw` sums pairs in 16 bits: at most 4 · 2 · 24 · 127 = 24,384 here, so nothing saturates.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn integers<const M: usize>(
    half: Half<'_>,
    tokens: &Tokens<'_>,
    table: __m128i,
    scale: impl Fn(usize) -> __m256,
    out: &mut Sums,
) {
    let (table, ones) = (_mm256_broadcastsi128_si256(table), _mm256_set1_epi16(1));
    let num_blocks = half.tile.num_blocks;
    let mut sums = [_mm256_setzero_ps(); M];
    for block in 0..num_blocks {
        let [w0, w1] = look_up(half, block * 2, table);
        let [w2, w3] = look_up(half, block * 2 + 1, table);
        let scale = scale(block);
        for (m, sum) in sums.iter_mut().enumerate() {
            // SAFETY: `check_quantized`: `M` rows of `num_blocks` blocks.
            let x_block = unsafe { &*tokens.blocks.as_ptr().add(m * num_blocks + block) };
            let x = x_block.codes.as_ptr().cast::<i32>();
            let pairs = |weights, quad: usize| {
                // SAFETY: 4 of the block's 16 codes.
                _mm256_maddubs_epi16(weights, _mm256_set1_epi32(unsafe { x.add(quad).read_unaligned() }))
            };
            let first = _mm256_add_epi16(pairs(w0, 0), pairs(w1, 1));
            let second = _mm256_add_epi16(pairs(w2, 2), pairs(w3, 3));
            let fours = _mm256_madd_epi16(_mm256_add_epi16(first, second), ones);
            let part = _mm256_add_epi32(fours, _mm256_set1_epi32(x_block.bias));
            let scale = _mm256_mul_ps(scale, _mm256_set1_ps(x_block.scale));
            *sum = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(part), *sum);
        }
    }
    store::<M>(half, integer_unit(half.tile.kind), &sums, out);
}

/// E4M3 read as F16.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn nvfp4_scale(half: Half<'_>, block: usize) -> __m256 {
    let at = block * TILE_ROWS + half.idx * HALF_ROWS;
    debug_assert!(at + 8 <= half.tile.scales.len());
    // SAFETY: `check_shapes`: 16 scales for each block.
    let codes = unsafe { _mm_loadl_epi64(half.tile.scales.as_ptr().add(at).cast()) };
    _mm256_cvtph_ps(_mm_slli_epi16::<7>(_mm_cvtepu8_epi16(codes)))
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn int4_scale(half: Half<'_>, block: usize) -> __m256 {
    let at = (block / BLOCKS_PER_GROUP * TILE_ROWS + half.idx * HALF_ROWS) * 2;
    debug_assert!(at + 16 <= half.tile.scales.len());
    // SAFETY: `check_shapes`: 16 F16 scales for each group of blocks.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(half.tile.scales.as_ptr().add(at).cast()) })
}
