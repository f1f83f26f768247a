//! Activations to 8 bits: one scale for 16 columns, symmetric, nearest with ties to even.

use super::super::{activations::QuantizedBlock, packed::BLOCK_COLS};

/// Adding and subtracting 1.5·2^23 rounds an F32 below 2^22 to an integer, ties to even; its low bits are that integer.
pub(super) const ROUNDING: f32 = 12_582_912.0;
/// What the kernels add to every 4-bit weight to make it unsigned.
pub(super) const WEIGHT_OFFSET: i32 = 12;

/// Plain code that the compiler turns into vectors inside each caller's `#[target_feature]`.
#[inline(always)]
pub(super) fn quantize_row(row: &[f32], to: &mut [QuantizedBlock]) {
    for (x, to) in row.as_chunks().0.iter().zip(to) {
        quantize_block(x, to);
    }
}

/// `scale = amax / 127`, `code = round(x · (127 / amax))`. A block with a non-finite value gets the scale NaN, so that NaN reaches
/// the output.
#[inline(always)]
pub(super) fn quantize_block(
    x: &[f32; BLOCK_COLS],
    QuantizedBlock { codes, scale, bias }: &mut QuantizedBlock,
) {
    // The bit patterns of non-negative floats are ordered like the floats, with NaN above infinity.
    let amax_bits = x.iter().fold(0, |max: u32, x| max.max(x.to_bits() & 0x7fff_ffff));
    let amax = f32::from_bits(amax_bits);
    let inverse = 127.0 / amax;
    *scale = if amax.is_finite() { amax / 127.0 } else { f32::NAN };
    // A block of zeros, or of subnormals whose inverse overflows, or not finite: no code is meaningful.
    if !(inverse.is_finite() && inverse > 0.0) {
        codes.fill(0);
        *bias = 0;
        return;
    }
    let mut sum = 0;
    for (code, x) in codes.iter_mut().zip(x) {
        *code = (x * inverse + ROUNDING).to_bits() as i8;
        sum += i32::from(*code);
    }
    *bias = -WEIGHT_OFFSET * sum;
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Isa, quantize_row as quantize_row_on},
        *,
    };

    fn quantized(isa: Isa, row: &[f32]) -> Vec<QuantizedBlock> {
        let mut blocks =
            vec![QuantizedBlock { codes: [1; BLOCK_COLS], scale: -1.0, bias: 7 }; row.len() / BLOCK_COLS];
        quantize_row_on(isa, row, &mut blocks);
        blocks
    }

    #[test]
    fn every_instruction_set_gives_the_same_codes_scales_and_sums() {
        let mut row: Vec<f32> =
            (0..40 * BLOCK_COLS).map(|i| (i as f32 * 0.77).sin() * 0.5_f32.powi(i as i32 / 9)).collect();
        // One ulp around a tie, and blocks that have no meaningful code.
        let extremes = [
            0.0,
            -0.0,
            1e-45,
            1e-38,
            f32::MAX,
            f32::MIN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
            -f32::NAN,
        ];
        for (block, extreme) in extremes.into_iter().enumerate() {
            row[block * BLOCK_COLS..][..BLOCK_COLS].fill(0.0);
            row[block * BLOCK_COLS + block] = extreme;
        }
        row[20 * BLOCK_COLS..][..4].copy_from_slice(&[127.0, 62.5, 63.5, -62.500_004]);
        let expected = quantized(Isa::SCALAR, &row);
        assert_eq!(expected[20].codes[..4], [127, 62, 64, -63], "ties go to even");
        for isa in Isa::available() {
            for (block, (found, expected)) in quantized(isa, &row).iter().zip(&expected).enumerate() {
                assert_eq!(found.codes, expected.codes, "{isa:?} block {block}");
                assert_eq!(found.bias, expected.bias, "{isa:?} block {block}");
                let same = found.scale.to_bits() == expected.scale.to_bits()
                    || found.scale.is_nan() && expected.scale.is_nan();
                assert!(same, "{isa:?} block {block}: scale {} expected {}", found.scale, expected.scale);
            }
        }
    }
}
