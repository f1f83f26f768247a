//! A draft head beside the target: it reads along what the target commits, and drafts a level at a time.
//!
//! Reading a committed token needs its keys and values only, for there is but one layer: no attention, no feed-forward. So reading along costs
//! `fc` and one projection a token, in batches; only what is drafted runs the whole layer.

mod check;
mod follow;
mod forward;
mod lane;
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
    draft::{DraftFacts, DraftOutput, DraftPlan, DraftSource, DraftSpec},
    kv::{KvKind, KvLanes, LaneId, SnapshotId},
    quant::WeightKind,
    spec::DecoderSpec,
};
use lane::{Backlog, LaneState, MAX_BACKLOG, MAX_ROWS};
use model::DraftModel;

/// Most rows of one plan, all lanes together.
const MAX_PLAN_ROWS: usize = 64;
/// Rows of one plan, with those that lanes have read but not drafted after.
const PLAN_LIMITS: StepLimits = StepLimits {
    max_tokens: MAX_PLAN_ROWS + MAX_BACKLOG,
    max_logits_rows: MAX_PLAN_ROWS,
    num_lanes: MAX_PLAN_ROWS + MAX_BACKLOG,
};
/// Most proposals after one row.
const MAX_TOP_K: usize = 64;

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
    states: Vec<LaneState>,
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
    facts: DraftFacts,
}

/// A lane's state, kept.
#[derive(Debug)]
struct Snapshot {
    is_warm: bool,
    num_read: usize,
    kv: SnapshotId,
    backlog: Backlog,
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
            states: (0..setup.num_lanes).map(|_| LaneState::new(features_len, h)).collect(),
            snapshots: BTreeMap::new(),
            arena: Arena::new(&layer_spec, limits, arithmetic),
            featured: Activations::new(arithmetic, MAX_BACKLOG, features_len),
            joined: Activations::new(arithmetic, max_rows, 2 * h),
            embedded: vec![0.0; max_rows * h],
            tokens: vec![0; MAX_PLAN_ROWS * MAX_TOP_K],
            log_probs: vec![0.0; MAX_PLAN_ROWS * MAX_TOP_K],
            facts: DraftFacts { max_positions, max_plan_rows: MAX_PLAN_ROWS },
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
        &self.facts
    }

    /// Bytes of its lanes.
    pub fn kv_bytes(&self) -> u64 {
        self.lanes.num_bytes()
    }

    pub fn follow(&mut self, lane: LaneId, follows: bool, committed_len: usize) {
        let Some(state) = self.states.get_mut(lane.0) else { return };
        state.follows = follows;
        if !follows {
            state.go_cold();
        } else if committed_len == 0 {
            state.is_warm = true;
        }
    }

    /// Whether it has read all of `lane`, so that it can draft after it.
    pub fn is_warm(&self, lane: LaneId, committed_len: usize) -> bool {
        self.states.get(lane.0).is_some_and(|state| {
            let num_waiting = state.backlog.len(self.spec.features_len());
            let held = state.num_read + num_waiting;
            let has_tip = num_waiting > 0 || !state.tip.is_empty();
            state.is_warm && has_tip && held == committed_len && held < self.facts.max_positions
        })
    }

    /// Drafts one level; `committed_len` says what a lane of the target holds.
    pub fn draft(
        &mut self,
        plan: &DraftPlan,
        committed_len: impl Fn(LaneId) -> usize,
        host: Host<'_>,
    ) -> Result<DraftOutput<'_>> {
        self.check(plan, committed_len)?;
        for row in plan.rows.iter().filter(|row| row.parent.is_none()) {
            let features_len = self.spec.features_len();
            let state = &mut self.states[row.lane.0];
            state.forget_drafted();
            state.backlog.resolve(row.token, features_len);
            self.read(row.lane, host);
        }
        let h = self.spec.hidden_size;
        self.arena.begin_rows();
        for row in &plan.rows {
            let state = &mut self.states[row.lane.0];
            let number = state.drafted.parents.len();
            let (parent, depth) = match row.parent {
                None => (0, 0),
                Some(parent) => (parent, state.drafted.parents[parent].1 + 1),
            };
            state.drafted.parents.push((parent, depth));
            // The root is the last row read; what is proposed lies behind, in the order of its numbers.
            let first_row = state.num_read;
            let position = first_row - 1 + depth;
            if number == 0 {
                self.arena.push_row(row.lane, position, position, []);
            } else {
                let ancestors = state.drafted.ancestors(number).map(|node| first_row + node - 1);
                self.arena.push_row(row.lane, position, first_row + number - 1, ancestors);
            }
        }
        self.arena.end_rows(AttentionTasks::block_len(&self.layer_spec));
        self.fill_hidden(plan, host);
        self.run_layer(&plan.rows, host);
        for (row, residual) in plan.rows.iter().zip(self.arena.residual.chunks_exact(h)) {
            self.states[row.lane.0].drafted.outputs.extend_from_slice(residual);
        }
        Ok(self.propose(plan, host))
    }
}
