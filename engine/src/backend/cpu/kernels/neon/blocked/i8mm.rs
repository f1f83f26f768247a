//! 4-bit weights times 8-bit activations, two rows times two tokens at once.

use std::{arch::aarch64::*, mem::MaybeUninit, ops::Range};

use super::{
    super::{
        super::{
            check_quantized, for_num_tokens,
            pair::{INT8_CHUNK, PairPart, for_each_group},
            scalar::integer_unit,
        },
        decode,
        i8mm::{ROW_PAIRS, Steps, add_block, block_steps, pair_scales, token_pair},
    },
    HALVES, half_of, load, store,
};

/// Most tokens of a group: 8 registers of weights, 4 of scales, 2 · 4 sums, 12 to compute with. With 6 tokens sums are spilled.
const GROUP_TOKENS: usize = 4;

/// One block of half a tile, as pairs of rows.
#[repr(C)]
struct Int8Half {
    steps: Steps,
    /// Each row's twice, for two tokens.
    scales: [float32x4_t; ROW_PAIRS],
}

/// One block of both tiles.
type Int8Block = [Int8Half; HALVES];

/// As [`super::multiply_pair_int8_dotprod`], products by `smmla`.
#[target_feature(enable = "neon,dotprod,i8mm")]
pub(in super::super::super) fn multiply_pair_int8_i8mm(part: &PairPart<'_>) {
    check_quantized(&part.pair[0], &part.tokens);
    let decode = |block, to: &mut MaybeUninit<Int8Block>| decode_block(part, block, to);
    let multiply = |group: Range<usize>, decoded: &[Int8Block]| {
        for half_idx in 0..HALVES {
            for_num_tokens!(group.len().div_ceil(2), [1 2], P => pairs::<P>(part, half_idx, group.clone(), decoded));
        }
    };
    for_each_group::<Int8Block, INT8_CHUNK>(part, GROUP_TOKENS, 2, decode, multiply);
}

/// `P` pairs of tokens; where the last has no partner, it is paired with itself.
#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
fn pairs<const P: usize>(part: &PairPart<'_>, half_idx: usize, group: Range<usize>, decoded: &[Int8Block]) {
    let num_blocks = part.pair[0].num_blocks;
    let mut partners = [[0; 2]; P];
    for (pair, partners) in partners.iter_mut().enumerate() {
        let first = group.start + 2 * pair;
        *partners = [first, (first + 1).min(group.end - 1)];
    }
    let mut sums = [[vdupq_n_f32(0.0); ROW_PAIRS]; P];
    for (sums, [a, b]) in sums.iter_mut().zip(partners) {
        let (a, b) = (load(part, half_idx, a), load(part, half_idx, b));
        for i in 0..2 {
            // [row 0 · a, row 0 · b, row 1 · a, row 1 · b].
            (sums[2 * i], sums[2 * i + 1]) = (vzip1q_f32(a[i], b[i]), vzip2q_f32(a[i], b[i]));
        }
    }
    let first_block = &part.tokens.blocks[part.blocks.start..];
    for (block, weights) in decoded.iter().enumerate() {
        let Int8Half { steps, scales } = &weights[half_idx];
        for (sums, [a, b]) in sums.iter_mut().zip(partners) {
            // SAFETY: `check_quantized`: a row of `num_blocks` blocks for every token.
            let x = unsafe {
                let start = first_block.as_ptr().add(block);
                token_pair(&*start.add(a * num_blocks), &*start.add(b * num_blocks))
            };
            add_block(steps, scales, &x, sums);
        }
    }
    let unit = integer_unit(part.pair[0].kind);
    for (sums, [a, b]) in sums.iter().zip(partners) {
        store(part, half_idx, a, unit, [vuzp1q_f32(sums[0], sums[1]), vuzp1q_f32(sums[2], sums[3])]);
        store(part, half_idx, b, unit, [vuzp2q_f32(sums[0], sums[1]), vuzp2q_f32(sums[2], sums[3])]);
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn decode_block(part: &PairPart<'_>, block: usize, to: &mut MaybeUninit<Int8Block>) {
    let table = decode::value_table(part.pair[0].kind);
    for half_idx in 0..HALVES {
        let half = half_of(part, half_idx);
        let decoded = Int8Half {
            steps: block_steps(half, block, table),
            scales: pair_scales(decode::integer_scale(half, block)),
        };
        // SAFETY: a part of `to`, which nobody else sees.
        unsafe { (&raw mut (*to.as_mut_ptr())[half_idx]).write(decoded) };
    }
}
