//! Element types, dimensions, and what goes into a model and comes out.

use serde::Serialize;

use crate::onnx::proto::{
    DimensionProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto, dimension,
};

/// Element types that are written, with their numbers in `TensorProto.DataType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ElementType {
    /// 32-bit float.
    F32 = 1,
    /// 64-bit integer.
    I64 = 7,
    /// Boolean, a byte each.
    Bool = 9,
    /// 16-bit float.
    F16 = 10,
    /// 16-bit brain float.
    Bf16 = 16,
    /// 8-bit float, E4M3.
    F8E4M3 = 17,
    /// 4-bit two's complement.
    I4 = 22,
    /// 4-bit float.
    F4E2M1 = 23,
}

impl ElementType {
    pub(super) fn bits(self) -> usize {
        match self {
            Self::I4 | Self::F4E2M1 => 4,
            Self::Bool | Self::F8E4M3 => 8,
            Self::F16 | Self::Bf16 => 16,
            Self::F32 => 32,
            Self::I64 => 64,
        }
    }
}

/// One dimension of an input or output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Dim {
    /// Known when the model is written.
    Fixed(usize),
    /// Named; equal wherever the name is.
    Named(String),
}

impl From<usize> for Dim {
    fn from(len: usize) -> Self {
        Self::Fixed(len)
    }
}

impl From<&str> for Dim {
    fn from(name: &str) -> Self {
        Self::Named(name.into())
    }
}

/// An input or output of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Its elements.
    #[serde(rename = "type")]
    pub element: ElementType,
    /// Its dimensions, outermost first.
    pub shape: Vec<Dim>,
}

impl Port {
    pub(super) fn new(name: impl Into<String>, element: ElementType, shape: &[Dim]) -> Self {
        Self { name: name.into(), element, shape: shape.to_vec() }
    }

    /// Its entry in a model.
    pub(super) fn value_info(&self) -> ValueInfoProto {
        let dim = |dim: &Dim| DimensionProto {
            value: Some(match dim {
                Dim::Fixed(len) => dimension::Value::DimValue(i64::try_from(*len).unwrap_or(i64::MAX)),
                Dim::Named(name) => dimension::Value::DimParam(name.clone()),
            }),
        };
        let tensor = TensorTypeProto {
            elem_type: Some(self.element as i32),
            shape: Some(TensorShapeProto { dim: self.shape.iter().map(dim).collect() }),
        };
        ValueInfoProto {
            name: Some(self.name.clone()),
            r#type: Some(TypeProto { tensor_type: Some(tensor) }),
        }
    }
}
