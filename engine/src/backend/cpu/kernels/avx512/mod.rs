//! AVX-512 (F, BW, VL, DQ, VNNI): one 512-bit register is one column of a tile, or 4 columns of 16 rows in bytes.
//!
//! [`streaming`] multiplies one tile with few tokens and decodes weights in registers: as fast as memory brings them.
//! [`blocked`] multiplies two tiles with many tokens and decodes each weight once for all of them.
#![expect(unsafe_code, reason = "SIMD intrinsics on raw pointers; bounds are checked once a tile")]

mod blocked;
mod decode;
mod quantize;
mod streaming;

pub(super) use blocked::{F32_CHUNK, INT8_CHUNK, multiply_pair_f32, multiply_pair_int8};
pub(super) use quantize::quantize_row;
pub(super) use streaming::{multiply_f32, multiply_int8};
