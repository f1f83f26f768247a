//! Two tiles times many tokens: weights are decoded once into the first-level cache, then groups of tokens pass over them.
//!
//! 16 registers hold the sums of one tile and 6 tokens in F32, or of half a tile and 8 tokens of integers, so that a group
//! passes over the pair in 2 or 4 parts. Against tile by tile (Ice Lake, 2026-11-22, `[3072, 1024]`, 64 tokens): in F32 38 to 40
//! instead of 24 to 30 G products a second and core, with 45 the limit of the multipliers; integers 75 instead of 65, with 90 the
//! limit of 12 operations for 128 products on three ports.

use std::{arch::x86_64::*, array, mem::MaybeUninit, ops::Range};

use super::{
    super::{
        super::{activations::QuantizedBlock, packed::BLOCK_COLS},
        check_quantized, for_num_tokens,
        pair::{F32_CHUNK, INT8_CHUNK, PairPart, for_each_group},
        prefetch::Prefetch,
        scalar::integer_unit,
    },
    decode::{self, HALF_ROWS, Half},
    dot::add_block,
};
use crate::quant::WeightKind;

/// Most tokens of a group in F32: 2 · 6 partial sums, 2 registers of weights, an activation. The sums themselves are spilled:
/// they are needed once in 16 columns.
const F32_TOKENS: usize = 6;
/// Most tokens of a group of integers: 4 registers of weights, a scale, 8 sums, 3 to compute with.
const INT8_TOKENS: usize = 8;
/// Halves of two tiles.
const HALVES: usize = 4;

/// One block of half a tile as unsigned integers, 4 quads of columns.
#[repr(C, align(32))]
struct Int8Half {
    quads: [__m256i; BLOCK_COLS / 4],
    scale: __m256,
}

/// One block of both tiles.
type Int8Block = [Int8Half; HALVES];

/// One block of both tiles in F32, column by column.
#[repr(C, align(32))]
struct F32Block {
    columns: [[__m256; HALVES]; BLOCK_COLS],
    scales: [__m256; HALVES],
}

/// As [`super::super::scalar::multiply_f32`], for two tiles, any number of tokens and at most [`F32_CHUNK`] blocks.
#[target_feature(enable = "avx2,fma,f16c")]
pub(in super::super) fn multiply_pair_f32(part: &PairPart<'_>) {
    let next = Prefetch::after(part);
    let decode = |block, to: &mut MaybeUninit<F32Block>| {
        for tile in next {
            tile.run_for(part.pair[0].kind, block - part.blocks.start);
        }
        for idx in 0..HALVES {
            decode_columns(half_of(part, idx), block, idx, to);
        }
    };
    let multiply = |group: Range<usize>, decoded: &[F32Block]| {
        for tile_idx in 0..2 {
            for_num_tokens!(group.len(), [1 2 3 4 5 6], M => floats::<M>(part, tile_idx, group.start, decoded));
        }
    };
    for_each_group::<F32Block, F32_CHUNK>(part, F32_TOKENS, 1, decode, multiply);
}

/// As [`super::super::scalar::multiply_int8`], for two tiles of a 4-bit kind, any number of tokens and at most [`INT8_CHUNK`] blocks.
#[target_feature(enable = "avx2,fma,f16c")]
pub(in super::super) fn multiply_pair_int8(part: &PairPart<'_>) {
    check_quantized(&part.pair[0], &part.tokens);
    let table = decode::integer_table(part.pair[0].kind);
    let next = Prefetch::after(part);
    let decode = |block, to: &mut MaybeUninit<Int8Block>| {
        for tile in next {
            tile.run_for(part.pair[0].kind, block - part.blocks.start);
        }
        for idx in 0..HALVES {
            let half = half_of(part, idx);
            let (quads, scale) =
                (decode::integer_quads(half, block, table), decode::integer_scale(half, block));
            // SAFETY: a part of `to`, which nobody else sees.
            unsafe { (&raw mut (*to.as_mut_ptr())[idx]).write(Int8Half { quads, scale }) };
        }
    };
    let multiply = |group: Range<usize>, decoded: &[Int8Block]| {
        for idx in 0..HALVES {
            for_num_tokens!(group.len(), [1 2 3 4 5 6 7 8], M => integers::<M>(part, idx, group.start, decoded));
        }
    };
    for_each_group::<Int8Block, INT8_CHUNK>(part, INT8_TOKENS, 1, decode, multiply);
}

#[inline]
#[target_feature(enable = "avx2")]
fn half_of<'a>(part: &'a PairPart<'_>, idx: usize) -> Half<'a> {
    Half { tile: &part.pair[idx / 2], idx: idx % 2 }
}

/// A tile, its halves side by side: a broadcast activation serves two products.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn floats<const M: usize>(part: &PairPart<'_>, tile_idx: usize, first_token: usize, decoded: &[F32Block]) {
    let row_len = part.tokens.row_len;
    // SAFETY: `check_pair`: a row of `row_len` values for every token.
    let rows: [*const f32; M] = array::from_fn(|m| unsafe {
        let first = (first_token + m) * row_len + part.blocks.start * BLOCK_COLS;
        part.tokens.rows.as_ptr().add(first)
    });
    let halves = [2 * tile_idx, 2 * tile_idx + 1];
    let mut sums = [load::<M>(part, halves[0], first_token), load::<M>(part, halves[1], first_token)];
    for (block, weights) in decoded.iter().enumerate() {
        let mut parts = [[_mm256_setzero_ps(); 2]; M];
        // Four columns a turn: the addresses of the tokens' rows are found once for them.
        for (quad, columns) in weights.columns.as_chunks::<4>().0.iter().enumerate() {
            for (k, column) in columns.iter().enumerate() {
                let column = [column[halves[0]], column[halves[1]]];
                for (row, parts) in rows.iter().zip(&mut parts) {
                    // SAFETY: each row has 16 values for every block of `decoded`.
                    let x = _mm256_set1_ps(unsafe { *row.add(block * BLOCK_COLS + 4 * quad + k) });
                    for (part, column) in parts.iter_mut().zip(column) {
                        *part = _mm256_fmadd_ps(column, x, *part);
                    }
                }
            }
        }
        for (i, sums) in sums.iter_mut().enumerate() {
            for (sum, parts) in sums.iter_mut().zip(&parts) {
                *sum = _mm256_fmadd_ps(parts[i], weights.scales[halves[i]], *sum);
            }
        }
    }
    for (half_idx, sums) in halves.into_iter().zip(&sums) {
        store::<M>(part, half_idx, first_token, 1.0, sums);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn integers<const M: usize>(part: &PairPart<'_>, half_idx: usize, first_token: usize, decoded: &[Int8Block]) {
    let num_blocks = part.pair[0].num_blocks;
    // SAFETY: `check_quantized`: a row of `num_blocks` blocks for every token.
    let rows: [*const QuantizedBlock; M] = array::from_fn(|m| unsafe {
        part.tokens.blocks.as_ptr().add((first_token + m) * num_blocks + part.blocks.start)
    });
    let mut sums = load::<M>(part, half_idx, first_token);
    for (block, weights) in decoded.iter().enumerate() {
        let Int8Half { quads, scale } = &weights[half_idx];
        for (row, sum) in rows.iter().zip(&mut sums) {
            // SAFETY: each row has as many blocks as `decoded`.
            *sum = add_block(quads, *scale, unsafe { &*row.add(block) }, *sum);
        }
    }
    store::<M>(part, half_idx, first_token, integer_unit(part.pair[0].kind), &sums);
}

/// The sums of the blocks before the part's: they wait in the output.
#[inline]
#[target_feature(enable = "avx2")]
fn load<const M: usize>(part: &PairPart<'_>, half_idx: usize, first_token: usize) -> [__m256; M] {
    let mut sums = [_mm256_setzero_ps(); M];
    if part.blocks.start > 0 {
        for (m, sum) in sums.iter_mut().enumerate() {
            // SAFETY: 8 of 32 values, which the part before has written.
            *sum = unsafe { _mm256_loadu_ps(part.out.row(first_token + m).add(half_idx * HALF_ROWS)) };
        }
    }
    sums
}

/// Where there are blocks to come the sums wait in the output, otherwise they are finished: `unit` is what one step of the
/// weights' form is worth.
#[inline]
#[target_feature(enable = "avx2")]
fn store<const M: usize>(
    part: &PairPart<'_>,
    half_idx: usize,
    first_token: usize,
    unit: f32,
    sums: &[__m256; M],
) {
    let is_last = part.blocks.end == part.pair[0].num_blocks;
    let factors = decode::row_factors(half_of(part, half_idx), unit);
    for (m, sum) in sums.iter().enumerate() {
        let sum = if is_last { _mm256_mul_ps(*sum, factors) } else { *sum };
        // SAFETY: 8 of 32 values.
        unsafe { _mm256_storeu_ps(part.out.row(first_token + m).add(half_idx * HALF_ROWS), sum) };
    }
}

/// The 16 columns of a block of half a tile, and its scales.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn decode_columns(half: Half<'_>, block: usize, half_idx: usize, to: &mut MaybeUninit<F32Block>) {
    match half.tile.kind {
        WeightKind::Bf16 => {
            for i in 0..8 {
                put(&decode::bf16_columns(half, block * 8 + i), 2 * i, half_idx, to);
            }
        }
        WeightKind::Fp8 => {
            for i in 0..4 {
                put(&decode::fp8_columns(half, block * 4 + i), 4 * i, half_idx, to);
            }
        }
        WeightKind::Nvfp4 | WeightKind::Int4 => {
            let quads = decode::integer_quads(half, block, decode::value_table(half.tile.kind));
            for (i, quad) in quads.into_iter().enumerate() {
                put(&decode::quad_columns(quad), 4 * i, half_idx, to);
            }
        }
    }
    // SAFETY: a part of `to`, which nobody else sees.
    unsafe { (&raw mut (*to.as_mut_ptr()).scales[half_idx]).write(decode::column_scale(half, block)) };
}

/// Columns from `first` on.
#[inline]
#[target_feature(enable = "avx2")]
fn put(columns: &[__m256], first: usize, half_idx: usize, to: &mut MaybeUninit<F32Block>) {
    for (k, column) in columns.iter().enumerate() {
        // SAFETY: a part of `to`, which nobody else sees.
        unsafe { (&raw mut (*to.as_mut_ptr()).columns[first + k][half_idx]).write(*column) };
    }
}
