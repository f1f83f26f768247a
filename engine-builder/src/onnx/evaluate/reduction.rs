//! Operators that combine elements along axes.

use super::Operands;
use crate::onnx::{
    array::{Array, Fact, axis_of},
    dtype::Kind,
};

pub(super) fn apply(x: &Operands<'_>) -> Option<Fact<Vec<Array>>> {
    let one = match x.node.op.as_str() {
        "Softmax" => softmax(x),
        "CumSum" => cumulative_sum(x),
        op => {
            let (start, combine) = reducer(op)?;
            reduce(x, start, combine)
        }
    };
    Some(one.map(|array| vec![array]))
}

type Combine = fn(f64, f64) -> f64;

fn reducer(op: &str) -> Option<(f64, Combine)> {
    Some(match op {
        "ReduceSum" | "ReduceMean" => (0.0, |a, b| a + b),
        "ReduceSumSquare" | "ReduceL2" => (0.0, |a, b| a + b * b),
        "ReduceMax" => (f64::NEG_INFINITY, f64::max),
        "ReduceMin" => (f64::INFINITY, f64::min),
        "ReduceProd" => (1.0, |a, b| a * b),
        _ => return None,
    })
}

fn reduce(x: &Operands<'_>, start: f64, combine: Combine) -> Fact<Array> {
    let a = x.get(0)?;
    let axes = x.ints(1, "axes").filter(|axes| !axes.is_empty());
    if axes.is_none() && x.node.int("noop_with_empty_axes").unwrap_or(0) != 0 {
        return Ok(a.clone());
    }
    let axes: Vec<usize> = match axes {
        Some(axes) => axes.into_iter().map(|axis| axis_of(axis, a.rank())).collect::<Fact<_>>()?,
        None => (0..a.rank()).collect(),
    };
    let mut out = a.clone();
    let mut count = 1;
    for axis in &axes {
        let (outer, size, inner) = out.around(*axis);
        let mut data = vec![start; outer * inner];
        for block in 0..outer {
            for row in 0..size {
                for column in 0..inner {
                    let value = out.data[(block * size + row) * inner + column];
                    let slot = &mut data[block * inner + column];
                    // Later axes only add up what the first has squared.
                    let squared = *axis != axes[0] && start == 0.0;
                    *slot = if squared { *slot + value } else { combine(*slot, value) };
                }
            }
        }
        count *= size;
        out.shape[*axis] = 1;
        out.data = data;
    }
    match x.node.op.as_str() {
        "ReduceMean" => out.data.iter_mut().for_each(|v| *v /= count as f64),
        "ReduceL2" => out.data.iter_mut().for_each(|v| *v = v.sqrt()),
        _ => {}
    }
    if x.node.int("keepdims").unwrap_or(1) == 0 {
        let dims =
            out.shape.iter().enumerate().filter(|(axis, _)| !axes.contains(axis)).map(|(_, d)| *d).collect();
        return out.reshaped(dims);
    }
    Ok(out)
}

fn softmax(x: &Operands<'_>) -> Fact<Array> {
    let mut a = x.get(0)?.clone();
    let default_axis = if x.opset < 13 { 1 } else { -1 };
    let axis = axis_of(x.node.int("axis").unwrap_or(default_axis), a.rank())?;
    if axis + 1 != a.rank() {
        return Err(format!("along axis {axis} of {:?}, expected the last", a.shape));
    }
    let size = a.shape[axis].max(1);
    for row in a.data.chunks_exact_mut(size) {
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        row.iter_mut().for_each(|v| *v = (*v - max).exp());
        let sum: f64 = row.iter().sum();
        row.iter_mut().for_each(|v| *v /= sum);
    }
    a.kind = Kind::Float;
    Ok(a)
}

fn cumulative_sum(x: &Operands<'_>) -> Fact<Array> {
    let mut a = x.get(0)?.clone();
    let axis = x.get(1)?.as_scalar().ok_or("an axis that is not a scalar")?;
    let axis = axis_of(axis as i64, a.rank())?;
    if x.node.int("reverse").unwrap_or(0) != 0 || x.node.int("exclusive").unwrap_or(0) != 0 {
        return Err("reverse or exclusive sums".into());
    }
    let (outer, size, inner) = a.around(axis);
    for block in 0..outer {
        for row in 1..size {
            for column in 0..inner {
                let at = (block * size + row) * inner + column;
                a.data[at] += a.data[at - inner];
            }
        }
    }
    Ok(a)
}
