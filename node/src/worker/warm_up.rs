//! Before the first request: touch every page a section uses and measure how long sections take.

use takt_engine::{
    EngineError,
    backend::Backend,
    kv::LaneId,
    step::{LogitsWanted, StepPlan},
};

use crate::{clock::Clock, scheduler::pace::Pace};

/// Decode steps measured; the first ones still fault pages in.
const NUM_STEPS: usize = 8;
/// Prefill slices measured.
const NUM_SLICES: usize = 2;

/// Runs slices and decode steps in lane 0, which is empty before and after; returns their pace.
///
/// # Errors
/// Whatever the backend reports.
pub(super) fn warm_up(
    backend: &mut dyn Backend,
    clock: &dyn Clock,
    max_slice_len: usize,
) -> Result<Pace, EngineError> {
    let (lane, facts) = (LaneId(0), backend.capabilities());
    let room = facts.lane_capacity.saturating_sub(1).min(facts.max_step_tokens);
    let slice = vec![0; max_slice_len.min(room).max(1)];
    let mut plan = StepPlan::with_capacity(slice.len(), 1);
    let mut pace = Pace::default();
    for section in 0..NUM_SLICES + NUM_STEPS {
        let is_slice = section < NUM_SLICES;
        let tokens = if is_slice { &slice[..] } else { &slice[..1] };
        if is_slice || backend.committed_len(lane) >= backend.capabilities().lane_capacity {
            backend.truncate(lane, 0)?;
        }
        plan.clear();
        plan.push(lane, tokens, LogitsWanted::Last);
        let started = clock.now();
        backend.run_step(&plan)?;
        let took = clock.now().saturating_duration_since(started);
        match (is_slice, section) {
            (_, 0) => {} // cold: pages and caches
            (true, _) => pace.record(0, tokens.len(), took),
            (false, _) => pace.record(1, 0, took),
        }
    }
    backend.truncate(lane, 0)?;
    Ok(pace)
}
