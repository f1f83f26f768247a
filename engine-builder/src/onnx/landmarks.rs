//! Where a decoder begins and ends in a graph, and what depends on what.

use super::{
    dtype::{Dtype, Kind},
    graph::{Graph, TensorId},
    linear::{self, Embedding},
};
use crate::{BuildError, Result};

/// The error for a graph that lacks a part of a decoder.
pub fn not_found(what: &str) -> BuildError {
    BuildError::Unsupported(format!(
        "this ONNX graph has no {what}: expected a decoder-only language model from token ids to logits"
    ))
}

/// Tensors that depend on stored ones only.
pub fn constants(graph: &Graph, order: &[usize]) -> Vec<bool> {
    let mut constant: Vec<bool> = graph.tensors.iter().map(|t| t.stored.is_some()).collect();
    for node_idx in order {
        let node = &graph.nodes[*node_idx];
        let all = node.inputs.iter().flatten().all(|i| constant[i.0])
            && node.inputs.iter().flatten().next().is_some();
        node.outputs.iter().flatten().for_each(|o| constant[o.0] = all);
    }
    constant
}

/// Tensors that depend on the embedding's values, and not only on their shape.
pub fn hidden(graph: &Graph, order: &[usize], embedding: &Embedding) -> Vec<bool> {
    let mut hidden = vec![false; graph.tensors.len()];
    for node_idx in order {
        let node = &graph.nodes[*node_idx];
        let from_values = node.value_inputs().any(|i| hidden[i.0]);
        if from_values || *node_idx == embedding.node_idx {
            node.outputs.iter().flatten().for_each(|o| hidden[o.0] = true);
        }
    }
    hidden
}

/// Follows operators that only move, pick or cast, towards the source.
pub fn behind_movement(graph: &Graph, mut tensor: TensorId) -> TensorId {
    const MOVES: [&str; 11] = [
        "Identity",
        "Cast",
        "Reshape",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Slice",
        "Gather",
        "Transpose",
        "Expand",
        "Concat",
    ];
    // A graph that has been ordered has no cycle, so this ends.
    while let Some(node) = graph.producer(tensor) {
        let joins_itself = node.op != "Concat" || node.inputs.iter().all(|i| *i == node.inputs[0]);
        match node.input(0) {
            Some(input) if MOVES.contains(&node.op.as_str()) && joins_itself => tensor = input,
            _ => break,
        }
    }
    tensor
}

/// The widest constant table that token ids look rows up in, and the graph input they come from.
pub fn find_embedding(graph: &Graph, order: &[usize], constant: &[bool]) -> Result<(Embedding, TensorId)> {
    let mut best: Option<(Embedding, TensorId)> = None;
    for node_idx in order {
        let Some(found) = linear::recognise_embedding(graph, *node_idx, |t| constant[t.0])? else { continue };
        let source = behind_movement(graph, found.indices);
        let from_input = graph.inputs.iter().any(|i| {
            i.tensor == source && Dtype::from_number(i.elem_type).is_ok_and(|d| d.kind() == Kind::Int)
        });
        let wider = best.as_ref().is_none_or(|(b, _)| found.hidden_size > b.hidden_size);
        if from_input && wider {
            best = Some((found, source));
        }
    }
    best.ok_or_else(|| not_found("token embedding (rows of a constant matrix looked up by an integer input)"))
}

/// Where the logits come from.
#[derive(Debug)]
pub struct Logits {
    /// The graph's output.
    pub tensor: TensorId,
    /// The output head.
    pub node_idx: usize,
}

/// The output that is a linear layer over the vocabulary.
pub fn find_logits(graph: &Graph, constant: &[bool], vocab_size: usize) -> Result<Logits> {
    let mut makers = Vec::new();
    for output in &graph.outputs {
        let mut at = behind_movement(graph, *output);
        let with_bias = graph.producer(at).filter(|n| n.op == "Add");
        if let Some(value) = with_bias.and_then(|n| n.inputs.iter().flatten().find(|i| !constant[i.0])) {
            at = behind_movement(graph, *value);
        }
        let Some(node_idx) = graph.tensor(at).producer else { continue };
        match linear::recognise(graph, node_idx, |t| constant[t.0])? {
            Some(linear) if linear.out_features == vocab_size => {
                return Ok(Logits { tensor: *output, node_idx });
            }
            _ => makers.push(graph.nodes[node_idx].full_op()),
        }
    }
    makers.truncate(4);
    Err(not_found(&format!(
        "output that is a linear layer over the {vocab_size} tokens of its embedding (outputs are made by {})",
        makers.join(", ")
    )))
}
