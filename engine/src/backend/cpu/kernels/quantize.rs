//! Activations to 8 bits: one scale for 16 columns, symmetric, nearest with ties to even.

use super::super::{activations::QuantizedBlock, packed::BLOCK_COLS};

/// Adding and subtracting 1.5·2^23 rounds an F32 below 2^22 to an integer, ties to even; its low bits are that integer.
const ROUNDING: f32 = 12_582_912.0;
/// What the kernels add to every 4-bit weight to make it unsigned.
const WEIGHT_OFFSET: i32 = 12;

/// Plain code that the compiler turns into vectors inside each caller's `#[target_feature]`: `scale = amax / 127`,
/// `code = round(x · (127 / amax))`. A block with a non-finite value gets the scale NaN, so that NaN reaches the output.
#[inline(always)]
pub(super) fn quantize_row(row: &[f32], to: &mut [QuantizedBlock]) {
    let (blocks, _) = row.as_chunks::<BLOCK_COLS>();
    for (x, QuantizedBlock { codes, scale, bias }) in blocks.iter().zip(to) {
        // The bit patterns of non-negative floats are ordered like the floats, with NaN above infinity.
        let amax_bits = x.iter().fold(0, |max: u32, x| max.max(x.to_bits() & 0x7fff_ffff));
        let amax = f32::from_bits(amax_bits);
        let inverse = 127.0 / amax;
        *scale = if amax.is_finite() { amax / 127.0 } else { f32::NAN };
        // A block of zeros, or of subnormals whose inverse overflows, or not finite: no code is meaningful.
        if !(inverse.is_finite() && inverse > 0.0) {
            codes.fill(0);
            *bias = 0;
            continue;
        }
        let mut sum = 0;
        for (code, x) in codes.iter_mut().zip(x) {
            *code = (x * inverse + ROUNDING).to_bits() as i8;
            sum += i32::from(*code);
        }
        *bias = -WEIGHT_OFFSET * sum;
    }
}
