//! Means, roots and exponentials over the last axis.

use super::{
    Result, RunError,
    tensor::{Call, Tensor},
};

/// The size of the last axis, which `axis` has to be.
fn last(tensor: &Tensor, axis: i64) -> Result<usize> {
    let rank = tensor.dims.len();
    match super::tensor::axis(axis, rank)? {
        found if found + 1 == rank => Ok(tensor.dims[found]),
        _ => Err(RunError(format!("axis {axis} of {:?}: only the last one is done here", tensor.dims))),
    }
}

fn mean_of(row: &[f32], of: impl Fn(f64) -> f64) -> f64 {
    row.iter().map(|&x| of(f64::from(x))).sum::<f64>() / row.len() as f64
}

pub(super) fn reduce_mean(call: &Call<'_>) -> Result<Tensor> {
    call.at_most(2)?;
    call.attributes.only("keepdims", 1)?;
    let (tensor, values) = call.floats(0)?;
    let len = last(tensor, call.int(1)?)?;
    let means = values.chunks_exact(len.max(1)).map(|row| mean_of(row, |x| x) as f32).collect();
    let mut dims = tensor.dims.clone();
    dims.pop();
    dims.push(1);
    Ok(Tensor::floats(tensor.element, dims, means))
}

/// The softmax of `row`, in its place.
pub(super) fn softmax_row(row: &mut [f32]) {
    let max = row.iter().fold(f32::NEG_INFINITY, |max, &x| if x.is_nan() { x } else { max.max(x) });
    row.iter_mut().for_each(|x| *x = (*x - max).exp());
    let sum: f64 = row.iter().map(|&x| f64::from(x)).sum();
    row.iter_mut().for_each(|x| *x = (f64::from(*x) / sum) as f32);
}

pub(super) fn softmax(call: &Call<'_>) -> Result<Tensor> {
    call.at_most(1)?;
    let (tensor, values) = call.floats(0)?;
    let len = last(tensor, call.attributes.int("axis")?.unwrap_or(-1))?;
    let mut values = values.to_vec();
    values.chunks_exact_mut(len.max(1)).for_each(softmax_row);
    Ok(Tensor::floats(tensor.element, tensor.dims.clone(), values))
}

/// `x / √(mean(x²) + ε) · scale`.
pub(super) fn rms_normalization(call: &Call<'_>) -> Result<Tensor> {
    call.at_most(2)?;
    call.attributes.only("stash_type", 1)?;
    let ((tensor, values), (scale, weights)) = (call.floats(0)?, call.floats(1)?);
    let len = last(tensor, call.attributes.int("axis")?.unwrap_or(-1))?;
    if scale.element != tensor.element || scale.dims != [len] {
        let (scale, x) = ((scale.element, &scale.dims), (tensor.element, &tensor.dims));
        return Err(RunError(format!("a norm of {x:?} with weights {scale:?}")));
    }
    let epsilon = f64::from(call.attributes.float("epsilon")?.unwrap_or(1e-5));
    let normed = values.chunks_exact(len.max(1)).flat_map(|row| {
        let factor = (mean_of(row, |x| x * x) + epsilon).sqrt().recip();
        row.iter().zip(weights).map(move |(&x, &weight)| (f64::from(x) * factor) as f32 * weight)
    });
    Ok(Tensor::floats(tensor.element, tensor.dims.clone(), normed.collect()))
}
