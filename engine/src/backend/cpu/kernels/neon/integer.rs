//! 4-bit weights times 8-bit activations, one dot product after another: `sdot` where the machine has it.
//!
//! The dot-product intrinsics are unstable in Rust 1.95, so `sdot` is written as inline assembly.

use std::arch::{aarch64::*, asm};

use super::{
    super::{
        super::{activations::Tokens, packed::Tile},
        check_quantized, check_shapes, for_num_tokens,
        scalar::integer_unit,
    },
    Sums,
    decode::{self, Column, Half},
    store,
};
use crate::quant::WeightKind;

/// What one block of 4 rows is: 4 registers of 4 rows × 4 columns.
pub(super) type BlockWeights = [int8x16_t; 4];

/// The integer kernels for one way of multiplying. A macro because only code compiled for the same features is inlined,
/// and a call for every block would cost more than the block.
macro_rules! integer_kernel {
    ($(#[$doc:meta])* $name:ident, $features:literal, $dot:ident) => {
        $(#[$doc])*
        #[target_feature(enable = $features)]
        pub(in super::super) fn $name(tile: &Tile<'_>, tokens: &Tokens<'_>, sums: &mut Sums) {
            #[inline]
            #[target_feature(enable = $features)]
            fn integers<const M: usize>(
                half: Half<'_>,
                tokens: &Tokens<'_>,
                scale: impl Fn(usize) -> Column,
                out: &mut Sums,
            ) {
                let table = decode::value_table(half.tile.kind);
                let num_blocks = half.tile.num_blocks;
                let mut sums = [[vdupq_n_f32(0.0); 2]; M];
                for block in 0..num_blocks {
                    let [a, b] = decode::quads(half, block * 2, table);
                    let [c, d] = decode::quads(half, block * 2 + 1, table);
                    let scale = scale(block);
                    for (m, sum) in sums.iter_mut().enumerate() {
                        // SAFETY: `check_quantized`: `M` rows of `num_blocks` blocks of 16 codes.
                        let (x, x_scale) = unsafe {
                            let x = &*tokens.blocks.as_ptr().add(m * num_blocks + block);
                            (vld1q_s8(x.codes.as_ptr()), x.scale)
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
                    let scale = |block| decode::nvfp4_scale(half, block);
                    for_num_tokens!(tokens.num_tokens, [1 2 3 4], M => integers::<M>(half, tokens, scale, sums));
                } else {
                    let scale = |block| decode::int4_scale(half, block);
                    for_num_tokens!(tokens.num_tokens, [1 2 3 4], M => integers::<M>(half, tokens, scale, sums));
                }
            }
        }
    };
}

integer_kernel!(
    /// As [`super::super::scalar::multiply_int8`], for 1 to 4 tokens and the 4-bit kinds; products by `smull`.
    multiply_int8, "neon", widening_dot
);
integer_kernel!(
    /// As [`multiply_int8`], products by `sdot`.
    multiply_int8_dotprod, "neon,dotprod", sdot
);

/// Sums of 4 rows over 16 columns, each register of weights against its 4 activations.
#[inline]
#[target_feature(enable = "neon,dotprod")]
pub(super) fn sdot(weights: BlockWeights, x: int8x16_t) -> int32x4_t {
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
