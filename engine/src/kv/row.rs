//! One head's row: how a key or value of `head_dim` elements is stored.

use super::KvKind;
use crate::quant::e4m3;

/// Stored keys and values of one layer and key/value head: rows `[0, lane_capacity)`, row-major.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadRows<'a> {
    /// How elements are stored.
    pub kind: KvKind,
    /// Keys `[lane_capacity, head_dim]`.
    pub keys: &'a [u8],
    /// Values `[lane_capacity, head_dim]`.
    pub values: &'a [u8],
    /// `[lane_capacity]`.
    pub key_scales: &'a [f32],
    /// `[lane_capacity]`.
    pub value_scales: &'a [f32],
}

/// Stores `values` `[head_dim]` in `out` `[head_dim · element_bytes]` and returns the scale:
/// the largest magnitude maps to the format's largest value, elements round to nearest, ties to even.
/// Plain code that the compiler turns into vectors of its caller's instruction set.
#[inline(always)]
pub(crate) fn store(kind: KvKind, values: &[f32], out: &mut [u8]) -> f32 {
    match kind {
        KvKind::Bf16 => {
            let (scale, inverse) = scale_to(values, 32_767.0);
            for (raw, &value) in out.chunks_exact_mut(2).zip(values) {
                raw.copy_from_slice(&(round(value * inverse) as i16).to_le_bytes());
            }
            scale
        }
        KvKind::Fp8 => {
            let (scale, inverse) = scale_to(values, e4m3::MAX);
            for (code, &value) in out.iter_mut().zip(values) {
                *code = e4m3::encode(value * inverse);
            }
            scale
        }
        KvKind::Int8 => {
            let (scale, inverse) = scale_to(values, 127.0);
            for (code, &value) in out.iter_mut().zip(values) {
                *code = round(value * inverse) as u8;
            }
            scale
        }
    }
}

/// Nearest integer, ties to even, in two's complement; |value| < 2^22. Adding 1.5·2^23 leaves it in the low mantissa bits,
/// which vectorizes everywhere (rounding proper is a library call without SSE4.1).
#[inline(always)]
fn round(value: f32) -> u32 {
    (value + 12_582_912.0).to_bits() & 0xffff
}

/// Reads element `idx` of a stored row, without its scale: the oracle of the vectorized readers.
#[cfg(test)]
pub(crate) fn load(kind: KvKind, row: &[u8], idx: usize) -> f32 {
    match kind {
        KvKind::Bf16 => f32::from(i16::from_le_bytes([row[2 * idx], row[2 * idx + 1]])),
        KvKind::Fp8 => e4m3::decode(row[idx]),
        KvKind::Int8 => f32::from(row[idx].cast_signed()),
    }
}

/// `(scale, 1/scale)` mapping the largest magnitude of `values` to `largest`; an all-zero row gets `(0, 0)`.
#[inline(always)]
fn scale_to(values: &[f32], largest: f32) -> (f32, f32) {
    let max = largest_magnitude(values);
    // A row of subnormals would overflow its own inverse; it is zero for every purpose of attention.
    if max < f32::MIN_POSITIVE * largest { (0.0, 0.0) } else { (max / largest, largest / max) }
}

/// Of the values that are numbers. In lanes: one maximum after another would wait for the one before.
#[inline(always)]
fn largest_magnitude(values: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut maxima = [0.0f32; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (max, value) in maxima.iter_mut().zip(chunk) {
            *max = if value.abs() > *max { value.abs() } else { *max };
        }
    }
    rest.iter().chain(&maxima).fold(0.0f32, |max, value| max.max(value.abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_rows_read_back_within_half_a_step() {
        let values: Vec<f32> = (0..64).map(|i| ((i * 37 % 64) as f32 - 31.5) * 0.07).collect();
        for kind in KvKind::ALL {
            let mut row = vec![0; 64 * kind.element_bytes()];
            let scale = store(kind, &values, &mut row);
            for (idx, value) in values.iter().enumerate() {
                let error = (load(kind, &row, idx) * scale - value).abs();
                let step = if kind == KvKind::Fp8 { value.abs() / 16.0 } else { scale * 0.51 };
                assert!(error <= step + 1e-7, "{kind} {value}: error {error}, at most {step}");
            }
        }
    }

    #[test]
    fn zero_and_subnormal_rows_store_as_zero() {
        for kind in KvKind::ALL {
            for value in [0.0, f32::from_bits(1)] {
                let mut row = vec![0xaa; 4 * kind.element_bytes()];
                let scale = store(kind, &[value; 4], &mut row);
                let back = load(kind, &row, 0) * scale;
                assert!(back.abs() < 1e-38, "{kind}: {back}");
            }
        }
    }
}
