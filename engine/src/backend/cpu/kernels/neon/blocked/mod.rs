//! Two tiles times many tokens: weights are decoded once into the first-level cache, then groups of up to 4 tokens pass over
//! them.
//!
//! None of it is timed: we have no Arm machine. What speaks for it is what the inner loops execute for 4 tokens and a block of
//! 8 rows: instructions, and in parentheses those of the vector units, which limit cores that have two (Rust 1.95, 2026-11-22):
//!
//! | | tile by tile | pairs |
//! |---|---|---|
//! | `bf16`, F32 | 229 (176) | 192 (145) |
//! | `fp8`, F32 | 318 (216) | 192 (145) |
//! | `nvfp4` and `int4`, F32 | 368 (250) | 192 (145) |
//! | `sdot` | 100 (83) | 86 (64) |
//! | `smmla` | 107 (89) | 79 (56) |
//!
//! Decoding for pairs comes on top, once for all tokens: about what 2 or 3 of them cost. Hence the least number of tokens.

use std::arch::aarch64::*;

use super::{
    super::pair::PairPart,
    decode::{Column, HALF_ROWS, Half},
};

mod float;
mod i8mm;
mod integer;

pub(in super::super) use float::multiply_pair_f32;
pub(in super::super) use i8mm::multiply_pair_int8_i8mm;
pub(in super::super) use integer::multiply_pair_int8_dotprod;

/// Halves of two tiles.
const HALVES: usize = 4;

/// Half a tile of the pair.
fn half_of<'a>(part: &'a PairPart<'_>, half_idx: usize) -> Half<'a> {
    Half { tile: &part.pair[half_idx / 2], idx: half_idx % 2 }
}

/// The sums of the blocks before the part's: they wait in the output.
#[inline]
#[target_feature(enable = "neon")]
fn load(part: &PairPart<'_>, half_idx: usize, token_idx: usize) -> Column {
    if part.blocks.start == 0 {
        return [vdupq_n_f32(0.0); 2];
    }
    // SAFETY: 2 times 4 of 32 values, which the part before has written.
    unsafe {
        let from = part.out.row(token_idx).add(half_idx * HALF_ROWS);
        [vld1q_f32(from), vld1q_f32(from.add(4))]
    }
}

/// Where there are blocks to come the sums wait in the output, otherwise they are finished: `unit` is what one step of the
/// weights' form is worth.
#[inline]
#[target_feature(enable = "neon")]
fn store(part: &PairPart<'_>, half_idx: usize, token_idx: usize, unit: f32, sums: Column) {
    let Half { tile, idx } = half_of(part, half_idx);
    let is_last = part.blocks.end == tile.num_blocks;
    for (i, sum) in sums.into_iter().enumerate() {
        // SAFETY: 4 of the 16 row scales, 4 of 32 values.
        unsafe {
            let factors = vmulq_n_f32(vld1q_f32(tile.row_scales.as_ptr().add(idx * HALF_ROWS + 4 * i)), unit);
            let sum = if is_last { vmulq_f32(sum, factors) } else { sum };
            vst1q_f32(part.out.row(token_idx).add(half_idx * HALF_ROWS + 4 * i), sum);
        }
    }
}
