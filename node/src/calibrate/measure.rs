//! Runs every kind of section at every size and context, and times it.

use std::time::{Duration, Instant};

use takt_engine::{
    EngineError,
    backend::Backend,
    draft::{DraftPlan, DraftRow},
    kv::LaneId,
    rows::MAX_LIST_LEN,
    step::{Detail, LogitsWanted, StepPlan},
};

use crate::{
    clock::Clock,
    scheduler::{
        cost_table::{Cost, Grid, Histogram, SectionKind, SectionShape},
        round::MAX_TOP_K,
    },
};

/// How long to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    /// Sections of each bucket.
    pub num_samples: usize,
    /// After this much time no bucket gets more than [`MIN_SAMPLES`]. Gaps do not count.
    pub most: Duration,
    /// How long the device is left to others after each section.
    pub idle_gap: Duration,
}

const LANE: LaneId = LaneId(0);
/// Fewest sections of a bucket; the first, which is not counted, faults pages in.
pub const MIN_SAMPLES: usize = 3;

impl Effort {
    /// `takt calibrate`: a 99th percentile needs a few hundred sections.
    pub const THOROUGH: Self =
        Self { num_samples: 400, most: Duration::from_secs(600), idle_gap: Duration::ZERO };
    /// Only to touch every page a section uses.
    pub const LEAST: Self = Self { num_samples: MIN_SAMPLES, most: Duration::ZERO, idle_gap: Duration::ZERO };
    /// Each section once, at the shortest context: nothing is measured.
    pub const TOUCH: Self = Self { num_samples: 0, most: Duration::ZERO, idle_gap: Duration::ZERO };
    /// A node that starts without a table.
    pub const BRIEF: Self =
        Self { num_samples: 24, most: Duration::from_millis(1500), idle_gap: Duration::ZERO };
}

/// Buckets for what `backend` can run, with slices of up to `max_slice_len` tokens.
#[must_use]
pub fn grid_of(backend: &dyn Backend, max_slice_len: usize) -> Grid {
    let facts = backend.capabilities();
    let max_rows = backend.draft_facts().map_or(0, |draft| draft.max_plan_rows);
    // No round expands more nodes on a level.
    let max_rows = max_rows.min(facts.num_lanes * MAX_TOP_K);
    Grid::of(max_slice_len, facts.num_lanes, facts.lane_capacity).with_draft(max_rows)
}

/// Times the sections of `grid` on `backend`, whose lanes are empty before and after; one cost for each of `grid.shapes()`. Contexts that
/// `effort` leaves no time to fill are extrapolated from the shorter ones: the node learns the rest from its own sections.
/// `progress` is told how many buckets are done; when it says false, measuring ends and `None` is returned.
///
/// # Errors
/// Whatever the backend reports.
pub fn measure(
    backend: &mut dyn Backend,
    clock: &dyn Clock,
    grid: &Grid,
    effort: Effort,
    mut progress: impl FnMut(usize) -> bool,
) -> Result<Option<Vec<Cost>>, EngineError> {
    let mut bench = Bench::new(backend, clock, grid, effort.idle_gap);
    // A draft head reads along only what it has read from the start.
    bench.empty()?;
    let begin = clock.now();
    let mut costs = vec![Cost::default(); grid.num_cells()];
    let mut num_done = 0;
    // Context by context, so that the lanes are filled once.
    for (context_idx, &context_len) in grid.context_lens.iter().enumerate() {
        let is_measured = context_idx == 0 || bench.has_time_for(context_len, effort, begin);
        for kind in SectionKind::ALL {
            for &size in grid.sizes(kind) {
                let shape = SectionShape { kind, size, context_len };
                let cost = if is_measured {
                    bench.cost(shape, effort, begin)?
                } else {
                    extrapolate(&costs, grid, shape, context_idx)
                };
                if let Some(slot) = costs.get_mut(grid.cell(shape).0) {
                    *slot = cost;
                }
                num_done += 1;
                if !progress(num_done) {
                    bench.empty()?;
                    return Ok(None);
                }
            }
        }
    }
    bench.empty()?;
    Ok(Some(costs))
}

/// Cost at the context of `context_idx` from those at the two before it, as a straight line; from one alone, a quarter more, since only
/// attention grows with the context.
fn extrapolate(costs: &[Cost], grid: &Grid, shape: SectionShape, context_idx: usize) -> Cost {
    let at = |idx: usize| {
        let context_len = *grid.context_lens.get(idx)?;
        let cost = costs.get(grid.cell(SectionShape { context_len, ..shape }).0)?;
        Some((context_len as f64, *cost))
    };
    let Some((last_len, last)) = context_idx.checked_sub(1).and_then(at) else { return Cost::default() };
    let before = context_idx.checked_sub(2).and_then(at);
    let factor = match before {
        Some((len, cost)) if cost.p50 < last.p50 => {
            let growth = (last.p50 - cost.p50).as_secs_f64() / (last_len - len);
            1.0 + growth * (shape.context_len as f64 - last_len) / last.p50.as_secs_f64()
        }
        Some(_) => 1.0,
        None => 1.25,
    };
    Cost { p50: last.p50.mul_f64(factor), p99: last.p99.mul_f64(factor), worst: last.worst.mul_f64(factor) }
}

struct Bench<'a> {
    /// After each section.
    idle_gap: Duration,
    /// In all gaps so far, as long as they really were.
    slept: Duration,
    /// What filling a lane has taken, a token.
    fill_token: Duration,
    backend: &'a mut dyn Backend,
    clock: &'a dyn Clock,
    plan: StepPlan,
    tokens: Vec<u32>,
    num_lanes: usize,
    lane_capacity: usize,
    max_step_tokens: usize,
    max_logits_rows: usize,
}

impl<'a> Bench<'a> {
    fn new(backend: &'a mut dyn Backend, clock: &'a dyn Clock, grid: &Grid, idle_gap: Duration) -> Self {
        let facts = backend.capabilities();
        let (num_lanes, lane_capacity) = (facts.num_lanes, facts.lane_capacity);
        let (max_step_tokens, max_logits_rows) = (facts.max_step_tokens, facts.max_logits_rows);
        let longest = SectionKind::ALL.iter().flat_map(|&kind| grid.sizes(kind)).copied().max().unwrap_or(1);
        Self {
            idle_gap,
            slept: Duration::ZERO,
            fill_token: Duration::ZERO,
            backend,
            clock,
            plan: StepPlan::with_capacity(max_step_tokens.max(longest), num_lanes),
            tokens: vec![0; max_step_tokens.max(longest)],
            num_lanes,
            lane_capacity,
            max_step_tokens,
            max_logits_rows,
        }
    }

    /// Leaves the device to others.
    fn rest(&mut self) {
        if !self.idle_gap.is_zero() {
            let started = self.clock.now();
            self.clock.sleep(self.idle_gap);
            self.slept += self.clock.now().saturating_duration_since(started);
        }
    }

    /// Time since `begin` that was not slept.
    fn spent(&self, begin: Instant) -> Duration {
        self.clock.now().saturating_duration_since(begin).saturating_sub(self.slept)
    }

    /// Cost of sections of `shape`.
    fn cost(&mut self, shape: SectionShape, effort: Effort, begin: Instant) -> Result<Cost, EngineError> {
        let mut histogram = Histogram::default();
        // Promises rest on prefill and decode: rounds must not use up the time for measuring those.
        let is_optional = shape.kind.is_round();
        let most = if is_optional { effort.most / 2 } else { effort.most };
        let num_samples = if is_optional { effort.num_samples.div_ceil(2) } else { effort.num_samples };
        for sample in 0..=num_samples {
            if self.spent(begin) >= most && sample > MIN_SAMPLES {
                break;
            }
            let took = self.time(shape)?;
            self.rest();
            if sample > 0 {
                histogram.record(took);
            }
        }
        Ok(Cost::of(&histogram).unwrap_or_default())
    }

    /// Runs one section of `shape` and takes it back.
    fn time(&mut self, shape: SectionShape) -> Result<Duration, EngineError> {
        if shape.kind == SectionKind::Draft {
            return self.time_draft(shape);
        }
        let num_lanes = if shape.kind == SectionKind::Decode { shape.size.min(self.num_lanes) } else { 1 };
        let len = if shape.kind == SectionKind::Decode { 1 } else { shape.size };
        let len = len.min(self.lane_capacity).min(self.max_step_tokens);
        // The section ends at the bucket's largest context.
        let before = shape.context_len.min(self.lane_capacity).saturating_sub(len);
        for lane in (0..num_lanes).map(LaneId) {
            self.fill(lane, before)?;
        }
        self.plan.clear();
        if shape.kind == SectionKind::Verify && len <= self.max_logits_rows {
            let parents: Vec<usize> = (0..len).map(|node: usize| node.saturating_sub(1) / 2).collect();
            self.plan.push_tree(LaneId(0), &self.tokens[..len], &parents);
            // As much as a round is ever handed.
            self.plan.last_needs(Detail::Likeliest(MAX_LIST_LEN));
        } else {
            for lane in (0..num_lanes).map(LaneId) {
                self.plan.push(lane, &self.tokens[..len], LogitsWanted::Last);
            }
        }
        let started = self.clock.now();
        self.backend.run_step(&self.plan)?;
        if self.plan.segments.iter().any(|segment| segment.is_tree) {
            // With what the head reads along of an accepted path.
            let path = [0, 1, 3, 7];
            self.backend.keep(LANE, &path[..path.partition_point(|&node| node < len)])?;
        }
        let took = self.clock.now().saturating_duration_since(started);
        (0..num_lanes).try_for_each(|lane| self.backend.truncate(LaneId(lane), before))?;
        Ok(took.max(Duration::from_nanos(1)))
    }

    /// Drafts one level of `shape.size` rows below a root, or the root for a size of 1; at a context beyond what the head was made for, at the
    /// longest it was.
    fn time_draft(&mut self, shape: SectionShape) -> Result<Duration, EngineError> {
        let positions = self.backend.draft_facts().map_or(0, |facts| facts.max_positions);
        // One token is read to draft after, and a lane that is full of what the head knows cannot be drafted after.
        let before = shape.context_len.min(self.lane_capacity).min(positions).saturating_sub(2);
        self.fill(LANE, before)?;
        self.plan.clear();
        self.plan.push(LANE, &self.tokens[..1], LogitsWanted::None);
        self.backend.run_step(&self.plan)?;
        if !self.backend.can_draft(LANE) {
            // What was measured before went beyond what the head reads.
            self.backend.truncate(LANE, 0)?;
            self.fill(LANE, before)?;
            self.plan.clear();
            self.plan.push(LANE, &self.tokens[..1], LogitsWanted::None);
            self.backend.run_step(&self.plan)?;
        }
        let row = |parent| DraftRow { lane: LANE, parent, token: 0 };
        let mut plan = DraftPlan { rows: vec![row(None)], top_k: MAX_TOP_K, wants_logits: false };
        let mut started = self.clock.now();
        self.backend.draft(&plan)?;
        if shape.size > 1 {
            plan.rows = vec![row(Some(0)); shape.size];
            started = self.clock.now();
            self.backend.draft(&plan)?;
        }
        let took = self.clock.now().saturating_duration_since(started);
        self.backend.truncate(LANE, before)?;
        Ok(took.max(Duration::from_nanos(1)))
    }

    /// Whether lanes can be filled to `context_len` within the effort.
    fn has_time_for(&self, context_len: usize, effort: Effort, begin: Instant) -> bool {
        let missing = context_len.saturating_sub(self.backend.committed_len(LaneId(0)));
        let filling = self.fill_token.saturating_mul(u32::try_from(missing).unwrap_or(u32::MAX));
        self.spent(begin).saturating_add(filling) < effort.most
    }

    /// Brings `lane` to exactly `len` tokens; all but the first by copying, which is quicker than computing.
    fn fill(&mut self, lane: LaneId, len: usize) -> Result<(), EngineError> {
        let held = self.backend.committed_len(lane);
        if held >= len {
            return self.backend.truncate(lane, len);
        }
        if lane != LaneId(0) && self.backend.committed_len(LaneId(0)) >= len {
            let snapshot = self.backend.save_snapshot(LaneId(0), len)?;
            let restored = self.backend.restore_snapshot(lane, snapshot);
            self.backend.drop_snapshot(snapshot);
            return restored;
        }
        let (mut missing, started, slept) = (len - held, self.clock.now(), self.slept);
        let num_tokens = missing;
        while missing > 0 {
            let slice_len = missing.min(self.max_step_tokens);
            self.plan.clear();
            self.plan.push(lane, &self.tokens[..slice_len], LogitsWanted::None);
            self.backend.run_step(&self.plan)?;
            missing -= slice_len;
            self.rest();
        }
        let took = self.clock.now().saturating_duration_since(started).saturating_sub(self.slept - slept);
        self.fill_token = took / u32::try_from(num_tokens).unwrap_or(u32::MAX);
        Ok(())
    }

    fn empty(&mut self) -> Result<(), EngineError> {
        (0..self.num_lanes).try_for_each(|lane| self.backend.truncate(LaneId(lane), 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_that_was_not_measured_is_on_the_line_of_those_before_it_and_never_cheaper() {
        let grid = Grid {
            prefill_sizes: vec![8],
            decode_sizes: vec![1],
            verify_sizes: vec![4],
            draft_sizes: Vec::new(),
            context_lens: vec![100, 200, 400],
        };
        let mut costs = vec![Cost::default(); grid.num_cells()];
        let shape = |context_len| SectionShape { kind: SectionKind::Decode, size: 1, context_len };
        let ms = Duration::from_millis;
        costs[grid.cell(shape(100)).0] = Cost { p50: ms(10), p99: ms(20), worst: ms(30) };
        let one = extrapolate(&costs, &grid, shape(200), 1);
        assert_eq!((one.p50, one.p99), (ms(12) + ms(1) / 2, ms(25)));
        costs[grid.cell(shape(200)).0] = Cost { p50: ms(12), p99: ms(24), worst: ms(36) };
        let two = extrapolate(&costs, &grid, shape(400), 2);
        assert!(
            two.p50.abs_diff(ms(16)) < ms(1) / 100 && two.worst.abs_diff(ms(48)) < ms(1) / 100,
            "{two:?}"
        );
        costs[grid.cell(shape(200)).0] = Cost::exactly(ms(9));
        assert_eq!(extrapolate(&costs, &grid, shape(400), 2), Cost::exactly(ms(9)));
    }
}
