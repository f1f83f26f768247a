//! A draft head beside the target: it reads along what the target commits, and drafts a level at a time.
//!
//! Reading a committed token needs its keys and values only, for there is but one layer: no attention, no feed-forward. So reading along costs
//! `fc` and one projection a token, in batches; only what is drafted runs the whole layer.

mod follow;
mod forward;
mod model;
mod top_k;

use std::collections::BTreeMap;

use super::{
    activations::{Activations, Arithmetic},
    arena::{Arena, AttentionTasks, StepLimits},
    pool::ThreadPool,
    rope::RopeTable,
    vectors::Vectors,
};
use crate::{
    Result, TokenId,
    draft::{
        DraftBook, DraftFacts, DraftOutput, DraftPlan, DraftSource, DraftSpec, MAX_DRAFT_ROWS as MAX_ROWS,
        MAX_PLAN_ROWS, MAX_TOP_K, SavedLane,
    },
    kv::{KvKind, KvLanes, LaneId, SnapshotId},
    quant::WeightKind,
    spec::DecoderSpec,
};
use model::DraftModel;

/// Features that wait at most while a slice is read; then they are read together.
const MAX_BACKLOG: usize = 32;
/// Rows of one plan, with those that lanes have read but not drafted after.
const PLAN_LIMITS: StepLimits = StepLimits {
    max_tokens: MAX_PLAN_ROWS + MAX_BACKLOG,
    max_logits_rows: MAX_PLAN_ROWS,
    num_lanes: MAX_PLAN_ROWS + MAX_BACKLOG,
};

/// What the target lends to its head.
#[derive(Clone, Copy)]
pub(super) struct Host<'a> {
    pub pool: &'a ThreadPool,
    pub vectors: Vectors,
    /// Writes the target's embedding of a token.
    pub embed: &'a (dyn Fn(TokenId, &mut [f32]) + Sync),
}

/// How a head is set up beside its target.
#[derive(Debug, Clone, Copy)]
pub(super) struct DraftSetup {
    pub num_lanes: usize,
    pub lane_capacity: usize,
    pub kv: KvKind,
    /// Most bytes its lanes may take; `None` for what the system gives.
    pub max_kv_bytes: Option<u64>,
}

/// An attached head.
#[derive(Debug)]
pub(super) struct CpuDraft {
    spec: DraftSpec,
    layer_spec: DecoderSpec,
    model: DraftModel,
    rope: RopeTable,
    lanes: KvLanes,
    book: DraftBook,
    rows: Vec<LaneRows>,
    snapshots: BTreeMap<SnapshotId, Snapshot>,
    arena: Arena,
    /// Features as `fc` reads them `[rows, 3 · H]`.
    featured: Activations,
    /// Embedding and hidden beside each other `[rows, 2 · h]`.
    joined: Activations,
    /// Embeddings of the rows at hand `[rows, h]`.
    embedded: Vec<f32>,
    tokens: Vec<TokenId>,
    log_probs: Vec<f32>,
}

/// The numbers behind what [`DraftBook`] knows of a lane.
#[derive(Debug)]
struct LaneRows {
    /// Fused features of the last row read `[h]`, from which a draft begins.
    tip: Vec<f32>,
    /// Features of the rows that wait `[n, 3 · H]`.
    features: Vec<f32>,
    /// What is fed back after each row drafted since the root `[num_rows, h]`.
    outputs: Vec<f32>,
}

/// A lane's state, kept.
#[derive(Debug)]
struct Snapshot {
    saved: SavedLane,
    kv: SnapshotId,
    features: Vec<f32>,
}

impl CpuDraft {
    /// Loads the head of `spec`, which was validated against its target.
    pub fn new(
        spec: &DraftSpec,
        source: &dyn DraftSource,
        setup: DraftSetup,
        arithmetic: impl Fn(WeightKind) -> Arithmetic,
    ) -> Result<Self> {
        let model = DraftModel::load(spec, source)?;
        let arithmetic = arithmetic(model.weight_kind());
        let max_positions = spec.max_positions.min(setup.lane_capacity);
        let layer_spec = spec.layer();
        let kv_spec = DecoderSpec { max_context: max_positions + MAX_ROWS, ..layer_spec.clone() };
        let lanes =
            KvLanes::new(&kv_spec, setup.kv, setup.num_lanes, max_positions + MAX_ROWS, setup.max_kv_bytes)?;
        let (max_rows, limits) = (PLAN_LIMITS.max_tokens, PLAN_LIMITS);
        let (h, features_len) = (spec.hidden_size, spec.features_len());
        Ok(Self {
            rope: RopeTable::new(&layer_spec.rope, max_positions + MAX_ROWS),
            lanes,
            book: DraftBook::new(setup.num_lanes, max_positions, spec.vocab_size, MAX_BACKLOG),
            rows: (0..setup.num_lanes).map(|_| LaneRows::new(features_len, h)).collect(),
            snapshots: BTreeMap::new(),
            arena: Arena::new(&layer_spec, limits, arithmetic),
            featured: Activations::new(arithmetic, MAX_BACKLOG, features_len),
            joined: Activations::new(arithmetic, max_rows, 2 * h),
            embedded: vec![0.0; max_rows * h],
            tokens: vec![0; MAX_PLAN_ROWS * MAX_TOP_K],
            log_probs: vec![0.0; MAX_PLAN_ROWS * MAX_TOP_K],
            spec: spec.clone(),
            layer_spec,
            model,
        })
    }

    /// Bytes of the large buffers beside the lanes that [`Self::new`] allocates.
    pub fn workspace_bytes(spec: &DraftSpec, lane_capacity: usize, arithmetic: Arithmetic) -> u64 {
        let max_positions = spec.max_positions.min(lane_capacity);
        let layer_spec = spec.layer();
        let (h, max_rows) = (spec.hidden_size, PLAN_LIMITS.max_tokens);
        RopeTable::bytes_for(&layer_spec.rope, max_positions + MAX_ROWS)
            + Arena::num_bytes(&layer_spec, PLAN_LIMITS, arithmetic)
            + Activations::bytes_for(arithmetic, MAX_BACKLOG, spec.features_len())
            + Activations::bytes_for(arithmetic, max_rows, 2 * h)
            + (max_rows * h * size_of::<f32>()) as u64
    }

    pub fn facts(&self) -> &DraftFacts {
        self.book.facts()
    }

    /// Bytes of its lanes.
    pub fn kv_bytes(&self) -> u64 {
        self.lanes.num_bytes()
    }

    pub fn follow(&mut self, lane: LaneId, follows: bool, committed_len: usize) {
        self.book.follow(lane, follows, committed_len);
        self.forget_rows(lane);
    }

    /// Whether it has read all of `lane`, so that it can draft after it.
    pub fn is_warm(&self, lane: LaneId, committed_len: usize) -> bool {
        self.book.is_warm(lane, committed_len)
    }

    /// Drafts one level; `committed_len` says what a lane of the target holds.
    pub fn draft(
        &mut self,
        plan: &DraftPlan,
        committed_len: impl Fn(LaneId) -> usize,
        host: Host<'_>,
    ) -> Result<DraftOutput<'_>> {
        self.book.check(plan, committed_len)?;
        for row in plan.rows.iter().filter(|row| row.parent.is_none()) {
            self.book.begin_root(row.lane, row.token);
            self.rows[row.lane.0].outputs.clear();
            self.read(row.lane, host);
        }
        let h = self.spec.hidden_size;
        self.arena.begin_rows();
        for row in &plan.rows {
            let place = self.book.place(row.lane, row.parent);
            let ancestors = self.book.rows_below_root(row.lane, place.number);
            self.arena.push_row(row.lane, place.position, place.row, ancestors);
        }
        self.arena.end_rows(AttentionTasks::block_len(&self.layer_spec));
        self.fill_hidden(plan, host);
        self.run_layer(&plan.rows, host);
        for (row, residual) in plan.rows.iter().zip(self.arena.residual.chunks_exact(h)) {
            self.rows[row.lane.0].outputs.extend_from_slice(residual);
        }
        Ok(self.propose(plan, host))
    }
}

impl LaneRows {
    /// Sets all memory aside for features of `features_len` values and a head `hidden_size` wide.
    fn new(features_len: usize, hidden_size: usize) -> Self {
        Self {
            tip: vec![0.0; hidden_size],
            features: Vec::with_capacity(MAX_BACKLOG * features_len),
            outputs: Vec::with_capacity(MAX_ROWS * hidden_size),
        }
    }
}
