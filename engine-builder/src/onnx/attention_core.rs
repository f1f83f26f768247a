//! The operator in the middle of attention, and what it says about operands, heads and masks.

use super::{
    array::Fact,
    dtype::Kind,
    evaluate::local_window,
    graph::{Node, TensorId},
    trace::{Glue, Trace},
};

/// The operator in the middle, and what it says.
#[derive(Debug)]
pub struct Core<'a> {
    /// Softmax, or the operator that contains it.
    pub node: &'a Node,
    /// Queries as it reads them.
    pub q: TensorId,
    /// Keys.
    pub k: TensorId,
    /// Values.
    pub v: TensorId,
    /// Query heads.
    pub num_q_heads: usize,
    /// Masks.
    pub masks: Vec<TensorId>,
}

/// Finds the one attention operator, or softmax between two products, among the glue.
///
/// # Errors
/// Naming what was found instead.
pub fn find_core<'a>(trace: &'a Trace<'_>, glue: &Glue) -> Fact<Core<'a>> {
    let graph = trace.graph;
    let is_core = |node: &Node| {
        matches!(node.op.as_str(), "Softmax" | "Attention" | "GroupQueryAttention" | "MultiHeadAttention")
    };
    let cores: Vec<&Node> = glue.nodes.iter().map(|idx| &graph.nodes[*idx]).filter(|n| is_core(n)).collect();
    let [node] = cores[..] else {
        return Err(format!(
            "{} attention operators (Softmax, Attention, GroupQueryAttention, MultiHeadAttention) before it, expected 1; operators found: {}",
            cores.len(),
            glue.describe(graph)
        ));
    };
    let q = node.required_fact(0)?;
    let count = |name: &str| {
        node.int(name).and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=1 << 16).contains(n))
    };
    let shape = &trace.value(q)?.shape;
    let masks = |idx: usize| node.input(idx).into_iter().collect();
    match node.op.as_str() {
        "Softmax" => decomposed(trace, glue, node),
        "GroupQueryAttention" => {
            let num_q_heads = count("num_heads").ok_or("GroupQueryAttention without num_heads")?;
            Ok(Core {
                node,
                q,
                k: node.input(1).unwrap_or(q),
                v: node.input(2).unwrap_or(q),
                num_q_heads,
                masks: Vec::new(),
            })
        }
        "MultiHeadAttention" => {
            let num_q_heads = count("num_heads").ok_or("MultiHeadAttention without num_heads")?;
            Ok(Core {
                node,
                q,
                k: node.required_fact(1)?,
                v: node.required_fact(2)?,
                num_q_heads,
                masks: masks(5),
            })
        }
        _ => {
            let num_q_heads = if shape.len() == 4 {
                shape[1]
            } else {
                count("q_num_heads").ok_or("Attention without q_num_heads")?
            };
            Ok(Core {
                node,
                q,
                k: node.required_fact(1)?,
                v: node.required_fact(2)?,
                num_q_heads,
                masks: masks(3),
            })
        }
    }
}

/// Softmax between two products of activations.
fn decomposed<'a>(trace: &'a Trace<'_>, glue: &Glue, softmax: &'a Node) -> Fact<Core<'a>> {
    let graph = trace.graph;
    let both_hidden =
        |node: &Node| node.op == "MatMul" && node.inputs.iter().flatten().all(|i| trace.is_hidden(*i));
    let mut masks = Vec::new();
    let mut at = softmax.required_fact(0)?;
    let scores = loop {
        let node = graph.producer(at).ok_or("scores that no operator makes")?;
        if both_hidden(node) {
            break node;
        }
        if !matches!(
            node.op.as_str(),
            "Add" | "Mul" | "Div" | "Where" | "Cast" | "Reshape" | "Max" | "Identity"
        ) {
            return Err(format!(
                "operator {} (node {:?}) between the products of queries and keys and their softmax",
                node.full_op(),
                node.name
            ));
        }
        let (hidden, others): (Vec<TensorId>, Vec<TensorId>) =
            node.inputs.iter().flatten().partition(|i| trace.is_hidden(**i));
        let [next] = hidden[..] else {
            return Err(format!(
                "operator {} (node {:?}) joins several values before the softmax",
                node.full_op(),
                node.name
            ));
        };
        let is_mask = |id: &TensorId| {
            trace
                .value_or_constant(*id)
                .is_ok_and(|a| a.rank() >= 2 && a.shape[a.rank() - 2..] == [trace.len, trace.len])
        };
        masks.extend(others.into_iter().filter(is_mask));
        at = next;
    };
    let context = glue
        .nodes
        .iter()
        .map(|idx| &graph.nodes[*idx])
        .find(|n| both_hidden(n) && !std::ptr::eq(*n, scores))
        .ok_or("no product of attention weights and values")?;
    let elements = trace.value(softmax.required_fact(0)?)?.data.len();
    let num_q_heads = elements / (trace.len * trace.len);
    Ok(Core {
        node: softmax,
        q: scores.required_fact(0)?,
        k: scores.required_fact(1)?,
        v: context.required_fact(1)?,
        num_q_heads,
        masks,
    })
}

/// Which key each query sees in the trial run, `[len, len]`, the same for all heads.
///
/// # Errors
/// When heads differ.
pub fn visibility(trace: &Trace<'_>, core: &Core<'_>) -> Fact<Vec<bool>> {
    let len = trace.len;
    let places = || (0..len).flat_map(|query| (0..len).map(move |key| (query, key)));
    let node = core.node;
    if node.op == "Softmax" {
        let weights = &trace.value(node.output(0).ok_or("no output")?)?.data;
        let first: Vec<bool> = weights.iter().take(len * len).map(|w| *w > 0.0).collect();
        let same =
            weights.chunks(len * len).all(|head| head.iter().map(|w| *w > 0.0).eq(first.iter().copied()));
        return if same { Ok(first) } else { Err("heads see different positions".into()) };
    }
    if node.op == "GroupQueryAttention" {
        let window = local_window(node).unwrap_or(usize::MAX);
        return Ok(places().map(|(query, key)| key <= query && query - key < window).collect());
    }
    let flag = if node.contrib { "unidirectional" } else { "is_causal" };
    let causal = node.int(flag).unwrap_or(0) != 0;
    let mut visible: Vec<bool> = places().map(|(query, key)| !causal || key <= query).collect();
    for mask in &core.masks {
        let full = trace.value_or_constant(*mask)?.broadcast_to(&[1, core.num_q_heads, len, len])?;
        let lets = |v: f64| if full.kind == Kind::Bool { v != 0.0 } else { v > -1e3 };
        let first = &full.data[..len * len];
        if full.data.chunks(len * len).any(|head| head != first) {
            return Err("heads see different positions (or carry a position bias)".into());
        }
        visible.iter_mut().zip(first).for_each(|(seen, v)| *seen &= lets(*v));
    }
    Ok(visible)
}
