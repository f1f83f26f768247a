//! E4M3FN: 1 sign, 4 exponent (bias 7), 3 mantissa bits; no infinity; `S.1111.111` is NaN; largest value 448.

/// Largest finite value.
pub const MAX: f32 = 448.0;

/// The value of `code`.
#[must_use]
pub fn decode(code: u8) -> f32 {
    let sign = if code & 0x80 != 0 { -1.0 } else { 1.0 };
    let (exponent, mantissa) = ((code >> 3) & 0xf, f32::from(code & 7));
    match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => sign * mantissa * 2f32.powi(-9),
        _ => sign * (1.0 + mantissa / 8.0) * 2f32.powi(i32::from(exponent) - 7),
    }
}

/// Nearest code, ties to even, saturating at ±448; NaN stays NaN.
#[must_use]
pub fn encode(value: f32) -> u8 {
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    if value.is_nan() {
        return sign | 0x7f;
    }
    let magnitude = value.abs().min(MAX);
    // Below the smallest normal 2^-6 the grid is uniform with step 2^-9, so rounding is plain integer rounding.
    if magnitude < 2f32.powi(-6) {
        return sign | (magnitude * 512.0).round_ties_even() as u8;
    }
    // Round the F32 mantissa from 23 to 3 bits, ties to even; a carry moves into the exponent as it should.
    let bits = magnitude.to_bits();
    let rounded = bits + 0x7_ffff + ((bits >> 20) & 1);
    let exponent = (rounded >> 23) as i32 - 127 + 7;
    sign | ((exponent as u8) << 3) | ((rounded >> 20) & 7) as u8
}
