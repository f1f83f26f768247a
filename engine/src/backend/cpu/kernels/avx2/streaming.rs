//! One tile times 1 to 4 tokens: each weight is decoded in registers and used at once.

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
    decode::{self, HALF_ROWS, Half},
    dot::add_block,
};
use crate::quant::WeightKind;

type Sums = [[f32; TILE_ROWS]];

/// As [`super::super::scalar::multiply_f32`], for 1 to 4 tokens.
#[target_feature(enable = "avx2,fma,f16c")]
pub(in super::super) fn multiply_f32(tile: &Tile<'_>, tokens: &Tokens<'_>, sums: &mut Sums) {
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
                let scale = |block| decode::nvfp4_value_scale(half, block);
                for_num_tokens!(tokens.num_tokens, [1 2 3 4], M => nibbles::<M>(half, tokens, scale, sums));
            }
            WeightKind::Int4 => {
                let scale = |block| decode::int4_scale(half, block);
                for_num_tokens!(tokens.num_tokens, [1 2 3 4], M => nibbles::<M>(half, tokens, scale, sums));
            }
        }
    }
}

/// As [`super::super::scalar::multiply_int8`], for 1 to 4 tokens and the 4-bit kinds.
#[target_feature(enable = "avx2,fma,f16c")]
pub(in super::super) fn multiply_int8(tile: &Tile<'_>, tokens: &Tokens<'_>, sums: &mut Sums) {
    check_shapes(tile, tokens, sums);
    check_quantized(tile, tokens);
    for idx in 0..2 {
        let half = Half { tile, idx };
        if tile.kind == WeightKind::Nvfp4 {
            let scale = |block| decode::nvfp4_scale(half, block);
            for_num_tokens!(tokens.num_tokens, [1 2 3 4], M => integers::<M>(half, tokens, scale, sums));
        } else {
            let scale = |block| decode::int4_scale(half, block);
            for_num_tokens!(tokens.num_tokens, [1 2 3 4], M => integers::<M>(half, tokens, scale, sums));
        }
    }
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
    let prefetch = Prefetch::ahead_of(half.tile);
    for block in 0..half.tile.num_blocks {
        // The second half is in the lines of the first.
        if half.idx == 0 {
            prefetch.run_for(half.tile.kind, block);
        }
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
    let factors = decode::row_factors(half, unit);
    for (sum, out) in sums.iter().zip(out) {
        // SAFETY: 8 of the 16 values of `out`.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr().add(half.idx * HALF_ROWS), _mm256_mul_ps(*sum, factors)) };
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

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn bf16<const M: usize>(half: Half<'_>, tokens: &Tokens<'_>, sums: &mut Sums) {
    let part = |block: usize, parts: &mut [__m256; M]| {
        for pair in 0..BLOCK_COLS / 2 {
            let columns = decode::bf16_columns(half, block * 8 + pair);
            for (i, column) in columns.into_iter().enumerate() {
                add_column(tokens, block * BLOCK_COLS + 2 * pair + i, column, parts);
            }
        }
    };
    sum_blocks::<M>(half, part, |_| _mm256_set1_ps(1.0), sums);
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn fp8<const M: usize>(half: Half<'_>, tokens: &Tokens<'_>, sums: &mut Sums) {
    let part = |block: usize, parts: &mut [__m256; M]| {
        for quad in 0..BLOCK_COLS / 4 {
            let columns = decode::fp8_columns(half, block * 4 + quad);
            for (i, column) in columns.into_iter().enumerate() {
                add_column(tokens, block * BLOCK_COLS + 4 * quad + i, column, parts);
            }
        }
    };
    sum_blocks::<M>(half, part, |_| _mm256_set1_ps(1.0), sums);
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn nibbles<const M: usize>(
    half: Half<'_>,
    tokens: &Tokens<'_>,
    scale: impl Fn(usize) -> __m256,
    sums: &mut Sums,
) {
    let table = decode::value_table(half.tile.kind);
    let part = |block: usize, parts: &mut [__m256; M]| {
        for line in 0..2 {
            let quads = decode::quads(half, block * 2 + line, table);
            for (quad, values) in quads.into_iter().enumerate() {
                for (i, column) in decode::quad_columns(values).into_iter().enumerate() {
                    add_column(tokens, block * BLOCK_COLS + 8 * line + 4 * quad + i, column, parts);
                }
            }
        }
    };
    sum_blocks::<M>(half, part, scale, sums);
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn integers<const M: usize>(
    half: Half<'_>,
    tokens: &Tokens<'_>,
    scale: impl Fn(usize) -> __m256,
    out: &mut Sums,
) {
    let table = decode::integer_table(half.tile.kind);
    let num_blocks = half.tile.num_blocks;
    let mut sums = [_mm256_setzero_ps(); M];
    let prefetch = Prefetch::ahead_of(half.tile);
    for block in 0..num_blocks {
        if half.idx == 0 {
            prefetch.run::<2>(block);
        }
        let weights = decode::integer_quads(half, block, table);
        let scale = scale(block);
        for (m, sum) in sums.iter_mut().enumerate() {
            // SAFETY: `check_quantized`: `M` rows of `num_blocks` blocks.
            let x = unsafe { &*tokens.blocks.as_ptr().add(m * num_blocks + block) };
            *sum = add_block(&weights, scale, x, *sum);
        }
    }
    store::<M>(half, integer_unit(half.tile.kind), &sums, out);
}
