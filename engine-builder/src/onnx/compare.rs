//! The tolerance with which computed glue must meet the decoder's equations.

/// Relative to the largest expected value. Both sides are computed in `f64`; the exports' constants are rounded to `f32`.
const TOLERANCE: f64 = 1e-5;

/// Whether `found` and `expected` agree everywhere.
pub fn agree(found: &[f64], expected: &[f64]) -> bool {
    let largest = expected.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
    found.len() == expected.len()
        && found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= TOLERANCE * largest + 1e-12)
}
