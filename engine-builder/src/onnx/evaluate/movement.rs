//! Operators that move, pick or repeat elements without changing them, and those that make shapes.

use super::Operands;
use crate::onnx::{
    array::{Array, Fact, axis_of, broadcast_shape, checked_len, strides},
    dtype::Kind,
};

pub(super) fn apply(x: &Operands<'_>) -> Option<Fact<Vec<Array>>> {
    let one = match x.node.op.as_str() {
        "Split" => return Some(split(x)),
        "Shape" => shape(x),
        "Size" => x.get(0).map(|a| Array::scalar(Kind::Int, a.data.len() as f64)),
        "Reshape" => reshape(x),
        "Flatten" => flatten(x),
        "Squeeze" => squeeze(x),
        "Unsqueeze" => unsqueeze(x),
        "Transpose" => transpose(x),
        "Expand" => expand(x),
        "Tile" => tile(x),
        "Concat" => concat(x),
        "Slice" => slice(x),
        "Gather" => gather(x),
        "GatherElements" => gather_elements(x),
        "GatherND" => gather_nd(x),
        "ScatterND" => scatter_nd(x),
        "Range" => range(x),
        "ConstantOfShape" => constant_of_shape(x),
        "Trilu" => trilu(x),
        _ => return None,
    };
    Some(one.map(|array| vec![array]))
}

fn shape(x: &Operands<'_>) -> Fact<Array> {
    let dims = &x.get(0)?.shape;
    let rank = dims.len() as i64;
    let clamp = |v: i64| (if v < 0 { v + rank } else { v }).clamp(0, rank) as usize;
    let (start, end) = (clamp(x.node.int("start").unwrap_or(0)), clamp(x.node.int("end").unwrap_or(rank)));
    Ok(Array::ints(dims.get(start..end).unwrap_or(&[]).iter().copied()))
}

fn reshape(x: &Operands<'_>) -> Fact<Array> {
    let a = x.get(0)?;
    let target = x.ints(1, "shape").ok_or("input 1 is missing")?;
    let keep_zero = x.node.int("allowzero").unwrap_or(0) != 0;
    let mut dims = Vec::with_capacity(target.len());
    let mut open = None;
    for (axis, dim) in target.iter().enumerate() {
        dims.push(match dim {
            -1 if open.replace(axis).is_none() => 1,
            0 if !keep_zero => *a.shape.get(axis).ok_or("a 0 in the shape beyond the input's dimensions")?,
            dim => usize::try_from(*dim).map_err(|_| format!("shape {target:?}"))?,
        });
    }
    if let Some(axis) = open {
        let rest = checked_len(&dims)?;
        dims[axis] = a.data.len().checked_div(rest).unwrap_or(0);
    }
    a.reshaped(dims)
}

fn flatten(x: &Operands<'_>) -> Fact<Array> {
    let a = x.get(0)?;
    let axis = x.node.int("axis").unwrap_or(1);
    let axis = if axis == a.rank() as i64 { a.rank() } else { axis_of(axis, a.rank())? };
    a.reshaped(vec![a.shape[..axis].iter().product(), a.shape[axis..].iter().product()])
}

fn squeeze(x: &Operands<'_>) -> Fact<Array> {
    let a = x.get(0)?;
    let axes: Vec<usize> = match x.ints(1, "axes") {
        Some(axes) => axes.into_iter().map(|axis| axis_of(axis, a.rank())).collect::<Fact<_>>()?,
        None => (0..a.rank()).filter(|axis| a.shape[*axis] == 1).collect(),
    };
    let dims = a.shape.iter().enumerate().filter(|(axis, _)| !axes.contains(axis)).map(|(_, d)| *d).collect();
    a.reshaped(dims)
}

fn unsqueeze(x: &Operands<'_>) -> Fact<Array> {
    let a = x.get(0)?;
    let axes = x.ints(1, "axes").ok_or("axes are missing")?;
    let rank = a.rank() + axes.len();
    let axes: Vec<usize> = axes.into_iter().map(|axis| axis_of(axis, rank)).collect::<Fact<_>>()?;
    let mut old = a.shape.iter();
    let dims = (0..rank)
        .map(|axis| if axes.contains(&axis) { 1 } else { old.next().copied().unwrap_or(1) })
        .collect();
    a.reshaped(dims)
}

fn transpose(x: &Operands<'_>) -> Fact<Array> {
    let a = x.get(0)?;
    let perm: Vec<usize> = match x.node.ints("perm") {
        Some(perm) => perm.iter().map(|p| axis_of(*p, a.rank())).collect::<Fact<_>>()?,
        None => (0..a.rank()).rev().collect(),
    };
    a.transposed(&perm)
}

fn expand(x: &Operands<'_>) -> Fact<Array> {
    let a = x.get(0)?;
    let target = x.get(1)?.as_shape().ok_or("a negative dimension")?;
    a.broadcast_to(&broadcast_shape(&a.shape, &target)?)
}

fn tile(x: &Operands<'_>) -> Fact<Array> {
    let mut a = x.get(0)?.clone();
    let repeats = x.get(1)?.as_shape().filter(|r| r.len() == a.rank()).ok_or("repeats that do not fit")?;
    for (axis, times) in repeats.into_iter().enumerate() {
        let size = a.shape[axis];
        checked_len(&[a.data.len(), times])?;
        checked_len(&[size, times])?;
        let indices: Vec<usize> = (0..size * times).map(|i| i % size).collect();
        a = a.take(axis, &indices, &[indices.len()])?;
    }
    Ok(a)
}

fn concat(x: &Operands<'_>) -> Fact<Array> {
    let first = x.get(0)?;
    let axis = axis_of(x.node.int("axis").unwrap_or(0), first.rank())?;
    let parts = (0..x.len()).map(|idx| x.get(idx)).collect::<Fact<Vec<_>>>()?;
    let mut dims = first.shape.clone();
    dims[axis] = 0;
    for part in &parts {
        let fits = part.rank() == dims.len()
            && part.shape.iter().zip(&dims).enumerate().all(|(i, (a, b))| i == axis || a == b);
        if !fits {
            return Err(format!("joins {:?} and {:?} along axis {axis}", first.shape, part.shape));
        }
        dims[axis] += part.shape[axis];
    }
    let (outer, _, _) = first.around(axis);
    let mut data = Vec::with_capacity(checked_len(&dims)?);
    for block in 0..outer {
        for part in &parts {
            let len = part.data.len() / outer.max(1);
            data.extend_from_slice(&part.data[block * len..(block + 1) * len]);
        }
    }
    Array::new(dims, first.kind, data)
}

fn slice(x: &Operands<'_>) -> Fact<Array> {
    let mut a = x.get(0)?.clone();
    let starts = x.ints(1, "starts").ok_or("starts are missing")?;
    let ends = x.ints(2, "ends").ok_or("ends are missing")?;
    let axes = x.ints(3, "axes").unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = x.optional(4).map_or_else(|| vec![1; starts.len()], Array::as_ints);
    if [ends.len(), axes.len(), steps.len()].iter().any(|len| *len != starts.len()) {
        return Err("starts, ends, axes and steps differ in length".into());
    }
    for idx in 0..starts.len() {
        let axis = axis_of(axes[idx], a.rank())?;
        let indices = slice_indices(a.shape[axis], starts[idx], ends[idx], steps[idx])?;
        a = a.take(axis, &indices, &[indices.len()])?;
    }
    Ok(a)
}

fn slice_indices(size: usize, start: i64, end: i64, step: i64) -> Fact<Vec<usize>> {
    let size = size as i64;
    let from_end = |v: i64| if v < 0 { v.saturating_add(size) } else { v };
    if step > 0 {
        let (start, end) = (from_end(start).clamp(0, size), from_end(end).clamp(0, size));
        return Ok((start..end)
            .step_by(usize::try_from(step).unwrap_or(usize::MAX))
            .map(|v| v as usize)
            .collect());
    }
    if step == 0 {
        return Err("a step of 0".into());
    }
    let (start, end) = (from_end(start).clamp(-1, size - 1), from_end(end).clamp(-1, size - 1));
    let mut indices = Vec::new();
    let mut at = start;
    while at > end {
        indices.push(at as usize);
        at = at.saturating_add(step);
    }
    Ok(indices)
}

fn split(x: &Operands<'_>) -> Fact<Vec<Array>> {
    let a = x.get(0)?;
    let axis = axis_of(x.node.int("axis").unwrap_or(0), a.rank())?;
    let size = a.shape[axis];
    let num_parts = x.node.outputs.len().max(1);
    let sizes: Vec<usize> = match x.ints(1, "split") {
        Some(sizes) => sizes
            .into_iter()
            .map(|s| usize::try_from(s).map_err(|_| "a negative part".to_owned()))
            .collect::<Fact<_>>()?,
        None => {
            let part = size.div_ceil(num_parts);
            (0..num_parts).map(|i| part.min(size.saturating_sub(i * part))).collect()
        }
    };
    if sizes.iter().try_fold(0_usize, |all, s| all.checked_add(*s)) != Some(size) {
        return Err(format!("parts {sizes:?} of an axis of {size}"));
    }
    let mut start = 0;
    let mut parts = Vec::with_capacity(sizes.len());
    for len in sizes {
        let indices: Vec<usize> = (start..start + len).collect();
        parts.push(a.take(axis, &indices, &[len])?);
        start += len;
    }
    Ok(parts)
}

/// Integers as positions on an axis of `size`, negative ones counted from the end.
fn positions(indices: &Array, size: usize) -> Fact<Vec<usize>> {
    let wrap = |v: i64| {
        usize::try_from(if v < 0 { v.saturating_add(size as i64) } else { v }).ok().filter(|p| *p < size)
    };
    indices
        .as_ints()
        .into_iter()
        .map(|v| wrap(v).ok_or_else(|| format!("index {v} on an axis of {size}")))
        .collect()
}

fn gather(x: &Operands<'_>) -> Fact<Array> {
    let (a, indices) = (x.get(0)?, x.get(1)?);
    let axis = axis_of(x.node.int("axis").unwrap_or(0), a.rank())?;
    a.take(axis, &positions(indices, a.shape[axis])?, &indices.shape)
}

fn gather_elements(x: &Operands<'_>) -> Fact<Array> {
    let (a, indices) = (x.get(0)?, x.get(1)?);
    let axis = axis_of(x.node.int("axis").unwrap_or(0), a.rank())?;
    let fits = a.rank() == indices.rank()
        && a.shape.iter().zip(&indices.shape).enumerate().all(|(i, (d, s))| i == axis || s <= d);
    if !fits {
        return Err(format!("indices {:?} into {:?}", indices.shape, a.shape));
    }
    let chosen = positions(indices, a.shape[axis])?;
    let (own, from) = (strides(&indices.shape), strides(&a.shape));
    let data = chosen.iter().enumerate().map(|(flat, position)| {
        let mut offset = 0;
        for i in 0..a.rank() {
            let coordinate = if i == axis { *position } else { flat / own[i] % indices.shape[i] };
            offset += coordinate * from[i];
        }
        a.data[offset]
    });
    Array::new(indices.shape.clone(), a.kind, data.collect())
}

/// Offsets into `a` that the last dimension of `indices` addresses, and the length of what is found there.
fn nd_offsets(a: &Array, indices: &Array) -> Fact<(Vec<usize>, usize)> {
    let depth = *indices.shape.last().ok_or("scalar indices")?;
    if depth == 0 || depth > a.rank() {
        return Err(format!("indices of {depth} coordinates into {:?}", a.shape));
    }
    let from = strides(&a.shape);
    let inner = a.shape[depth..].iter().product();
    let values = indices.as_ints();
    let offset = |tuple: &[i64]| {
        tuple.iter().enumerate().try_fold(0_usize, |all, (axis, v)| {
            let size = a.shape[axis];
            let at = usize::try_from(if *v < 0 { v.saturating_add(size as i64) } else { *v })
                .ok()
                .filter(|p| *p < size);
            at.map(|p| all + p * from[axis]).ok_or_else(|| format!("index {v} on an axis of {size}"))
        })
    };
    Ok((values.chunks_exact(depth).map(offset).collect::<Fact<_>>()?, inner))
}

fn gather_nd(x: &Operands<'_>) -> Fact<Array> {
    let (a, indices) = (x.get(0)?, x.get(1)?);
    if x.node.int("batch_dims").unwrap_or(0) != 0 {
        return Err("batch_dims other than 0".into());
    }
    let (offsets, inner) = nd_offsets(a, indices)?;
    let depth = indices.shape.last().copied().unwrap_or(0);
    let dims = [&indices.shape[..indices.rank() - 1], &a.shape[depth..]].concat();
    checked_len(&dims)?;
    let data = offsets.iter().flat_map(|start| a.data[*start..start + inner].iter().copied()).collect();
    Array::new(dims, a.kind, data)
}

fn scatter_nd(x: &Operands<'_>) -> Fact<Array> {
    let (mut a, indices, updates) = (x.get(0)?.clone(), x.get(1)?, x.get(2)?);
    if x.node.text("reduction").is_some_and(|r| r != "none") {
        return Err("a reduction while scattering".into());
    }
    let (offsets, inner) = nd_offsets(&a, indices)?;
    if updates.data.len() != offsets.len() * inner {
        return Err(format!("{} updates for {} places", updates.data.len(), offsets.len() * inner));
    }
    if inner > 0 {
        for (start, values) in offsets.iter().zip(updates.data.chunks_exact(inner)) {
            a.data[*start..start + inner].copy_from_slice(values);
        }
    }
    Ok(a)
}

fn range(x: &Operands<'_>) -> Fact<Array> {
    let value = |idx: usize| x.get(idx)?.as_scalar().ok_or_else(|| format!("input {idx} is not a scalar"));
    let (start, limit, delta) = (value(0)?, value(1)?, value(2)?);
    let count = ((limit - start) / delta).ceil().max(0.0);
    if !count.is_finite() {
        return Err(format!("a range from {start} to {limit} by {delta}"));
    }
    let count = checked_len(&[count as usize])?;
    Array::new(vec![count], x.get(0)?.kind, (0..count).map(|i| start + delta * i as f64).collect())
}

fn constant_of_shape(x: &Operands<'_>) -> Fact<Array> {
    use crate::onnx::dtype::Dtype;
    let dims = x.get(0)?.as_shape().ok_or("a negative dimension")?;
    let Some(tensor) = x.node.tensor("value") else { return Array::filled(dims, Kind::Float, 0.0) };
    let kind = Dtype::from_number(tensor.data_type.unwrap_or(0))?.kind();
    let dtype = Dtype::from_number(tensor.data_type.unwrap_or(0))?;
    let raw = tensor.raw_data.as_ref().and_then(|raw| dtype.element(raw, 0));
    let value = raw
        .or_else(|| tensor.float_data.first().map(|v| f64::from(*v)))
        .or_else(|| tensor.int64_data.first().map(|v| *v as f64))
        .or_else(|| tensor.int32_data.first().map(|v| f64::from(*v)))
        .ok_or("a fill value in an unexpected form")?;
    Array::filled(dims, kind, value)
}

fn trilu(x: &Operands<'_>) -> Fact<Array> {
    let mut a = x.get(0)?.clone();
    let k = x.optional(1).and_then(Array::as_scalar).unwrap_or(0.0) as i64;
    let upper = x.node.int("upper").unwrap_or(1) != 0;
    let [.., rows, columns] = a.shape[..] else { return Err("a value that is not a matrix".into()) };
    if rows * columns == 0 {
        return Ok(a);
    }
    for matrix in a.data.chunks_exact_mut(rows * columns) {
        for (idx, value) in matrix.iter_mut().enumerate() {
            let offset = (idx % columns) as i64 - (idx / columns) as i64;
            if (upper && offset < k) || (!upper && offset > k) {
                *value = 0.0;
            }
        }
    }
    Ok(a)
}
