//! Weights where they lie: a stored tensor, or one reached through transposition, casts, reshapes and dequantization. Only
//! shapes are known up front; values are read when the builder asks for them, one tensor at a time.

use half::{bf16, f16};

use super::{
    array::{Array, Fact, axis_of, checked_len},
    dtype::Dtype,
    evaluate::Evaluator,
    graph::{Graph, Node, TensorId},
    model_file::StoredTensor,
};

/// Values of a weight, row-major.
#[derive(Debug, Clone)]
pub struct Values {
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Values, exact for 16- and 32-bit floats.
    pub data: Vec<f32>,
}

/// Longest chain of operators between a stored tensor and its use.
pub const MAX_CHAIN: usize = 32;

/// Shape of a constant tensor without computing it; `None` when its operators are not those of a weight.
pub fn shape(graph: &Graph, tensor: TensorId) -> Option<Vec<usize>> {
    shape_within(graph, tensor, MAX_CHAIN)
}

fn shape_within(graph: &Graph, tensor: TensorId, chain: usize) -> Option<Vec<usize>> {
    if let Some(stored) = &graph.tensor(tensor).stored {
        return Some(stored.dims.clone());
    }
    let node = graph.producer(tensor)?;
    let input = shape_within(graph, node.input(0)?, chain.checked_sub(1)?)?;
    match node.op.as_str() {
        "Identity" | "Cast" | "DequantizeLinear" => Some(input),
        "Transpose" => {
            permutation(node, input.len()).ok().map(|perm| perm.iter().map(|p| input[*p]).collect())
        }
        "Reshape" => reshaped(graph, node, &input).ok(),
        // Anything else is folded, when it is small enough.
        _ => Evaluator::new(graph).demand(tensor).ok().map(|a| a.shape.clone()),
    }
}

/// Values of a constant tensor.
///
/// # Errors
/// Naming what cannot be followed.
pub fn load(graph: &Graph, tensor: TensorId) -> Fact<Values> {
    load_within(graph, tensor, MAX_CHAIN)
}

fn load_within(graph: &Graph, tensor: TensorId, chain: usize) -> Fact<Values> {
    if let Some(stored) = &graph.tensor(tensor).stored {
        return Ok(Values { shape: stored.dims.clone(), data: floats(stored)? });
    }
    let node = graph.producer(tensor).ok_or("not a constant")?;
    let chain = chain.checked_sub(1).ok_or("too long a chain of operators on a weight")?;
    let input = |idx: usize| node.input(idx).ok_or_else(|| format!("{} without input {idx}", node.op));
    match node.op.as_str() {
        "Identity" => load_within(graph, input(0)?, chain),
        "Cast" => round(load_within(graph, input(0)?, chain)?, node),
        "Transpose" => {
            let values = load_within(graph, input(0)?, chain)?;
            let perm = permutation(node, values.shape.len())?;
            if perm.is_sorted() {
                Ok(values)
            } else if perm == [1, 0] {
                Ok(transpose(values))
            } else {
                fold(graph, tensor)
            }
        }
        "Reshape" => {
            let values = load_within(graph, input(0)?, chain)?;
            Ok(Values { shape: reshaped(graph, node, &values.shape)?, data: values.data })
        }
        "DequantizeLinear" => dequantize(graph, node, load_within(graph, input(0)?, chain)?, chain),
        _ => fold(graph, tensor),
    }
}

fn fold(graph: &Graph, tensor: TensorId) -> Fact<Values> {
    let array = Evaluator::new(graph).demand(tensor)?;
    Ok(Values { shape: array.shape.clone(), data: array.data.iter().map(|v| *v as f32).collect() })
}

/// Every element as `f32`.
pub fn floats(stored: &StoredTensor) -> Fact<Vec<f32>> {
    let bytes: &[u8] = &stored.bytes;
    Ok(match stored.dtype {
        Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F16 => bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::Bf16 => bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        dtype => (0..stored.num_elements())
            .map(|idx| dtype.element(bytes, idx).map(|v| v as f32))
            .collect::<Option<_>>()
            .ok_or("stored values are truncated")?,
    })
}

fn permutation(node: &Node, rank: usize) -> Fact<Vec<usize>> {
    let perm: Vec<usize> = match node.ints("perm") {
        Some(perm) => perm.iter().map(|p| axis_of(*p, rank)).collect::<Fact<_>>()?,
        None => (0..rank).rev().collect(),
    };
    let mut sorted = perm.clone();
    sorted.sort_unstable();
    if sorted.iter().copied().eq(0..rank) {
        Ok(perm)
    } else {
        Err(format!("perm {perm:?} of a weight with {rank} dimensions"))
    }
}

fn reshaped(graph: &Graph, node: &Node, from: &[usize]) -> Fact<Vec<usize>> {
    let target = node.input(1).ok_or("Reshape without a shape")?;
    let target = Evaluator::new(graph).demand(target)?.as_ints();
    let total: usize = from.iter().product();
    let mut dims: Vec<usize> = Vec::with_capacity(target.len());
    let mut open = None;
    for (axis, dim) in target.iter().enumerate() {
        match dim {
            -1 if open.replace(axis).is_none() => dims.push(1),
            0 => dims.push(*from.get(axis).ok_or("a 0 beyond the weight's dimensions")?),
            dim => dims.push(usize::try_from(*dim).map_err(|_| format!("shape {target:?}"))?),
        }
    }
    let known =
        dims.iter().try_fold(1_usize, |all, d| all.checked_mul(*d)).ok_or("a shape that is too large")?;
    if let Some(axis) = open {
        dims[axis] = total.checked_div(known).unwrap_or(0);
    }
    let reached = dims.iter().try_fold(1_usize, |all, d| all.checked_mul(*d));
    if reached == Some(total) {
        Ok(dims)
    } else {
        Err(format!("a weight of {from:?} reshaped to {target:?}"))
    }
}

/// A cast to a narrower float rounds the weight, as the export does.
fn round(mut values: Values, node: &Node) -> Fact<Values> {
    match Dtype::from_number(node.int("to").and_then(|n| i32::try_from(n).ok()).unwrap_or(0))? {
        Dtype::F32 | Dtype::F64 => {}
        Dtype::F16 => values.data.iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32()),
        Dtype::Bf16 => values.data.iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32()),
        other => return Err(format!("a weight cast to {other:?}")),
    }
    Ok(values)
}

/// Swaps the two dimensions of a matrix.
pub fn transpose(values: Values) -> Values {
    let (rows, columns) = (values.shape[0], values.shape[1]);
    let mut data = vec![0.0; values.data.len()];
    // Tiles keep both sides in the cache.
    const TILE: usize = 64;
    for row_start in (0..rows).step_by(TILE) {
        for column_start in (0..columns).step_by(TILE) {
            for row in row_start..(row_start + TILE).min(rows) {
                for column in column_start..(column_start + TILE).min(columns) {
                    data[column * rows + row] = values.data[row * columns + column];
                }
            }
        }
    }
    Values { shape: vec![columns, rows], data }
}

/// `(x − zero_point) · scale`, per tensor, per row of `axis`, or per block along it.
fn dequantize(graph: &Graph, node: &Node, mut values: Values, chain: usize) -> Fact<Values> {
    let scale = load_within(graph, node.input(1).ok_or("DequantizeLinear without a scale")?, chain)?;
    let zero = node.input(2).map(|id| load_within(graph, id, chain)).transpose()?;
    if zero.as_ref().is_some_and(|z| z.shape != scale.shape) {
        return Err("DequantizeLinear with zero points of another shape than its scales".into());
    }
    if values.data.is_empty() {
        return Ok(values);
    }
    let block = node.int("block_size").and_then(|b| usize::try_from(b).ok()).unwrap_or(0);
    let (size, inner) = match scale.data.len() {
        1 => (1, values.data.len()),
        _ => {
            let axis = axis_of(node.int("axis").unwrap_or(1), values.shape.len())?;
            (values.shape[axis], values.shape[axis + 1..].iter().product())
        }
    };
    let groups = if scale.data.len() == 1 {
        1
    } else if block == 0 {
        size
    } else {
        size.div_ceil(block)
    };
    let outer = values.data.len() / (size * inner).max(1);
    let per_block = block != 0 && scale.data.len() != 1;
    let expected = if per_block { outer * groups * inner } else { groups };
    if scale.data.len() != expected {
        return Err(format!("DequantizeLinear of {:?} with scales {:?}", values.shape, scale.shape));
    }
    for (flat, value) in values.data.iter_mut().enumerate() {
        let along = flat / inner % size;
        let at = if per_block {
            (flat / (inner * size) * groups + along / block) * inner + flat % inner
        } else {
            along
        };
        *value = (*value - zero.as_ref().map_or(0.0, |z| z.data[at])) * scale.data[at];
    }
    Ok(values)
}

/// A small constant as an array.
///
/// # Errors
/// When it is too large or cannot be folded.
pub fn small(graph: &Graph, tensor: TensorId) -> Fact<Array> {
    let array = Evaluator::new(graph).demand(tensor)?;
    checked_len(&array.shape)?;
    Ok((*array).clone())
}
