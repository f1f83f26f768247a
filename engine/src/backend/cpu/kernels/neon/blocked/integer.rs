//! 4-bit weights times 8-bit activations, one dot product after another: `sdot`.
//!
//! Without that instruction there is no such kernel: the products by `smull` stay what cores that lack it wait for, and of 47
//! instructions for a token and a block of 8 rows, pairs would save 4.

use std::{arch::aarch64::*, array, mem::MaybeUninit, ops::Range};

use super::{
    super::{
        super::{
            super::activations::QuantizedBlock,
            check_quantized, for_num_tokens,
            pair::{INT8_CHUNK, PairPart, for_each_group},
            scalar::integer_unit,
        },
        decode::{self, Column},
        integer::{BlockWeights, sdot},
    },
    HALVES, half_of, load, store,
};

/// Most tokens of a group: 8 registers of weights, 2 of scales, 2 · 4 sums, 14 to compute with. With 5 tokens sums are spilled.
const GROUP_TOKENS: usize = 4;

/// One block of half a tile.
#[repr(C)]
struct Int8Half {
    rows: [BlockWeights; 2],
    scales: Column,
}

/// One block of both tiles.
type Int8Block = [Int8Half; HALVES];

/// As [`super::super::super::scalar::multiply_int8`], for two tiles of a 4-bit kind, any number of tokens and at most
/// [`INT8_CHUNK`] blocks.
#[target_feature(enable = "neon,dotprod")]
pub(in super::super::super) fn multiply_pair_int8_dotprod(part: &PairPart<'_>) {
    check_quantized(&part.pair[0], &part.tokens);
    let decode = |block, to: &mut MaybeUninit<Int8Block>| decode_block(part, block, to);
    let multiply = |group: Range<usize>, decoded: &[Int8Block]| {
        for half_idx in 0..HALVES {
            for_num_tokens!(group.len(), [1 2 3 4], M => integers::<M>(part, half_idx, group.start, decoded));
        }
    };
    for_each_group::<Int8Block, INT8_CHUNK>(part, GROUP_TOKENS, 1, decode, multiply);
}

#[inline]
#[target_feature(enable = "neon,dotprod")]
fn integers<const M: usize>(part: &PairPart<'_>, half_idx: usize, first_token: usize, decoded: &[Int8Block]) {
    let num_blocks = part.pair[0].num_blocks;
    // SAFETY: `check_quantized`: a row of `num_blocks` blocks for every token.
    let rows: [*const QuantizedBlock; M] = array::from_fn(|m| unsafe {
        part.tokens.blocks.as_ptr().add((first_token + m) * num_blocks + part.blocks.start)
    });
    let mut sums = [[vdupq_n_f32(0.0); 2]; M];
    for (m, sums) in sums.iter_mut().enumerate() {
        *sums = load(part, half_idx, first_token + m);
    }
    for (block, weights) in decoded.iter().enumerate() {
        let Int8Half { rows: weights, scales } = &weights[half_idx];
        for (row, sums) in rows.iter().zip(&mut sums) {
            // SAFETY: each row has as many blocks as `decoded`.
            let (x, x_scale) = unsafe {
                let x = &*row.add(block);
                (vld1q_s8(x.codes.as_ptr()), x.scale)
            };
            for i in 0..2 {
                let part = vcvtq_f32_s32(sdot(weights[i], x));
                sums[i] = vfmaq_f32(sums[i], vmulq_n_f32(scales[i], x_scale), part);
            }
        }
    }
    for (m, sums) in sums.into_iter().enumerate() {
        store(part, half_idx, first_token + m, integer_unit(part.pair[0].kind), sums);
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn decode_block(part: &PairPart<'_>, block: usize, to: &mut MaybeUninit<Int8Block>) {
    let table = decode::value_table(part.pair[0].kind);
    for half_idx in 0..HALVES {
        let half = half_of(part, half_idx);
        let ([a, b], [c, d]) =
            (decode::quads(half, block * 2, table), decode::quads(half, block * 2 + 1, table));
        let decoded = Int8Half {
            rows: [[a[0], b[0], c[0], d[0]], [a[1], b[1], c[1], d[1]]],
            scales: decode::integer_scale(half, block),
        };
        // SAFETY: a part of `to`, which nobody else sees.
        unsafe { (&raw mut (*to.as_mut_ptr())[half_idx]).write(decoded) };
    }
}
