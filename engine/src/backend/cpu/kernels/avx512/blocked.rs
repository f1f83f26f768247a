//! Two tiles times many tokens: weights are decoded once into the first-level cache, then groups of up to 6 tokens pass over
//! them, their sums in registers.
//!
//! Two tiles, because a broadcast activation then serves two products: with one, loading activations is the limit, at a third
//! of what the multipliers can do (Ice Lake, 2026-11-22: 130 of 370 G products a second and core; with two 313).

use std::{arch::x86_64::*, array, mem::MaybeUninit, ops::Range};

use super::{
    super::{
        super::{
            activations::QuantizedBlock,
            packed::{BLOCK_COLS, TILE_ROWS, Tile},
        },
        check_quantized, for_num_tokens,
        pair::{PairPart, for_each_group},
        prefetch::Prefetch,
        scalar::integer_unit,
    },
    decode,
};
use crate::quant::WeightKind;

/// Most blocks that are decoded at a time, as integers 60 KiB: sums that wait in the output are loaded and stored seldom, and the
/// second-level cache gives weights fast enough (against 32 blocks in the first-level cache: 0.9 of the time, Ice Lake, 2026-11-22).
pub(in super::super) const INT8_CHUNK: usize = 96;
/// The same in F32: 51 KiB.
pub(in super::super) const F32_CHUNK: usize = 24;
/// Most tokens of a group: 2 · 6 partial sums and as many sums leave 8 of the 32 registers.
const GROUP_TOKENS: usize = 6;
/// One block of both tiles as unsigned integers, 4 quads of columns each.
#[repr(C, align(64))]
struct Int8Block {
    quads: [[__m512i; 2]; BLOCK_COLS / 4],
    scales: [__m512; 2],
}

/// One block of both tiles in F32, column by column.
#[repr(C, align(64))]
struct F32Block {
    columns: [[__m512; 2]; BLOCK_COLS],
    scales: [__m512; 2],
}

type Sums<const M: usize> = [[__m512; 2]; M];

/// As [`super::super::scalar::multiply_f32`], for two tiles, any number of tokens and at most [`F32_CHUNK`] blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(in super::super) fn multiply_pair_f32(part: &PairPart<'_>) {
    let next = Prefetch::after(part);
    let decode = |block, to: &mut MaybeUninit<F32Block>| {
        for (tile_idx, tile) in part.pair.iter().enumerate() {
            next[tile_idx].run_for(tile.kind, block - part.blocks.start);
            decode_columns(tile, block, tile_idx, to);
        }
    };
    let multiply = |group: Range<usize>, decoded: &[F32Block]| {
        for_num_tokens!(group.len(), [1 2 3 4 5 6], M => floats::<M>(part, group.start, decoded));
    };
    for_each_group::<F32Block, F32_CHUNK>(part, GROUP_TOKENS, 1, decode, multiply);
}

/// As [`super::super::scalar::multiply_int8`], for two tiles of a 4-bit kind, any number of tokens and at most [`INT8_CHUNK`] blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(in super::super) fn multiply_pair_int8(part: &PairPart<'_>) {
    check_quantized(&part.pair[0], &part.tokens);
    let table = decode::integer_table(part.pair[0].kind);
    let next = Prefetch::after(part);
    let decode = |block, to: &mut MaybeUninit<Int8Block>| {
        for (tile_idx, tile) in part.pair.iter().enumerate() {
            next[tile_idx].run_for(tile.kind, block - part.blocks.start);
            let quads = decode::integer_quads(tile, block, table);
            let scale = decode::block_scale(tile, block);
            // SAFETY: parts of `to`, which nobody else sees.
            unsafe {
                let to = to.as_mut_ptr();
                for (quad, weights) in quads.into_iter().enumerate() {
                    (&raw mut (*to).quads[quad][tile_idx]).write(weights);
                }
                (&raw mut (*to).scales[tile_idx]).write(scale);
            }
        }
    };
    let multiply = |group: Range<usize>, decoded: &[Int8Block]| {
        for_num_tokens!(group.len(), [1 2 3 4 5 6], M => integers::<M>(part, group.start, decoded));
    };
    for_each_group::<Int8Block, INT8_CHUNK>(part, GROUP_TOKENS, 1, decode, multiply);
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn floats<const M: usize>(part: &PairPart<'_>, first_token: usize, decoded: &[F32Block]) {
    let row_len = part.tokens.row_len;
    // SAFETY: `check_pair`: a row of `row_len` values for every token.
    let rows: [*const f32; M] = array::from_fn(|m| unsafe {
        let first = (first_token + m) * row_len + part.blocks.start * BLOCK_COLS;
        part.tokens.rows.as_ptr().add(first)
    });
    let out = part.out.rows::<M>(first_token);
    let mut sums = load::<M>(part, &out);
    for (block, weights) in decoded.iter().enumerate() {
        let mut parts: Sums<M> = [[_mm512_setzero_ps(); 2]; M];
        for (k, columns) in weights.columns.iter().enumerate() {
            for (row, parts) in rows.iter().zip(&mut parts) {
                // SAFETY: each row has 16 values for every block of `decoded`.
                let x = _mm512_set1_ps(unsafe { *row.add(block * BLOCK_COLS + k) });
                for (part, column) in parts.iter_mut().zip(columns) {
                    *part = _mm512_fmadd_ps(*column, x, *part);
                }
            }
        }
        for (sums, parts) in sums.iter_mut().zip(parts) {
            for ((sum, part), scale) in sums.iter_mut().zip(parts).zip(weights.scales) {
                *sum = _mm512_fmadd_ps(part, scale, *sum);
            }
        }
    }
    store::<M>(part, &out, 1.0, sums);
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn integers<const M: usize>(part: &PairPart<'_>, first_token: usize, decoded: &[Int8Block]) {
    let num_blocks = part.pair[0].num_blocks;
    // SAFETY: `check_quantized`: a row of `num_blocks` blocks for every token.
    let rows: [*const QuantizedBlock; M] = array::from_fn(|m| unsafe {
        part.tokens.blocks.as_ptr().add((first_token + m) * num_blocks + part.blocks.start)
    });
    let out = part.out.rows::<M>(first_token);
    let mut sums = load::<M>(part, &out);
    for (block, weights) in decoded.iter().enumerate() {
        let mut parts = [[_mm512_setzero_si512(); 2]; M];
        for (row, parts) in rows.iter().zip(&mut parts) {
            // SAFETY: each row has as many blocks as `decoded`.
            *parts = [_mm512_set1_epi32(unsafe { (*row.add(block)).bias }); 2];
        }
        for (quad, weights) in weights.quads.iter().enumerate() {
            for (row, parts) in rows.iter().zip(&mut parts) {
                // SAFETY: as above; 4 of the block's 16 codes.
                let x = unsafe { (*row.add(block)).codes.as_ptr().cast::<i32>().add(quad).read_unaligned() };
                let x = _mm512_set1_epi32(x);
                for (part, weights) in parts.iter_mut().zip(weights) {
                    *part = _mm512_dpbusd_epi32(*part, *weights, x);
                }
            }
        }
        for ((sums, parts), row) in sums.iter_mut().zip(parts).zip(rows) {
            // SAFETY: as above.
            let x_scale = _mm512_set1_ps(unsafe { (*row.add(block)).scale });
            for ((sum, part), scale) in sums.iter_mut().zip(parts).zip(weights.scales) {
                let scale = _mm512_mul_ps(scale, x_scale);
                *sum = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(part), *sum);
            }
        }
    }
    store::<M>(part, &out, integer_unit(part.pair[0].kind), sums);
}

/// The sums of the blocks before the part's: they wait in the output.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn load<const M: usize>(part: &PairPart<'_>, out: &[*mut f32; M]) -> Sums<M> {
    let mut sums = [[_mm512_setzero_ps(); 2]; M];
    if part.blocks.start > 0 {
        for (sums, row) in sums.iter_mut().zip(out) {
            // SAFETY: two times 16 values, which the part before has written.
            *sums = unsafe { [_mm512_loadu_ps(*row), _mm512_loadu_ps(row.add(TILE_ROWS))] };
        }
    }
    sums
}

/// Where there are blocks to come the sums wait in the output, otherwise they are finished: `unit` is what one step of the
/// weights' form is worth.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn store<const M: usize>(part: &PairPart<'_>, out: &[*mut f32; M], unit: f32, mut sums: Sums<M>) {
    let [a, b] = part.pair;
    if part.blocks.end == a.num_blocks {
        let factors = [decode::row_factors(a, unit), decode::row_factors(b, unit)];
        for sums in &mut sums {
            *sums = [_mm512_mul_ps(sums[0], factors[0]), _mm512_mul_ps(sums[1], factors[1])];
        }
    }
    for (sums, row) in sums.iter().zip(out) {
        // SAFETY: two times 16 values.
        unsafe {
            _mm512_storeu_ps(*row, sums[0]);
            _mm512_storeu_ps(row.add(TILE_ROWS), sums[1]);
        }
    }
}

/// The 16 columns of a block of one of the tiles, and its scales.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn decode_columns(tile: &Tile<'_>, block: usize, tile_idx: usize, to: &mut MaybeUninit<F32Block>) {
    match tile.kind {
        WeightKind::Bf16 => {
            for i in 0..8 {
                put(&decode::bf16_columns(decode::line(tile, block * 8 + i)), 2 * i, tile_idx, to);
            }
        }
        WeightKind::Fp8 => {
            for i in 0..4 {
                put(&decode::fp8_columns(decode::line(tile, block * 4 + i)), 4 * i, tile_idx, to);
            }
        }
        WeightKind::Nvfp4 | WeightKind::Int4 => {
            let values = decode::nibble_values(tile.kind);
            for i in 0..2 {
                put(&decode::nibble_columns(decode::line(tile, block * 2 + i), values), 8 * i, tile_idx, to);
            }
        }
    }
    // SAFETY: a part of `to`, which nobody else sees.
    unsafe { (&raw mut (*to.as_mut_ptr()).scales[tile_idx]).write(decode::block_scale(tile, block)) };
}

/// Columns from `first` on.
#[inline]
#[target_feature(enable = "avx512f")]
fn put(columns: &[__m512], first: usize, tile_idx: usize, to: &mut MaybeUninit<F32Block>) {
    for (k, column) in columns.iter().enumerate() {
        // SAFETY: a part of `to`, which nobody else sees.
        unsafe { (&raw mut (*to.as_mut_ptr()).columns[first + k][tile_idx]).write(*column) };
    }
}
