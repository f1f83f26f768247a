//! Weights are asked for before their turn.

use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

use super::super::packed::Tile;

/// How long before its use a line is asked for, counted in bytes of weights. The processor by itself runs ahead within a page only,
/// and less far the more instructions each line costs: without this, decoding took 1.28 to 1.33 times as long (Ice Lake, 2 cores, 2,
/// 8 and 16 KiB in turn; 2026-11-22).
const AHEAD_BYTES: usize = 8 << 10;
const LINE_BYTES: usize = 64;
/// Lines of codes of a block of a 4-bit kind.
const NIBBLE_LINES: usize = 2;

/// Walks through a tile ahead of a kernel, codes and scales and what follows in memory: most often the kernel's next tile.
#[derive(Clone, Copy)]
pub(super) struct Prefetch {
    codes: *const u8,
    scales: *const u8,
    scale_bytes: usize,
}

impl Prefetch {
    #[inline(always)]
    pub(super) fn new(tile: &Tile<'_>) -> Self {
        Self {
            codes: tile.codes.as_ptr().wrapping_add(AHEAD_BYTES),
            scales: tile.scales.as_ptr().wrapping_add(AHEAD_BYTES),
            scale_bytes: tile.scales.len() / tile.num_blocks.max(1),
        }
    }

    /// To be called when the turn of `block`, which has `LINES` lines of codes, has come. Beyond the last tile it asks for lines that
    /// nobody reads.
    #[inline(always)]
    pub(super) fn run<const LINES: usize>(self, block: usize) {
        for line in 0..LINES {
            ask_for(self.codes.wrapping_add((block * LINES + line) * LINE_BYTES));
        }
        if LINES == NIBBLE_LINES {
            // The other kinds have no scales.
            ask_for(self.scales.wrapping_add(block * self.scale_bytes));
        }
    }
}

#[inline(always)]
fn ask_for(line: *const u8) {
    // SAFETY: every x86-64 processor has the instruction, which reads nothing and never faults.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
}
