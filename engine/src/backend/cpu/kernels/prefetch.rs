//! Weights are asked for before their turn.

use std::{
    arch::x86_64::{__cpuid, _MM_HINT_NTA, _MM_HINT_T0, _mm_prefetch},
    sync::LazyLock,
};

use super::{
    super::packed::{Tile, block_bytes},
    PairPart,
};
use crate::quant::WeightKind;

/// How long before its use a line is asked for, counted in bytes of weights. The processor by itself runs ahead within a page only,
/// and less far the more instructions each line costs: without this, decoding took 1.28 to 1.33 times as long (Ice Lake, 2 cores, 2,
/// 8 and 16 KiB in turn; 2026-11-22).
const AHEAD_BYTES: usize = 8 << 10;
const LINE_BYTES: usize = 64;
/// Lines of codes of a block of a 4-bit kind.
const NIBBLE_LINES: usize = 2;

/// Walks through a tile before a kernel does, through codes and scales.
#[derive(Clone, Copy)]
pub(super) struct Prefetch {
    codes: *const u8,
    scales: *const u8,
    scale_bytes: usize,
    /// Whether what was used once need not stay in any cache.
    is_passing: bool,
}

impl Prefetch {
    /// Of a tile that will be wanted soon, from block `first` on.
    #[inline(always)]
    pub(super) fn of(tile: &Tile<'_>, first: usize) -> Self {
        let scale_bytes = tile.scales.len() / tile.num_blocks.max(1);
        Self {
            codes: tile.codes.as_ptr().wrapping_add(first * block_bytes(tile.kind)),
            scales: tile.scales.as_ptr().wrapping_add(first * scale_bytes),
            scale_bytes,
            is_passing: false,
        }
    }

    /// Of the tiles that are wanted after `part`: with few tokens memory is the limit, so they are asked for while the part's own
    /// blocks are decoded.
    #[inline(always)]
    pub(super) fn after(part: &PairPart<'_>) -> [Self; 2] {
        let ([a, b], first) = part.next;
        [Self::of(a, first), Self::of(b, first)]
    }

    /// Of what follows in memory while a kernel works on `tile`: of the tile itself, and most often of the kernel's next.
    #[inline(always)]
    pub(super) fn ahead_of(tile: &Tile<'_>) -> Self {
        let here = Self::of(tile, 0);
        Self {
            codes: here.codes.wrapping_add(AHEAD_BYTES),
            scales: here.scales.wrapping_add(AHEAD_BYTES),
            is_passing: tile.is_streamed && *PASSES_CACHES,
            ..here
        }
    }

    /// Asks for `block` of a tile of `kind`.
    #[inline(always)]
    pub(super) fn run_for(self, kind: WeightKind, block: usize) {
        match kind {
            WeightKind::Bf16 => self.run::<8>(block),
            WeightKind::Fp8 => self.run::<4>(block),
            WeightKind::Nvfp4 | WeightKind::Int4 => self.run::<NIBBLE_LINES>(block),
        }
    }

    /// Asks for `block`, counted from the first, which has `LINES` lines of codes. Beyond the last tile it asks for lines that nobody reads.
    #[inline(always)]
    pub(super) fn run<const LINES: usize>(self, block: usize) {
        for line in 0..LINES {
            self.ask_for(self.codes.wrapping_add((block * LINES + line) * LINE_BYTES));
        }
        if LINES == NIBBLE_LINES {
            // The other kinds have no scales.
            self.ask_for(self.scales.wrapping_add(block * self.scale_bytes));
        }
    }

    #[inline(always)]
    fn ask_for(self, line: *const u8) {
        // SAFETY: every x86-64 processor has the instruction, which reads nothing and never faults.
        unsafe {
            if self.is_passing {
                _mm_prefetch::<_MM_HINT_NTA>(line.cast());
            } else {
                _mm_prefetch::<_MM_HINT_T0>(line.cast());
            }
        }
    }
}

/// Whether lines asked for with the hint that they are wanted once are a gain. On AMD such a line is dropped from the first-level cache instead of
/// moving through the second into the last, which costs bandwidth (1.02 to 1.08 times as long, EPYC of family
/// 26, 2 cores; 2026-11-22), unless it is wanted again: the demo's weights, which stay in the cache, took 1.2 times as long with it. On Intel it has not been measured.
static PASSES_CACHES: LazyLock<bool> = LazyLock::new(|| {
    let vendor = __cpuid(0);
    [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).as_flattened() == b"AuthenticAMD"
});
