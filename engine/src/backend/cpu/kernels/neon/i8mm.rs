//! 4-bit weights times 8-bit activations, two rows times two tokens at once: `smmla`.
//!
//! Twice the products of `sdot` in one instruction, of use from two tokens on. The intrinsic is unstable in Rust 1.95, so
//! the instruction is written as inline assembly.

use std::{arch::aarch64::*, arch::asm, array};

use super::{
    super::{
        super::{
            activations::{QuantizedBlock, Tokens},
            packed::{BLOCK_COLS, Tile},
        },
        check_quantized, check_shapes, for_num_tokens,
        scalar::integer_unit,
    },
    Sums,
    decode::{self, Column, HALF_ROWS, Half, Quad},
    multiply_int8_dotprod, store,
};
use crate::quant::WeightKind;

/// Pairs of rows in half a tile.
pub(super) const ROW_PAIRS: usize = HALF_ROWS / 2;
/// Columns that one instruction sums.
const STEP_COLS: usize = 8;

/// Weights of half a tile: `[8 columns][2 rows]`.
pub(super) type Steps = [[int8x16_t; ROW_PAIRS]; BLOCK_COLS / STEP_COLS];

/// One block of two tokens.
pub(super) struct TokenPair {
    steps: [int8x16_t; BLOCK_COLS / STEP_COLS],
    /// `[a, b, a, b]`.
    scale: float32x4_t,
}

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
            let scale = |block| decode::nvfp4_scale(half, block);
            for_num_tokens!(num_pairs, [1 2], P => pairs::<P>(half, tokens, scale, sums));
        } else {
            let scale = |block| decode::int4_scale(half, block);
            for_num_tokens!(num_pairs, [1 2], P => pairs::<P>(half, tokens, scale, sums));
        }
    }
}

/// `P` pairs of tokens; where the last has no partner, it is paired with itself.
#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
fn pairs<const P: usize>(
    half: Half<'_>,
    tokens: &Tokens<'_>,
    scale: impl Fn(usize) -> Column,
    out: &mut Sums,
) {
    let table = decode::value_table(half.tile.kind);
    let num_blocks = half.tile.num_blocks;
    let last = tokens.num_tokens - 1;
    let partners: [[usize; 2]; P] = array::from_fn(|pair| [2 * pair, (2 * pair + 1).min(last)]);
    let mut sums = [[vdupq_n_f32(0.0); ROW_PAIRS]; P];
    for block in 0..num_blocks {
        let steps = block_steps(half, block, table);
        let scales = pair_scales(scale(block));
        for (sums, [a, b]) in sums.iter_mut().zip(partners) {
            // SAFETY: `check_quantized`: a row of `num_blocks` blocks for every token.
            let x = unsafe {
                let start = tokens.blocks.as_ptr().add(block);
                token_pair(&*start.add(a * num_blocks), &*start.add(b * num_blocks))
            };
            add_block(&steps, &scales, &x, sums);
        }
    }
    for (sums, out) in sums.iter().zip(out.chunks_mut(2)) {
        // [row 0 · a, row 0 · b, row 1 · a, row 1 · b] apart into the sums of a and of b.
        let a = [vuzp1q_f32(sums[0], sums[1]), vuzp1q_f32(sums[2], sums[3])];
        let b = [vuzp2q_f32(sums[0], sums[1]), vuzp2q_f32(sums[2], sums[3])];
        store::<2>(half, integer_unit(half.tile.kind), &[a, b], out);
    }
}

/// One block of half a tile as pairs of rows, 8 columns at a time.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn block_steps(half: Half<'_>, block: usize, table: int8x16_t) -> Steps {
    [row_pairs(decode::quads(half, block * 2, table)), row_pairs(decode::quads(half, block * 2 + 1, table))]
}

/// 4 rows × (4 + 4) columns, low and high nibbles apart, as pairs of rows of 8 columns.
#[inline]
#[target_feature(enable = "neon")]
fn row_pairs([low, high]: [Quad; 2]) -> [int8x16_t; ROW_PAIRS] {
    let words = |quad| vreinterpretq_s32_s8(quad);
    let first = |i: usize| vreinterpretq_s8_s32(vzip1q_s32(words(low[i]), words(high[i])));
    let second = |i: usize| vreinterpretq_s8_s32(vzip2q_s32(words(low[i]), words(high[i])));
    [first(0), second(0), first(1), second(1)]
}

/// The scales of 8 rows, each for two tokens.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn pair_scales([low, high]: Column) -> [float32x4_t; ROW_PAIRS] {
    [vzip1q_f32(low, low), vzip2q_f32(low, low), vzip1q_f32(high, high), vzip2q_f32(high, high)]
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn token_pair(a: &QuantizedBlock, b: &QuantizedBlock) -> TokenPair {
    // SAFETY: 16 codes each.
    let (a_codes, b_codes) = unsafe { (vld1q_s8(a.codes.as_ptr()), vld1q_s8(b.codes.as_ptr())) };
    let (a_codes, b_codes) = (vreinterpretq_s64_s8(a_codes), vreinterpretq_s64_s8(b_codes));
    TokenPair {
        steps: [
            vreinterpretq_s8_s64(vzip1q_s64(a_codes, b_codes)),
            vreinterpretq_s8_s64(vzip2q_s64(a_codes, b_codes)),
        ],
        scale: vzip1q_f32(vdupq_n_f32(a.scale), vdupq_n_f32(b.scale)),
    }
}

/// Adds one block's products to the sums of 4 pairs of rows and a pair of tokens.
#[inline]
#[target_feature(enable = "neon,i8mm")]
pub(super) fn add_block(
    steps: &Steps,
    scales: &[float32x4_t; ROW_PAIRS],
    x: &TokenPair,
    sums: &mut [float32x4_t; ROW_PAIRS],
) {
    for i in 0..ROW_PAIRS {
        let part = smmla(smmla(vdupq_n_s32(0), steps[0][i], x.steps[0]), steps[1][i], x.steps[1]);
        sums[i] = vfmaq_f32(sums[i], vmulq_f32(scales[i], x.scale), vcvtq_f32_s32(part));
    }
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
