//! Names, types and shapes of what goes into a network and comes out.

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
