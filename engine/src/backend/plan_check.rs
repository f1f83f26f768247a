//! Is a plan something this backend can run? Everything is checked before anything is written.

use crate::{
    EngineError, Result,
    backend::Capabilities,
    kv::LaneBook,
    step::{LogitsWanted, Segment, StepPlan},
};

/// Logits rows a segment asks for.
pub(super) fn num_logits_rows(segment: &Segment) -> usize {
    match segment.logits {
        LogitsWanted::None => 0,
        LogitsWanted::Last => 1,
        LogitsWanted::All => segment.tokens.len(),
    }
}

/// Checks `plan` against the vocabulary, the lanes and the limits.
pub(super) fn check_plan(
    plan: &StepPlan,
    vocab_size: usize,
    limits: &Capabilities,
    lanes: &LaneBook,
) -> Result<()> {
    if plan.segments.is_empty() {
        return Err(EngineError::Input("empty plan: at least one segment is needed".into()));
    }
    let mut next_token = 0;
    for (idx, segment) in plan.segments.iter().enumerate() {
        check_segment(segment, idx, next_token, plan.tokens.len())?;
        check_lane(segment, &plan.segments[..idx], lanes)?;
        check_parents(segment, idx, plan)?;
        next_token = segment.tokens.end;
    }
    if next_token != plan.tokens.len() {
        let fact = format!("the segments cover {next_token} of the plan's {} tokens", plan.tokens.len());
        return Err(EngineError::Input(fact));
    }
    if let Some(token) = plan.tokens.iter().find(|&&token| token as usize >= vocab_size) {
        return Err(EngineError::Input(format!("token {token} is outside the vocabulary of {vocab_size}")));
    }
    check_limits(plan, limits)
}

fn check_segment(segment: &Segment, idx: usize, next_token: usize, num_tokens: usize) -> Result<()> {
    let range = &segment.tokens;
    if range.is_empty() {
        return Err(EngineError::Input(format!("segment {idx} (lane {}) has no token", segment.lane.0)));
    }
    if range.start != next_token || range.end > num_tokens {
        return Err(EngineError::Input(format!(
            "segment {idx} covers tokens {range:?}, expected it to start at {next_token} and to end by {num_tokens}"
        )));
    }
    Ok(())
}

fn check_parents(segment: &Segment, idx: usize, plan: &StepPlan) -> Result<()> {
    if plan.parents.len() != plan.tokens.len() {
        let (parents, tokens) = (plan.parents.len(), plan.tokens.len());
        return Err(EngineError::Input(format!("{parents} parents for {tokens} tokens, expected as many")));
    }
    let parents = plan.parents[segment.tokens.clone()].iter().enumerate();
    let mut wrong = parents.filter(|&(node, &parent)| parent >= node.max(1));
    match wrong.next().filter(|_| segment.is_tree) {
        Some((node, parent)) => Err(EngineError::Input(format!(
            "node {node} of segment {idx} has parent {parent}: parents come first, and the root is its own"
        ))),
        None => Ok(()),
    }
}

fn check_lane(segment: &Segment, earlier: &[Segment], lanes: &LaneBook) -> Result<()> {
    let lane = segment.lane;
    if lane.0 >= lanes.num_lanes() {
        return Err(EngineError::Input(format!(
            "lane {} does not exist: there are {}",
            lane.0,
            lanes.num_lanes()
        )));
    }
    if earlier.iter().any(|other| other.lane == lane) {
        return Err(EngineError::Input(format!("lane {} is named twice in one plan", lane.0)));
    }
    let (asked, free) = (segment.tokens.len(), lanes.lane_capacity() - lanes.committed_len(lane));
    if asked > free {
        return Err(EngineError::Capacity(format!("lane full: {asked} tokens asked, {free} free")));
    }
    Ok(())
}

fn check_limits(plan: &StepPlan, limits: &Capabilities) -> Result<()> {
    let (num_tokens, max_tokens) = (plan.tokens.len(), limits.max_step_tokens);
    if num_tokens > max_tokens {
        return Err(EngineError::Capacity(format!(
            "plan too large: {num_tokens} tokens asked, {max_tokens} a step"
        )));
    }
    let num_rows: usize = plan.segments.iter().map(num_logits_rows).sum();
    if num_rows > limits.max_logits_rows {
        let max_rows = limits.max_logits_rows;
        return Err(EngineError::Capacity(format!(
            "too many logits: {num_rows} rows asked, {max_rows} a step"
        )));
    }
    Ok(())
}
