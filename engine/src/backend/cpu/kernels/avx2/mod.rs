//! AVX2 with FMA and F16C: one 256-bit register is one column of half a tile, or 4 columns of 8 rows in bytes.
//!
//! [`streaming`] multiplies one tile with few tokens and decodes weights in registers: as fast as memory brings them.
//! [`blocked`] multiplies two tiles with many tokens and decodes each weight once for all of them.
#![expect(unsafe_code, reason = "SIMD intrinsics on raw pointers; bounds are checked once a tile")]

use super::{super::activations::QuantizedBlock, quantize};

mod blocked;
mod decode;
mod dot;
mod streaming;

pub(super) use blocked::{multiply_pair_f32, multiply_pair_int8};
pub(super) use streaming::{multiply_f32, multiply_int8};

/// As [`quantize::quantize_row`].
#[target_feature(enable = "avx2,fma")]
pub(super) fn quantize_row(row: &[f32], to: &mut [QuantizedBlock]) {
    quantize::quantize_row(row, to);
}
