//! Names, types and shapes of what goes into a network and comes out.

use std::ffi::CString;

use crate::{
    Result, TensorRtError,
    api::{MAX_DIMS, RawShape},
};

/// Types of elements, with their numbers in `nvinfer1::DataType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DataType {
    /// 32-bit float.
    F32 = 0,
    /// 16-bit float.
    F16 = 1,
    /// 8-bit integer.
    I8 = 2,
    /// 32-bit integer.
    I32 = 3,
    /// A byte each.
    Bool = 4,
    /// 8-bit unsigned integer.
    U8 = 5,
    /// 8-bit float, E4M3.
    F8E4M3 = 6,
    /// 16-bit brain float.
    Bf16 = 7,
    /// 64-bit integer.
    I64 = 8,
    /// 4-bit integer.
    I4 = 9,
    /// 4-bit float, E2M1.
    F4E2M1 = 10,
    /// 8-bit exponent.
    F8E8M0 = 11,
}

impl DataType {
    const ALL: [Self; 12] = [
        Self::F32,
        Self::F16,
        Self::I8,
        Self::I32,
        Self::Bool,
        Self::U8,
        Self::F8E4M3,
        Self::Bf16,
        Self::I64,
        Self::I4,
        Self::F4E2M1,
        Self::F8E8M0,
    ];

    /// From its number in `nvinfer1::DataType`.
    pub(crate) fn from_number(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|known| *known as i32 == number)
    }

    /// Bits of an element.
    #[must_use]
    pub fn num_bits(self) -> usize {
        match self {
            Self::I64 => 64,
            Self::F32 | Self::I32 => 32,
            Self::F16 | Self::Bf16 => 16,
            Self::I8 | Self::Bool | Self::U8 | Self::F8E4M3 | Self::F8E8M0 => 8,
            Self::I4 | Self::F4E2M1 => 4,
        }
    }

    /// Bytes of `num_elements`; the last byte of 4-bit types may be half used.
    #[must_use]
    pub fn num_bytes(self, num_elements: usize) -> Option<usize> {
        num_elements.checked_mul(self.num_bits()).map(|bits| bits.div_ceil(8))
    }
}

/// An input or output of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name in the ONNX model.
    pub name: String,
    /// Whether it goes in.
    pub is_input: bool,
    /// Its elements.
    pub data_type: DataType,
    /// Its dimensions, outermost first; `None` where a profile says how long.
    pub shape: Vec<Option<usize>>,
}

/// Smallest, usual and largest shape of an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShapeRange {
    /// Smallest.
    pub min: Vec<usize>,
    /// What it is optimized for.
    pub opt: Vec<usize>,
    /// Largest.
    pub max: Vec<usize>,
}

impl ShapeRange {
    /// Whether this is a range of shapes: one rank, in order.
    pub(crate) fn check(&self) -> Result<(), String> {
        let Self { min, opt, max } = self;
        let is_ordered = |low: &[usize], high: &[usize]| low.iter().zip(high).all(|(low, high)| low <= high);
        if min.len() != opt.len() || opt.len() != max.len() {
            return Err(format!("{min:?}, {opt:?} and {max:?} are not of one rank"));
        }
        if !is_ordered(min, opt) || !is_ordered(opt, max) {
            return Err(format!("smallest {min:?}, usual {opt:?} and largest {max:?} are not in this order"));
        }
        Ok(())
    }

    /// Whether `shape` lies in it.
    #[must_use]
    pub fn contains(&self, shape: &[usize]) -> bool {
        let Self { min, max, .. } = self;
        shape.len() == min.len()
            && shape.len() == max.len()
            && shape.iter().zip(min.iter().zip(max)).all(|(length, (min, max))| (min..=max).contains(&length))
    }
}

/// For a call.
pub(crate) fn to_raw(shape: &[usize]) -> Result<RawShape, String> {
    let mut raw = RawShape::default();
    if shape.len() > MAX_DIMS {
        return Err(format!("{shape:?} has {} dimensions, at most {MAX_DIMS} are possible", shape.len()));
    }
    for (raw, &length) in raw.dims.iter_mut().zip(shape) {
        *raw = i64::try_from(length).map_err(|_| format!("{shape:?} is too long"))?;
    }
    // At most 8.
    raw.num_dims = shape.len() as i32;
    Ok(raw)
}

/// From a call; `None` for a dimension of no fixed length.
pub(crate) fn from_raw(raw: &RawShape) -> Vec<Option<usize>> {
    let rank = usize::try_from(raw.num_dims).unwrap_or_default().min(MAX_DIMS);
    raw.dims[..rank].iter().map(|&length| usize::try_from(length).ok()).collect()
}

/// Bytes of a name with the 0 that ends it, at most.
const MAX_NAME_BYTES: usize = 4096;

/// A name for a call.
pub(crate) fn to_name(name: &str) -> Result<CString> {
    let refused = |why: &str| TensorRtError::Refused(format!("{name:?} cannot be a name in TensorRT: {why}"));
    if name.len() >= MAX_NAME_BYTES {
        return Err(refused("it has more than 4095 bytes"));
    }
    CString::new(name).map_err(|_| refused("it has a 0 in it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_types_have_tensorrts_numbers() {
        for (number, known) in DataType::ALL.into_iter().enumerate() {
            assert_eq!(DataType::from_number(number as i32), Some(known));
        }
        assert_eq!(DataType::from_number(12), None);
        assert_eq!(DataType::F4E2M1.num_bytes(3), Some(2));
        assert_eq!(DataType::Bf16.num_bytes(3), Some(6));
        assert_eq!(DataType::I64.num_bytes(usize::MAX), None);
    }

    #[test]
    fn a_range_of_shapes_is_of_one_rank_and_in_order() {
        let range = |min: &[usize], opt: &[usize], max: &[usize]| ShapeRange {
            min: min.into(),
            opt: opt.into(),
            max: max.into(),
        };
        range(&[1, 1], &[1, 8], &[4, 8]).check().unwrap();
        assert!(range(&[1], &[1, 8], &[4, 8]).check().unwrap_err().contains("not of one rank"));
        assert!(range(&[1, 9], &[1, 8], &[4, 9]).check().unwrap_err().contains("not in this order"));
        assert!(range(&[1, 1], &[1, 8], &[4, 7]).check().unwrap_err().contains("not in this order"));
        let range = range(&[1, 1], &[1, 8], &[4, 8]);
        assert!(
            range.contains(&[4, 1])
                && !range.contains(&[5, 1])
                && !range.contains(&[4])
                && !range.contains(&[0, 1])
        );
    }

    #[test]
    fn shapes_go_there_and_back() {
        let raw = to_raw(&[2, 0, 7]).unwrap();
        assert_eq!(from_raw(&raw), [Some(2), Some(0), Some(7)]);
        assert_eq!(from_raw(&to_raw(&[]).unwrap()), []);
        assert!(to_raw(&[1; 9]).unwrap_err().contains("at most 8"));
        let dynamic = RawShape { num_dims: 2, dims: [-1, 5, 0, 0, 0, 0, 0, 0] };
        assert_eq!(from_raw(&dynamic), [None, Some(5)]);
        // What TensorRT gives for a tensor it does not know.
        assert_eq!(from_raw(&RawShape { num_dims: -1, dims: [0; 8] }), []);
    }

    #[test]
    fn names_that_tensorrt_cannot_take_are_refused() {
        to_name(&"x".repeat(4095)).unwrap();
        assert!(to_name(&"x".repeat(4096)).is_err());
        assert!(to_name("a\0b").is_err());
    }
}
