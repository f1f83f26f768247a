//! What half a tile holds, as registers: columns in F32, quads of columns in bytes, scales.
//!
//! No closure with intrinsics is handed to a function of `core` (`map`), here and in the integer kernels: that is compiled without
//! `dotprod` and `i8mm`, so what it computes goes through memory: the tile kernel of `smmla` spent 44 instructions on a token and
//! a block of 8 rows with such closures, 27 without.

use std::arch::{aarch64::*, asm};

use super::super::super::packed::{BLOCKS_PER_GROUP, TILE_ROWS, Tile};
use crate::quant::WeightKind;

/// 8 rows of one column.
pub(super) type Column = [float32x4_t; 2];
/// 8 rows of 4 columns in bytes.
pub(super) type Quad = [int8x16_t; 2];

/// Rows of half a tile.
pub(super) const HALF_ROWS: usize = TILE_ROWS / 2;

/// Half a tile: rows `[8 · idx, 8 · idx + 8)`.
#[derive(Clone, Copy)]
pub(super) struct Half<'a> {
    pub(super) tile: &'a Tile<'a>,
    pub(super) idx: usize,
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
    let at = line_idx * 64 + half.idx * 32;
    [codes_at(half.tile, at), codes_at(half.tile, at + 16)]
}

/// The 2 columns of line `line_idx`.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn bf16_columns(half: Half<'_>, line_idx: usize) -> [Column; 2] {
    let high = vdupq_n_u32(0xffff_0000);
    let [a, b] = line(half, line_idx);
    let (a, b) = (vreinterpretq_u32_u8(a), vreinterpretq_u32_u8(b));
    [
        [vreinterpretq_f32_u32(vshlq_n_u32::<16>(a)), vreinterpretq_f32_u32(vshlq_n_u32::<16>(b))],
        [vreinterpretq_f32_u32(vandq_u32(a, high)), vreinterpretq_f32_u32(vandq_u32(b, high))],
    ]
}

/// The 4 columns of line `line_idx`.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn fp8_columns(half: Half<'_>, line_idx: usize) -> [Column; 4] {
    // 16 bytes are 8 rows of column k in the low and of k + 2 in the high bytes. Sign, exponent and mantissa of E4M3 move
    // to their places in F16, the sign's copy in bit 14 masked away.
    let mask = vdupq_n_s16(0xbf80_u16 as i16);
    let at = line_idx * 64 + half.idx * 16;
    let codes = |at| vreinterpretq_s16_u8(codes_at(half.tile, at));
    let low = |codes| widen_f16(vandq_s16(vshrq_n_s16::<1>(vshlq_n_s16::<8>(codes)), mask));
    let high = |codes| widen_f16(vandq_s16(vshrq_n_s16::<1>(codes), mask));
    let (a, b) = (codes(at), codes(at + 32));
    [low(a), low(b), high(a), high(b)]
}

/// The integer forms of the 4-bit codes of `kind`. Those of E2M1 are doubled, which [`nvfp4_value_scale`] takes back.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn value_table(kind: WeightKind) -> int8x16_t {
    const E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];
    const INT4: [i8; 16] = [-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7];
    let table = if kind == WeightKind::Nvfp4 { &E2M1 } else { &INT4 };
    // SAFETY: 16 bytes.
    unsafe { vld1q_s8(table.as_ptr()) }
}

/// The 4 + 4 columns of line `line_idx` through a byte table: low nibbles, high nibbles.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn quads(half: Half<'_>, line_idx: usize, table: int8x16_t) -> [Quad; 2] {
    let [a, b] = line(half, line_idx);
    let low = |codes| vqtbl1q_s8(table, vandq_u8(codes, vdupq_n_u8(0xf)));
    let high = |codes| vqtbl1q_s8(table, vshrq_n_u8::<4>(codes));
    [[low(a), low(b)], [high(a), high(b)]]
}

/// The 4 columns of a quad.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn quad_columns([a, b]: Quad) -> [Column; 4] {
    let (a, b) = (vreinterpretq_s32_s8(a), vreinterpretq_s32_s8(b));
    let value = |shifted| vcvtq_f32_s32(vshrq_n_s32::<24>(shifted));
    [
        [value(vshlq_n_s32::<24>(a)), value(vshlq_n_s32::<24>(b))],
        [value(vshlq_n_s32::<16>(a)), value(vshlq_n_s32::<16>(b))],
        [value(vshlq_n_s32::<8>(a)), value(vshlq_n_s32::<8>(b))],
        [value(a), value(b)],
    ]
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
pub(super) fn nvfp4_scale(half: Half<'_>, block: usize) -> Column {
    let at = block * TILE_ROWS + half.idx * HALF_ROWS;
    debug_assert!(at + 8 <= half.tile.scales.len());
    // SAFETY: `check_shapes`: 16 scales for each block.
    let codes = unsafe { vld1_u8(half.tile.scales.as_ptr().add(at)) };
    widen_f16(vreinterpretq_s16_u16(vshll_n_u8::<7>(codes)))
}

/// The block's scales for the columns of [`value_table`]. Halving one is exact.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn nvfp4_value_scale(half: Half<'_>, block: usize) -> Column {
    let [a, b] = nvfp4_scale(half, block);
    [vmulq_n_f32(a, 0.5), vmulq_n_f32(b, 0.5)]
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn int4_scale(half: Half<'_>, block: usize) -> Column {
    let at = (block / BLOCKS_PER_GROUP * TILE_ROWS + half.idx * HALF_ROWS) * 2;
    debug_assert!(at + 16 <= half.tile.scales.len());
    // SAFETY: `check_shapes`: 16 F16 scales for each group of blocks.
    widen_f16(vreinterpretq_s16_u8(unsafe { vld1q_u8(half.tile.scales.as_ptr().add(at)) }))
}

/// Of a 4-bit kind, for its integer form.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn integer_scale(half: Half<'_>, block: usize) -> Column {
    if half.tile.kind == WeightKind::Nvfp4 { nvfp4_scale(half, block) } else { int4_scale(half, block) }
}

/// Of any kind, for its columns in F32; 1 where the row scale says it all.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn column_scale(half: Half<'_>, block: usize) -> Column {
    match half.tile.kind {
        WeightKind::Bf16 | WeightKind::Fp8 => [vdupq_n_f32(1.0); 2],
        WeightKind::Nvfp4 => nvfp4_value_scale(half, block),
        WeightKind::Int4 => int4_scale(half, block),
    }
}
