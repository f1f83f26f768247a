//! Runs every kind of section at every size and context, and times it.

use std::time::{Duration, Instant};

use takt_engine::{
    EngineError,
    backend::Backend,
    kv::LaneId,
    step::{LogitsWanted, StepPlan},
};

use crate::{
    clock::Clock,
    scheduler::cost_table::{Cost, Grid, Histogram, SectionKind, SectionShape},
};

/// How long to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    /// Sections of each bucket.
    pub num_samples: usize,
    /// After this much time no bucket gets more than [`MIN_SAMPLES`].
    pub most: Duration,
}

/// Fewest sections of a bucket; the first, which is not counted, faults pages in.
pub const MIN_SAMPLES: usize = 3;

impl Effort {
    /// `takt calibrate`: a 99th percentile needs a few hundred sections.
    pub const THOROUGH: Self = Self { num_samples: 400, most: Duration::from_secs(600) };
    /// Only to touch every page a section uses.
    pub const LEAST: Self = Self { num_samples: MIN_SAMPLES, most: Duration::ZERO };
    /// A node that starts without a table.
    pub const BRIEF: Self = Self { num_samples: 24, most: Duration::from_millis(1500) };
}

/// Times the sections of `grid` on `backend`, whose lanes are empty before and after; one cost for each of `grid.shapes()`.
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
    let mut bench = Bench::new(backend, clock, grid);
    let begin = clock.now();
    let mut costs = vec![Cost::default(); grid.num_cells()];
    let mut num_done = 0;
    // Context by context, so that the lanes are filled once.
    for &context_len in &grid.context_lens {
        for kind in SectionKind::ALL {
            for &size in grid.sizes(kind) {
                let shape = SectionShape { kind, size, context_len };
                let cost = bench.cost(shape, effort, begin)?;
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

struct Bench<'a> {
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
    fn new(backend: &'a mut dyn Backend, clock: &'a dyn Clock, grid: &Grid) -> Self {
        let facts = backend.capabilities();
        let (num_lanes, lane_capacity) = (facts.num_lanes, facts.lane_capacity);
        let (max_step_tokens, max_logits_rows) = (facts.max_step_tokens, facts.max_logits_rows);
        let longest = SectionKind::ALL.iter().flat_map(|&kind| grid.sizes(kind)).copied().max().unwrap_or(1);
        Self {
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

    /// Cost of sections of `shape`.
    fn cost(&mut self, shape: SectionShape, effort: Effort, begin: Instant) -> Result<Cost, EngineError> {
        let mut histogram = Histogram::default();
        for sample in 0..=effort.num_samples {
            let spent = self.clock.now().saturating_duration_since(begin);
            if spent >= effort.most && sample > MIN_SAMPLES {
                break;
            }
            let took = self.time(shape)?;
            if sample > 0 {
                histogram.record(took);
            }
        }
        Ok(Cost::of(&histogram).unwrap_or_default())
    }

    /// Runs one section of `shape` and takes it back.
    fn time(&mut self, shape: SectionShape) -> Result<Duration, EngineError> {
        let num_lanes = if shape.kind == SectionKind::Decode { shape.size.min(self.num_lanes) } else { 1 };
        let len = if shape.kind == SectionKind::Decode { 1 } else { shape.size };
        let len = len.min(self.lane_capacity).min(self.max_step_tokens);
        // The section ends at the bucket's largest context.
        let before = shape.context_len.min(self.lane_capacity).saturating_sub(len);
        for lane in (0..num_lanes).map(LaneId) {
            self.fill(lane, before)?;
        }
        self.plan.clear();
        let logits = match shape.kind {
            SectionKind::Verify if len <= self.max_logits_rows => LogitsWanted::All,
            _ => LogitsWanted::Last,
        };
        for lane in (0..num_lanes).map(LaneId) {
            self.plan.push(lane, &self.tokens[..len], logits);
        }
        let started = self.clock.now();
        self.backend.run_step(&self.plan)?;
        let took = self.clock.now().saturating_duration_since(started);
        (0..num_lanes).try_for_each(|lane| self.backend.truncate(LaneId(lane), before))?;
        Ok(took.max(Duration::from_nanos(1)))
    }

    /// Brings `lane` to exactly `len` tokens.
    fn fill(&mut self, lane: LaneId, len: usize) -> Result<(), EngineError> {
        let held = self.backend.committed_len(lane);
        if held > len {
            return self.backend.truncate(lane, len);
        }
        let mut missing = len - held;
        while missing > 0 {
            let slice_len = missing.min(self.max_step_tokens);
            self.plan.clear();
            self.plan.push(lane, &self.tokens[..slice_len], LogitsWanted::None);
            self.backend.run_step(&self.plan)?;
            missing -= slice_len;
        }
        Ok(())
    }

    fn empty(&mut self) -> Result<(), EngineError> {
        (0..self.num_lanes).try_for_each(|lane| self.backend.truncate(LaneId(lane), 0))
    }
}
