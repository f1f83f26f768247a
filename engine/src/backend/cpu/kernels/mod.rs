//! The inner loops, one file per instruction set, all computing the same bits.
//!
//! A kernel multiplies one weight tile (16 rows, all columns) with a few tokens. The order of operations is part of the
//! contract, so that a result does not depend on the machine, the batch or the threads. With `fma` the fused multiply-add:
//!
//! ```text
//! F32:  part = fma over the block's 16 columns in order, from 0      sum = fma(part, scale[block], sum)
//! int8: part = Σ code·activation code, exact integer                 sum = fma(f32(part), scale[block] · x_scale[block], sum)
//! both: blocks in order, from 0;                                     out = sum · row_scale
//! ```
//! The codes of E2M1 are doubled in the integer form, so its row scale is halved.

mod isa;
mod quantize;
mod rows;
mod scalar;

use super::{
    activations::{Arithmetic, QuantizedRow, Tokens},
    packed::{TILE_ROWS, Tile},
};
use crate::quant::WeightKind;

pub use isa::Isa;
pub use rows::{Rows, axpy, dot};

/// Most tokens of one call of [`multiply_tile`].
pub(crate) const MAX_TOKENS: usize = 8;

/// `sums[m, r] = Σ_k tile[r, k] · tokens[m, k]` for at most [`Isa::max_tokens`] tokens; `sums` `[num_tokens][16]`.
pub(crate) fn multiply_tile(
    isa: Isa,
    arithmetic: Arithmetic,
    tile: &Tile<'_>,
    tokens: &Tokens<'_>,
    sums: &mut [[f32; TILE_ROWS]],
) {
    let is_integer =
        arithmetic == Arithmetic::Int8 && matches!(tile.kind, WeightKind::Nvfp4 | WeightKind::Int4);
    match isa.0 {
        _ if is_integer => scalar::multiply_int8(tile, tokens, sums),
        _ => scalar::multiply_f32(tile, tokens, sums),
    }
}

/// Quantizes one row (a multiple of 16 values).
pub(crate) fn quantize_row(isa: Isa, row: &[f32], to: QuantizedRow<'_>) {
    match isa.0 {
        _ => quantize::quantize_row(row, to),
    }
}
