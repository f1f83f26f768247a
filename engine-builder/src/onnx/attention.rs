//! Attention of one layer: projections, head counts, QK-norm, rotation, scale and window, each read from the graph and checked
//! together on the trial run.

use std::collections::BTreeSet;

use super::{
    array::Fact,
    attention_core::{Core, find_core, visibility},
    compare::agree,
    evaluate::{local_window, scale, weight_input},
    graph::TensorId,
    heads::{Columns, Heads, attend},
    inputs::Extent,
    mask,
    norm::Norm,
    rope::{self, Candidate},
    tensors::Rows,
    trace::{Glue, Origin, Trace},
};

/// What one attention layer does.
#[derive(Debug, Clone)]
pub struct Attention {
    /// Query projection.
    pub q: Rows,
    /// Key projection.
    pub k: Rows,
    /// Value projection.
    pub v: Rows,
    /// Output projection.
    pub o: Rows,
    /// Query heads.
    pub num_q_heads: usize,
    /// Key/value heads.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor of the scores.
    pub scale: f64,
    /// Norms of query and key heads.
    pub qk_norm: Option<(Norm, Norm)>,
    /// Rotation.
    pub rope: Candidate,
    /// Positions seen in the trial run; `None` for all.
    pub window: Option<usize>,
    /// The window the operator states, which may be longer than the trial run.
    pub stated_window: Option<usize>,
    /// Mask tensors, whose window may be longer than the trial run.
    pub masks: Vec<TensorId>,
}

/// Reads the attention that ends in linear layer `o`.
///
/// # Errors
/// Naming the operator or relation that does not fit.
pub fn read(trace: &Trace<'_>, glue: &Glue, o: usize) -> Fact<Attention> {
    let core = find_core(trace, glue)?;
    let width = trace.linears[o].in_features;
    let head_dim = width
        .checked_div(core.num_q_heads)
        .filter(|d| d * core.num_q_heads == width)
        .ok_or_else(|| format!("{} heads in {width} columns", core.num_q_heads))?;
    let (q, k, v) = projections(trace, &core, head_dim)?;
    let num_kv_heads = k.count / head_dim;
    let q_nodes = trace.glue(core.q).nodes;
    let qk_norm = qk_norms(trace, &q_nodes, &trace.glue(core.k).nodes, head_dim)?;
    let rotary_nodes: Vec<usize> =
        if core.node.op == "GroupQueryAttention" { glue.nodes.clone() } else { q_nodes };
    let visible = visibility(trace, &core)?;
    let extent = Extent { past: 0, len: trace.len };
    let window = mask::window(|query, key| visible[query * trace.len + key], extent)?;
    let mut plain = Plain::new(trace, [&q, &k, &v], [core.num_q_heads, num_kv_heads, head_dim])?;
    if let Some((q_norm, k_norm)) = &qk_norm {
        plain.q.normalize(&q_norm.values, q_norm.epsilon)?;
        plain.k.normalize(&k_norm.values, k_norm.epsilon)?;
    }
    let found = trace.value(trace.linears[o].input)?;
    for rope in rope::candidates(trace, &rotary_nodes)? {
        let Ok(turned) = plain.rotated(&rope) else { continue };
        let Some(scale) = turned.scale(trace, &core, head_dim, &visible) else { continue };
        if agree(&found.data, &turned.attend(scale, &visible)?) {
            let o = Rows::all(trace, o);
            let stated_window =
                if core.node.op == "GroupQueryAttention" { local_window(core.node) } else { None };
            return Ok(Attention {
                q,
                k,
                v,
                o,
                num_q_heads: core.num_q_heads,
                num_kv_heads,
                head_dim,
                scale,
                qk_norm,
                rope,
                window,
                stated_window,
                masks: core.masks,
            });
        }
    }
    Err(format!(
        "its input is not rotary attention over {} query and {num_kv_heads} key/value heads of {head_dim}; operators found: {}",
        core.num_q_heads,
        glue.describe(trace.graph)
    ))
}

/// Queries, keys and values of the trial run by head.
#[derive(Clone)]
struct Plain {
    q: Heads,
    k: Heads,
    v: Heads,
}

impl Plain {
    fn new(
        trace: &Trace<'_>,
        [q, k, v]: [&Rows; 3],
        [num_q_heads, num_kv_heads, width]: [usize; 3],
    ) -> Fact<Self> {
        let heads = |rows: &Rows, num_heads: usize| {
            Heads::from_rows(&rows.columns(trace)?, trace.len, Columns { first: 0, num_heads, width })
        };
        Ok(Self { q: heads(q, num_q_heads)?, k: heads(k, num_kv_heads)?, v: heads(v, num_kv_heads)? })
    }

    fn rotated(&self, rope: &Candidate) -> Fact<Self> {
        let mut turned = self.clone();
        turned.q.rotate(&rope.table, rope.pairing)?;
        turned.k.rotate(&rope.table, rope.pairing)?;
        Ok(turned)
    }

    fn attend(&self, scale: f64, visible: &[bool]) -> Fact<Vec<f64>> {
        let len = self.k.len;
        let bias = |_: usize, query: usize, key: usize| {
            if visible[query * len + key] { 0.0 } else { f64::NEG_INFINITY }
        };
        Ok(attend(&self.q, &self.k, &self.v, scale, bias)?.to_rows())
    }

    /// The operator's scale, or the ratio of the graph's scores to the plain products where attention is decomposed.
    fn scale(&self, trace: &Trace<'_>, core: &Core<'_>, head_dim: usize, visible: &[bool]) -> Option<f64> {
        if core.node.op != "Softmax" {
            return Some(scale(core.node, head_dim));
        }
        let scores = &trace.value(core.node.input(0)?).ok()?.data;
        let (len, group) = (self.k.len, self.q.num_heads / self.k.num_heads.max(1));
        let (mut above, mut below) = (0.0, 0.0);
        let mut pairs = Vec::new();
        for head in 0..self.q.num_heads {
            for (at, _) in visible.iter().enumerate().filter(|(_, v)| **v) {
                let dot: f64 = self
                    .q
                    .row(head, at / len)
                    .iter()
                    .zip(self.k.row(head / group, at % len))
                    .map(|(a, b)| a * b)
                    .sum();
                let score = *scores.get(head * len * len + at)?;
                above += dot * score;
                below += dot * dot;
                pairs.push((dot, score));
            }
        }
        let ratio = above / below;
        let (found, expected): (Vec<f64>, Vec<f64>) =
            pairs.iter().map(|(dot, score)| (*score, dot * ratio)).unzip();
        agree(&found, &expected).then(|| nearest_scale(ratio, head_dim))
    }
}

/// `1/√d` when the measured factor is that up to rounding, else the measured factor.
fn nearest_scale(ratio: f64, head_dim: usize) -> f64 {
    let usual = 1.0 / (head_dim as f64).sqrt();
    if (ratio / usual - 1.0).abs() < 2e-6 { usual } else { ratio }
}

/// Which rows of which layers are queries, keys and values.
fn projections(trace: &Trace<'_>, core: &Core<'_>, head_dim: usize) -> Fact<(Rows, Rows, Rows)> {
    let source = |tensor: TensorId, what: &str| {
        let origins: BTreeSet<Origin> = trace.glue(tensor).origins;
        match origins.iter().copied().collect::<Vec<_>>()[..] {
            [Origin::Linear(idx)] => Ok(idx),
            _ => Err(format!("{what} come from {} linear layers, expected 1", origins.len())),
        }
    };
    let (q, k, v) = (source(core.q, "queries")?, source(core.k, "keys")?, source(core.v, "values")?);
    let out = |linear: usize| trace.linears[linear].out_features;
    let q_dim = core.num_q_heads * head_dim;
    let first = if q == k { q_dim } else { 0 };
    let shared = if k == v { 2 } else { 1 };
    let kv_dim = out(k)
        .checked_sub(first)
        .map(|rest| rest / shared)
        .filter(|d| *d > 0 && d.is_multiple_of(head_dim) && first + shared * d == out(k));
    let kv_dim =
        kv_dim.ok_or_else(|| format!("a key projection of {} columns for heads of {head_dim}", out(k)))?;
    let fits = (q == k || out(q) == q_dim) && (k == v || out(v) == kv_dim);
    if !fits {
        return Err(format!(
            "projections of {}, {} and {} columns for {} query heads of {head_dim}",
            out(q),
            out(k),
            out(v),
            core.num_q_heads
        ));
    }
    let v_first = if k == v { first + kv_dim } else { 0 };
    Ok((
        Rows { linear: q, first: 0, count: q_dim },
        Rows { linear: k, first, count: kv_dim },
        Rows { linear: v, first: v_first, count: kv_dim },
    ))
}

/// The norms of query and key heads, when both have one.
fn qk_norms(
    trace: &Trace<'_>,
    q_nodes: &[usize],
    k_nodes: &[usize],
    head_dim: usize,
) -> Fact<Option<(Norm, Norm)>> {
    match (head_norm(trace, q_nodes, head_dim)?, head_norm(trace, k_nodes, head_dim)?) {
        (Some(q), Some(k)) => Ok(Some((q, k))),
        (None, None) => Ok(None),
        _ => Err("only one of queries and keys is normalised".into()),
    }
}

fn head_norm(trace: &Trace<'_>, nodes: &[usize], head_dim: usize) -> Fact<Option<Norm>> {
    for node in nodes.iter().map(|idx| &trace.graph.nodes[*idx]) {
        let by_vector = node.op == "Mul"
            && node.inputs.iter().flatten().any(|i| {
                trace.is_constant(*i)
                    && trace.value_or_constant(*i).is_ok_and(|a| a.data.len() > 1 && a.rank() == 1)
            });
        if weight_input(node).is_none() && !by_vector {
            continue;
        }
        let norm = Norm::behind(trace, node.output(0).ok_or("a norm without output")?)?;
        if norm.values.len() != head_dim {
            return Err(format!(
                "operator {} (node {:?}) normalises over {} columns, expected a head of {head_dim}",
                node.full_op(),
                node.name,
                norm.values.len()
            ));
        }
        return Ok(Some(norm));
    }
    Ok(None)
}

/// Two layers rotate alike.
pub fn same_rotation(a: &Candidate, b: &Candidate) -> bool {
    a.pairing == b.pairing
        && (a.tensors == b.tensors || (a.table.cos == b.table.cos && a.table.sin == b.table.sin))
}
