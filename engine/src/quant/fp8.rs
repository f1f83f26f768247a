//! FP8 weights: E4M3 codes with one F32 scale a row, `amax / 448`.

use super::e4m3;

/// Quantizes one row `[K]` to codes `[K]` and the row's little-endian F32 scale.
pub(super) fn quantize_row(row: &[f32], codes: &mut [u8], scale: &mut [u8]) {
    let amax = row.iter().fold(0.0f32, |max, value| max.max(value.abs()));
    let step = match amax / e4m3::MAX {
        0.0 => 1.0,
        step => step,
    };
    scale.copy_from_slice(&step.to_le_bytes());
    for (value, code) in row.iter().zip(codes) {
        *code = e4m3::encode(value / step);
    }
}
