//! A tensor, and what an operator is called with.

use super::{Result, RunError, attributes::Attributes, element::Element};

/// Numbers, by what kind their type is.
#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    /// Every float, and integers of four bits: each is a number of the tensor's type.
    Floats(Vec<f32>),
    /// Integers of 32 and 64 bits.
    Ints(Vec<i64>),
    /// Booleans.
    Bools(Vec<bool>),
}

/// Numbers in rows: the last dimension is contiguous.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Their type.
    pub element: Element,
    /// Outermost first.
    pub dims: Vec<usize>,
    /// As many as the product of `dims`.
    pub data: Data,
}

impl Tensor {
    /// Floats, rounded to `element`.
    pub(super) fn floats(element: Element, dims: Vec<usize>, mut values: Vec<f32>) -> Self {
        element.round_all(&mut values);
        Self { element, dims, data: Data::Floats(values) }
    }

    /// 64-bit integers.
    pub(super) fn ints(dims: Vec<usize>, values: Vec<i64>) -> Self {
        Self { element: Element::I64, dims, data: Data::Ints(values) }
    }

    pub(super) fn bools(dims: Vec<usize>, values: Vec<bool>) -> Self {
        Self { element: Element::Bool, dims, data: Data::Bools(values) }
    }

    /// The same numbers in the same order.
    pub(super) fn reshaped(&self, dims: Vec<usize>) -> Self {
        Self { element: self.element, dims, data: self.data.clone() }
    }

    /// Reads `dims` numbers.
    ///
    /// # Errors
    /// When `num_bytes` is not what they take.
    pub(super) fn decode(
        element: Element,
        dims: &[usize],
        num_bytes: usize,
        byte: impl Fn(usize) -> u8,
    ) -> Result<Self> {
        let count = num_elements(dims)?;
        if element.num_bytes(count) != Some(num_bytes) {
            return Err(RunError(format!("{num_bytes} bytes for {element:?} {dims:?}")));
        }
        let all = 0..count;
        let data = match element {
            Element::Bool => Data::Bools(all.map(|idx| byte(idx) != 0).collect()),
            Element::I32 | Element::I64 => Data::Ints(all.map(|idx| element.int_at(&byte, idx)).collect()),
            _ if element.bits() <= 8 => {
                let known: Vec<f32> = (0..=u8::MAX).map(|code| element.float_at(|_| code, 0)).collect();
                let code = |idx: usize| match element.bits() {
                    4 => (byte(idx / 2) >> (4 * (idx % 2))) & 0xf,
                    _ => byte(idx),
                };
                Data::Floats(all.map(|idx| known[usize::from(code(idx))]).collect())
            }
            _ => Data::Floats(all.map(|idx| element.float_at(&byte, idx)).collect()),
        };
        Ok(Self { element, dims: dims.to_vec(), data })
    }

    /// Elements one step along `axis` is worth.
    pub(super) fn stride(&self, axis: usize) -> usize {
        self.dims[axis + 1..].iter().product()
    }
}

/// How many elements `dims` are.
///
/// # Errors
/// When that is no number.
pub(super) fn num_elements(dims: &[usize]) -> Result<usize> {
    dims.iter()
        .try_fold(1usize, |count, &dim| count.checked_mul(dim))
        .ok_or_else(|| RunError(format!("a shape of too many elements: {dims:?}")))
}

/// What an operator is called with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call<'c> {
    /// In the operator's order; optional ones may be missing.
    pub inputs: &'c [Option<&'c Tensor>],
    pub attributes: &'c Attributes,
}

impl<'c> Call<'c> {
    /// Input `idx`.
    pub fn input(&self, idx: usize) -> Result<&'c Tensor> {
        self.optional(idx).ok_or_else(|| RunError(format!("input {idx} is missing")))
    }

    /// Input `idx`, where it is given.
    pub fn optional(&self, idx: usize) -> Option<&'c Tensor> {
        self.inputs.get(idx).copied().flatten()
    }

    /// Refuses inputs from `count` on, which mean something that is not done here.
    pub fn at_most(&self, count: usize) -> Result<()> {
        match self.inputs.iter().skip(count).flatten().next() {
            None => Ok(()),
            Some(_) => Err(RunError(format!("more than {count} inputs, of which only those are done here"))),
        }
    }

    /// Input `idx`, which has to be floats.
    pub fn floats(&self, idx: usize) -> Result<(&'c Tensor, &'c [f32])> {
        let tensor = self.input(idx)?;
        match &tensor.data {
            Data::Floats(values) => Ok((tensor, values)),
            _ => Err(RunError(format!("input {idx} is {:?}, not a float", tensor.element))),
        }
    }

    /// Input `idx`, which has to be integers.
    pub fn ints(&self, idx: usize) -> Result<(&'c Tensor, &'c [i64])> {
        let tensor = self.input(idx)?;
        match &tensor.data {
            Data::Ints(values) => Ok((tensor, values)),
            _ => Err(RunError(format!("input {idx} is {:?}, not an integer", tensor.element))),
        }
    }

    /// Input `idx`, which has to be one integer.
    pub fn int(&self, idx: usize) -> Result<i64> {
        match self.ints(idx)?.1 {
            [value] => Ok(*value),
            values => Err(RunError(format!("input {idx} has {} values, not one", values.len()))),
        }
    }

    /// The attribute `name`, or `otherwise`, as an axis of `rank` dimensions.
    pub fn axis(&self, name: &str, otherwise: i64, rank: usize) -> Result<usize> {
        axis(self.attributes.int(name)?.unwrap_or(otherwise), rank)
    }
}

/// `axis`, counted from behind where it is negative.
pub(super) fn axis(axis: i64, rank: usize) -> Result<usize> {
    let from_front = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(from_front)
        .ok()
        .filter(|&axis| axis < rank)
        .ok_or_else(|| RunError(format!("axis {axis} of {rank} dimensions")))
}

/// `idx` among `len`, counted from behind where it is negative.
pub(super) fn position(idx: i64, len: usize) -> Result<usize> {
    axis(idx, len).map_err(|_| RunError(format!("index {idx} among {len}")))
}
