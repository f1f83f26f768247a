//! A real backend in virtual time: every step costs what the test says, and may be told to fail.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use takt_engine::{
    EngineError, Result,
    backend::{Backend, Capabilities},
    draft::{DraftFacts, DraftOutput, DraftPlan, DraftSource, DraftSpec},
    kv::{LaneId, SnapshotId},
    spec::DecoderSpec,
    step::{StepOutput, StepPlan},
};
use takt_node::clock::VirtualClock;

use crate::lister::Lister;

/// What the steps of a [`VirtualBackend`] cost and how many ran; clones share the counts.
#[derive(Debug, Clone, Default)]
pub struct StepLog {
    /// Tokens computed.
    pub num_tokens: Arc<AtomicUsize>,
    /// Most segments of one step.
    pub max_segments: Arc<AtomicUsize>,
    /// Levels drafted.
    pub num_levels: Arc<AtomicUsize>,
    /// Steps that will fail from now on.
    pub failures: Arc<AtomicUsize>,
    /// There is no memory for another snapshot until one is dropped.
    pub memory_is_full: Arc<AtomicBool>,
    /// The next step panics.
    pub panics: Arc<AtomicBool>,
    /// Steps take this many times longer, and once more: 0 as they should.
    slow_down: Arc<AtomicUsize>,
}

impl StepLog {
    /// Forgets what happened.
    pub fn reset(&self) {
        self.num_tokens.store(0, Ordering::SeqCst);
        self.max_segments.store(0, Ordering::SeqCst);
        self.num_levels.store(0, Ordering::SeqCst);
    }

    /// From now on steps take `factor` times as long.
    pub fn set_slow_down(&self, factor: usize) {
        self.slow_down.store(factor.saturating_sub(1), Ordering::SeqCst);
    }
}

/// Runs another backend and moves a virtual clock by the cost of each step.
pub struct VirtualBackend {
    /// What computes.
    pub inner: Box<dyn Backend>,
    /// What it says of itself.
    pub facts: Capabilities,
    /// The clock it moves.
    pub clock: VirtualClock,
    /// Cost of a step.
    pub step: Duration,
    /// Further cost of each token beyond one a segment.
    pub token: Duration,
    /// Cost of a level of drafting.
    pub level: Duration,
    /// What happened.
    pub log: StepLog,
    /// Hands out lists in place of whole rows, where there is one.
    pub lister: Option<Lister>,
}

impl std::fmt::Debug for VirtualBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VirtualBackend")
            .field("step", &self.step)
            .field("log", &self.log)
            .finish_non_exhaustive()
    }
}

impl Backend for VirtualBackend {
    fn capabilities(&self) -> &Capabilities {
        &self.facts
    }

    fn spec(&self) -> &DecoderSpec {
        self.inner.spec()
    }

    fn run_step(&mut self, plan: &StepPlan) -> Result<StepOutput<'_>> {
        let extra = plan.tokens.len() - plan.segments.len();
        let factor = u32::try_from(self.log.slow_down.load(Ordering::SeqCst) + 1).unwrap_or(u32::MAX);
        self.clock.advance((self.step + self.token * u32::try_from(extra).unwrap_or(u32::MAX)) * factor);
        assert!(!self.log.panics.swap(false, Ordering::SeqCst), "the test pulled the plug");
        if self.log.failures.load(Ordering::SeqCst) > 0 {
            self.log.failures.fetch_sub(1, Ordering::SeqCst);
            return Err(EngineError::Backend("the test pulled the plug".into()));
        }
        self.log.num_tokens.fetch_add(plan.tokens.len(), Ordering::SeqCst);
        self.log.max_segments.fetch_max(plan.segments.len(), Ordering::SeqCst);
        match &mut self.lister {
            Some(lister) => lister.run(self.inner.as_mut(), plan),
            None => self.inner.run_step(plan),
        }
    }

    fn capture(&mut self, layer_inputs: &[usize]) -> Result<()> {
        self.inner.capture(layer_inputs)
    }

    fn keep(&mut self, lane: LaneId, path: &[usize]) -> Result<()> {
        self.inner.keep(lane, path)
    }

    fn committed_len(&self, lane: LaneId) -> usize {
        self.inner.committed_len(lane)
    }

    fn truncate(&mut self, lane: LaneId, len: usize) -> Result<()> {
        self.inner.truncate(lane, len)
    }

    fn save_snapshot(&mut self, lane: LaneId, len: usize) -> Result<SnapshotId> {
        if self.log.memory_is_full.load(Ordering::SeqCst) {
            return Err(EngineError::Capacity("the test left no memory".into()));
        }
        self.inner.save_snapshot(lane, len)
    }

    fn restore_snapshot(&mut self, lane: LaneId, snapshot: SnapshotId) -> Result<()> {
        self.inner.restore_snapshot(lane, snapshot)
    }

    fn drop_snapshot(&mut self, snapshot: SnapshotId) {
        self.log.memory_is_full.store(false, Ordering::SeqCst);
        self.inner.drop_snapshot(snapshot);
    }

    fn attach_draft(&mut self, spec: &DraftSpec, source: &dyn DraftSource) -> Result<()> {
        self.inner.attach_draft(spec, source)
    }

    fn draft_facts(&self) -> Option<&DraftFacts> {
        self.inner.draft_facts()
    }

    fn follow(&mut self, lane: LaneId, follows: bool) {
        self.inner.follow(lane, follows);
    }

    fn can_draft(&self, lane: LaneId) -> bool {
        self.inner.can_draft(lane)
    }

    fn draft(&mut self, plan: &DraftPlan) -> Result<DraftOutput<'_>> {
        self.clock.advance(self.level);
        self.log.num_levels.fetch_add(1, Ordering::SeqCst);
        self.inner.draft(plan)
    }
}
