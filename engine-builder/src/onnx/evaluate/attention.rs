//! Attention as one operator: `Attention` (opset 23), onnxruntime's `GroupQueryAttention` and `MultiHeadAttention`.

use takt_engine::spec::RopePairing;

use super::Operands;
use crate::onnx::{
    array::{Array, Fact},
    dtype::Kind,
    graph::Node,
    heads::{Columns, Heads, RotaryTable, attend},
};

pub(super) fn apply(x: &Operands<'_>) -> Option<Fact<Vec<Array>>> {
    let result = match (x.node.op.as_str(), x.node.contrib) {
        ("Attention", false) => standard(x),
        ("GroupQueryAttention", true) => group_query(x),
        ("MultiHeadAttention", true) => multi_head(x),
        _ => return None,
    };
    Some(result.map(|array| vec![array]))
}

fn count(node: &Node, attribute: &str) -> Option<usize> {
    node.int(attribute).and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=1 << 16).contains(n))
}

/// The factor of the scores: the attribute, or `1/√width` where absent or 0.
pub fn scale(node: &Node, width: usize) -> f64 {
    match node.float("scale") {
        Some(scale) if scale != 0.0 => f64::from(scale),
        _ => 1.0 / (width as f64).sqrt(),
    }
}

/// The sliding window of a `GroupQueryAttention` in positions seen, the own one included; `None` for all.
pub fn local_window(node: &Node) -> Option<usize> {
    node.int("local_window_size").and_then(|w| usize::try_from(w).ok())
}

fn plain_scores(node: &Node) -> Fact<()> {
    if node.float("softcap").is_some_and(|cap| cap != 0.0) {
        return Err(format!("softcap {}, expected 0", node.float("softcap").unwrap_or(0.0)));
    }
    if node.int("smooth_softmax").unwrap_or(0) > 0 {
        return Err("smooth_softmax, expected a plain softmax".into());
    }
    Ok(())
}

/// Heads of an operand in either layout: `[1, heads, len, width]` or `[1, len, heads · width]`.
fn heads_of(a: &Array, num_heads: Option<usize>, what: &str) -> Fact<Heads> {
    if a.rank() == 4 {
        return Heads::from_4d(a);
    }
    let &[1, len, columns] = a.shape.as_slice() else { return Err(format!("{what} of shape {:?}", a.shape)) };
    let num_heads = num_heads
        .filter(|n| columns.is_multiple_of(*n))
        .ok_or_else(|| format!("{what} of {columns} columns without a fitting number of heads"))?;
    Heads::from_rows(&a.data, len, Columns { first: 0, num_heads, width: columns / num_heads })
}

fn standard(x: &Operands<'_>) -> Fact<Array> {
    plain_scores(x.node)?;
    x.refuse_inputs(6, "nonpad_kv_seqlen")?;
    if [4, 5].iter().any(|idx| x.optional(*idx).is_some_and(|a| !a.data.is_empty())) {
        return Err("a past that is not empty".into());
    }
    let a = x.get(0)?;
    let q = heads_of(a, count(x.node, "q_num_heads"), "queries")?;
    let k = heads_of(x.get(1)?, count(x.node, "kv_num_heads"), "keys")?;
    let v = heads_of(x.get(2)?, count(x.node, "kv_num_heads"), "values")?;
    let mask = x.optional(3).map(|m| m.broadcast_to(&[1, q.num_heads, q.len, k.len])).transpose()?;
    let causal = x.node.int("is_causal").unwrap_or(0) != 0;
    let bias = |head: usize, query: usize, key: usize| {
        let future = if causal && key > query { f64::NEG_INFINITY } else { 0.0 };
        future + mask.as_ref().map_or(0.0, |m| additive(m, (head * q.len + query) * k.len + key))
    };
    let out = attend(&q, &k, &v, scale(x.node, q.width), bias)?;
    if a.rank() == 4 {
        out.to_4d()
    } else {
        Array::new(vec![1, out.len, out.num_heads * out.width], Kind::Float, out.to_rows())
    }
}

fn additive(mask: &Array, idx: usize) -> f64 {
    let value = mask.data[idx];
    match mask.kind {
        Kind::Bool if value != 0.0 => 0.0,
        Kind::Bool => f64::NEG_INFINITY,
        _ => value,
    }
}

fn group_query(x: &Operands<'_>) -> Fact<Array> {
    plain_scores(x.node)?;
    x.refuse_inputs(10, "attention bias, sinks or quantized cache")?;
    let (Some(num_heads), Some(kv_heads)) = (count(x.node, "num_heads"), count(x.node, "kv_num_heads"))
    else {
        return Err("num_heads or kv_num_heads is missing".into());
    };
    let a = x.get(0)?;
    let &[1, len, columns] = a.shape.as_slice() else {
        return Err(format!("queries of shape {:?}", a.shape));
    };
    check_lengths(x, len)?;
    let packed = x.optional(1).is_none();
    let width = columns / if packed { num_heads + 2 * kv_heads } else { num_heads };
    let part = |first: usize, num_heads: usize| Columns { first, num_heads, width };
    let mut q = Heads::from_rows(&a.data, len, part(0, num_heads))?;
    let (mut k, v) = if packed {
        let (k_first, v_first) = (num_heads * width, (num_heads + kv_heads) * width);
        (
            Heads::from_rows(&a.data, len, part(k_first, kv_heads))?,
            Heads::from_rows(&a.data, len, part(v_first, kv_heads))?,
        )
    } else {
        (
            Heads::from_rows(&x.get(1)?.data, len, part(0, kv_heads))?,
            Heads::from_rows(&x.get(2)?.data, len, part(0, kv_heads))?,
        )
    };
    if x.node.int("do_rotary").unwrap_or(0) != 0 {
        let table = RotaryTable::new(x.get(7)?, x.get(8)?)?;
        let pairing = if x.node.int("rotary_interleaved").unwrap_or(0) != 0 {
            RopePairing::Interleaved
        } else {
            RopePairing::Half
        };
        q.rotate(&table, pairing)?;
        k.rotate(&table, pairing)?;
    }
    let window = local_window(x.node).unwrap_or(usize::MAX);
    let bias = |_: usize, query: usize, key: usize| {
        if key > query || query - key >= window { f64::NEG_INFINITY } else { 0.0 }
    };
    let out = attend(&q, &k, &v, scale(x.node, width), bias)?;
    Array::new(vec![1, len, num_heads * width], Kind::Float, out.to_rows())
}

/// With an empty cache the operator must be told of `len` tokens in all, at positions from 0.
fn check_lengths(x: &Operands<'_>, len: usize) -> Fact<()> {
    let last = x.get(5)?.data.first().copied();
    let total = x.get(6)?.as_scalar();
    if last != Some(len as f64 - 1.0) || total != Some(len as f64) {
        return Err(format!("told of last position {last:?} and total {total:?} for {len} tokens"));
    }
    let in_order = |a: &Array| a.data.iter().enumerate().all(|(i, v)| *v == i as f64);
    if x.optional(9).is_some_and(|positions| !in_order(positions)) {
        return Err("positions that do not count from 0".into());
    }
    Ok(())
}

fn multi_head(x: &Operands<'_>) -> Fact<Array> {
    plain_scores(x.node)?;
    x.refuse_inputs(8, "past sequence length or cache indirection")?;
    if x.optional(3).is_some() || x.optional(4).is_some() {
        return Err("a bias or key padding mask, which is not understood".into());
    }
    let num_heads = count(x.node, "num_heads");
    let q = heads_of(x.get(0)?, num_heads, "queries")?;
    let k = heads_of(x.get(1)?, num_heads, "keys")?;
    let v = heads_of(x.get(2)?, num_heads, "values")?;
    let mask = x.optional(5).map(|m| m.broadcast_to(&[1, q.num_heads, q.len, k.len])).transpose()?;
    let causal = x.node.int("unidirectional").unwrap_or(0) != 0;
    let bias = |head: usize, query: usize, key: usize| {
        let future = if causal && key > query { f64::NEG_INFINITY } else { 0.0 };
        future + mask.as_ref().map_or(0.0, |m| additive(m, (head * q.len + query) * k.len + key))
    };
    let out = attend(&q, &k, &v, scale(x.node, q.width), bias)?;
    Array::new(vec![1, out.len, out.num_heads * out.width], Kind::Float, out.to_rows())
}
