//! RMSNorm as one operator: the standard's and onnxruntime's, with and without the residual addition.

use super::Operands;
use crate::onnx::{
    array::{Array, Fact, axis_of},
    graph::Node,
};

pub(super) fn apply(x: &Operands<'_>) -> Option<Fact<Vec<Array>>> {
    match x.node.op.as_str() {
        "RMSNormalization" | "SimplifiedLayerNormalization" => Some(plain(x)),
        "SkipSimplifiedLayerNormalization" => Some(with_skip(x)),
        _ => None,
    }
}

/// Epsilon of an RMSNorm operator: its attribute, or the default of its definition.
pub fn epsilon(node: &Node) -> f32 {
    let default = if node.op == "SkipSimplifiedLayerNormalization" { 1e-12 } else { 1e-5 };
    node.float("epsilon").unwrap_or(default)
}

/// Position of the weight among the inputs of an RMSNorm operator.
pub fn weight_input(node: &Node) -> Option<usize> {
    match node.op.as_str() {
        "RMSNormalization" | "SimplifiedLayerNormalization" => Some(1),
        "SkipSimplifiedLayerNormalization" => Some(2),
        _ => None,
    }
}

fn plain(x: &Operands<'_>) -> Fact<Vec<Array>> {
    let a = x.get(0)?;
    let axis = axis_of(x.node.int("axis").unwrap_or(-1), a.rank())?;
    if axis + 1 != a.rank() {
        return Err(format!("over axis {axis} of {:?}, expected the last", a.shape));
    }
    Ok(vec![rms_norm(a, x.get(1)?, epsilon(x.node))?])
}

fn with_skip(x: &Operands<'_>) -> Fact<Vec<Array>> {
    let (a, skip) = (x.get(0)?, x.get(1)?);
    let mut sum = a.zip(skip, a.kind, |a, b| a + b)?;
    if let Some(bias) = x.optional(3) {
        sum = sum.zip(bias, sum.kind, |a, b| a + b)?;
    }
    let out = rms_norm(&sum, x.get(2)?, epsilon(x.node))?;
    // Outputs 1 and 2 (mean, inverse deviation) exist for training only.
    let unused = Array::ints([]);
    Ok(vec![out, unused.clone(), unused, sum])
}

fn rms_norm(a: &Array, weight: &Array, epsilon: f32) -> Fact<Array> {
    let width = a.shape.last().copied().unwrap_or(0);
    if weight.data.len() != width || width == 0 {
        return Err(format!("a weight of {:?} for {:?}", weight.shape, a.shape));
    }
    let mut out = a.clone();
    for row in out.data.chunks_exact_mut(width) {
        let mean = row.iter().map(|v| v * v).sum::<f64>() / width as f64;
        let factor = 1.0 / (mean + f64::from(epsilon)).sqrt();
        row.iter_mut().zip(&weight.data).for_each(|(v, w)| *v *= factor * w);
    }
    Ok(out)
}
