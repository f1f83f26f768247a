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
#![expect(unsafe_code, reason = "calling kernels that need an instruction set, which an `Isa` value proves")]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod bandwidth;
mod isa;
#[cfg(target_arch = "aarch64")]
mod neon;
mod pair;
#[cfg(target_arch = "x86_64")]
mod prefetch;
mod quantize;
mod scalar;

use super::{
    activations::{Arithmetic, QuantizedBlock, Tokens},
    packed::{BLOCK_COLS, BLOCKS_PER_GROUP, TILE_ROWS, Tile, block_bytes},
};
use crate::quant::WeightKind;

pub use bandwidth::ReadProbe;
pub use isa::Isa;
pub(crate) use pair::{PAIR_ROWS, PairOut, PairPart, PairPlan, multiply_pair};

/// Most tokens of one call of [`multiply_tile`].
pub(crate) const MAX_TOKENS: usize = 8;

/// Calls `name` of the file of `isa`; values of [`Isa`] exist only for levels this machine has.
macro_rules! on_isa {
    ($isa:expr, $name:ident($($argument:expr),*), scalar: $scalar:expr) => {
        match $isa.0 {
            isa::Level::Scalar => $scalar,
            // SAFETY: the level was found on this machine.
            #[cfg(target_arch = "x86_64")]
            isa::Level::Avx2 => unsafe { avx2::$name($($argument),*) },
            // SAFETY: the level was found on this machine.
            #[cfg(target_arch = "x86_64")]
            isa::Level::Avx512 => unsafe { avx512::$name($($argument),*) },
            // SAFETY: the level was found on this machine.
            #[cfg(target_arch = "aarch64")]
            isa::Level::Neon | isa::Level::NeonDotprod | isa::Level::NeonI8mm => unsafe { neon::$name($($argument),*) },
        }
    };
}

/// Runs the call with `M` as the number of tokens; zero tokens need no work.
macro_rules! for_num_tokens {
    ($num_tokens:expr, [$($count:literal)*], $m:ident => $call:expr) => {
        match $num_tokens {
            $($count => { const $m: usize = $count; $call })*
            _ => {}
        }
    };
}
use for_num_tokens;

/// `sums[m, r] = Σ_k tile[r, k] · tokens[m, k]` for at most [`Isa::max_tokens`] tokens; `sums` `[num_tokens][16]`.
pub(crate) fn multiply_tile(
    isa: Isa,
    arithmetic: Arithmetic,
    tile: &Tile<'_>,
    tokens: &Tokens<'_>,
    sums: &mut [[f32; TILE_ROWS]],
) {
    if is_integer(arithmetic, tile.kind) {
        #[cfg(target_arch = "aarch64")]
        match isa.0 {
            // SAFETY: the level was found on this machine.
            isa::Level::NeonDotprod => return unsafe { neon::multiply_int8_dotprod(tile, tokens, sums) },
            // SAFETY: the level was found on this machine.
            isa::Level::NeonI8mm => return unsafe { neon::multiply_int8_i8mm(tile, tokens, sums) },
            _ => {}
        }
        on_isa!(isa, multiply_int8(tile, tokens, sums), scalar: scalar::multiply_int8(tile, tokens, sums));
    } else {
        on_isa!(isa, multiply_f32(tile, tokens, sums), scalar: scalar::multiply_f32(tile, tokens, sums));
    }
}

fn is_integer(arithmetic: Arithmetic, kind: WeightKind) -> bool {
    arithmetic == Arithmetic::Int8 && matches!(kind, WeightKind::Nvfp4 | WeightKind::Int4)
}

/// Quantizes one row (a multiple of 16 values).
pub(crate) fn quantize_row(isa: Isa, row: &[f32], to: &mut [QuantizedBlock]) {
    on_isa!(isa, quantize_row(row, to), scalar: quantize::quantize_row(row, to));
}

/// What the kernels' pointer arithmetic relies on: lengths of every part, for `tile.num_blocks` blocks.
///
/// # Panics
/// When a length does not fit; packing and [`super::Activations`] make them fit.
fn check_shapes(tile: &Tile<'_>, tokens: &Tokens<'_>, sums: &[[f32; TILE_ROWS]]) {
    check_tile(tile, tokens);
    assert!(sums.len() == tokens.num_tokens);
}

fn check_tile(tile: &Tile<'_>, tokens: &Tokens<'_>) {
    let num_blocks = tile.num_blocks;
    let scale_bytes = match tile.kind {
        WeightKind::Bf16 | WeightKind::Fp8 => 0,
        WeightKind::Nvfp4 => num_blocks * TILE_ROWS,
        WeightKind::Int4 => num_blocks.div_ceil(BLOCKS_PER_GROUP) * TILE_ROWS * 2,
    };
    assert!(tile.codes.len() == num_blocks * block_bytes(tile.kind) && tile.scales.len() == scale_bytes);
    assert!(tokens.row_len == num_blocks * BLOCK_COLS);
    assert!(tokens.rows.len() == tokens.num_tokens * tokens.row_len);
}

/// What the integer kernels rely on besides: lengths of the quantized form.
///
/// # Panics
/// When a length does not fit.
fn check_quantized(tile: &Tile<'_>, tokens: &Tokens<'_>) {
    assert!(tokens.blocks.len() == tokens.num_tokens * tile.num_blocks);
}
