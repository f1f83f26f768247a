//! NEON, alone or with `dotprod` and `i8mm`: one 128-bit register is one column of 4 rows, or 4 columns of 4 rows in bytes.
//!
//! [`float`], [`integer`] and [`i8mm`] multiply one tile with few tokens and decode weights in registers: as fast as memory
//! brings them. [`blocked`] multiplies two tiles with many tokens and decodes each weight once for all of them.
#![expect(unsafe_code, reason = "SIMD intrinsics on raw pointers; bounds are checked once a tile")]

use std::arch::aarch64::*;

mod blocked;
mod decode;
mod float;
mod i8mm;
mod integer;

use super::{
    super::{activations::QuantizedBlock, packed::TILE_ROWS},
    quantize,
};

pub(super) use blocked::{multiply_pair_f32, multiply_pair_int8_dotprod, multiply_pair_int8_i8mm};
use decode::{Column, HALF_ROWS, Half};
pub(super) use float::multiply_f32;
pub(super) use i8mm::multiply_int8_i8mm;
pub(super) use integer::{multiply_int8, multiply_int8_dotprod};

type Sums = [[f32; TILE_ROWS]];

/// As [`quantize::quantize_row`].
#[target_feature(enable = "neon")]
pub(super) fn quantize_row(row: &[f32], to: &mut [QuantizedBlock]) {
    quantize::quantize_row(row, to);
}

/// Writes the scaled sums of as many tokens as `out` has.
#[inline]
#[target_feature(enable = "neon")]
fn store<const M: usize>(half: Half<'_>, unit: f32, sums: &[Column; M], out: &mut Sums) {
    for (sum, out) in sums.iter().zip(out) {
        for (i, sum) in sum.iter().enumerate() {
            let first = half.idx * HALF_ROWS + 4 * i;
            // SAFETY: 4 of the 16 row scales and of the 16 values of `out`.
            unsafe {
                let factors = vmulq_n_f32(vld1q_f32(half.tile.row_scales.as_ptr().add(first)), unit);
                vst1q_f32(out.as_mut_ptr().add(first), vmulq_f32(*sum, factors));
            }
        }
    }
}
