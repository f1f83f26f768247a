//! Dequantized weights times F32 activations, column after column.

use std::arch::aarch64::*;

use super::{
    super::{check_shapes, for_num_tokens},
    BLOCK_COLS, Column, E2M1_TABLE, Half, INT4_TABLE, Sums, Tile, Tokens, codes_at, int4_scale, line,
    look_up, nvfp4_scale, store, widen_f16,
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
                // The table is doubled; halving the scale takes it back exactly.
                let scale = |block| nvfp4_scale(half, block).map(|scale| vmulq_n_f32(scale, 0.5));
                for_num_tokens!(tokens.num_tokens, [1 2 3 4], M => nibbles::<M>(half, tokens, E2M1_TABLE, scale, sums));
            }
            WeightKind::Int4 => {
                let scale = |block| int4_scale(half, block);
                for_num_tokens!(tokens.num_tokens, [1 2 3 4], M => nibbles::<M>(half, tokens, INT4_TABLE, scale, sums));
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
    let high = vdupq_n_u32(0xffff_0000);
    let part = |block: usize, parts: &mut [Column; M]| {
        for pair in 0..BLOCK_COLS / 2 {
            let codes = line(half, block * 8 + pair).map(|bytes| vreinterpretq_u32_u8(bytes));
            let k = block * BLOCK_COLS + 2 * pair;
            add_column(tokens, k, codes.map(|c| vreinterpretq_f32_u32(vshlq_n_u32::<16>(c))), parts);
            add_column(tokens, k + 1, codes.map(|c| vreinterpretq_f32_u32(vandq_u32(c, high))), parts);
        }
    };
    sum_blocks::<M>(half, part, |_| [vdupq_n_f32(1.0); 2], sums);
}

#[inline]
#[target_feature(enable = "neon")]
fn fp8<const M: usize>(half: Half<'_>, tokens: &Tokens<'_>, sums: &mut Sums) {
    // 16 bytes are 8 rows of column k in the low and of k + 2 in the high bytes. Sign, exponent and mantissa of E4M3 move
    // to their places in F16, the sign's copy in bit 14 masked away.
    let mask = vdupq_n_s16(0xbf80_u16 as i16);
    let part = |block: usize, parts: &mut [Column; M]| {
        for quad in 0..BLOCK_COLS / 4 {
            let at = (block * 4 + quad) * 64 + half.idx * 16;
            let codes = [at, at + 32].map(|at| vreinterpretq_s16_u8(codes_at(half.tile, at)));
            let k = block * BLOCK_COLS + 4 * quad;
            let [low_0, low_1] = codes.map(|c| vandq_s16(vshrq_n_s16::<1>(vshlq_n_s16::<8>(c)), mask));
            let [high_0, high_1] = codes.map(|c| vandq_s16(vshrq_n_s16::<1>(c), mask));
            for (i, column) in [low_0, low_1, high_0, high_1].into_iter().enumerate() {
                add_column(tokens, k + i, widen_f16(column), parts);
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
    table: [i8; 16],
    scale: impl Fn(usize) -> Column,
    sums: &mut Sums,
) {
    // SAFETY: 16 bytes.
    let table = unsafe { vld1q_s8(table.as_ptr()) };
    let part = |block: usize, parts: &mut [Column; M]| {
        for line in 0..2 {
            for (quad, values) in look_up(half, block * 2 + line, table).into_iter().enumerate() {
                let values = values.map(|v| vreinterpretq_s32_s8(v));
                let k = block * BLOCK_COLS + 8 * line + 4 * quad;
                let value = |shifted| vcvtq_f32_s32(vshrq_n_s32::<24>(shifted));
                add_column(tokens, k, values.map(|v| value(vshlq_n_s32::<24>(v))), parts);
                add_column(tokens, k + 1, values.map(|v| value(vshlq_n_s32::<16>(v))), parts);
                add_column(tokens, k + 2, values.map(|v| value(vshlq_n_s32::<8>(v))), parts);
                add_column(tokens, k + 3, values.map(value), parts);
            }
        }
    };
    sum_blocks::<M>(half, part, scale, sums);
}
