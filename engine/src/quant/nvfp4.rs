//! NVFP4: E2M1 codes in blocks of 16 along K, one E4M3 scale a block, one F32 scale a tensor.
//!
//! The rules are NVIDIA ModelOpt's (`NVFP4QTensor`, version 0.47), bit for bit, except that an all-zero tensor stays zero
//! (ModelOpt gives NaN).

use super::{NVFP4_BLOCK, e2m1, e4m3};

/// Largest E2M1 value.
const E2M1_MAX: f32 = 6.0;
/// Smallest block scale: E4M3's smallest subnormal.
const MIN_BLOCK_SCALE: f32 = 1.0 / 512.0;

/// The tensor's scale for a largest magnitude of `amax`: `amax / (6 · 448)`; 1 where that is zero.
#[must_use]
pub fn global_scale(amax: f32) -> f32 {
    let scale_2 = amax / (E2M1_MAX * e4m3::MAX);
    if scale_2 == 0.0 { 1.0 } else { scale_2 }
}

/// Quantizes one row `[K]` to packed codes `[K/2]` and block scales `[K/16]`.
pub(super) fn quantize_row(row: &[f32], scale_2: f32, packed: &mut [u8], scales: &mut [u8]) {
    for ((block, packed), scale) in
        row.chunks_exact(NVFP4_BLOCK).zip(packed.chunks_exact_mut(NVFP4_BLOCK / 2)).zip(scales)
    {
        *scale = block_scale(block, scale_2);
        let step = e4m3::decode(*scale) * scale_2;
        for (pair, byte) in block.chunks_exact(2).zip(packed) {
            // A division, as ModelOpt does it: multiplying by the reciprocal flips ties on bf16 weights.
            *byte = e2m1::encode(pair[0] / step) | (e2m1::encode(pair[1] / step) << 4);
        }
    }
}

/// E4M3 code of `amax_block / (6 · scale_2)`; a zero block gets scale 1.
fn block_scale(block: &[f32], scale_2: f32) -> u8 {
    let amax = block.iter().fold(0.0f32, |max, value| max.max(value.abs()));
    let scale = amax / (E2M1_MAX * scale_2);
    let scale = if scale == 0.0 { 1.0 } else { scale };
    e4m3::encode(scale.clamp(MIN_BLOCK_SCALE, e4m3::MAX))
}
