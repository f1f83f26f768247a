//! Inputs and outputs in memory that is not ours, as a device's is.

use std::cell::Cell;

use super::{
    Result, RunError,
    element::{Element, e4m3_code},
    tensor::{Data, Tensor, num_elements},
};

/// A tensor in memory. Several may be in the same: cells can be read and written through each.
#[derive(Debug, Clone)]
pub struct Binding<'a> {
    /// The input or output.
    pub name: &'a str,
    /// What its elements are.
    pub element: Element,
    /// Its shape.
    pub dims: Vec<usize>,
    /// As many bytes as the shape takes.
    pub bytes: &'a [Cell<u8>],
}

impl<'a> Binding<'a> {
    /// A binding of `bytes`, which has to have as many as the shape takes.
    ///
    /// # Errors
    /// When it has not.
    pub fn new(name: &'a str, element: Element, dims: &[usize], bytes: &'a [Cell<u8>]) -> Result<Self> {
        match element.num_bytes(num_elements(dims)?) {
            Some(expected) if expected == bytes.len() => {
                Ok(Self { name, element, dims: dims.to_vec(), bytes })
            }
            expected => {
                Err(RunError(format!("{} bytes for {element:?} {dims:?}, not {expected:?}", bytes.len()))
                    .at("port", name))
            }
        }
    }

    /// Whether `other` is the same memory.
    pub(super) fn is_in_place_of(&self, other: &Self) -> bool {
        std::ptr::eq(self.bytes, other.bytes) && self.element == other.element && self.dims == other.dims
    }

    pub(super) fn read(&self) -> Result<Tensor> {
        Tensor::decode(self.element, &self.dims, self.bytes.len(), |idx| self.bytes[idx].get())
    }

    /// Rows `from..until` along `axis`.
    pub(super) fn read_slice(&self, axis: usize, from: usize, until: usize) -> Result<Tensor> {
        let (outer, stride): (usize, usize) =
            (self.dims[..axis].iter().product(), self.dims[axis + 1..].iter().product());
        let run = (until - from) * stride;
        let mut dims = self.dims.clone();
        dims[axis] = until - from;
        let mut values = Vec::with_capacity(outer * run);
        for row in 0..outer {
            let first = (row * self.dims[axis] + from) * stride;
            let byte = |idx: usize| self.bytes[idx].get();
            values.extend((first..first + run).map(|idx| self.element.float_at(byte, idx)));
        }
        Ok(Tensor { element: self.element, dims, data: Data::Floats(values) })
    }

    /// Whether [`Self::read_slice`] and [`Self::write_floats`] know its elements.
    pub(super) fn is_plain_float(&self) -> bool {
        matches!(self.element, Element::F32 | Element::F16 | Element::Bf16)
    }

    /// Writes `values` from element `first` on.
    pub(super) fn write_floats(&self, first: usize, values: &[f32]) {
        let width = self.element.bits() / 8;
        let bytes = &self.bytes[first * width..(first + values.len()) * width];
        for (value, bytes) in values.iter().zip(bytes.chunks_exact(width)) {
            let (written, _) = self.element.float_bytes(*value);
            bytes.iter().zip(written).for_each(|(cell, byte)| cell.set(byte));
        }
    }

    /// Writes a tensor of the same type and shape.
    ///
    /// # Errors
    /// For another one.
    pub(super) fn write(&self, tensor: &Tensor) -> Result<()> {
        if tensor.element != self.element || tensor.dims != self.dims {
            let (made, bound) = ((tensor.element, &tensor.dims), (self.element, &self.dims));
            return Err(RunError(format!("{made:?} was computed, memory is bound for {bound:?}"))
                .at("output", self.name));
        }
        match &tensor.data {
            Data::Floats(values) if self.is_plain_float() => self.write_floats(0, values),
            Data::Floats(values) if self.element == Element::E4M3 => {
                self.bytes.iter().zip(values).for_each(|(cell, &value)| cell.set(e4m3_code(value)));
            }
            Data::Ints(values) if self.element == Element::I64 => {
                let bytes = values.iter().flat_map(|value| value.to_le_bytes());
                self.bytes.iter().zip(bytes).for_each(|(cell, byte)| cell.set(byte));
            }
            Data::Bools(values) => {
                self.bytes.iter().zip(values).for_each(|(cell, value)| cell.set(u8::from(*value)));
            }
            _ => return Err(RunError(format!("an output of {:?}", self.element)).at("output", self.name)),
        }
        Ok(())
    }
}
