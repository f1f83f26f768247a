//! INT4 weights: two's-complement codes in groups of 128 along K, one F16 scale a group.

use half::f16;

use super::INT4_GROUP;

/// Steps of the search for a group's scale, each shrinking it by [`SEARCH_STEP`] of the plain one.
const NUM_SEARCH_STEPS: u8 = 13;
/// Clipping the largest values by up to 30 % lowers the squared error of the rest.
const SEARCH_STEP: f32 = 0.025;

/// The plain scale of a group whose largest magnitude is `amax`: `amax / 7`, rounded to F16 (infinite when too large).
pub(super) fn group_scale(amax: f32) -> f16 {
    f16::from_f32(amax / 7.0)
}

/// Quantizes one row `[K]` to packed codes `[K/2]` and little-endian F16 group scales `[⌈K/128⌉]`.
pub(super) fn quantize_row(row: &[f32], packed: &mut [u8], scales: &mut [u8]) {
    let groups = row.chunks(INT4_GROUP).zip(packed.chunks_mut(INT4_GROUP / 2));
    for ((group, packed), raw_scale) in groups.zip(scales.chunks_exact_mut(2)) {
        let scale = best_scale(group);
        raw_scale.copy_from_slice(&scale.to_le_bytes());
        let step = scale.to_f32();
        for (pair, byte) in group.chunks_exact(2).zip(packed) {
            *byte = (code(pair[0], step) & 0xf) as u8 | (((code(pair[1], step) & 0xf) as u8) << 4);
        }
    }
}

/// The F16 scale with the smallest squared error among the candidates; the first of equals.
fn best_scale(group: &[f32]) -> f16 {
    let amax = group.iter().fold(0.0f32, |max, value| max.max(value.abs()));
    let plain = group_scale(amax);
    if plain == f16::ZERO {
        return f16::ONE;
    }
    let candidate = |step: u8| f16::from_f32(amax / 7.0 * (1.0 - SEARCH_STEP * f32::from(step)));
    let mut best = (squared_error(group, plain.to_f32()), plain);
    for scale in (1..NUM_SEARCH_STEPS).map(candidate).filter(|scale| *scale != f16::ZERO) {
        let error = squared_error(group, scale.to_f32());
        if error < best.0 {
            best = (error, scale);
        }
    }
    best.1
}

fn squared_error(group: &[f32], step: f32) -> f32 {
    group.iter().map(|&value| (value - f32::from(code(value, step) as i8) * step).powi(2)).sum()
}

fn code(value: f32, step: f32) -> i32 {
    // Adding and taking away 1.5 · 2^23 leaves no room for a fraction: rounding, ties to even, without a call into libm.
    const NO_FRACTION: f32 = 12_582_912.0;
    ((value / step).clamp(-8.0, 7.0) + NO_FRACTION - NO_FRACTION) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(group: &[f32]) -> Vec<f32> {
        let (mut packed, mut scales) =
            (vec![0; group.len() / 2], vec![0; 2 * group.len().div_ceil(INT4_GROUP)]);
        quantize_row(group, &mut packed, &mut scales);
        let view = crate::quant::MatrixView {
            num_rows: 1,
            num_cols: group.len(),
            data: crate::quant::MatrixData::Int4 { packed: &packed, scales: &scales },
        };
        let mut values = vec![0.0; group.len()];
        view.dequantize_row(0, &mut values);
        values
    }

    #[test]
    fn values_on_the_grid_are_kept_exactly_also_in_a_short_last_group() {
        let mut row: Vec<f32> = (0..130).map(|i| (i % 15 - 7) as f32 * 0.25).collect();
        (row[128], row[129]) = (7.0 * 0.125, -3.0 * 0.125);
        assert_eq!(round_trip(&row), row);
    }

    #[test]
    fn codes_are_rounded_to_even_and_clamped() {
        for tenths in -120..120 {
            let value = tenths as f32 / 10.0;
            assert_eq!(code(value, 1.0), value.round_ties_even().clamp(-8.0, 7.0) as i32, "{value}");
        }
        assert_eq!((code(2.5, 1.0), code(3.5, 1.0), code(-0.5, 1.0)), (2, 4, 0));
    }

    #[test]
    fn the_search_is_never_worse_than_the_plain_scale() {
        let row: Vec<f32> = (0..128).map(|i| ((i * 37 % 101) as f32 / 50.0 - 1.0).powi(5)).collect();
        let amax = row.iter().fold(0.0f32, |max, v| max.max(v.abs()));
        let plain = squared_error(&row, group_scale(amax).to_f32());
        let found: f32 = round_trip(&row).iter().zip(&row).map(|(a, b)| (a - b).powi(2)).sum();
        assert!(found <= plain * 1.0001, "{found} against {plain}");
    }

    #[test]
    fn no_error_exceeds_half_a_step_where_nothing_is_clipped() {
        let row: Vec<f32> = (0..128).map(|i| (i as f32 * 0.7).sin()).collect();
        let worst = round_trip(&row).iter().zip(&row).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
        // Clipped values lose at most 30 % of the largest magnitude.
        assert!(worst <= 0.3 + 0.5 / 7.0, "{worst}");
    }
}
