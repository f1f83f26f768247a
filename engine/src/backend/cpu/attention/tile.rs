//! A tile of stored rows, decoded: scores against a few queries at a time, and their weighted sum.
//!
//! What a query gets is the same with any other queries beside it: each row's score is summed as [`dot`] does, and rows are
//! accumulated in their order.

use super::super::{
    simd::{LANES, Simd},
    vectors::{dot, mul_add},
};
use crate::kv::KvKind;

/// Rows whose scores are summed side by side, to hide the latency of additions.
const QUAD: usize = 4;
/// Registers of columns that are accumulated side by side.
const WIDE: usize = 4;

/// `scores[i][t] = q[i] · keys[t]`: `q[i]` `[head_dim]`, `keys` `[num_rows, head_dim]`, `scores[i]` `[num_rows]`.
#[inline(always)]
pub(super) fn scores<S: Simd, const Q: usize>(q: [&[f32]; Q], keys: &[f32], mut scores: [&mut [f32]; Q]) {
    let head_dim = q[0].len();
    // Widths with a remainder are rare and go row by row.
    let quad_len = if head_dim.is_multiple_of(LANES) { QUAD * head_dim } else { usize::MAX };
    let quads = keys.chunks_exact(quad_len);
    let (rest, num_rows) = (quads.remainder(), QUAD * quads.len());
    for (quad_idx, keys) in quads.enumerate() {
        let sums = dot_quad::<S, Q>(q, keys);
        for (scores, sums) in scores.iter_mut().zip(&sums) {
            scores[quad_idx * QUAD..][..QUAD].copy_from_slice(sums);
        }
    }
    for (row_idx, key) in rest.chunks_exact(head_dim).enumerate() {
        for (scores, q) in scores.iter_mut().zip(&q) {
            scores[num_rows + row_idx] = dot::<S>(q, key);
        }
    }
}

/// Scalar products of each `q` with four rows of `keys` `[4, head_dim]`; `head_dim` a multiple of 16.
#[inline(always)]
fn dot_quad<S: Simd, const Q: usize>(q: [&[f32]; Q], keys: &[f32]) -> [[f32; QUAD]; Q] {
    let num_chunks = q[0].len() / LANES;
    let (chunks, _) = keys.as_chunks::<LANES>();
    // Slices of one length, which the compiler then sees to hold every index of the loop.
    let rows: [_; QUAD] = std::array::from_fn(|row| &chunks[row * num_chunks..][..num_chunks]);
    let q: [_; Q] = std::array::from_fn(|i| &q[i].as_chunks::<LANES>().0[..num_chunks]);
    let mut sums = [[S::zero(); QUAD]; Q];
    for chunk in 0..num_chunks {
        // No `map`: its closure would not be compiled for the instruction set.
        let mut keys = [S::zero(); QUAD];
        for (key, row) in keys.iter_mut().zip(&rows) {
            *key = S::load(&row[chunk]);
        }
        for (q, sums) in q.iter().zip(&mut sums) {
            let q = S::load(&q[chunk]);
            for (sum, key) in sums.iter_mut().zip(&keys) {
                *sum = S::mul_add(q, *key, *sum);
            }
        }
    }
    let mut products = [[0.0; QUAD]; Q];
    for (products, sums) in products.iter_mut().zip(&sums) {
        *products = S::sum_quad(*sums);
    }
    products
}

/// `out[i] += Σ weights[i][t] · values[t]`: `weights[i]` `[num_rows]`, `values` `[num_rows, head_dim]`, `out[i]` `[head_dim]`;
/// a few columns at a time so that the sums stay in registers.
#[inline(always)]
pub(super) fn accumulate<S: Simd, const Q: usize>(
    weights: [&[f32]; Q],
    values: &[f32],
    mut out: [&mut [f32]; Q],
) {
    let head_dim = out[0].len();
    let mut start = 0;
    while start + WIDE * LANES <= head_dim {
        accumulate_columns::<S, Q, WIDE>(weights, values, start, &mut out);
        start += WIDE * LANES;
    }
    while start + LANES <= head_dim {
        accumulate_columns::<S, Q, 1>(weights, values, start, &mut out);
        start += LANES;
    }
    for column in start..head_dim {
        for (weights, out) in weights.iter().zip(&mut out) {
            for (&weight, value) in weights.iter().zip(values[column..].iter().step_by(head_dim)) {
                out[column] = mul_add::<S>(weight, *value, out[column]);
            }
        }
    }
}

/// [`accumulate`] for `N` registers of columns from `start` on.
#[inline(always)]
fn accumulate_columns<S: Simd, const Q: usize, const N: usize>(
    weights: [&[f32]; Q],
    values: &[f32],
    start: usize,
    out: &mut [&mut [f32]; Q],
) {
    let head_dim = out[0].len();
    // Of one length with the rows, which the compiler then sees to hold every index of the loop.
    let num_rows = weights[0].len().min(values.len() / head_dim);
    let weights: [_; Q] = std::array::from_fn(|i| &weights[i][..num_rows]);
    let mut sums = [[S::zero(); N]; Q];
    for (sums, out) in sums.iter_mut().zip(&*out) {
        *sums = registers::<S, N>(&out[start..]);
    }
    for t in 0..num_rows {
        let values = registers::<S, N>(&values[t * head_dim + start..]);
        for (sums, weights) in sums.iter_mut().zip(&weights) {
            let weight = S::splat(weights[t]);
            for (sum, value) in sums.iter_mut().zip(&values) {
                *sum = S::mul_add(weight, *value, *sum);
            }
        }
    }
    for (sums, out) in sums.iter().zip(out) {
        let out = &mut out[start..start + N * LANES];
        for (sum, out) in sums.iter().zip(out.as_chunks_mut::<LANES>().0) {
            *out = S::to_array(*sum);
        }
    }
}

/// `N` registers of the values.
#[inline(always)]
fn registers<S: Simd, const N: usize>(values: &[f32]) -> [S::Lanes; N] {
    let mut registers = [S::zero(); N];
    // Of a length that the compiler knows, so that the loop disappears.
    for (register, values) in registers.iter_mut().zip(values[..N * LANES].as_chunks::<LANES>().0) {
        *register = S::load(values);
    }
    registers
}

/// Elements `range` of the stored rows as F32, without their scales.
#[inline(always)]
pub(super) fn decode(kind: KvKind, stored: &[u8], range: std::ops::Range<usize>, out: &mut [f32]) {
    match kind {
        KvKind::Bf16 => {
            let bytes = &stored[range.start * 2..range.end * 2];
            for (out, raw) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *out = f32::from(i16::from_le_bytes([raw[0], raw[1]]));
            }
        }
        KvKind::Fp8 => {
            for (out, &code) in out.iter_mut().zip(&stored[range]) {
                *out = decode_e4m3(code);
            }
        }
        KvKind::Int8 => {
            for (out, &code) in out.iter_mut().zip(&stored[range]) {
                *out = f32::from(code.cast_signed());
            }
        }
    }
}

/// E4M3 → F32 without a table, so that it vectorizes; NaN codes do not occur in a cache of finite values and read as 480.
#[inline(always)]
fn decode_e4m3(code: u8) -> f32 {
    let code = u32::from(code);
    let (sign, magnitude) = ((code & 0x80) << 24, code & 0x7f);
    let normal = f32::from_bits((magnitude << 20) + (120 << 23));
    let subnormal = magnitude as f32 * (1.0 / 512.0);
    let value = if magnitude < 8 { subnormal } else { normal };
    f32::from_bits(value.to_bits() | sign)
}
