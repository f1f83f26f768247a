//! Weights are asked for before their turn.

use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

use super::super::packed::{Tile, block_bytes};

/// How long before its use a line is asked for, counted in bytes of weights. The processor by itself runs ahead within a page only,
/// and less far the more instructions each line costs: without this, decoding took 1.28 to 1.33 times as long (Ice Lake, 2 cores, 2,
/// 8 and 16 KiB in turn; 2026-11-22).
const AHEAD_BYTES: usize = 8 << 10;
const LINE_BYTES: usize = 64;

/// Walks through a tile ahead of a kernel, codes and scales and what follows in memory: most often the kernel's next tile.
#[derive(Clone, Copy)]
pub(super) struct Prefetch {
    first: *const u8,
    bytes_per_block: usize,
}

impl Prefetch {
    #[inline(always)]
    pub(super) fn new(tile: &Tile<'_>) -> Self {
        Self {
            first: tile.codes.as_ptr().wrapping_add(AHEAD_BYTES),
            bytes_per_block: block_bytes(tile.kind) + tile.scales.len() / tile.num_blocks.max(1),
        }
    }

    /// To be called when `block`'s turn has come. Beyond the last tile it asks for lines that nobody reads.
    #[inline(always)]
    pub(super) fn run(self, block: usize) {
        let line = |block: usize| block * self.bytes_per_block / LINE_BYTES;
        for line in line(block)..line(block + 1) {
            // SAFETY: every x86-64 processor has the instruction, which reads nothing and never faults.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(self.first.wrapping_add(line * LINE_BYTES).cast()) };
        }
    }
}
