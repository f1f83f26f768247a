//! Types of elements: how their bytes are read and written, and how a number is rounded to them. Nothing is shared with the code that wrote the model.

use half::{bf16, f16};

use super::{Result, RunError};

/// What a tensor is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// 32-bit float.
    F32,
    /// 16-bit float.
    F16,
    /// 16-bit brain float.
    Bf16,
    /// 8-bit float, E4M3, without infinities.
    E4M3,
    /// 4-bit float; two a byte, the first one low.
    E2M1,
    /// 4-bit two's complement; two a byte, the first one low.
    I4,
    /// 32-bit integer.
    I32,
    /// 64-bit integer.
    I64,
    /// A byte each.
    Bool,
}

/// Numbers of each type: in `TensorProto.DataType`, and in TensorRT's `DataType`.
const NUMBERS: [(Element, i32, i32); 9] = [
    (Element::F32, 1, 0),
    (Element::F16, 10, 1),
    (Element::Bf16, 16, 7),
    (Element::E4M3, 17, 6),
    (Element::E2M1, 23, 10),
    (Element::I4, 22, 9),
    (Element::I32, 6, 3),
    (Element::I64, 7, 8),
    (Element::Bool, 9, 4),
];

impl Element {
    /// By its number in `TensorProto.DataType`.
    ///
    /// # Errors
    /// A type that exported models do not have.
    pub fn of_onnx(number: i64) -> Result<Self> {
        let found = NUMBERS.iter().find(|(_, onnx, _)| i64::from(*onnx) == number);
        found
            .map(|found| found.0)
            .ok_or_else(|| RunError(format!("element type {number} of TensorProto is not known here")))
    }

    /// By its number in TensorRT's `DataType`.
    ///
    /// # Errors
    /// A type that exported models do not have.
    pub fn of_tensorrt(number: i32) -> Result<Self> {
        let found = NUMBERS.iter().find(|(_, _, trt)| *trt == number);
        found
            .map(|found| found.0)
            .ok_or_else(|| RunError(format!("element type {number} of TensorRT is not known here")))
    }

    /// Its number in TensorRT's `DataType`.
    #[must_use]
    pub fn tensorrt_number(self) -> i32 {
        NUMBERS.iter().find(|found| found.0 == self).map_or(-1, |found| found.2)
    }

    /// Bits of one.
    #[must_use]
    pub fn bits(self) -> usize {
        match self {
            Self::E2M1 | Self::I4 => 4,
            Self::E4M3 | Self::Bool => 8,
            Self::F16 | Self::Bf16 => 16,
            Self::F32 | Self::I32 => 32,
            Self::I64 => 64,
        }
    }

    /// Bytes of `count`; `None` when they cannot be counted.
    #[must_use]
    pub fn num_bytes(self, count: usize) -> Option<usize> {
        count.checked_mul(self.bits()).map(|bits| bits.div_ceil(8))
    }

    /// The nearest number of this type, of two equally near ones the even one. E4M3 and E2M1 saturate, as the standard's casts to them do.
    #[must_use]
    pub fn round(self, x: f32) -> f32 {
        match self {
            Self::F16 => f16::from_f32(x).to_f32(),
            Self::Bf16 => bf16::from_f32(x).to_f32(),
            Self::E4M3 => round_small(x, 3, -6, 448.0),
            Self::E2M1 => round_small(x, 1, 0, 6.0),
            _ => x,
        }
    }

    /// Rounds all of `values`.
    pub(super) fn round_all(self, values: &mut [f32]) {
        if self != Self::F32 {
            values.iter_mut().for_each(|value| *value = self.round(*value));
        }
    }

    /// Number `idx` of `bytes` as a float; integers of four bits are floats, too.
    pub(super) fn float_at(self, byte: impl Fn(usize) -> u8, idx: usize) -> f32 {
        let pair = || [byte(2 * idx), byte(2 * idx + 1)];
        let nibble = || (byte(idx / 2) >> (4 * (idx % 2))) & 0xf;
        match self {
            Self::F16 => f16::from_le_bytes(pair()).to_f32(),
            Self::Bf16 => bf16::from_le_bytes(pair()).to_f32(),
            Self::E4M3 => e4m3(byte(idx)),
            Self::E2M1 => small(nibble(), 1, 2),
            Self::I4 => f32::from((nibble() << 4).cast_signed() >> 4),
            _ => f32::from_le_bytes([0, 1, 2, 3].map(|part| byte(4 * idx + part))),
        }
    }

    /// Number `idx` as an integer.
    pub(super) fn int_at(self, byte: impl Fn(usize) -> u8, idx: usize) -> i64 {
        match self {
            Self::I32 => i64::from(i32::from_le_bytes([0, 1, 2, 3].map(|part| byte(4 * idx + part)))),
            _ => i64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|part| byte(8 * idx + part))),
        }
    }

    /// The bytes of `value`, a number of this type of 16 or 32 bits, and how many of them count.
    pub(super) fn float_bytes(self, value: f32) -> ([u8; 4], usize) {
        let two = |pair: [u8; 2]| ([pair[0], pair[1], 0, 0], 2);
        match self {
            Self::F16 => two(f16::from_f32(value).to_le_bytes()),
            Self::Bf16 => two(bf16::from_f32(value).to_le_bytes()),
            _ => (value.to_le_bytes(), 4),
        }
    }
}

/// The nearest number with `mantissa_bits` behind the point, exponents from `least_exponent`, and at most `max`.
fn round_small(x: f32, mantissa_bits: i32, least_exponent: i32, max: f32) -> f32 {
    if x.is_nan() || x == 0.0 {
        return x;
    }
    let exponent = ((x.to_bits() >> 23) & 0xff) as i32 - 127;
    let step = 2f32.powi(exponent.max(least_exponent) - mantissa_bits);
    ((x / step).round_ties_even() * step).clamp(-max, max)
}

/// A sign, `exponent_bits`, `mantissa_bits`; the bias is half the exponents' range.
fn small(code: u8, mantissa_bits: i32, exponent_bits: i32) -> f32 {
    let sign = if code >> (mantissa_bits + exponent_bits) & 1 == 1 { -1.0 } else { 1.0 };
    let exponent = i32::from(code >> mantissa_bits) & ((1 << exponent_bits) - 1);
    let fraction = f32::from(code & ((1 << mantissa_bits) - 1)) / 2f32.powi(mantissa_bits);
    let bias = (1 << (exponent_bits - 1)) - 1;
    match exponent {
        0 => sign * fraction * 2f32.powi(1 - bias),
        _ => sign * (1.0 + fraction) * 2f32.powi(exponent - bias),
    }
}

fn e4m3(code: u8) -> f32 {
    if code & 0x7f == 0x7f { f32::NAN } else { small(code, 3, 4) }
}

/// The code of `value`, a number of E4M3: the inverse of reading it.
pub(super) fn e4m3_code(value: f32) -> u8 {
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = value.abs();
    // Codes ascend with what they say; 0x7f says no number.
    let (mut low, mut high) = (0, 0x7f);
    while low < high {
        let middle = (low + high) / 2;
        if e4m3(middle) < magnitude {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    sign | if magnitude.is_nan() { 0x7f } else { low }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_small_floats_are_those_of_the_standard() {
        let byte = |code: u8| move |_| code;
        let e2m1: Vec<f32> = (0..8).map(|code| Element::E2M1.float_at(byte(code), 0)).collect();
        assert_eq!(e2m1, [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]);
        assert_eq!(Element::E2M1.float_at(byte(0xd2), 1), -3.0);
        for (code, value) in
            [(0x00, 0.0), (0x01, 2f32.powi(-9)), (0x08, 2f32.powi(-6)), (0x38, 1.0), (0x7e, 448.0)]
        {
            assert_eq!(e4m3(code), value, "{code:#x}");
            assert_eq!(e4m3(code | 0x80), -value, "{code:#x}");
        }
        assert!(e4m3(0x7f).is_nan());
        assert_eq!(
            [0x07, 0x70, 0x08, 0x8f].map(|b| Element::I4.float_at(byte(b), 0)),
            [7.0, 0.0, -8.0, -1.0]
        );
        assert_eq!(Element::I4.float_at(byte(0x8f), 1), -8.0);
    }

    #[test]
    fn every_number_of_8_bits_has_its_code() {
        for code in 0..=u8::MAX {
            assert_eq!(e4m3_code(e4m3(code)) & 0x7f, code & 0x7f, "{code:#x}");
            if code & 0x7f != 0x7f {
                assert_eq!(e4m3_code(e4m3(code)), code);
            }
        }
    }

    #[test]
    fn every_code_is_its_own_nearest_and_halves_go_to_even_ones() {
        for (element, num_codes) in [(Element::E4M3, 0x7f_u8), (Element::E2M1, 8)] {
            let value = |code: u8| element.float_at(|_| code, 0);
            for code in 0..num_codes {
                assert_eq!(element.round(value(code)), value(code));
                assert_eq!(element.round(-value(code)), -value(code));
            }
            for code in 0..num_codes - 1 {
                let between = (value(code) + value(code + 1)) / 2.0;
                let even = value(code + code % 2);
                assert_eq!(element.round(between), even, "{element:?} {code}");
                assert_eq!(element.round(between.next_up()), value(code + 1), "{element:?} {code}");
                assert_eq!(element.round(between.next_down()), value(code), "{element:?} {code}");
            }
        }
        assert_eq!(Element::E4M3.round(1e9), 448.0);
        assert_eq!(Element::E2M1.round(-7.0), -6.0);
        assert_eq!(Element::F16.round(70_000.0), f32::INFINITY);
    }
}
