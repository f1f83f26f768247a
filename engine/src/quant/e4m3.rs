//! E4M3FN: 1 sign, 4 exponent (bias 7), 3 mantissa bits; no infinity; `S.1111.111` is NaN; largest value 448.

/// Largest finite value.
pub const MAX: f32 = 448.0;

/// Values of the 256 codes.
pub const VALUES: [f32; 256] = {
    let mut values = [0.0; 256];
    let mut code = 0;
    while code < values.len() {
        values[code] = value(code as u8);
        code += 1;
    }
    values
};

/// Below the smallest normal, 2^-6, the grid is uniform with step 2^-9.
const SMALLEST_NORMAL: f32 = 1.0 / 64.0;
const SUBNORMAL_STEP: f32 = 1.0 / 512.0;

/// The value of `code`.
#[must_use]
#[inline]
pub fn decode(code: u8) -> f32 {
    VALUES[usize::from(code)]
}

const fn value(code: u8) -> f32 {
    let (exponent, mantissa) = ((code >> 3) & 0xf, code & 7);
    let magnitude = match (exponent, mantissa) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa as f32 * SUBNORMAL_STEP,
        _ => f32::from_bits(((exponent as u32 + 127 - 7) << 23) | ((mantissa as u32) << 20)),
    };
    if code & 0x80 != 0 { -magnitude } else { magnitude }
}

/// Nearest code, ties to even, saturating at ±448; NaN stays NaN.
#[must_use]
#[inline]
pub fn encode(value: f32) -> u8 {
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    if value.is_nan() {
        return sign | 0x7f;
    }
    let magnitude = value.abs().min(MAX);
    if magnitude < SMALLEST_NORMAL {
        return sign | (magnitude / SUBNORMAL_STEP).round_ties_even() as u8;
    }
    // Round the F32 mantissa from 23 to 3 bits, ties to even; a carry moves into the exponent as it should.
    let bits = magnitude.to_bits();
    let rounded = bits + 0x7_ffff + ((bits >> 20) & 1);
    let exponent = (rounded >> 23) as i32 - 127 + 7;
    sign | ((exponent as u8) << 3) | ((rounded >> 20) & 7) as u8
}
