//! Dequantized weights times F32 activations, column after column.

use std::arch::aarch64::*;

use super::{
    super::{
        super::{
            activations::Tokens,
            packed::{BLOCK_COLS, Tile},
        },
        check_shapes, for_num_tokens,
    },
    Sums,
    decode::{self, Column, Half},
    store,
};
use crate::quant::WeightKind;

/// As [`super::super::scalar::multiply_f32`], for 1 to 4 tokens.
#[target_feature(enable = "neon")]
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

/// The loop of every F32 kernel: `part` adds one block's products to `M` partial sums.
#[inline]
#[target_feature(enable = "neon")]
fn sum_blocks<const M: usize>(
    half: Half<'_>,
    part: impl Fn(usize, &mut [Column; M]),
    scale: impl Fn(usize) -> Column,
    out: &mut Sums,
) {
    let mut sums = [[vdupq_n_f32(0.0); 2]; M];
    for block in 0..half.tile.num_blocks {
        let mut parts = [[vdupq_n_f32(0.0); 2]; M];
        part(block, &mut parts);
        let scale = scale(block);
        for m in 0..M {
            for i in 0..2 {
                sums[m][i] = vfmaq_f32(sums[m][i], parts[m][i], scale[i]);
            }
        }
    }
    store::<M>(half, 1.0, &sums, out);
}

/// `parts[m] += w · x[m, k]`, `k` counted from the tile's first column.
#[inline]
#[target_feature(enable = "neon")]
fn add_column<const M: usize>(tokens: &Tokens<'_>, k: usize, w: Column, parts: &mut [Column; M]) {
    for (m, part) in parts.iter_mut().enumerate() {
        // SAFETY: `check_shapes`: `M` rows of `row_len` values, and k < row_len.
        let x = unsafe { *tokens.rows.as_ptr().add(m * tokens.row_len + k) };
        part[0] = vfmaq_n_f32(part[0], w[0], x);
        part[1] = vfmaq_n_f32(part[1], w[1], x);
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn bf16<const M: usize>(half: Half<'_>, tokens: &Tokens<'_>, sums: &mut Sums) {
    let part = |block: usize, parts: &mut [Column; M]| {
        for pair in 0..BLOCK_COLS / 2 {
            let columns = decode::bf16_columns(half, block * 8 + pair);
            for (i, column) in columns.into_iter().enumerate() {
                add_column(tokens, block * BLOCK_COLS + 2 * pair + i, column, parts);
            }
        }
    };
    sum_blocks::<M>(half, part, |_| [vdupq_n_f32(1.0); 2], sums);
}

#[inline]
#[target_feature(enable = "neon")]
fn fp8<const M: usize>(half: Half<'_>, tokens: &Tokens<'_>, sums: &mut Sums) {
    let part = |block: usize, parts: &mut [Column; M]| {
        for quad in 0..BLOCK_COLS / 4 {
            let columns = decode::fp8_columns(half, block * 4 + quad);
            for (i, column) in columns.into_iter().enumerate() {
                add_column(tokens, block * BLOCK_COLS + 4 * quad + i, column, parts);
            }
        }
    };
    sum_blocks::<M>(half, part, |_| [vdupq_n_f32(1.0); 2], sums);
}

#[inline]
#[target_feature(enable = "neon")]
fn nibbles<const M: usize>(
    half: Half<'_>,
    tokens: &Tokens<'_>,
    scale: impl Fn(usize) -> Column,
    sums: &mut Sums,
) {
    let table = decode::value_table(half.tile.kind);
    let part = |block: usize, parts: &mut [Column; M]| {
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
