//! Which keys a query sees: all before it, or a sliding window of them; anything else is refused.

use std::collections::BTreeSet;

use super::{
    array::{Array, Fact},
    dtype::Kind,
    evaluate::Evaluator,
    graph::TensorId,
    inputs::Extent,
    trace::Trace,
};

/// Additive values below this hide a key.
const HIDDEN_BELOW: f64 = -1e3;
/// Longest trial run without a cache; a mask of this many rows and columns takes 140 MB.
const MAX_TRIAL: usize = 4200;
/// Longest cache of a trial run.
const MAX_PAST: usize = 1 << 16;

/// How many last positions each query sees, from rows of visibility over `past + len` keys; `None` when all of them.
///
/// # Errors
/// When some row is not "the last so many".
pub fn window(visible: impl Fn(usize, usize) -> bool, extent: Extent) -> Fact<Option<usize>> {
    let keys = extent.past + extent.len;
    let seen = |query: usize| (0..keys).filter(|key| visible(query, *key)).count();
    let last_seen = seen(extent.len - 1);
    if last_seen == 0 {
        return Err("the attention mask hides a token from itself".into());
    }
    let window = if last_seen < keys { last_seen } else { keys };
    for query in 0..extent.len {
        let own = extent.past + query;
        let expected = |key: usize| key <= own && own - key < window;
        if let Some(key) = (0..keys).find(|key| visible(query, *key) != expected(*key)) {
            let fact = if visible(query, key) { "sees" } else { "does not see" };
            return Err(format!(
                "the attention mask is neither causal nor a sliding window: position {own} {fact} position {key}"
            ));
        }
    }
    Ok((window < keys).then_some(window))
}

/// Whether a mask element lets attention through, given the element of a query on itself, which always does.
fn same_as_own(mask: &Array, at: usize, own: usize) -> bool {
    match mask.kind {
        Kind::Float => mask.data[at] > HIDDEN_BELOW + mask.data[own].min(0.0),
        _ => mask.data[at] == mask.data[own],
    }
}

/// The window of a mask too large for the usual trial run: every number in the mask's making that could be a window is tried with
/// a cache or a prompt longer than it.
///
/// # Errors
/// When a mask is not causal, or a possible window is too large to try.
pub fn long_window(trace: &Trace<'_>, masks: &[TensorId], max_context: usize) -> Fact<Option<usize>> {
    if trace.inputs.fixed_len.is_some() {
        return Ok(None);
    }
    for candidate in possible_windows(trace, masks)?.into_iter().filter(|c| *c < max_context) {
        let extent = if trace.inputs.has_past() && candidate <= MAX_PAST {
            Extent { past: candidate, len: 2 }
        } else if candidate + 2 <= MAX_TRIAL {
            Extent { past: 0, len: candidate + 2 }
        } else {
            return Err(format!(
                "the attention mask is made with the number {candidate}, which may be a sliding window too large to check"
            ));
        };
        let found = window_at(trace, masks, extent)?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// Whole numbers longer than the trial run that take part in making the masks.
fn possible_windows(trace: &Trace<'_>, masks: &[TensorId]) -> Fact<BTreeSet<usize>> {
    let graph = trace.graph;
    let order = graph.order_for(masks).map_err(|e| e.to_string())?;
    let mut found = BTreeSet::new();
    for input in order.iter().flat_map(|idx| graph.nodes[*idx].inputs.iter().flatten()) {
        let Some(stored) = graph.tensor(*input).stored.as_ref().filter(|s| s.num_elements() <= 8) else {
            continue;
        };
        for value in Array::from_stored(stored)?.data {
            let size = value.abs();
            if size >= trace.len as f64 && size < f64::from(1 << 24) && size.fract() == 0.0 {
                found.insert(size as usize);
            }
        }
    }
    Ok(found)
}

fn window_at(trace: &Trace<'_>, masks: &[TensorId], extent: Extent) -> Fact<Option<usize>> {
    let graph = trace.graph;
    let mut evaluator = Evaluator::new(graph);
    let order = graph.order_for(masks).map_err(|e| e.to_string())?;
    let read: BTreeSet<TensorId> = order
        .iter()
        .flat_map(|idx| graph.nodes[*idx].inputs.iter().flatten().copied())
        .chain(masks.iter().copied())
        .collect();
    trace.inputs.feed(graph, &mut evaluator, extent, |input| read.contains(&input))?;
    evaluator
        .run_to(masks)
        .map_err(|e| format!("in a trial with {} tokens: {e}", extent.past + extent.len))?;
    let keys = extent.past + extent.len;
    let mut all = Vec::with_capacity(masks.len());
    for mask in masks {
        let value = evaluator.demand(*mask)?;
        let rows_fit = value.rank() >= 2
            && value.shape[value.rank() - 1] == keys
            && value.shape[value.rank() - 2] == extent.len
            && !value.data.is_empty();
        if !rows_fit {
            return Err(format!(
                "an attention mask of {:?} for {} queries and {keys} keys",
                value.shape, extent.len
            ));
        }
        all.push(value);
    }
    let visible = |query: usize, key: usize| {
        let own = query * keys + extent.past + query;
        all.iter().all(|mask| same_as_own(mask, query * keys + key, own))
    };
    window(visible, extent)
}
