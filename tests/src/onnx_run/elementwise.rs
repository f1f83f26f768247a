//! Operators that go element by element, with shapes stretched to each other.

use super::{
    Result, RunError,
    element::Element,
    tensor::{Call, Data, Tensor},
};

/// Shapes stretched to each other, aligned at their last dimensions.
struct Stretched<const N: usize> {
    dims: Vec<usize>,
    /// Elements a step along each dimension is worth in each operand; 0 where it is stretched.
    strides: [Vec<usize>; N],
}

impl<const N: usize> Stretched<N> {
    fn new(operands: [&Tensor; N]) -> Result<Self> {
        let rank = operands.iter().map(|tensor| tensor.dims.len()).max().unwrap_or(0);
        let mut dims = vec![1; rank];
        for tensor in operands {
            let first = rank - tensor.dims.len();
            for (dim, &own) in dims[first..].iter_mut().zip(&tensor.dims) {
                match (*dim, own) {
                    (1, own) => *dim = own,
                    (dim, own) if own == 1 || own == dim => {}
                    _ => {
                        let shapes = operands.map(|tensor| &tensor.dims);
                        return Err(RunError(format!("shapes that do not fit each other: {shapes:?}")));
                    }
                }
            }
        }
        let strides = operands.map(|tensor| {
            let first = rank - tensor.dims.len();
            let own = |axis: usize| match axis.checked_sub(first) {
                Some(axis) if tensor.dims[axis] != 1 => tensor.stride(axis),
                _ => 0,
            };
            (0..rank).map(own).collect()
        });
        Ok(Self { dims, strides })
    }

    /// Calls `visit` with each element's place in each operand, in the result's order.
    fn each(&self, mut visit: impl FnMut([usize; N])) {
        let Some((&last, outer)) = self.dims.split_last() else { return visit([0; N]) };
        let steps: [usize; N] = std::array::from_fn(|operand| self.strides[operand][outer.len()]);
        let num_rows: usize = outer.iter().product();
        let (mut at, mut start) = (vec![0; outer.len()], [0; N]);
        for _ in 0..num_rows {
            let mut places = start;
            for _ in 0..last {
                visit(places);
                (0..N).for_each(|operand| places[operand] += steps[operand]);
            }
            for axis in (0..outer.len()).rev() {
                at[axis] += 1;
                (0..N).for_each(|operand| start[operand] += self.strides[operand][axis]);
                if at[axis] < outer[axis] {
                    break;
                }
                (0..N).for_each(|operand| start[operand] -= self.strides[operand][axis] * outer[axis]);
                at[axis] = 0;
            }
        }
    }

    fn map<T>(&self, mut of: impl FnMut([usize; N]) -> T) -> Vec<T> {
        let mut values = Vec::with_capacity(self.dims.iter().product());
        self.each(|places| values.push(of(places)));
        values
    }
}

fn same_element(a: &Tensor, b: &Tensor) -> Result<Element> {
    match a.element == b.element {
        true => Ok(a.element),
        false => Err(RunError(format!("operands of two types: {:?} and {:?}", a.element, b.element))),
    }
}

/// `of` two numbers, of the same type, for floats or for integers.
fn arithmetic(
    call: &Call<'_>,
    floats: fn(f32, f32) -> f32,
    ints: fn(i64, i64) -> Option<i64>,
) -> Result<Tensor> {
    call.at_most(2)?;
    let (a, b) = (call.input(0)?, call.input(1)?);
    let element = same_element(a, b)?;
    let stretched = Stretched::new([a, b])?;
    match (&a.data, &b.data) {
        (Data::Floats(a), Data::Floats(b)) => {
            let values = stretched.map(|[i, j]| floats(a[i], b[j]));
            Ok(Tensor::floats(element, stretched.dims, values))
        }
        (Data::Ints(a), Data::Ints(b)) => {
            let values: Option<Vec<i64>> = stretched.map(|[i, j]| ints(a[i], b[j])).into_iter().collect();
            let values = values.ok_or_else(|| RunError("integers that overflow".into()))?;
            Ok(Tensor { element, dims: stretched.dims, data: Data::Ints(values) })
        }
        _ => Err(RunError(format!("no arithmetic of {element:?}"))),
    }
}

pub(super) fn add(call: &Call<'_>) -> Result<Tensor> {
    arithmetic(call, |a, b| a + b, i64::checked_add)
}

pub(super) fn sub(call: &Call<'_>) -> Result<Tensor> {
    arithmetic(call, |a, b| a - b, i64::checked_sub)
}

pub(super) fn mul(call: &Call<'_>) -> Result<Tensor> {
    arithmetic(call, |a, b| a * b, i64::checked_mul)
}

pub(super) fn div(call: &Call<'_>) -> Result<Tensor> {
    arithmetic(call, |a, b| a / b, i64::checked_div)
}

fn comparison(call: &Call<'_>, floats: fn(f32, f32) -> bool, ints: fn(i64, i64) -> bool) -> Result<Tensor> {
    call.at_most(2)?;
    let (a, b) = (call.input(0)?, call.input(1)?);
    let element = same_element(a, b)?;
    let stretched = Stretched::new([a, b])?;
    let values = match (&a.data, &b.data) {
        (Data::Floats(a), Data::Floats(b)) => stretched.map(|[i, j]| floats(a[i], b[j])),
        (Data::Ints(a), Data::Ints(b)) => stretched.map(|[i, j]| ints(a[i], b[j])),
        _ => return Err(RunError(format!("no order of {element:?}"))),
    };
    Ok(Tensor::bools(stretched.dims, values))
}

pub(super) fn less(call: &Call<'_>) -> Result<Tensor> {
    comparison(call, |a, b| a < b, |a, b| a < b)
}

pub(super) fn less_or_equal(call: &Call<'_>) -> Result<Tensor> {
    comparison(call, |a, b| a <= b, |a, b| a <= b)
}

pub(super) fn and(call: &Call<'_>) -> Result<Tensor> {
    call.at_most(2)?;
    let (a, b) = (call.input(0)?, call.input(1)?);
    let stretched = Stretched::new([a, b])?;
    match (&a.data, &b.data) {
        (Data::Bools(a), Data::Bools(b)) => {
            let values = stretched.map(|[i, j]| a[i] && b[j]);
            Ok(Tensor::bools(stretched.dims, values))
        }
        _ => Err(RunError(format!("And of {:?} and {:?}", a.element, b.element))),
    }
}

/// `condition ? a : b`.
pub(super) fn choose(call: &Call<'_>) -> Result<Tensor> {
    call.at_most(3)?;
    let (condition, a, b) = (call.input(0)?, call.input(1)?, call.input(2)?);
    let element = same_element(a, b)?;
    let stretched = Stretched::new([condition, a, b])?;
    let Data::Bools(condition) = &condition.data else {
        return Err(RunError(format!("a condition of {:?}", condition.element)));
    };
    let data = match (&a.data, &b.data) {
        (Data::Floats(a), Data::Floats(b)) => {
            Data::Floats(stretched.map(|[c, i, j]| if condition[c] { a[i] } else { b[j] }))
        }
        (Data::Ints(a), Data::Ints(b)) => {
            Data::Ints(stretched.map(|[c, i, j]| if condition[c] { a[i] } else { b[j] }))
        }
        _ => return Err(RunError(format!("Where of {element:?}"))),
    };
    Ok(Tensor { element, dims: stretched.dims, data })
}

fn each_float(call: &Call<'_>, of: fn(f32) -> f32) -> Result<Tensor> {
    call.at_most(1)?;
    let (tensor, values) = call.floats(0)?;
    let values = values.iter().map(|&value| of(value)).collect();
    Ok(Tensor::floats(tensor.element, tensor.dims.clone(), values))
}

pub(super) fn sqrt(call: &Call<'_>) -> Result<Tensor> {
    each_float(call, f32::sqrt)
}

pub(super) fn sigmoid(call: &Call<'_>) -> Result<Tensor> {
    each_float(call, |x| 1.0 / (1.0 + (-x).exp()))
}

/// To another type of float.
pub(super) fn cast(call: &Call<'_>) -> Result<Tensor> {
    call.at_most(1)?;
    let (tensor, values) = call.floats(0)?;
    let to = call.attributes.int("to")?.ok_or_else(|| RunError("no attribute to".into()))?;
    let element = Element::of_onnx(to)?;
    if matches!(element, Element::I4 | Element::I32 | Element::I64 | Element::Bool) {
        return Err(RunError(format!("a cast to {element:?} is not done here")));
    }
    Ok(Tensor::floats(element, tensor.dims.clone(), values.to_vec()))
}
