//! One tile times 1 to 8 tokens: each weight is decoded in registers, where all tokens use it.

use std::arch::x86_64::*;

use super::{
    super::{
        super::{
            activations::Tokens,
            packed::{BLOCK_COLS, TILE_ROWS, Tile},
        },
        check_quantized, check_shapes, for_num_tokens,
        prefetch::Prefetch,
        scalar::integer_unit,
    },
    decode,
};
use crate::quant::WeightKind;

type Sums = [[f32; TILE_ROWS]];

/// As [`super::super::scalar::multiply_f32`], for 1 to 8 tokens.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(in super::super) fn multiply_f32(tile: &Tile<'_>, tokens: &Tokens<'_>, sums: &mut Sums) {
    check_shapes(tile, tokens, sums);
    match tile.kind {
        WeightKind::Bf16 => {
            for_num_tokens!(tokens.num_tokens, [1 2 3 4 5 6 7 8], M => bf16::<M>(tile, tokens, sums))
        }
        WeightKind::Fp8 => {
            for_num_tokens!(tokens.num_tokens, [1 2 3 4 5 6 7 8], M => fp8::<M>(tile, tokens, sums))
        }
        WeightKind::Nvfp4 => {
            let scale = |block| decode::nvfp4_scale(tile, block);
            for_num_tokens!(tokens.num_tokens, [1 2 3 4 5 6 7 8], M => nibbles::<M>(tile, tokens, scale, sums));
        }
        WeightKind::Int4 => {
            let scale = |block| decode::int4_scale(tile, block);
            for_num_tokens!(tokens.num_tokens, [1 2 3 4 5 6 7 8], M => nibbles::<M>(tile, tokens, scale, sums));
        }
    }
}

/// As [`super::super::scalar::multiply_int8`], for 1 to 8 tokens and the 4-bit kinds.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(in super::super) fn multiply_int8(tile: &Tile<'_>, tokens: &Tokens<'_>, sums: &mut Sums) {
    check_shapes(tile, tokens, sums);
    check_quantized(tile, tokens);
    if tile.kind == WeightKind::Nvfp4 {
        let scale = |block| decode::nvfp4_scale(tile, block);
        for_num_tokens!(tokens.num_tokens, [1 2 3 4 5 6 7 8], M => integers::<M>(tile, tokens, scale, sums));
    } else {
        let scale = |block| decode::int4_scale(tile, block);
        for_num_tokens!(tokens.num_tokens, [1 2 3 4 5 6 7 8], M => integers::<M>(tile, tokens, scale, sums));
    }
}

/// The loop of every F32 kernel: `part` adds the products of one block, `LINES` lines of codes, to `M` partial sums.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn sum_blocks<const M: usize, const LINES: usize>(
    tile: &Tile<'_>,
    part: impl Fn(usize, &mut [__m512; M]),
    scale: impl Fn(usize) -> __m512,
    out: &mut Sums,
) {
    let mut sums = [_mm512_setzero_ps(); M];
    let prefetch = Prefetch::ahead_of(tile);
    for block in 0..tile.num_blocks {
        prefetch.run::<LINES>(block);
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
    let factors = decode::row_factors(tile, unit);
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

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn bf16<const M: usize>(tile: &Tile<'_>, tokens: &Tokens<'_>, sums: &mut Sums) {
    let part = |block: usize, parts: &mut [__m512; M]| {
        for pair in 0..BLOCK_COLS / 2 {
            let columns = decode::bf16_columns(decode::line(tile, block * 8 + pair));
            for (i, column) in columns.into_iter().enumerate() {
                add_column(tokens, block * BLOCK_COLS + 2 * pair + i, column, parts);
            }
        }
    };
    sum_blocks::<M, 8>(tile, part, |_| _mm512_set1_ps(1.0), sums);
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn fp8<const M: usize>(tile: &Tile<'_>, tokens: &Tokens<'_>, sums: &mut Sums) {
    let part = |block: usize, parts: &mut [__m512; M]| {
        for quad in 0..BLOCK_COLS / 4 {
            let columns = decode::fp8_columns(decode::line(tile, block * 4 + quad));
            for (i, column) in columns.into_iter().enumerate() {
                add_column(tokens, block * BLOCK_COLS + 4 * quad + i, column, parts);
            }
        }
    };
    sum_blocks::<M, 4>(tile, part, |_| _mm512_set1_ps(1.0), sums);
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn nibbles<const M: usize>(
    tile: &Tile<'_>,
    tokens: &Tokens<'_>,
    scale: impl Fn(usize) -> __m512,
    sums: &mut Sums,
) {
    let values = decode::nibble_values(tile.kind);
    let part = |block: usize, parts: &mut [__m512; M]| {
        for half in 0..2 {
            let columns = decode::nibble_columns(decode::line(tile, block * 2 + half), values);
            for (i, column) in columns.into_iter().enumerate() {
                add_column(tokens, block * BLOCK_COLS + 8 * half + i, column, parts);
            }
        }
    };
    sum_blocks::<M, 2>(tile, part, scale, sums);
}

/// 4-bit codes through a byte table, times 4 activations at once.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn integers<const M: usize>(
    tile: &Tile<'_>,
    tokens: &Tokens<'_>,
    scale: impl Fn(usize) -> __m512,
    out: &mut Sums,
) {
    let table = decode::integer_table(tile.kind);
    let num_blocks = tile.num_blocks;
    let mut sums = [_mm512_setzero_ps(); M];
    let prefetch = Prefetch::ahead_of(tile);
    for block in 0..num_blocks {
        prefetch.run::<2>(block);
        let weights = decode::integer_quads(tile, block, table);
        let scale = scale(block);
        for (m, sum) in sums.iter_mut().enumerate() {
            // SAFETY: `check_quantized`: `M` rows of `num_blocks` blocks.
            let x_block = unsafe { &*tokens.blocks.as_ptr().add(m * num_blocks + block) };
            let x = x_block.codes.as_ptr().cast::<i32>();
            let mut part = _mm512_set1_epi32(x_block.bias);
            for (quad, weights) in weights.iter().enumerate() {
                // SAFETY: 4 of the block's 16 codes.
                let x = unsafe { x.add(quad).read_unaligned() };
                part = _mm512_dpbusd_epi32(part, *weights, _mm512_set1_epi32(x));
            }
            let scale = _mm512_mul_ps(scale, _mm512_set1_ps(x_block.scale));
            *sum = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(part), *sum);
        }
    }
    store::<M>(tile, integer_unit(tile.kind), &sums, out);
}
