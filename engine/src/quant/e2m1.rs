//! E2M1: 1 sign, 2 exponent (bias 1), 1 mantissa bit.

/// Values of the 16 codes.
pub const VALUES: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Nearest code by ModelOpt's rules: ties to even mantissa, saturating at 6, sign bit from `value < 0`
/// (so −0.0 becomes code 0 and a small negative becomes code 8).
#[must_use]
pub fn encode(value: f32) -> u8 {
    let magnitude = value.abs();
    let code = match magnitude {
        m if m <= 0.25 => 0,
        m if m < 0.75 => 1,
        m if m <= 1.25 => 2,
        m if m < 1.75 => 3,
        m if m <= 2.5 => 4,
        m if m < 3.5 => 5,
        m if m <= 5.0 => 6,
        _ => 7,
    };
    if value < 0.0 { code | 8 } else { code }
}
