//! NEON, alone or with `dotprod` and `i8mm`: one 128-bit register is one column of 4 rows, or 4 columns of 4 rows in bytes.
//!
//! Here is what the kernels share: half a tile, its codes and scales.
#![expect(unsafe_code, reason = "SIMD intrinsics on raw pointers; bounds are checked once a tile")]

use std::arch::{aarch64::*, asm};

mod float;
mod i8mm;
mod integer;

use super::{
    super::{
        activations::{QuantizedBlock, Tokens},
        packed::{BLOCK_COLS, BLOCKS_PER_GROUP, TILE_ROWS, Tile},
    },
    quantize,
};

pub(super) use float::multiply_f32;
pub(super) use i8mm::multiply_int8_i8mm;
pub(super) use integer::{multiply_int8, multiply_int8_dotprod};

type Sums = [[f32; TILE_ROWS]];
/// 8 rows of one column.
type Column = [float32x4_t; 2];

/// Rows of half a tile.
const HALF_ROWS: usize = TILE_ROWS / 2;
/// E2M1, doubled.
const E2M1_TABLE: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];
/// Integers stored plus 8.
const INT4_TABLE: [i8; 16] = [-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7];

/// Half a tile: rows `[8 · idx, 8 · idx + 8)`.
#[derive(Clone, Copy)]
struct Half<'a> {
    tile: &'a Tile<'a>,
    idx: usize,
}

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

/// 16 bytes of the tile's codes from `at` on.
#[inline]
#[target_feature(enable = "neon")]
fn codes_at(tile: &Tile<'_>, at: usize) -> uint8x16_t {
    debug_assert!(at + 16 <= tile.codes.len());
    // SAFETY: `check_shapes`: the codes hold all lines of all blocks.
    unsafe { vld1q_u8(tile.codes.as_ptr().add(at)) }
}

/// The half's 2 × 16 bytes (4 rows each) of line `line_idx`.
#[inline]
#[target_feature(enable = "neon")]
fn line(half: Half<'_>, line_idx: usize) -> [uint8x16_t; 2] {
    [0, 16].map(|at| codes_at(half.tile, line_idx * 64 + half.idx * 32 + at))
}

/// Byte table lookups of the 4 + 4 columns of one line: `[low nibbles, high nibbles]`, each 2 × 4 rows.
#[inline]
#[target_feature(enable = "neon")]
fn look_up(half: Half<'_>, line_idx: usize, table: int8x16_t) -> [[int8x16_t; 2]; 2] {
    let codes = line(half, line_idx);
    let low = codes.map(|c| vqtbl1q_s8(table, vandq_u8(c, vdupq_n_u8(0xf))));
    [low, codes.map(|c| vqtbl1q_s8(table, vshrq_n_u8::<4>(c)))]
}

/// 8 F16 values, given as their bits.
#[inline]
#[target_feature(enable = "neon")]
fn widen_f16(bits: int16x8_t) -> Column {
    let (low, high): (float32x4_t, float32x4_t);
    // SAFETY: register arithmetic only; base NEON. The F16 vector intrinsics need the unstable `f16`.
    unsafe {
        asm!(
            "fcvtl {low:v}.4s, {bits:v}.4h",
            "fcvtl2 {high:v}.4s, {bits:v}.8h",
            bits = in(vreg) bits,
            low = out(vreg) low,
            high = lateout(vreg) high,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    [low, high]
}

/// E4M3 read as F16.
#[inline]
#[target_feature(enable = "neon")]
fn nvfp4_scale(half: Half<'_>, block: usize) -> Column {
    let at = block * TILE_ROWS + half.idx * HALF_ROWS;
    debug_assert!(at + 8 <= half.tile.scales.len());
    // SAFETY: `check_shapes`: 16 scales for each block.
    let codes = unsafe { vld1_u8(half.tile.scales.as_ptr().add(at)) };
    widen_f16(vreinterpretq_s16_u16(vshll_n_u8::<7>(codes)))
}

#[inline]
#[target_feature(enable = "neon")]
fn int4_scale(half: Half<'_>, block: usize) -> Column {
    let at = (block / BLOCKS_PER_GROUP * TILE_ROWS + half.idx * HALF_ROWS) * 2;
    debug_assert!(at + 16 <= half.tile.scales.len());
    // SAFETY: `check_shapes`: 16 F16 scales for each group of blocks.
    widen_f16(vreinterpretq_s16_u8(unsafe { vld1q_u8(half.tile.scales.as_ptr().add(at)) }))
}
