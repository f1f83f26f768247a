//! Backends: whatever runs a model's steps. One trait, one folder per implementation, one conformance suite for all (`takt_tests::conformance`).

pub mod cpu;
pub mod cuda;
mod device;
mod limits;
mod plan_check;
pub mod tensorrt;

use serde::Serialize;

use crate::{
    EngineError, Result,
    draft::{DraftFacts, DraftOutput, DraftPlan, DraftSource, DraftSpec},
    kv::{KvKind, LaneId, SnapshotId},
    spec::DecoderSpec,
    step::{StepOutput, StepPlan},
};

/// What the caller may rely on, fixed when the backend is opened.
#[derive(Debug, Clone)]
pub struct Capabilities {
    /// Backend's name: `cpu`, `cuda`, `tensorrt`.
    pub backend: &'static str,
    /// Device in words, for people and for keys of measured costs.
    pub device: String,
    /// Instruction set or kernel family in use, for people: `avx512-vnni`, `avx2`, `neon-dotprod`, `scalar`.
    pub kernels: String,
    /// Lanes that can advance together.
    pub num_lanes: usize,
    /// Tokens one lane holds.
    pub lane_capacity: usize,
    /// Most tokens of one plan, all segments together.
    pub max_step_tokens: usize,
    /// Most logits rows of one plan.
    pub max_logits_rows: usize,
    /// Threads that compute.
    pub num_threads: usize,
    /// Of a GPU, and how many of them are ours; `None` on a processor.
    pub multiprocessors: Option<Multiprocessors>,
    /// KV cache format in use.
    pub kv: KvKind,
    /// Bytes of weights one decode step reads.
    pub weight_bytes_per_step: u64,
    /// Bytes of KV cache held.
    pub kv_bytes: u64,
}

/// A GPU's multiprocessors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Multiprocessors {
    /// That the model's kernels may run on.
    pub used: u32,
    /// Of the device.
    pub all: u32,
}

/// Runs steps of one model. Owned by one thread; called once per section.
///
/// Invariants: `run_step` allocates nothing after the first call with the largest plan; after an error no lane's committed
/// length has changed; snapshots survive the lanes they were taken from. A backend whose device was lost fails every call from then on.
pub trait Backend: Send {
    /// Fixed facts about this backend.
    fn capabilities(&self) -> &Capabilities;

    /// The model it runs.
    fn spec(&self) -> &DecoderSpec;

    /// Computes `plan`, writes the KV of its tokens and commits them; those of trees stay tentative until [`Self::keep`], or the lane's next step.
    ///
    /// # Errors
    /// [`crate::EngineError::Input`] for an empty plan, a token outside the vocabulary or a lane named twice;
    /// [`crate::EngineError::Capacity`] when a lane or the plan is too small.
    fn run_step(&mut self, plan: &StepPlan) -> Result<StepOutput<'_>>;

    /// From now on every step hands out the residual stream at the input of these layers, before any norm, as [`StepOutput::features`];
    /// the number of layers stands for the last one's output, one may be named more than once, none ends it. Allocates.
    ///
    /// # Errors
    /// [`crate::EngineError::Input`] for a layer that does not exist, [`crate::EngineError::Unsupported`] for a backend that cannot.
    fn capture(&mut self, layer_inputs: &[usize]) -> Result<()>;

    /// Commits a path of the tree that the last step computed for `lane`: the root, then each the child of the one before, by number. The others
    /// are forgotten.
    ///
    /// # Errors
    /// [`crate::EngineError::Input`] when there is no such tree, or the numbers are no path from its root; nothing is committed then.
    fn keep(&mut self, lane: LaneId, path: &[usize]) -> Result<()>;

    /// Tokens of `lane` that count; 0 for a fresh one.
    fn committed_len(&self, lane: LaneId) -> usize;

    /// Forgets the tokens of `lane` in `[len, committed_len)`.
    ///
    /// # Errors
    /// [`crate::EngineError::Input`] when `len` is beyond the committed length or the lane does not exist.
    fn truncate(&mut self, lane: LaneId, len: usize) -> Result<()>;

    /// Copies `[0, len)` of `lane` into a new snapshot.
    ///
    /// # Errors
    /// [`crate::EngineError::Input`] when fewer than `len` tokens are committed.
    fn save_snapshot(&mut self, lane: LaneId, len: usize) -> Result<SnapshotId>;

    /// Replaces the contents of `lane` by the snapshot; the committed length becomes the snapshot's.
    ///
    /// # Errors
    /// [`crate::EngineError::Input`] for an unknown snapshot or lane.
    fn restore_snapshot(&mut self, lane: LaneId, snapshot: SnapshotId) -> Result<()>;

    /// Frees a snapshot; unknown ones are ignored.
    fn drop_snapshot(&mut self, snapshot: SnapshotId);

    /// Loads a draft head. From now on it reads along every lane that was empty, in whatever steps compute, snapshots and truncations included,
    /// and [`Self::draft`] proposes. It captures its features itself, and may keep them from the host; [`Self::capture`] is refused from then on.
    /// Allocates. Lanes are empty afterwards.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] or [`EngineError::Tensor`] for a head that does not hold or belongs to another target,
    /// [`EngineError::Capacity`] without memory, [`EngineError::Unsupported`] for a backend that cannot. A head of before, or what was captured,
    /// is there as it was then; lanes may be empty.
    fn attach_draft(&mut self, spec: &DraftSpec, source: &dyn DraftSource) -> Result<()> {
        let _ = (spec, source);
        Err(no_draft(self.capabilities().backend))
    }

    /// Facts about the attached head; `None` without one.
    fn draft_facts(&self) -> Option<&DraftFacts> {
        None
    }

    /// Whether the head is to read `lane` along: not doing so saves its share of every step. A lane that it has not read from the first token
    /// on cannot be drafted after, until it is emptied.
    fn follow(&mut self, lane: LaneId, follows: bool) {
        let _ = (lane, follows);
    }

    /// Whether the head has read all of `lane`, so that it can draft after it.
    fn can_draft(&self, lane: LaneId) -> bool {
        let _ = lane;
        false
    }

    /// Drafts one level of trees. What is drafted is forgotten with the next root, or the lane's next step.
    ///
    /// # Errors
    /// [`EngineError::Input`] for a plan that is empty or too large, a row whose parent was not drafted, or a root after tokens that the head
    /// has not read; [`EngineError::Unsupported`] without a head.
    fn draft(&mut self, plan: &DraftPlan) -> Result<DraftOutput<'_>> {
        let _ = plan;
        Err(no_draft(self.capabilities().backend))
    }
}

fn no_draft(backend: &str) -> EngineError {
    EngineError::Unsupported(format!("the {backend} backend has no draft head"))
}

fn no_row(row: usize, num_rows: usize) -> EngineError {
    EngineError::Input(format!("row {row} of the step's logits asked, it has {num_rows}"))
}
