//! Attention's inner loops: a row of F32 against one cached key or value row in any of the cache formats.
//!
//! One plain form for all instruction sets: 16 running sums in a fixed order, which the compiler turns into the vectors of
//! each caller's `#[target_feature]`. So every level gives the same bits.

use half::bf16;

#[cfg(target_arch = "aarch64")]
use super::neon;
use super::{Isa, isa, on_isa};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};

/// A cached row as it is stored.
#[derive(Debug, Clone, Copy)]
pub enum Rows<'a> {
    /// Plain F32.
    F32(&'a [f32]),
    /// BF16 bits.
    Bf16(&'a [bf16]),
    /// Integers; the row's scale is the caller's.
    Int8(&'a [i8]),
    /// E4M3 codes; the row's scale is the caller's.
    E4m3(&'a [u8]),
}

const LANES: usize = 16;

/// `Σ a[i] · row[i]` over the shorter of both.
#[must_use]
pub fn dot(isa: Isa, a: &[f32], row: Rows<'_>) -> f32 {
    on_isa!(isa, dot(a, row), scalar: dot_plain(a, row))
}

/// `out[i] += factor · row[i]` over the shorter of both.
pub fn axpy(isa: Isa, factor: f32, row: Rows<'_>, out: &mut [f32]) {
    on_isa!(isa, axpy(factor, row, out), scalar: axpy_plain(factor, row, out));
}

#[inline(always)]
pub(super) fn dot_plain(a: &[f32], row: Rows<'_>) -> f32 {
    match row {
        Rows::F32(row) => dot_as(a, row, |v| v),
        Rows::Bf16(row) => dot_as(a, row, widen_bf16),
        Rows::Int8(row) => dot_as(a, row, f32::from),
        Rows::E4m3(row) => dot_as(a, row, widen_e4m3),
    }
}

#[inline(always)]
pub(super) fn axpy_plain(factor: f32, row: Rows<'_>, out: &mut [f32]) {
    match row {
        Rows::F32(row) => axpy_as(factor, row, |v| v, out),
        Rows::Bf16(row) => axpy_as(factor, row, widen_bf16, out),
        Rows::Int8(row) => axpy_as(factor, row, f32::from, out),
        Rows::E4m3(row) => axpy_as(factor, row, widen_e4m3, out),
    }
}

#[inline(always)]
fn dot_as<T: Copy>(a: &[f32], row: &[T], widen: impl Fn(T) -> f32) -> f32 {
    let len = a.len().min(row.len());
    let (a_chunks, a_rest) = a[..len].as_chunks::<LANES>();
    let (row_chunks, row_rest) = row[..len].as_chunks::<LANES>();
    let mut sums = [0.0f32; LANES];
    for (a, row) in a_chunks.iter().zip(row_chunks) {
        for lane in 0..LANES {
            sums[lane] = a[lane].mul_add(widen(row[lane]), sums[lane]);
        }
    }
    for (lane, (a, row)) in a_rest.iter().zip(row_rest).enumerate() {
        sums[lane] = a.mul_add(widen(*row), sums[lane]);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}

#[inline(always)]
fn axpy_as<T: Copy>(factor: f32, row: &[T], widen: impl Fn(T) -> f32, out: &mut [f32]) {
    for (out, &value) in out.iter_mut().zip(row) {
        *out = factor.mul_add(widen(value), *out);
    }
}

#[inline(always)]
fn widen_bf16(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}

/// E4M3 without a table: exponent and mantissa move into place, subnormals are `m · 2^-9`. NaN codes become ±480: the
/// cache is written by our own quantizer, which writes none.
#[inline(always)]
fn widen_e4m3(code: u8) -> f32 {
    let code = u32::from(code);
    let (sign, magnitude) = ((code & 0x80) << 24, code & 0x7f);
    let normal = (magnitude << 20) + (120 << 23);
    let subnormal = (magnitude as f32 * 0.001_953_125).to_bits();
    f32::from_bits(sign | if magnitude < 8 { subnormal } else { normal })
}
