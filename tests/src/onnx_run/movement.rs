//! Operators that move elements, and those that make shapes.

use super::{
    Result, RunError,
    attributes::Attributes,
    tensor::{Call, Data, Tensor, axis, num_elements, position},
};

/// The elements of `tensor` at `places`, as `dims`.
fn taken(tensor: &Tensor, dims: Vec<usize>, places: impl Iterator<Item = usize>) -> Tensor {
    let data = match &tensor.data {
        Data::Floats(values) => Data::Floats(places.map(|place| values[place]).collect()),
        Data::Ints(values) => Data::Ints(places.map(|place| values[place]).collect()),
        Data::Bools(values) => Data::Bools(places.map(|place| values[place]).collect()),
    };
    Tensor { element: tensor.element, dims, data }
}

/// Runs of `len` elements of `tensor` that begin at `starts`, one after another, as `dims`.
fn runs(tensor: &Tensor, dims: Vec<usize>, len: usize, starts: impl Iterator<Item = usize>) -> Tensor {
    fn copied<T: Copy>(values: &[T], len: usize, starts: impl Iterator<Item = usize>) -> Vec<T> {
        starts.flat_map(|start| &values[start..start + len]).copied().collect()
    }
    let data = match &tensor.data {
        Data::Floats(values) => Data::Floats(copied(values, len, starts)),
        Data::Ints(values) => Data::Ints(copied(values, len, starts)),
        Data::Bools(values) => Data::Bools(copied(values, len, starts)),
    };
    Tensor { element: tensor.element, dims, data }
}

pub(super) fn identity(call: &Call<'_>) -> Result<Tensor> {
    call.at_most(1)?;
    call.input(0).cloned()
}

/// A shape, or the part of it that is asked for.
pub(super) fn shape_of(dims: &[usize], attributes: &Attributes) -> Result<Tensor> {
    let rank = dims.len() as i64;
    let clamped = |value: i64| (if value < 0 { value + rank } else { value }).clamp(0, rank) as usize;
    let start = clamped(attributes.int("start")?.unwrap_or(0));
    let end = clamped(attributes.int("end")?.unwrap_or(rank)).max(start);
    let part: Vec<i64> = dims[start..end].iter().map(|&dim| dim as i64).collect();
    Ok(Tensor::ints(vec![part.len()], part))
}

pub(super) fn shape(call: &Call<'_>) -> Result<Tensor> {
    call.at_most(1)?;
    shape_of(&call.input(0)?.dims, call.attributes)
}

/// `0` keeps a dimension, `-1` is what is left.
pub(super) fn reshape(call: &Call<'_>) -> Result<Tensor> {
    call.at_most(2)?;
    call.attributes.only("allowzero", 0)?;
    let (tensor, wanted) = (call.input(0)?, call.ints(1)?.1);
    let count = num_elements(&tensor.dims)?;
    let misfit = || RunError(format!("{:?} as {wanted:?}", tensor.dims));
    let mut dims = Vec::with_capacity(wanted.len());
    for (place, &dim) in wanted.iter().enumerate() {
        dims.push(match dim {
            0 => *tensor.dims.get(place).ok_or_else(misfit)?,
            -1 => 1,
            _ => usize::try_from(dim).map_err(|_| misfit())?,
        });
    }
    let mut unknown = wanted.iter().enumerate().filter(|(_, dim)| **dim == -1).map(|(place, _)| place);
    if let Some(place) = unknown.next() {
        dims[place] = count.checked_div(num_elements(&dims)?).ok_or_else(misfit)?;
    }
    if unknown.next().is_some() || num_elements(&dims)? != count {
        return Err(misfit());
    }
    Ok(tensor.reshaped(dims))
}

pub(super) fn unsqueeze(call: &Call<'_>) -> Result<Tensor> {
    call.at_most(2)?;
    let (tensor, axes) = (call.input(0)?, call.ints(1)?.1);
    let rank = tensor.dims.len() + axes.len();
    let added: Vec<usize> = axes.iter().map(|&added| axis(added, rank)).collect::<Result<_>>()?;
    let mut own = tensor.dims.iter();
    let dims: Vec<usize> = (0..rank)
        .map(|place| if added.contains(&place) { Some(&1) } else { own.next() }.copied())
        .collect::<Option<_>>()
        .ok_or_else(|| RunError(format!("axes {axes:?} added to {:?}", tensor.dims)))?;
    Ok(tensor.reshaped(dims))
}

pub(super) fn squeeze(call: &Call<'_>) -> Result<Tensor> {
    call.at_most(2)?;
    let (tensor, axes) = (call.input(0)?, call.ints(1)?.1);
    let removed: Vec<usize> =
        axes.iter().map(|&removed| axis(removed, tensor.dims.len())).collect::<Result<_>>()?;
    if removed.iter().any(|&place| tensor.dims[place] != 1) {
        return Err(RunError(format!("axes {axes:?} removed from {:?}", tensor.dims)));
    }
    let kept = tensor.dims.iter().enumerate().filter(|(place, _)| !removed.contains(place));
    Ok(tensor.reshaped(kept.map(|(_, &dim)| dim).collect()))
}

pub(super) fn transpose(call: &Call<'_>) -> Result<Tensor> {
    call.at_most(1)?;
    let tensor = call.input(0)?;
    let rank = tensor.dims.len();
    let perm = call.attributes.ints("perm")?.ok_or_else(|| RunError("no attribute perm".into()))?;
    let perm: Vec<usize> = perm.iter().map(|&from| axis(from, rank)).collect::<Result<_>>()?;
    let mut sorted = perm.clone();
    sorted.sort_unstable();
    if sorted != (0..rank).collect::<Vec<_>>() {
        return Err(RunError(format!("{perm:?} is no order of {rank} dimensions")));
    }
    let dims: Vec<usize> = perm.iter().map(|&from| tensor.dims[from]).collect();
    let strides: Vec<usize> = perm.iter().map(|&from| tensor.stride(from)).collect();
    if let ([1, 0], &[rows, cols]) = (&perm[..], &dims[..]) {
        // A matrix: weights are.
        return Ok(taken(
            tensor,
            dims.clone(),
            (0..rows).flat_map(|row| (0..cols).map(move |col| col * rows + row)),
        ));
    }
    let (count, mut at, mut place) = (num_elements(&dims)?, vec![0; rank], 0);
    let places = (0..count).map(|_| {
        let found = place;
        for axis in (0..rank).rev() {
            at[axis] += 1;
            place += strides[axis];
            if at[axis] < dims[axis] {
                break;
            }
            place -= strides[axis] * dims[axis];
            at[axis] = 0;
        }
        found
    });
    Ok(taken(tensor, dims.clone(), places))
}

pub(super) fn concat(call: &Call<'_>) -> Result<Tensor> {
    let first = call.input(0)?;
    let axis = call.axis("axis", i64::MAX, first.dims.len())?;
    let parts: Vec<&Tensor> = (0..call.inputs.len()).map(|idx| call.input(idx)).collect::<Result<_>>()?;
    let fits = |part: &&Tensor| {
        part.element == first.element
            && part.dims.len() == first.dims.len()
            && (0..first.dims.len()).all(|place| place == axis || part.dims[place] == first.dims[place])
    };
    if !parts.iter().all(fits) {
        let shapes: Vec<_> = parts.iter().map(|part| (part.element, &part.dims)).collect();
        return Err(RunError(format!("{shapes:?} behind each other along axis {axis}")));
    }
    let mut dims = first.dims.clone();
    dims[axis] = parts.iter().map(|part| part.dims[axis]).sum();
    fn joined<T: Copy>(outer: usize, parts: &[(&[T], usize)]) -> Vec<T> {
        let rows = (0..outer)
            .flat_map(|row| parts.iter().map(move |&(part, len)| &part[row * len..(row + 1) * len]));
        rows.flatten().copied().collect()
    }
    let outer = dims[..axis].iter().product();
    let lens = parts.iter().map(|part| part.dims[axis..].iter().product::<usize>());
    let data = match &first.data {
        Data::Floats(_) => {
            let parts: Vec<_> =
                lens.enumerate().map(|(idx, len)| Ok((call.floats(idx)?.1, len))).collect::<Result<_>>()?;
            Data::Floats(joined(outer, &parts))
        }
        Data::Ints(_) => {
            let parts: Vec<_> =
                lens.enumerate().map(|(idx, len)| Ok((call.ints(idx)?.1, len))).collect::<Result<_>>()?;
            Data::Ints(joined(outer, &parts))
        }
        Data::Bools(_) => return Err(RunError("Concat of booleans".into())),
    };
    Ok(Tensor { element: first.element, dims, data })
}

/// Where a slice along one axis begins and ends.
pub(super) struct Cut {
    pub axis: usize,
    pub from: usize,
    pub until: usize,
}

impl Cut {
    /// Of a tensor of `dims`, as the inputs `starts`, `ends` and `axes` say.
    pub fn read(call: &Call<'_>, dims: &[usize]) -> Result<Self> {
        call.at_most(4)?;
        let axis = axis(call.int(3)?, dims.len())?;
        let len = dims[axis] as i64;
        let clamped = |value: i64| (if value < 0 { value + len } else { value }).clamp(0, len) as usize;
        let (from, until) = (clamped(call.int(1)?), clamped(call.int(2)?));
        Ok(Self { axis, from, until: until.max(from) })
    }

    /// What is left of `dims`.
    pub fn dims(&self, dims: &[usize]) -> Vec<usize> {
        let mut dims = dims.to_vec();
        dims[self.axis] = self.until - self.from;
        dims
    }
}

/// Along one axis, every element from the first to the last.
pub(super) fn slice(call: &Call<'_>) -> Result<Tensor> {
    let tensor = call.input(0)?;
    let cut = Cut::read(call, &tensor.dims)?;
    let (outer, stride): (usize, usize) = (tensor.dims[..cut.axis].iter().product(), tensor.stride(cut.axis));
    let whole = tensor.dims[cut.axis] * stride;
    let starts = (0..outer).map(|row| row * whole + cut.from * stride);
    Ok(runs(tensor, cut.dims(&tensor.dims), (cut.until - cut.from) * stride, starts))
}

pub(super) fn gather(call: &Call<'_>) -> Result<Tensor> {
    call.at_most(2)?;
    let (tensor, (indices, at)) = (call.input(0)?, call.ints(1)?);
    let axis = call.axis("axis", 0, tensor.dims.len())?;
    let (outer, stride): (usize, usize) = (tensor.dims[..axis].iter().product(), tensor.stride(axis));
    let len = tensor.dims[axis];
    let at: Vec<usize> = at.iter().map(|&idx| position(idx, len)).collect::<Result<_>>()?;
    let dims = [&tensor.dims[..axis], &indices.dims, &tensor.dims[axis + 1..]].concat();
    let starts = (0..outer).flat_map(|row| at.iter().map(move |idx| (row * len + idx) * stride));
    Ok(runs(tensor, dims, stride, starts))
}

/// For every place of the first `batch_dims` dimensions, the rows that the last dimension of the indices names.
pub(super) fn gather_nd(call: &Call<'_>) -> Result<Tensor> {
    call.at_most(2)?;
    let (tensor, (indices, at)) = (call.input(0)?, call.ints(1)?);
    let batch_dims = call.attributes.int("batch_dims")?.unwrap_or(0) as usize;
    let misfit = || RunError(format!("GatherND of {:?} at {:?}", tensor.dims, indices.dims));
    let (&depth, places) = indices.dims.split_last().ok_or_else(misfit)?;
    let named = batch_dims + depth;
    if depth == 0
        || named > tensor.dims.len()
        || places.len() < batch_dims
        || places[..batch_dims] != tensor.dims[..batch_dims]
    {
        return Err(misfit());
    }
    let per_batch: usize = places[batch_dims..].iter().product();
    let batch_stride: usize = tensor.dims[batch_dims..].iter().product();
    let mut starts = Vec::with_capacity(at.len() / depth);
    for (place, index) in at.chunks(depth).enumerate() {
        let mut start = place / per_batch * batch_stride;
        for (axis, &idx) in (batch_dims..named).zip(index) {
            start += position(idx, tensor.dims[axis])? * tensor.stride(axis);
        }
        starts.push(start);
    }
    let rest = &tensor.dims[named..];
    Ok(runs(tensor, [places, rest].concat(), rest.iter().product(), starts.into_iter()))
}

pub(super) fn range(call: &Call<'_>) -> Result<Tensor> {
    call.at_most(3)?;
    let [start, limit, delta] = [call.int(0)?, call.int(1)?, call.int(2)?];
    if delta != 1 {
        return Err(RunError(format!("a range in steps of {delta}")));
    }
    let values: Vec<i64> = (start..limit).collect();
    Ok(Tensor::ints(vec![values.len()], values))
}
