//! Element types of ONNX tensors and their decoding to exact wider numbers.

use half::{bf16, f16};
use takt_engine::quant;

/// `TensorProto.DataType`, the numeric ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// 1
    F32,
    /// 2
    U8,
    /// 3
    I8,
    /// 4
    U16,
    /// 5
    I16,
    /// 6
    I32,
    /// 7
    I64,
    /// 9
    Bool,
    /// 10
    F16,
    /// 11
    F64,
    /// 12
    U32,
    /// 13
    U64,
    /// 16
    Bf16,
    /// 17
    F8E4M3,
    /// 21
    U4,
    /// 22
    I4,
    /// 23
    F4E2M1,
}

/// What kind of number a type holds; arithmetic on graph values only needs this much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any floating-point type.
    Float,
    /// Any integer type.
    Int,
    /// Booleans.
    Bool,
}

impl Dtype {
    /// The type behind a `TensorProto.DataType` number, or its name for the error message.
    pub fn from_number(number: i32) -> Result<Self, String> {
        Ok(match number {
            1 => Self::F32,
            2 => Self::U8,
            3 => Self::I8,
            4 => Self::U16,
            5 => Self::I16,
            6 => Self::I32,
            7 => Self::I64,
            9 => Self::Bool,
            10 => Self::F16,
            11 => Self::F64,
            12 => Self::U32,
            13 => Self::U64,
            16 => Self::Bf16,
            17 => Self::F8E4M3,
            21 => Self::U4,
            22 => Self::I4,
            23 => Self::F4E2M1,
            other => {
                let names = [
                    (0, "UNDEFINED"),
                    (8, "STRING"),
                    (14, "COMPLEX64"),
                    (15, "COMPLEX128"),
                    (18, "FLOAT8E4M3FNUZ"),
                    (19, "FLOAT8E5M2"),
                    (20, "FLOAT8E5M2FNUZ"),
                    (24, "FLOAT8E8M0"),
                    (25, "UINT2"),
                    (26, "INT2"),
                ];
                let name = names.iter().find(|(n, _)| *n == other).map_or("unknown", |(_, name)| name);
                return Err(format!("data type {other} ({name})"));
            }
        })
    }

    /// Width of one element in bits.
    pub const fn bits(self) -> usize {
        match self {
            Self::U4 | Self::I4 | Self::F4E2M1 => 4,
            Self::U8 | Self::I8 | Self::Bool | Self::F8E4M3 => 8,
            Self::U16 | Self::I16 | Self::F16 | Self::Bf16 => 16,
            Self::F32 | Self::I32 | Self::U32 => 32,
            Self::I64 | Self::F64 | Self::U64 => 64,
        }
    }

    /// Float, integer or boolean.
    pub const fn kind(self) -> Kind {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 | Self::F64 | Self::F8E4M3 | Self::F4E2M1 => Kind::Float,
            Self::Bool => Kind::Bool,
            _ => Kind::Int,
        }
    }

    /// Element `idx` of little-endian `bytes` as `f64`: exact but for 64-bit integers beyond 2⁵³.
    /// Four-bit types hold the even element in the low nibble. `None` beyond the end.
    #[inline]
    pub fn element(self, bytes: &[u8], idx: usize) -> Option<f64> {
        fn at<const N: usize>(bytes: &[u8], idx: usize) -> Option<[u8; N]> {
            bytes.get(idx * N..)?.first_chunk::<N>().copied()
        }
        Some(match self {
            Self::F32 => f64::from(f32::from_le_bytes(at(bytes, idx)?)),
            Self::F16 => f64::from(f16::from_le_bytes(at(bytes, idx)?)),
            Self::Bf16 => f64::from(bf16::from_le_bytes(at(bytes, idx)?)),
            Self::F64 => f64::from_le_bytes(at(bytes, idx)?),
            Self::U8 => f64::from(*bytes.get(idx)?),
            Self::Bool => f64::from(u8::from(*bytes.get(idx)? != 0)),
            Self::I8 => f64::from(i8::from_le_bytes(at(bytes, idx)?)),
            Self::U16 => f64::from(u16::from_le_bytes(at(bytes, idx)?)),
            Self::I16 => f64::from(i16::from_le_bytes(at(bytes, idx)?)),
            Self::U32 => f64::from(u32::from_le_bytes(at(bytes, idx)?)),
            Self::I32 => f64::from(i32::from_le_bytes(at(bytes, idx)?)),
            Self::U64 => u64::from_le_bytes(at(bytes, idx)?) as f64,
            Self::I64 => i64::from_le_bytes(at(bytes, idx)?) as f64,
            Self::F8E4M3 => f64::from(quant::e4m3::decode(*bytes.get(idx)?)),
            Self::U4 => f64::from(nibble(bytes, idx)?),
            Self::I4 => f64::from((nibble(bytes, idx)? << 4).cast_signed() >> 4),
            Self::F4E2M1 => f64::from(quant::e2m1::VALUES[usize::from(nibble(bytes, idx)?)]),
        })
    }
}

/// Four-bit element `idx`, low nibble first.
#[inline]
pub fn nibble(bytes: &[u8], idx: usize) -> Option<u8> {
    let byte = *bytes.get(idx / 2)?;
    Some(if idx.is_multiple_of(2) { byte & 0xf } else { byte >> 4 })
}
