//! 4-bit weights times 8-bit activations, two rows times two tokens at once: `smmla`.
//!
//! Twice the products of `sdot` in one instruction, of use from two tokens on. The intrinsic is unstable in Rust 1.95, so
//! the instruction is written as inline assembly.

use std::{arch::aarch64::*, arch::asm, array};

use super::{
    super::{check_quantized, check_shapes, for_num_tokens, scalar::integer_unit},
    BLOCK_COLS, Column, E2M1_TABLE, HALF_ROWS, Half, INT4_TABLE, Sums, Tile, Tokens, int4_scale, look_up,
    multiply_int8_dotprod, nvfp4_scale, store,
};
use crate::quant::WeightKind;

/// Pairs of rows in half a tile.
const ROW_PAIRS: usize = HALF_ROWS / 2;
/// Columns that one instruction sums.
const STEP_COLS: usize = 8;

/// As [`super::super::scalar::multiply_int8`], for 1 to 4 tokens and the 4-bit kinds.
#[target_feature(enable = "neon,dotprod,i8mm")]
pub(in super::super) fn multiply_int8_i8mm(tile: &Tile<'_>, tokens: &Tokens<'_>, sums: &mut Sums) {
    if tokens.num_tokens == 1 {
        return multiply_int8_dotprod(tile, tokens, sums);
    }
    check_shapes(tile, tokens, sums);
    check_quantized(tile, tokens);
    for idx in 0..2 {
        let half = Half { tile, idx };
        let num_pairs = tokens.num_tokens.div_ceil(2);
        if tile.kind == WeightKind::Nvfp4 {
            let scale = |block| nvfp4_scale(half, block);
            for_num_tokens!(num_pairs, [1 2], P => pairs::<P>(half, tokens, E2M1_TABLE, scale, sums));
        } else {
            let scale = |block| int4_scale(half, block);
            for_num_tokens!(num_pairs, [1 2], P => pairs::<P>(half, tokens, INT4_TABLE, scale, sums));
        }
    }
}

/// `P` pairs of tokens; where the last has no partner, it is paired with itself.
#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
fn pairs<const P: usize>(
    half: Half<'_>,
    tokens: &Tokens<'_>,
    table: [i8; 16],
    scale: impl Fn(usize) -> Column,
    out: &mut Sums,
) {
    // SAFETY: 16 bytes.
    let table = unsafe { vld1q_s8(table.as_ptr()) };
    let num_blocks = half.tile.num_blocks;
    let last = tokens.num_tokens - 1;
    let partners: [[usize; 2]; P] = array::from_fn(|pair| [2 * pair, (2 * pair + 1).min(last)]);
    let mut sums = [[vdupq_n_f32(0.0); ROW_PAIRS]; P];
    for block in 0..num_blocks {
        let mut parts = [[vdupq_n_s32(0); ROW_PAIRS]; P];
        for step in 0..BLOCK_COLS / STEP_COLS {
            let rows = row_pairs(look_up(half, block * 2 + step, table));
            for (parts, partners) in parts.iter_mut().zip(partners) {
                // SAFETY: `check_quantized`: a row of `num_blocks` blocks of 16 codes for every token.
                let [a, b] = partners.map(|m| unsafe {
                    let x = &*tokens.blocks.as_ptr().add(m * num_blocks + block);
                    vld1_s8(x.codes.as_ptr().add(step * STEP_COLS))
                });
                let x = vcombine_s8(a, b);
                for (part, rows) in parts.iter_mut().zip(rows) {
                    *part = smmla(*part, rows, x);
                }
            }
        }
        let scale = scale(block);
        let row_scales: [float32x4_t; ROW_PAIRS] = [
            vzip1q_f32(scale[0], scale[0]),
            vzip2q_f32(scale[0], scale[0]),
            vzip1q_f32(scale[1], scale[1]),
            vzip2q_f32(scale[1], scale[1]),
        ];
        for ((sums, parts), partners) in sums.iter_mut().zip(parts).zip(partners) {
            // SAFETY: `check_quantized`: `num_blocks` blocks for every token.
            let [a, b] =
                partners.map(|m| unsafe { (*tokens.blocks.as_ptr().add(m * num_blocks + block)).scale });
            let x_scale = vzip1q_f32(vdupq_n_f32(a), vdupq_n_f32(b));
            for ((sum, part), row_scale) in sums.iter_mut().zip(parts).zip(row_scales) {
                *sum = vfmaq_f32(*sum, vmulq_f32(row_scale, x_scale), vcvtq_f32_s32(part));
            }
        }
    }
    for (sums, out) in sums.iter().zip(out.chunks_mut(2)) {
        // [row 0 · a, row 0 · b, row 1 · a, row 1 · b] apart into the sums of a and of b.
        let a = [vuzp1q_f32(sums[0], sums[1]), vuzp1q_f32(sums[2], sums[3])];
        let b = [vuzp2q_f32(sums[0], sums[1]), vuzp2q_f32(sums[2], sums[3])];
        store::<2>(half, integer_unit(half.tile.kind), &[a, b], out);
    }
}

/// 4 rows × (4 + 4) columns, low and high nibbles apart, as pairs of rows of 8 columns.
#[inline]
#[target_feature(enable = "neon")]
fn row_pairs([low, high]: [[int8x16_t; 2]; 2]) -> [int8x16_t; ROW_PAIRS] {
    let [low, high] = [low, high].map(|quads| quads.map(|quad| vreinterpretq_s32_s8(quad)));
    [
        vzip1q_s32(low[0], high[0]),
        vzip2q_s32(low[0], high[0]),
        vzip1q_s32(low[1], high[1]),
        vzip2q_s32(low[1], high[1]),
    ]
    .map(|pair| vreinterpretq_s8_s32(pair))
}

/// `sum += rows · xᵀ`: 2 × 8 weights, 2 × 8 activations, 2 × 2 sums.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn smmla(mut sum: int32x4_t, rows: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: register arithmetic only; `i8mm` is this function's target feature.
    unsafe {
        asm!(
            "smmla {sum:v}.4s, {rows:v}.16b, {x:v}.16b",
            sum = inout(vreg) sum,
            rows = in(vreg) rows,
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}
