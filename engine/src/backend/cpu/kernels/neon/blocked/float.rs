//! Dequantized weights times F32 activations.

use std::{arch::aarch64::*, array, mem::MaybeUninit, ops::Range};

use super::{
    super::{
        super::{
            super::packed::BLOCK_COLS,
            for_num_tokens,
            pair::{F32_CHUNK, PairPart, for_each_group},
        },
        decode::{self, Column, Half},
    },
    HALVES, half_of, load, store,
};
use crate::quant::WeightKind;

/// Most tokens of a group: 4 · 4 partial sums, as many activations and a column of weights are 24 registers. The sums
/// themselves are spilled: they are needed once in 16 columns.
const GROUP_TOKENS: usize = 4;
/// Registers that hold 16 rows.
const TILE_REGISTERS: usize = 4;

/// 16 rows of one token, or of one column.
type Rows = [float32x4_t; TILE_REGISTERS];

/// One block of a tile in F32, column by column.
#[repr(C)]
struct F32Tile {
    columns: [Rows; BLOCK_COLS],
    scales: Rows,
}

/// One block of both tiles.
type F32Block = [F32Tile; 2];

/// As [`super::super::super::scalar::multiply_f32`], for two tiles, any number of tokens and at most [`F32_CHUNK`] blocks.
#[target_feature(enable = "neon")]
pub(in super::super::super) fn multiply_pair_f32(part: &PairPart<'_>) {
    let decode = |block, to: &mut MaybeUninit<F32Block>| {
        for half_idx in 0..HALVES {
            decode_columns(half_of(part, half_idx), block, half_idx / 2, to);
        }
    };
    let multiply = |group: Range<usize>, decoded: &[F32Block]| {
        for tile_idx in 0..2 {
            for_num_tokens!(group.len(), [1 2 3 4], M => floats::<M>(part, tile_idx, group.start, decoded));
        }
    };
    for_each_group::<F32Block, F32_CHUNK>(part, GROUP_TOKENS, 1, decode, multiply);
}

/// A tile, its halves side by side.
#[inline]
#[target_feature(enable = "neon")]
fn floats<const M: usize>(part: &PairPart<'_>, tile_idx: usize, first_token: usize, decoded: &[F32Block]) {
    let row_len = part.tokens.row_len;
    // SAFETY: `check_pair`: a row of `row_len` values for every token.
    let rows: [*const f32; M] = array::from_fn(|m| unsafe {
        let first = (first_token + m) * row_len + part.blocks.start * BLOCK_COLS;
        part.tokens.rows.as_ptr().add(first)
    });
    let mut sums: [Rows; M] = array::from_fn(|m| {
        let [a, b] = [0, 1].map(|half| load(part, 2 * tile_idx + half, first_token + m));
        [a[0], a[1], b[0], b[1]]
    });
    for (block, weights) in decoded.iter().enumerate() {
        let F32Tile { columns, scales } = &weights[tile_idx];
        let mut parts: [Rows; M] = [[vdupq_n_f32(0.0); TILE_REGISTERS]; M];
        for (quad, columns) in columns.as_chunks::<4>().0.iter().enumerate() {
            // SAFETY: each row has 16 values for every block of `decoded`.
            let x: [float32x4_t; M] =
                array::from_fn(|m| unsafe { vld1q_f32(rows[m].add(block * BLOCK_COLS + 4 * quad)) });
            add_column::<0, M>(&columns[0], &x, &mut parts);
            add_column::<1, M>(&columns[1], &x, &mut parts);
            add_column::<2, M>(&columns[2], &x, &mut parts);
            add_column::<3, M>(&columns[3], &x, &mut parts);
        }
        for (sums, parts) in sums.iter_mut().zip(parts) {
            for ((sum, part), scale) in sums.iter_mut().zip(parts).zip(scales) {
                *sum = vfmaq_f32(*sum, part, *scale);
            }
        }
    }
    for (m, [a, b, c, d]) in sums.into_iter().enumerate() {
        store(part, 2 * tile_idx, first_token + m, 1.0, [a, b]);
        store(part, 2 * tile_idx + 1, first_token + m, 1.0, [c, d]);
    }
}

/// `parts[m] += column · x[m][LANE]`.
#[inline]
#[target_feature(enable = "neon")]
fn add_column<const LANE: i32, const M: usize>(column: &Rows, x: &[float32x4_t; M], parts: &mut [Rows; M]) {
    for (parts, x) in parts.iter_mut().zip(x) {
        for (part, weights) in parts.iter_mut().zip(column) {
            *part = vfmaq_laneq_f32::<LANE>(*part, *weights, *x);
        }
    }
}

/// The 16 columns of a block of half a tile, and its scales.
#[inline]
#[target_feature(enable = "neon")]
fn decode_columns(half: Half<'_>, block: usize, tile_idx: usize, to: &mut MaybeUninit<F32Block>) {
    // SAFETY: a part of `to`, which nobody else sees.
    let to = unsafe { &raw mut (*to.as_mut_ptr())[tile_idx] };
    let put = |k: usize, column: Column| {
        // SAFETY: as above.
        unsafe { (&raw mut (*to).columns[k]).cast::<Column>().add(half.idx).write(column) };
    };
    match half.tile.kind {
        WeightKind::Bf16 => {
            for i in 0..8 {
                let columns = decode::bf16_columns(half, block * 8 + i);
                columns.into_iter().enumerate().for_each(|(k, column)| put(2 * i + k, column));
            }
        }
        WeightKind::Fp8 => {
            for i in 0..4 {
                let columns = decode::fp8_columns(half, block * 4 + i);
                columns.into_iter().enumerate().for_each(|(k, column)| put(4 * i + k, column));
            }
        }
        WeightKind::Nvfp4 | WeightKind::Int4 => {
            let table = decode::value_table(half.tile.kind);
            for i in 0..4 {
                let columns = decode::quad_columns(decode::quads(half, block * 2 + i / 2, table)[i % 2]);
                columns.into_iter().enumerate().for_each(|(k, column)| put(4 * i + k, column));
            }
        }
    }
    // SAFETY: as above.
    unsafe {
        (&raw mut (*to).scales).cast::<Column>().add(half.idx).write(decode::column_scale(half, block))
    };
}
