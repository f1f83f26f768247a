//! NEON, with and without `dotprod`: one 128-bit register is one column of 4 rows, or 4 columns of 4 rows in bytes.
//!
//! The dot-product intrinsics are unstable in Rust 1.95, so `sdot` is written as inline assembly.
#![expect(unsafe_code, reason = "SIMD intrinsics on raw pointers; bounds are checked once a tile")]

use std::arch::{aarch64::*, asm};

use super::{
    super::{
        activations::{QuantizedRow, Tokens},
        packed::{BLOCK_COLS, BLOCKS_PER_GROUP, TILE_ROWS, Tile},
    },
    check_quantized, check_shapes, for_num_tokens, quantize,
    scalar::integer_unit,
};
use crate::quant::WeightKind;

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

/// As [`super::scalar::multiply_f32`], for 1 to 4 tokens.
#[target_feature(enable = "neon")]
pub(super) fn multiply_f32(tile: &Tile<'_>, tokens: &Tokens<'_>, sums: &mut Sums) {
    check_shapes(tile, tokens, sums);
    for idx in 0..2 {
        let half = Half { tile, idx };
        match tile.kind {
            WeightKind::Bf16 => {
                for_num_tokens!(tokens.num_tokens, [1 2 3 4], M => bf16::<M>(half, tokens, sums))
            }
            WeightKind::Fp8 => {
                for_num_tokens!(tokens.num_tokens, [1 2 3 4], M => fp8::<M>(half, tokens, sums))
            }
            WeightKind::Nvfp4 => {
                // The table is doubled; halving the scale takes it back exactly.
                let scale = |block| nvfp4_scale(half, block).map(|scale| vmulq_n_f32(scale, 0.5));
                for_num_tokens!(tokens.num_tokens, [1 2 3 4], M => nibbles::<M>(half, tokens, E2M1_TABLE, scale, sums));
            }
            WeightKind::Int4 => {
                let scale = |block| int4_scale(half, block);
                for_num_tokens!(tokens.num_tokens, [1 2 3 4], M => nibbles::<M>(half, tokens, INT4_TABLE, scale, sums));
            }
        }
    }
}

/// As [`quantize::quantize_row`].
#[target_feature(enable = "neon")]
pub(super) fn quantize_row(row: &[f32], to: QuantizedRow<'_>) {
    quantize::quantize_row(row, to);
}

/// The loop of every F32 kernel: `part` adds one block's products to `M` partial sums.
#[inline]
#[target_feature(enable = "neon")]
fn sum_blocks<const M: usize>(
    half: Half<'_>,
    part: impl Fn(usize, &mut [Column; M]),
    scale: impl Fn(usize) -> Column,
    out: &mut Sums,
) {
    let mut sums = [[vdupq_n_f32(0.0); 2]; M];
    for block in 0..half.tile.num_blocks {
        let mut parts = [[vdupq_n_f32(0.0); 2]; M];
        part(block, &mut parts);
        let scale = scale(block);
        for m in 0..M {
            for i in 0..2 {
                sums[m][i] = vfmaq_f32(sums[m][i], parts[m][i], scale[i]);
            }
        }
    }
    store::<M>(half, 1.0, &sums, out);
}

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

/// `parts[m] += w · x[m, k]`, `k` counted from the tile's first column.
#[inline]
#[target_feature(enable = "neon")]
fn add_column<const M: usize>(tokens: &Tokens<'_>, k: usize, w: Column, parts: &mut [Column; M]) {
    for (m, part) in parts.iter_mut().enumerate() {
        // SAFETY: `check_shapes`: `M` rows of `row_len` values, and k < row_len.
        let x = unsafe { *tokens.rows.as_ptr().add(m * tokens.row_len + k) };
        part[0] = vfmaq_n_f32(part[0], w[0], x);
        part[1] = vfmaq_n_f32(part[1], w[1], x);
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

#[inline]
#[target_feature(enable = "neon")]
fn bf16<const M: usize>(half: Half<'_>, tokens: &Tokens<'_>, sums: &mut Sums) {
    let high = vdupq_n_u32(0xffff_0000);
    let part = |block: usize, parts: &mut [Column; M]| {
        for pair in 0..BLOCK_COLS / 2 {
            let codes = line(half, block * 8 + pair).map(|bytes| vreinterpretq_u32_u8(bytes));
            let k = block * BLOCK_COLS + 2 * pair;
            add_column(tokens, k, codes.map(|c| vreinterpretq_f32_u32(vshlq_n_u32::<16>(c))), parts);
            add_column(tokens, k + 1, codes.map(|c| vreinterpretq_f32_u32(vandq_u32(c, high))), parts);
        }
    };
    sum_blocks::<M>(half, part, |_| [vdupq_n_f32(1.0); 2], sums);
}

#[inline]
#[target_feature(enable = "neon")]
fn fp8<const M: usize>(half: Half<'_>, tokens: &Tokens<'_>, sums: &mut Sums) {
    // 16 bytes are 8 rows of column k in the low and of k + 2 in the high bytes. Sign, exponent and mantissa of E4M3 move
    // to their places in F16, the sign's copy in bit 14 masked away.
    let mask = vdupq_n_s16(0xbf80_u16 as i16);
    let part = |block: usize, parts: &mut [Column; M]| {
        for quad in 0..BLOCK_COLS / 4 {
            let at = (block * 4 + quad) * 64 + half.idx * 16;
            let codes = [at, at + 32].map(|at| vreinterpretq_s16_u8(codes_at(half.tile, at)));
            let k = block * BLOCK_COLS + 4 * quad;
            let [low_0, low_1] = codes.map(|c| vandq_s16(vshrq_n_s16::<1>(vshlq_n_s16::<8>(c)), mask));
            let [high_0, high_1] = codes.map(|c| vandq_s16(vshrq_n_s16::<1>(c), mask));
            for (i, column) in [low_0, low_1, high_0, high_1].into_iter().enumerate() {
                add_column(tokens, k + i, widen_f16(column), parts);
            }
        }
    };
    sum_blocks::<M>(half, part, |_| [vdupq_n_f32(1.0); 2], sums);
}

/// Byte table lookups of the 4 + 4 columns of one line: `[low nibbles, high nibbles]`, each 2 × 4 rows.
#[inline]
#[target_feature(enable = "neon")]
fn look_up(half: Half<'_>, line_idx: usize, table: int8x16_t) -> [[int8x16_t; 2]; 2] {
    let codes = line(half, line_idx);
    let low = codes.map(|c| vqtbl1q_s8(table, vandq_u8(c, vdupq_n_u8(0xf))));
    [low, codes.map(|c| vqtbl1q_s8(table, vshrq_n_u8::<4>(c)))]
}

#[inline]
#[target_feature(enable = "neon")]
fn nibbles<const M: usize>(
    half: Half<'_>,
    tokens: &Tokens<'_>,
    table: [i8; 16],
    scale: impl Fn(usize) -> Column,
    sums: &mut Sums,
) {
    // SAFETY: 16 bytes.
    let table = unsafe { vld1q_s8(table.as_ptr()) };
    let part = |block: usize, parts: &mut [Column; M]| {
        for line in 0..2 {
            for (quad, values) in look_up(half, block * 2 + line, table).into_iter().enumerate() {
                let values = values.map(|v| vreinterpretq_s32_s8(v));
                let k = block * BLOCK_COLS + 8 * line + 4 * quad;
                let value = |shifted| vcvtq_f32_s32(vshrq_n_s32::<24>(shifted));
                add_column(tokens, k, values.map(|v| value(vshlq_n_s32::<24>(v))), parts);
                add_column(tokens, k + 1, values.map(|v| value(vshlq_n_s32::<16>(v))), parts);
                add_column(tokens, k + 2, values.map(|v| value(vshlq_n_s32::<8>(v))), parts);
                add_column(tokens, k + 3, values.map(value), parts);
            }
        }
    };
    sum_blocks::<M>(half, part, scale, sums);
}

/// What one block of 4 rows is: 4 registers of 4 rows × 4 columns.
type BlockWeights = [int8x16_t; 4];

/// The integer kernels for one way of multiplying. A macro because only code compiled for the same features is inlined,
/// and a call for every block would cost more than the block.
macro_rules! integer_kernel {
    ($(#[$doc:meta])* $name:ident, $features:literal, $dot:ident) => {
        $(#[$doc])*
        #[target_feature(enable = $features)]
        pub(super) fn $name(tile: &Tile<'_>, tokens: &Tokens<'_>, sums: &mut Sums) {
            #[inline]
            #[target_feature(enable = $features)]
            fn integers<const M: usize>(
                half: Half<'_>,
                tokens: &Tokens<'_>,
                table: [i8; 16],
                scale: impl Fn(usize) -> Column,
                out: &mut Sums,
            ) {
                // SAFETY: 16 bytes.
                let table = unsafe { vld1q_s8(table.as_ptr()) };
                let num_blocks = half.tile.num_blocks;
                let mut sums = [[vdupq_n_f32(0.0); 2]; M];
                for block in 0..num_blocks {
                    let [a, b] = look_up(half, block * 2, table);
                    let [c, d] = look_up(half, block * 2 + 1, table);
                    let scale = scale(block);
                    for (m, sum) in sums.iter_mut().enumerate() {
                        // SAFETY: `check_quantized`: `M` rows of `row_len` codes and of `num_blocks` scales.
                        let (x, x_scale) = unsafe {
                            (
                                vld1q_s8(tokens.codes.as_ptr().add(m * tokens.row_len + block * BLOCK_COLS)),
                                *tokens.scales.as_ptr().add(m * num_blocks + block),
                            )
                        };
                        for i in 0..2 {
                            let part = vcvtq_f32_s32($dot([a[i], b[i], c[i], d[i]], x));
                            sum[i] = vfmaq_f32(sum[i], vmulq_n_f32(scale[i], x_scale), part);
                        }
                    }
                }
                store::<M>(half, integer_unit(half.tile.kind), &sums, out);
            }

            check_shapes(tile, tokens, sums);
            check_quantized(tile, tokens);
            for idx in 0..2 {
                let half = Half { tile, idx };
                if tile.kind == WeightKind::Nvfp4 {
                    let scale = |block| nvfp4_scale(half, block);
                    for_num_tokens!(tokens.num_tokens, [1 2 3 4], M => integers::<M>(half, tokens, E2M1_TABLE, scale, sums));
                } else {
                    let scale = |block| int4_scale(half, block);
                    for_num_tokens!(tokens.num_tokens, [1 2 3 4], M => integers::<M>(half, tokens, INT4_TABLE, scale, sums));
                }
            }
        }
    };
}

integer_kernel!(
    /// As [`super::scalar::multiply_int8`], for 1 to 4 tokens and the 4-bit kinds; products by `smull`.
    multiply_int8, "neon", widening_dot
);
integer_kernel!(
    /// As [`multiply_int8`], products by `sdot`.
    multiply_int8_dotprod, "neon,dotprod", sdot
);

/// Sums of 4 rows over 16 columns, each register of weights against its 4 activations.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot(weights: BlockWeights, x: int8x16_t) -> int32x4_t {
    let mut sum = vdupq_n_s32(0);
    // SAFETY: register arithmetic only; `dotprod` is this function's target feature.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {a:v}.16b, {x:v}.4b[0]",
            "sdot {sum:v}.4s, {b:v}.16b, {x:v}.4b[1]",
            "sdot {sum:v}.4s, {c:v}.16b, {x:v}.4b[2]",
            "sdot {sum:v}.4s, {d:v}.16b, {x:v}.4b[3]",
            sum = inout(vreg) sum,
            a = in(vreg) weights[0],
            b = in(vreg) weights[1],
            c = in(vreg) weights[2],
            d = in(vreg) weights[3],
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// [`sdot`] without the instruction: products in 16 bits (4 · 12 · 127 = 6,096 at most), then pairwise sums.
#[inline]
#[target_feature(enable = "neon")]
fn widening_dot(weights: BlockWeights, x: int8x16_t) -> int32x4_t {
    let x = vreinterpretq_s32_s8(x);
    let quads =
        [vdup_laneq_s32::<0>(x), vdup_laneq_s32::<1>(x), vdup_laneq_s32::<2>(x), vdup_laneq_s32::<3>(x)];
    let (mut low, mut high) = (vdupq_n_s16(0), vdupq_n_s16(0));
    for (w, x) in weights.into_iter().zip(quads) {
        low = vmlal_s8(low, vget_low_s8(w), vreinterpret_s8_s32(x));
        high = vmlal_s8(high, vget_high_s8(w), vreinterpret_s8_s32(x));
    }
    vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high))
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
