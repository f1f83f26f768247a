//! AVX-512 (F, BW, VL, DQ, VNNI): one 512-bit register is one column of a tile, or 4 columns of 16 rows in bytes.
#![expect(unsafe_code, reason = "SIMD intrinsics on raw pointers; bounds are checked once a tile")]

use std::arch::x86_64::*;

use super::{
    super::{
        activations::{QuantizedRow, Tokens},
        packed::{BLOCK_COLS, BLOCKS_PER_GROUP, TILE_ROWS, Tile},
    },
    check_quantized, check_shapes, for_num_tokens, quantize,
    scalar::integer_unit,
};
use crate::quant::WeightKind;

type Sums = [[f32; TILE_ROWS]];

/// As [`super::scalar::multiply_f32`], for 1 to 8 tokens.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) fn multiply_f32(tile: &Tile<'_>, tokens: &Tokens<'_>, sums: &mut Sums) {
    check_shapes(tile, tokens, sums);
    match tile.kind {
        WeightKind::Bf16 => {
            for_num_tokens!(tokens.num_tokens, [1 2 3 4 5 6 7 8], M => bf16::<M>(tile, tokens, sums))
        }
        WeightKind::Fp8 => {
            for_num_tokens!(tokens.num_tokens, [1 2 3 4 5 6 7 8], M => fp8::<M>(tile, tokens, sums))
        }
        WeightKind::Nvfp4 => {
            let values = _mm512_setr_ps(
                0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0,
            );
            let scale = |block| nvfp4_scale(tile, block);
            for_num_tokens!(tokens.num_tokens, [1 2 3 4 5 6 7 8], M => nibbles::<M>(tile, tokens, values, scale, sums));
        }
        WeightKind::Int4 => {
            let values = _mm512_setr_ps(
                -8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0,
            );
            let scale = |block| int4_scale(tile, block);
            for_num_tokens!(tokens.num_tokens, [1 2 3 4 5 6 7 8], M => nibbles::<M>(tile, tokens, values, scale, sums));
        }
    }
}

/// As [`super::scalar::multiply_int8`], for 1 to 8 tokens and the 4-bit kinds.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) fn multiply_int8(tile: &Tile<'_>, tokens: &Tokens<'_>, sums: &mut Sums) {
    check_shapes(tile, tokens, sums);
    check_quantized(tile, tokens);
    // Both tables are the integer form plus 12, so that one bias serves both kinds.
    if tile.kind == WeightKind::Nvfp4 {
        let table = _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0);
        let scale = |block| nvfp4_scale(tile, block);
        for_num_tokens!(tokens.num_tokens, [1 2 3 4 5 6 7 8], M => integers::<M>(tile, tokens, table, scale, sums));
    } else {
        let table = _mm_setr_epi8(4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19);
        let scale = |block| int4_scale(tile, block);
        for_num_tokens!(tokens.num_tokens, [1 2 3 4 5 6 7 8], M => integers::<M>(tile, tokens, table, scale, sums));
    }
}

/// As [`quantize::quantize_row`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
pub(super) fn quantize_row(row: &[f32], to: QuantizedRow<'_>) {
    quantize::quantize_row(row, to);
}

/// The loop of every F32 kernel: `part` adds one block's products to `M` partial sums.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn sum_blocks<const M: usize>(
    tile: &Tile<'_>,
    part: impl Fn(usize, &mut [__m512; M]),
    scale: impl Fn(usize) -> __m512,
    out: &mut Sums,
) {
    let mut sums = [_mm512_setzero_ps(); M];
    for block in 0..tile.num_blocks {
        let mut parts = [_mm512_setzero_ps(); M];
        part(block, &mut parts);
        let scale = scale(block);
        for m in 0..M {
            sums[m] = _mm512_fmadd_ps(parts[m], scale, sums[m]);
        }
    }
    store::<M>(tile, 1.0, &sums, out);
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store<const M: usize>(tile: &Tile<'_>, unit: f32, sums: &[__m512; M], out: &mut Sums) {
    // SAFETY: 16 row scales.
    let row_scales = unsafe { _mm512_loadu_ps(tile.row_scales.as_ptr()) };
    let factors = _mm512_mul_ps(row_scales, _mm512_set1_ps(unit));
    for (sum, out) in sums.iter().zip(out) {
        // SAFETY: `out` is 16 values.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), _mm512_mul_ps(*sum, factors)) };
    }
}

/// `parts[m] += w · x[m, k]`, `k` counted from the tile's first column.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_column<const M: usize>(tokens: &Tokens<'_>, k: usize, w: __m512, parts: &mut [__m512; M]) {
    for (m, part) in parts.iter_mut().enumerate() {
        // SAFETY: `check_shapes`: `M` rows of `row_len` values, and k < row_len.
        let x = unsafe { *tokens.rows.as_ptr().add(m * tokens.row_len + k) };
        *part = _mm512_fmadd_ps(w, _mm512_set1_ps(x), *part);
    }
}

/// Line `line_idx` (64 bytes) of the tile's codes.
#[inline]
#[target_feature(enable = "avx512f")]
fn line(tile: &Tile<'_>, line_idx: usize) -> __m512i {
    debug_assert!(line_idx * 64 + 64 <= tile.codes.len());
    // SAFETY: `check_shapes`: the codes hold all lines of all blocks.
    unsafe { _mm512_loadu_si512(tile.codes.as_ptr().add(line_idx * 64).cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn bf16<const M: usize>(tile: &Tile<'_>, tokens: &Tokens<'_>, sums: &mut Sums) {
    let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    let part = |block: usize, parts: &mut [__m512; M]| {
        for pair in 0..BLOCK_COLS / 2 {
            let codes = line(tile, block * 8 + pair);
            let k = block * BLOCK_COLS + 2 * pair;
            add_column(tokens, k, _mm512_castsi512_ps(_mm512_slli_epi32::<16>(codes)), parts);
            add_column(tokens, k + 1, _mm512_castsi512_ps(_mm512_and_si512(codes, high)), parts);
        }
    };
    sum_blocks::<M>(tile, part, |_| _mm512_set1_ps(1.0), sums);
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn fp8<const M: usize>(tile: &Tile<'_>, tokens: &Tokens<'_>, sums: &mut Sums) {
    // Sign, exponent and mantissa of E4M3 at their places in F16, the sign's copy in bit 14 masked away.
    let mask = _mm512_set1_epi16(0xbf80_u16 as i16);
    let part = |block: usize, parts: &mut [__m512; M]| {
        for quad in 0..BLOCK_COLS / 4 {
            let codes = line(tile, block * 4 + quad);
            let k = block * BLOCK_COLS + 4 * quad;
            let low = _mm512_and_si512(_mm512_srai_epi16::<1>(_mm512_slli_epi16::<8>(codes)), mask);
            let high = _mm512_and_si512(_mm512_srai_epi16::<1>(codes), mask);
            add_column(tokens, k, _mm512_cvtph_ps(_mm512_castsi512_si256(low)), parts);
            add_column(tokens, k + 1, _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(low)), parts);
            add_column(tokens, k + 2, _mm512_cvtph_ps(_mm512_castsi512_si256(high)), parts);
            add_column(tokens, k + 3, _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(high)), parts);
        }
    };
    sum_blocks::<M>(tile, part, |_| _mm512_set1_ps(1.0), sums);
}

/// 4-bit codes through a table of 16 values: `vpermps` looks at the low 4 bits of each lane only, so a shift is the decoding.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn nibbles<const M: usize>(
    tile: &Tile<'_>,
    tokens: &Tokens<'_>,
    values: __m512,
    scale: impl Fn(usize) -> __m512,
    sums: &mut Sums,
) {
    let part = |block: usize, parts: &mut [__m512; M]| {
        for half in 0..2 {
            let codes = line(tile, block * 2 + half);
            let k = block * BLOCK_COLS + 8 * half;
            let value = |codes| _mm512_permutexvar_ps(codes, values);
            add_column(tokens, k, value(codes), parts);
            add_column(tokens, k + 1, value(_mm512_srli_epi32::<8>(codes)), parts);
            add_column(tokens, k + 2, value(_mm512_srli_epi32::<16>(codes)), parts);
            add_column(tokens, k + 3, value(_mm512_srli_epi32::<24>(codes)), parts);
            add_column(tokens, k + 4, value(_mm512_srli_epi32::<4>(codes)), parts);
            add_column(tokens, k + 5, value(_mm512_srli_epi32::<12>(codes)), parts);
            add_column(tokens, k + 6, value(_mm512_srli_epi32::<20>(codes)), parts);
            add_column(tokens, k + 7, value(_mm512_srli_epi32::<28>(codes)), parts);
        }
    };
    sum_blocks::<M>(tile, part, scale, sums);
}

/// 4-bit codes through a byte table, times 4 activations at once.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn integers<const M: usize>(
    tile: &Tile<'_>,
    tokens: &Tokens<'_>,
    table: __m128i,
    scale: impl Fn(usize) -> __m512,
    out: &mut Sums,
) {
    let table = _mm512_broadcast_i32x4(table);
    let low_nibbles = _mm512_set1_epi8(0xf);
    let num_blocks = tile.num_blocks;
    let mut sums = [_mm512_setzero_ps(); M];
    for block in 0..num_blocks {
        let lines = [line(tile, block * 2), line(tile, block * 2 + 1)];
        let low = |codes| _mm512_shuffle_epi8(table, _mm512_and_si512(codes, low_nibbles));
        let weights = [
            low(lines[0]),
            low(_mm512_srli_epi16::<4>(lines[0])),
            low(lines[1]),
            low(_mm512_srli_epi16::<4>(lines[1])),
        ];
        let scale = scale(block);
        for (m, sum) in sums.iter_mut().enumerate() {
            // SAFETY: `check_quantized`: `M` rows of `row_len` codes and of `num_blocks` scales and biases.
            let (x, x_scale, bias) = unsafe {
                (
                    tokens.codes.as_ptr().add(m * tokens.row_len + block * BLOCK_COLS).cast::<i32>(),
                    *tokens.scales.as_ptr().add(m * num_blocks + block),
                    *tokens.biases.as_ptr().add(m * num_blocks + block),
                )
            };
            let mut part = _mm512_set1_epi32(bias);
            for (quad, weights) in weights.iter().enumerate() {
                // SAFETY: 4 of the block's 16 codes.
                let x = unsafe { x.add(quad).read_unaligned() };
                part = _mm512_dpbusd_epi32(part, *weights, _mm512_set1_epi32(x));
            }
            let scale = _mm512_mul_ps(scale, _mm512_set1_ps(x_scale));
            *sum = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(part), *sum);
        }
    }
    store::<M>(tile, integer_unit(tile.kind), &sums, out);
}

/// E4M3 read as F16.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx2,f16c")]
fn nvfp4_scale(tile: &Tile<'_>, block: usize) -> __m512 {
    debug_assert!((block + 1) * TILE_ROWS <= tile.scales.len());
    // SAFETY: `check_shapes`: 16 scales for each block.
    let codes = unsafe { _mm_loadu_si128(tile.scales.as_ptr().add(block * TILE_ROWS).cast()) };
    _mm512_cvtph_ps(_mm256_slli_epi16::<7>(_mm256_cvtepu8_epi16(codes)))
}

#[inline]
#[target_feature(enable = "avx512f,avx2")]
fn int4_scale(tile: &Tile<'_>, block: usize) -> __m512 {
    let at = block / BLOCKS_PER_GROUP * TILE_ROWS * 2;
    debug_assert!(at + 32 <= tile.scales.len());
    // SAFETY: `check_shapes`: 16 F16 scales for each group of blocks.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(tile.scales.as_ptr().add(at).cast()) })
}
