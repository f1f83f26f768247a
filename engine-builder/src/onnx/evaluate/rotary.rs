//! `RotaryEmbedding`, the standard's (opset 23) and onnxruntime's, which order their inputs differently.

use takt_engine::spec::RopePairing;

use super::Operands;
use crate::onnx::{
    array::{Array, Fact},
    dtype::Kind,
    graph::{Node, TensorId},
    heads::{Columns, Heads, RotaryTable},
};

/// Inputs of a `RotaryEmbedding` node: cosines, sines, positions.
pub struct RotaryInputs {
    /// Index of the cosines.
    pub cos: usize,
    /// Index of the sines.
    pub sin: usize,
    /// Index of the positions.
    pub positions: usize,
}

/// Where `node`'s definition puts the rotary inputs.
pub fn inputs_of(node: &Node) -> RotaryInputs {
    if node.contrib {
        RotaryInputs { cos: 2, sin: 3, positions: 1 }
    } else {
        RotaryInputs { cos: 1, sin: 2, positions: 3 }
    }
}

/// The tensors of cosines and sines a node rotates by, if it does.
pub fn table_tensors(node: &Node) -> Option<(TensorId, TensorId)> {
    match node.op.as_str() {
        "RotaryEmbedding" => {
            let inputs = inputs_of(node);
            Some((node.input(inputs.cos)?, node.input(inputs.sin)?))
        }
        "GroupQueryAttention" if node.int("do_rotary") == Some(1) => Some((node.input(7)?, node.input(8)?)),
        _ => None,
    }
}

pub(super) fn apply(x: &Operands<'_>) -> Option<Fact<Vec<Array>>> {
    (x.node.op == "RotaryEmbedding").then(|| rotary(x).map(|array| vec![array]))
}

fn rotary(x: &Operands<'_>) -> Fact<Array> {
    let inputs = inputs_of(x.node);
    let a = x.get(0)?;
    if x.node.float("scale").is_some_and(|s| (s - 1.0).abs() > 0.0) {
        return Err("scale other than 1".into());
    }
    let full = RotaryTable::new(x.get(inputs.cos)?, x.get(inputs.sin)?)?;
    let rotary_dim = x.node.int("rotary_embedding_dim").unwrap_or(0);
    if rotary_dim != 0 && rotary_dim != 2 * full.width as i64 {
        return Err(format!("rotary_embedding_dim {rotary_dim} with a table of {} pairs", full.width));
    }
    let len = if a.rank() == 4 { a.shape[2] } else { a.shape.get(1).copied().unwrap_or(0) };
    let table = match x.optional(inputs.positions) {
        None => full,
        Some(positions) => full.at(&row_positions(positions, len))?,
    };
    let num_heads = x.node.int("num_heads").and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
    let mut heads = if a.rank() == 4 {
        Heads::from_4d(a)?
    } else {
        let hidden = a.shape.last().copied().unwrap_or(0);
        // Without num_heads the head is as wide as the table says.
        let num_heads = if num_heads == 0 { hidden / (2 * table.width).max(1) } else { num_heads };
        let width = hidden / num_heads.max(1);
        Heads::from_rows(&a.data, len, Columns { first: 0, num_heads, width })?
    };
    let interleaved = x.node.int("interleaved").unwrap_or(0) != 0;
    heads.rotate(&table, if interleaved { RopePairing::Interleaved } else { RopePairing::Half })?;
    if a.rank() == 4 { heads.to_4d() } else { Array::new(a.shape.clone(), Kind::Float, heads.to_rows()) }
}

/// Positions of `len` tokens; a single number is the first one.
fn row_positions(positions: &Array, len: usize) -> Vec<i64> {
    match positions.as_ints()[..] {
        [first] if len != 1 => (0..len as i64).map(|i| first.saturating_add(i)).collect(),
        ref all => all.to_vec(),
    }
}
