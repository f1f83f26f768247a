//! Two tiles times many tokens: which instruction sets have a kernel for it, what it is given, and what their kernels share.

use std::{array, mem::MaybeUninit, ops::Range, slice};

#[cfg(target_arch = "aarch64")]
use super::neon;
use super::{
    super::{
        activations::{Arithmetic, Tokens},
        disjoint::Disjoint,
        packed::{TILE_ROWS, Tile},
    },
    Isa, check_tile, is_integer, isa, scalar,
};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use crate::quant::WeightKind;

/// Rows of two tiles.
pub(crate) const PAIR_ROWS: usize = 2 * TILE_ROWS;

/// Most blocks that are decoded at a time, but for AVX-512: 20 KiB as integers, half of a first-level cache, which two threads may share.
pub(super) const INT8_CHUNK: usize = 32;
/// The same in F32: 17 KiB.
pub(super) const F32_CHUNK: usize = 8;

/// How `isa` multiplies pairs of tiles with many tokens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PairPlan {
    /// Fewer tokens are multiplied faster tile by tile.
    pub min_tokens: usize,
    /// Most blocks of one call of [`multiply_pair`].
    pub max_blocks: usize,
}

impl PairPlan {
    /// `None` where no kernel does that.
    pub(crate) fn of(isa: Isa, arithmetic: Arithmetic, kind: WeightKind) -> Option<Self> {
        let is_integer = is_integer(arithmetic, kind);
        let max_blocks = if is_integer { INT8_CHUNK } else { F32_CHUNK };
        match isa.0 {
            // The oracle does what the others do, in smaller steps.
            isa::Level::Scalar => Some(Self { min_tokens: 2, max_blocks: if is_integer { 6 } else { 5 } }),
            // 5 to 8 tokens: 1.0 to 1.5 times as fast as tile by tile, 4 tokens 0.8 to 0.9 (Ice Lake, 2026-11-22; measured before the
            // kernels for single tiles asked for weights ahead).
            #[cfg(target_arch = "x86_64")]
            isa::Level::Avx2 => Some(Self { min_tokens: 5, max_blocks }),
            // 8 tokens: as fast tile by tile with integers, in F32 0.8 to 0.94 of the time (eight lanes, Ice Lake, 2026-11-22).
            #[cfg(target_arch = "x86_64")]
            isa::Level::Avx512 => Some(Self {
                min_tokens: 9,
                max_blocks: if is_integer { avx512::INT8_CHUNK } else { avx512::F32_CHUNK },
            }),
            #[cfg(target_arch = "aarch64")]
            isa::Level::Neon if is_integer => None,
            // From counting instructions, see `neon::blocked`.
            #[cfg(target_arch = "aarch64")]
            isa::Level::Neon | isa::Level::NeonDotprod | isa::Level::NeonI8mm => {
                Some(Self { min_tokens: 9, max_blocks })
            }
        }
    }
}

/// Part of a product: two tiles, some of their blocks, all tokens.
pub(crate) struct PairPart<'a> {
    pub pair: &'a [Tile<'a>; 2],
    pub tokens: Tokens<'a>,
    /// What will be wanted after this part: two tiles, from a block on.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "asked for on x86-64 only"))]
    pub next: (&'a [Tile<'a>; 2], usize),
    /// A run of blocks; those before it have been multiplied into `out` already.
    pub blocks: Range<usize>,
    pub out: &'a PairOut<'a>,
}

/// [`super::multiply_tile`] of two tiles at once, by a [`PairPlan`]. The same bits.
pub(crate) fn multiply_pair(isa: Isa, arithmetic: Arithmetic, part: &PairPart<'_>) {
    check_pair(part);
    let is_integer = is_integer(arithmetic, part.pair[0].kind);
    match (isa.0, is_integer) {
        // SAFETY: the level was found on this machine.
        #[cfg(target_arch = "x86_64")]
        (isa::Level::Avx2, true) => unsafe { avx2::multiply_pair_int8(part) },
        // SAFETY: the level was found on this machine.
        #[cfg(target_arch = "x86_64")]
        (isa::Level::Avx2, false) => unsafe { avx2::multiply_pair_f32(part) },
        // SAFETY: the level was found on this machine.
        #[cfg(target_arch = "x86_64")]
        (isa::Level::Avx512, true) => unsafe { avx512::multiply_pair_int8(part) },
        // SAFETY: the level was found on this machine.
        #[cfg(target_arch = "x86_64")]
        (isa::Level::Avx512, false) => unsafe { avx512::multiply_pair_f32(part) },
        // SAFETY: the level was found on this machine.
        #[cfg(target_arch = "aarch64")]
        (isa::Level::NeonDotprod, true) => unsafe { neon::multiply_pair_int8_dotprod(part) },
        // SAFETY: the level was found on this machine.
        #[cfg(target_arch = "aarch64")]
        (isa::Level::NeonI8mm, true) => unsafe { neon::multiply_pair_int8_i8mm(part) },
        // SAFETY: the level was found on this machine.
        #[cfg(target_arch = "aarch64")]
        (isa::Level::Neon | isa::Level::NeonDotprod | isa::Level::NeonI8mm, false) => unsafe {
            neon::multiply_pair_f32(part)
        },
        // The oracle, for itself and for whoever has no plan.
        _ => scalar::multiply_pair(is_integer, part),
    }
}

/// Decodes the part's blocks, and multiplies them with all tokens, in groups of about equal size: at most `max_tokens`, a
/// multiple of `step`, and only the last of them no whole steps.
/// Inlined, so that the closures become part of a caller that is compiled for its instruction set.
#[inline(always)]
pub(super) fn for_each_group<Block, const CHUNK: usize>(
    part: &PairPart<'_>,
    max_tokens: usize,
    step: usize,
    decode: impl Fn(usize, &mut MaybeUninit<Block>),
    multiply: impl Fn(Range<usize>, &[Block]),
) {
    let num_tokens = part.tokens.num_tokens;
    let num_steps = num_tokens.div_ceil(step);
    let num_groups = num_steps.div_ceil(max_tokens / step);
    let mut room: [MaybeUninit<Block>; CHUNK] = [const { MaybeUninit::uninit() }; CHUNK];
    for (room, block) in room[..part.blocks.len()].iter_mut().zip(part.blocks.clone()) {
        decode(block, room);
    }
    // SAFETY: `decode` has just written as many, each in all its parts.
    let decoded = unsafe { slice::from_raw_parts(room.as_ptr().cast::<Block>(), part.blocks.len()) };
    for group in 0..num_groups {
        let start = group * num_steps / num_groups * step;
        let end = (group + 1) * num_steps / num_groups * step;
        multiply(start..end.min(num_tokens), decoded);
    }
}

/// Where the sums of two tiles go: 32 columns of a product's output, which nobody else writes.
pub(crate) struct PairOut<'a> {
    out: &'a Disjoint<'a, f32>,
    row_len: usize,
    first_col: usize,
}

impl<'a> PairOut<'a> {
    /// Columns `[first_col, first_col + 32)` of `out`, whose rows are `row_len` long.
    ///
    /// # Safety
    /// Nobody else may touch these columns while it lives.
    pub(crate) unsafe fn new(out: &'a Disjoint<'a, f32>, row_len: usize, first_col: usize) -> Self {
        assert!(first_col + PAIR_ROWS <= row_len);
        Self { out, row_len, first_col }
    }

    /// One value of a token.
    #[expect(
        clippy::mut_from_ref,
        reason = "the promise of `new` keeps others away; each value is borrowed alone"
    )]
    pub(super) fn value(&self, token_idx: usize, col: usize) -> &mut f32 {
        // SAFETY: by the promise of `new`, and one at a time by its callers.
        unsafe { &mut self.out.part(token_idx * self.row_len + self.first_col + col, 1)[0] }
    }

    /// 32 values of each of `M` tokens.
    ///
    /// # Panics
    /// When the output has no such tokens.
    #[inline]
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "AVX-512 only"))]
    pub(super) fn rows<const M: usize>(&self, first_token: usize) -> [*mut f32; M] {
        array::from_fn(|m| self.row(first_token + m))
    }

    /// 32 values of a token.
    ///
    /// # Panics
    /// When the output has no such token.
    #[inline]
    pub(super) fn row(&self, token_idx: usize) -> *mut f32 {
        // SAFETY: by the promise of `new`; the borrow ends here.
        unsafe { self.out.part(token_idx * self.row_len + self.first_col, PAIR_ROWS) }.as_mut_ptr()
    }
}

/// As [`super::check_shapes`], for two tiles of one matrix.
fn check_pair(PairPart { pair: [a, b], tokens, blocks, .. }: &PairPart<'_>) {
    check_tile(a, tokens);
    check_tile(b, tokens);
    assert!(a.kind == b.kind && blocks.start <= blocks.end && blocks.end <= a.num_blocks);
}
