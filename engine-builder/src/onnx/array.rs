//! Small dense arrays of `f64` on which the graph's glue is evaluated.

use super::dtype::{Dtype, Kind};
use super::model_file::StoredTensor;

/// Elements above which an array is refused: glue is small, weights are never evaluated.
pub const MAX_ELEMENTS: usize = 1 << 25;

/// Row-major values; integers and booleans (0, 1) are held exactly too.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// Dimensions.
    pub shape: Vec<usize>,
    /// What the values stand for.
    pub kind: Kind,
    /// Values.
    pub data: Vec<f64>,
}

/// Why an operation cannot be done, to be completed with the node's name.
pub type Fact<T> = std::result::Result<T, String>;

/// Number of elements of `shape`, when it is small enough.
pub fn checked_len(shape: &[usize]) -> Fact<usize> {
    // Dimensions of 0 count as 1 here: what is reduced over them must stay small too.
    let len = shape.iter().try_fold(1_usize, |all, d| all.checked_mul((*d).max(1)));
    len.filter(|len| *len <= MAX_ELEMENTS)
        .map(|len| if shape.contains(&0) { 0 } else { len })
        .ok_or_else(|| format!("an intermediate value of shape {shape:?} is too large"))
}

impl Array {
    /// An array of given values.
    pub fn new(shape: Vec<usize>, kind: Kind, data: Vec<f64>) -> Fact<Self> {
        let len = checked_len(&shape)?;
        if len != data.len() {
            return Err(format!("{} values for shape {shape:?}", data.len()));
        }
        Ok(Self { shape, kind, data })
    }

    /// The same value everywhere.
    pub fn filled(shape: Vec<usize>, kind: Kind, value: f64) -> Fact<Self> {
        let len = checked_len(&shape)?;
        Ok(Self { shape, kind, data: vec![value; len] })
    }

    /// A scalar.
    pub fn scalar(kind: Kind, value: f64) -> Self {
        Self { shape: Vec::new(), kind, data: vec![value] }
    }

    /// A vector of integers.
    pub fn ints(values: impl IntoIterator<Item = usize>) -> Self {
        let data: Vec<f64> = values.into_iter().map(|v| v as f64).collect();
        Self { shape: vec![data.len()], kind: Kind::Int, data }
    }

    /// A stored tensor's values.
    pub fn from_stored(tensor: &StoredTensor) -> Fact<Self> {
        let len = checked_len(&tensor.dims)?;
        let data: Option<Vec<f64>> = (0..len).map(|idx| tensor.dtype.element(&tensor.bytes, idx)).collect();
        let data = data.ok_or("stored values are truncated")?;
        Self::new(tensor.dims.clone(), tensor.dtype.kind(), data)
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The only value.
    pub fn as_scalar(&self) -> Option<f64> {
        if let [value] = self.data.as_slice() { Some(*value) } else { None }
    }

    /// Values as signed integers (saturating, as ONNX uses `INT64_MAX` for "to the end").
    pub fn as_ints(&self) -> Vec<i64> {
        self.data.iter().map(|v| *v as i64).collect()
    }

    /// Values as one shape; `None` when one is negative.
    pub fn as_shape(&self) -> Option<Vec<usize>> {
        self.as_ints().into_iter().map(|v| usize::try_from(v).ok()).collect()
    }

    /// The same values under another shape.
    pub fn reshaped(&self, shape: Vec<usize>) -> Fact<Self> {
        Self::new(shape.clone(), self.kind, self.data.clone())
            .map_err(|_| format!("cannot reshape {:?} to {shape:?}", self.shape))
    }

    /// Applies `f` to every value.
    pub fn map(&self, kind: Kind, f: impl Fn(f64) -> f64) -> Self {
        Self { shape: self.shape.clone(), kind, data: self.data.iter().map(|v| f(*v)).collect() }
    }

    /// Applies `f` to two arrays under NumPy's broadcasting.
    pub fn zip(&self, other: &Self, kind: Kind, f: impl Fn(f64, f64) -> f64) -> Fact<Self> {
        if self.shape == other.shape {
            let data = self.data.iter().zip(&other.data).map(|(a, b)| f(*a, *b)).collect();
            return Ok(Self { shape: self.shape.clone(), kind, data });
        }
        let shape = broadcast_shape(&self.shape, &other.shape)?;
        let (a, b) = (self.broadcast_to(&shape)?, other.broadcast_to(&shape)?);
        let data = a.data.iter().zip(&b.data).map(|(a, b)| f(*a, *b)).collect();
        Ok(Self { shape, kind, data })
    }

    /// Repeats values along dimensions of 1 up to `shape`.
    pub fn broadcast_to(&self, shape: &[usize]) -> Fact<Self> {
        let len = checked_len(shape)?;
        let offset = shape
            .len()
            .checked_sub(self.rank())
            .ok_or_else(|| format!("cannot expand {:?} to {shape:?}", self.shape))?;
        let own = strides(&self.shape);
        let mut steps = vec![0; shape.len()];
        for (axis, (size, stride)) in self.shape.iter().zip(&own).enumerate() {
            let target = shape[offset + axis];
            if *size != target && *size != 1 {
                return Err(format!("cannot expand {:?} to {shape:?}", self.shape));
            }
            steps[offset + axis] = if *size == 1 { 0 } else { *stride };
        }
        let data = if len == 0 { Vec::new() } else { gather_strided(&self.data, shape, &steps, len) };
        Ok(Self { shape: shape.to_vec(), kind: self.kind, data })
    }

    /// Permutes the dimensions: output axis `i` is input axis `perm[i]`.
    pub fn transposed(&self, perm: &[usize]) -> Fact<Self> {
        let mut seen = vec![false; self.rank()];
        let valid = perm.len() == self.rank()
            && perm.iter().all(|p| seen.get_mut(*p).is_some_and(|s| !std::mem::replace(s, true)));
        if !valid {
            return Err(format!("perm {perm:?} for shape {:?}", self.shape));
        }
        let own = strides(&self.shape);
        let shape: Vec<usize> = perm.iter().map(|p| self.shape[*p]).collect();
        let steps: Vec<usize> = perm.iter().map(|p| own[*p]).collect();
        let len = self.data.len();
        let data = if len == 0 { Vec::new() } else { gather_strided(&self.data, &shape, &steps, len) };
        Ok(Self { shape, kind: self.kind, data })
    }

    /// `(outer, size, inner)` extents around `axis`.
    pub fn around(&self, axis: usize) -> (usize, usize, usize) {
        let outer = self.shape[..axis].iter().product();
        let inner = self.shape[axis + 1..].iter().product();
        (outer, self.shape[axis], inner)
    }

    /// The elements of `indices` along `axis`; the result's shape has `index_shape` in the axis' place.
    pub fn take(&self, axis: usize, indices: &[usize], index_shape: &[usize]) -> Fact<Self> {
        let (outer, size, inner) = self.around(axis);
        let shape: Vec<usize> = [&self.shape[..axis], index_shape, &self.shape[axis + 1..]].concat();
        let mut data = Vec::with_capacity(checked_len(&shape)?);
        for block in 0..outer {
            for idx in indices {
                if *idx >= size {
                    return Err(format!("index {idx} on an axis of {size}"));
                }
                let start = (block * size + idx) * inner;
                data.extend_from_slice(&self.data[start..start + inner]);
            }
        }
        Self::new(shape, self.kind, data)
    }
}

/// Row-major strides in elements.
pub fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    strides
}

/// The shape two arrays broadcast to.
pub fn broadcast_shape(a: &[usize], b: &[usize]) -> Fact<Vec<usize>> {
    let rank = a.len().max(b.len());
    let dim = |shape: &[usize], axis: usize| (axis + shape.len()).checked_sub(rank).map_or(1, |i| shape[i]);
    (0..rank)
        .map(|axis| match (dim(a, axis), dim(b, axis)) {
            (x, y) if x == y => Ok(x),
            (1, y) => Ok(y),
            (x, 1) => Ok(x),
            _ => Err(format!("shapes {a:?} and {b:?} do not go together")),
        })
        .collect()
}

/// Walks `shape` in row-major order, reading `data` at the given step of each axis.
fn gather_strided(data: &[f64], shape: &[usize], steps: &[usize], len: usize) -> Vec<f64> {
    let mut out = Vec::with_capacity(len);
    let mut counter = vec![0_usize; shape.len()];
    let mut position = 0;
    for _ in 0..len {
        out.push(data[position]);
        for axis in (0..shape.len()).rev() {
            counter[axis] += 1;
            position += steps[axis];
            if counter[axis] < shape[axis] {
                break;
            }
            position -= steps[axis] * shape[axis];
            counter[axis] = 0;
        }
    }
    out
}

/// `axis` counted from the end when negative.
pub fn axis_of(axis: i64, rank: usize) -> Fact<usize> {
    let signed = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(signed)
        .ok()
        .filter(|a| *a < rank)
        .ok_or_else(|| format!("axis {axis} of a value with {rank} dimensions"))
}

/// A float type rounds on the way; arithmetic here is wide, so only narrowing to integers and booleans changes values.
pub fn cast(array: &Array, to: Dtype) -> Array {
    match to.kind() {
        Kind::Float => array.map(Kind::Float, |v| v),
        Kind::Int => array.map(Kind::Int, f64::trunc),
        Kind::Bool => array.map(Kind::Bool, |v| f64::from(u8::from(v != 0.0))),
    }
}
