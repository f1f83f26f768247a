//! A draft head beside the target: it reads along what the target commits, and drafts a level at a time.
//!
//! Reading a committed token needs its keys and values only, for there is but one layer: no attention, no feed-forward. So reading along costs
//! `fc` and one projection a token, in batches; only what is drafted runs the whole layer.

mod lane;
mod model;
mod top_k;

use std::collections::BTreeMap;

use super::{
    activations::{Activations, Arithmetic},
    arena::{Arena, AttentionTasks, StepLimits},
    forward::Forward,
    linear::linear,
    norm::RmsNorm,
    pool::ThreadPool,
    rope::RopeTable,
    vectors::Vectors,
};
use crate::{
    EngineError, Result, TokenId,
    draft::{DraftFacts, DraftOutput, DraftPlan, DraftRow, DraftSource, DraftSpec, NUM_CAPTURED},
    kv::{KvKind, KvLanes, LaneId, SnapshotId},
    quant::{MatrixData, MatrixView, WeightKind},
    spec::DecoderSpec,
    step::StepPlan,
};
use lane::{Backlog, LaneState, MAX_BACKLOG, MAX_ROWS};
use model::DraftModel;
use top_k::TopK;

/// Most rows of one plan, all lanes together.
const MAX_PLAN_ROWS: usize = 64;
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
        let lanes = KvLanes::new(&kv_spec, setup.kv, setup.num_lanes, max_positions + MAX_ROWS, None)?;
        let max_rows = MAX_PLAN_ROWS + MAX_BACKLOG;
        let limits = StepLimits { max_tokens: max_rows, max_logits_rows: MAX_PLAN_ROWS, num_lanes: max_rows };
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
            facts: DraftFacts {
                max_positions,
                max_rows: MAX_ROWS,
                max_plan_rows: MAX_PLAN_ROWS,
                draft_vocab_size: spec.draft_vocab_size,
                weight_bytes: model.num_bytes(),
            },
            spec: spec.clone(),
            layer_spec,
            model,
        })
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

    /// Notes what a step of the target computed: `features` `[num_tokens, 3 · H]`; `committed_len` says what a lane held before it.
    pub fn follow_step(
        &mut self,
        plan: &StepPlan,
        features: &[f32],
        committed_len: impl Fn(LaneId) -> usize,
        host: Host<'_>,
    ) {
        let features_len = self.spec.features_len();
        for segment in &plan.segments {
            let before = committed_len(segment.lane);
            let Some(state) = self.states.get_mut(segment.lane.0) else { continue };
            let held = state.num_read + state.backlog.len(features_len);
            state.forget_drafted();
            if !state.is_warm {
                continue;
            }
            let end = before + if segment.is_tree { 1 } else { segment.tokens.len() };
            if held != before || end >= self.facts.max_positions {
                state.go_cold(); // somebody else wrote to the lane, or the head was not trained for so long a text
                continue;
            }
            let tokens = &plan.tokens[segment.tokens.clone()];
            if let Some(&first) = tokens.first() {
                state.backlog.resolve(first, features_len);
            }
            if segment.is_tree {
                state.tree_start = segment.tokens.start;
                state.tree_tokens.extend_from_slice(tokens);
                continue;
            }
            for (idx, row) in segment
                .tokens
                .clone()
                .zip(features[segment.tokens.start * features_len..].chunks_exact(features_len))
            {
                let next = plan.tokens.get(idx + 1).copied().filter(|_| idx + 1 < segment.tokens.end);
                self.states[segment.lane.0].backlog.push(row, next);
                if self.states[segment.lane.0].backlog.len(features_len) == MAX_BACKLOG {
                    self.read(segment.lane, host);
                }
            }
            if tokens.len() > 1 {
                // With the prompt's slice, whose cost is known, rather than with the first draft.
                self.read(segment.lane, host);
            }
        }
    }

    /// Notes which path of the last step's tree was kept; `features` are that step's.
    pub fn keep(&mut self, lane: LaneId, path: &[usize], features: &[f32], host: Host<'_>) {
        let features_len = self.spec.features_len();
        let Some(state) = self.states.get_mut(lane.0) else { return };
        if !state.is_warm || state.tree_tokens.is_empty() {
            return;
        }
        let (start, tokens) = (state.tree_start, std::mem::take(&mut state.tree_tokens));
        for (place, &node) in path.iter().enumerate() {
            let next = path.get(place + 1).and_then(|&node| tokens.get(node)).copied();
            let row = &features[(start + node) * features_len..][..features_len];
            let state = &mut self.states[lane.0];
            state.backlog.push(row, next);
            if state.num_read + state.backlog.len(features_len) >= self.facts.max_positions {
                state.go_cold();
                break;
            }
            if state.backlog.len(features_len) == MAX_BACKLOG {
                self.read(lane, host);
            }
        }
        let state = &mut self.states[lane.0];
        state.tree_tokens = tokens; // for its memory
        state.forget_drafted();
    }

    pub fn truncate(&mut self, lane: LaneId, len: usize) {
        let features_len = self.spec.features_len();
        if let Some(state) = self.states.get_mut(lane.0) {
            let held = state.num_read + state.backlog.len(features_len);
            if len == 0 || len < held {
                state.truncate(len, features_len);
                self.set_kv_len(lane);
            }
        }
    }

    pub fn save_snapshot(&mut self, lane: LaneId, len: usize, id: SnapshotId) -> Result<()> {
        let features_len = self.spec.features_len();
        let Some(state) = self.states.get(lane.0) else { return Ok(()) };
        let num_read = state.num_read.min(len);
        let mut kept = state.clone();
        kept.truncate(len, features_len);
        let holds_all = num_read + kept.backlog.len(features_len) == len;
        let kv = self.lanes.save_snapshot(lane, if state.is_warm { num_read } else { 0 })?;
        let is_warm = state.is_warm && holds_all;
        self.snapshots.insert(id, Snapshot { is_warm, num_read, kv, backlog: kept.backlog });
        Ok(())
    }

    pub fn restore_snapshot(&mut self, lane: LaneId, id: SnapshotId) -> Result<()> {
        let Some(state) = self.states.get_mut(lane.0) else { return Ok(()) };
        state.go_cold();
        let Some(snapshot) = self.snapshots.get(&id).filter(|snapshot| snapshot.is_warm && state.follows)
        else {
            return Ok(());
        };
        self.lanes.restore_snapshot(lane, snapshot.kv)?;
        (state.is_warm, state.num_read) = (true, snapshot.num_read);
        state.backlog.features.extend_from_slice(&snapshot.backlog.features);
        state.backlog.next_tokens.extend_from_slice(&snapshot.backlog.next_tokens);
        Ok(())
    }

    pub fn drop_snapshot(&mut self, id: SnapshotId) {
        if let Some(snapshot) = self.snapshots.remove(&id) {
            self.lanes.drop_snapshot(snapshot.kv);
        }
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

    fn check(&self, plan: &DraftPlan, committed_len: impl Fn(LaneId) -> usize) -> Result<()> {
        let (num_rows, top_k) = (plan.rows.len(), plan.top_k);
        if num_rows == 0 || num_rows > MAX_PLAN_ROWS || top_k == 0 || top_k > MAX_TOP_K {
            return Err(EngineError::Input(format!(
                "{num_rows} rows with {top_k} proposals each to draft, expected 1 to {MAX_PLAN_ROWS} with 1 to {MAX_TOP_K}"
            )));
        }
        for (idx, row) in plan.rows.iter().enumerate() {
            let fail = |fact: String| Err(EngineError::Input(format!("lane {}: {fact}", row.lane.0)));
            let Some(state) = self.states.get(row.lane.0) else {
                return fail("it does not exist".into());
            };
            if row.token as usize >= self.spec.vocab_size {
                return fail(format!(
                    "token {} is outside the vocabulary of {}",
                    row.token, self.spec.vocab_size
                ));
            }
            let is_begun = plan.rows[..idx].iter().any(|other| other.lane == row.lane);
            let num_before = plan.rows[..idx].iter().filter(|other| other.lane == row.lane).count();
            match row.parent {
                None if is_begun => return fail("its root comes after other rows of it".into()),
                None if !self.is_warm(row.lane, committed_len(row.lane)) => {
                    return fail("a draft after tokens that the head has not read".into());
                }
                None => {}
                Some(_)
                    if plan.rows[..idx]
                        .iter()
                        .any(|other| other.lane == row.lane && other.parent.is_none()) =>
                {
                    return fail("its root was not drafted before".into());
                }
                // Rows of this very plan have no output yet.
                Some(parent) if parent >= state.drafted.parents.len() => {
                    return fail(format!("row {parent} has children, but was not drafted"));
                }
                Some(_) if state.drafted.parents.len() + num_before >= MAX_ROWS => {
                    return fail(format!("more than {MAX_ROWS} rows since its root"));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Reads the backlog of `lane` as far as its next tokens are known: keys and values only.
    fn read(&mut self, lane: LaneId, host: Host<'_>) {
        let features_len = self.spec.features_len();
        let state = &self.states[lane.0];
        let num_rows = state.backlog.next_tokens.len();
        if num_rows == 0 {
            return;
        }
        let first = state.num_read;
        self.arena.begin_rows();
        (first..first + num_rows).for_each(|row| self.arena.push_row(lane, row, row, []));
        self.arena.end_rows(AttentionTasks::block_len(&self.layer_spec));
        self.fuse(lane, num_rows, host);
        let h = self.spec.hidden_size;
        let tip = &mut self.states[lane.0].tip;
        tip.clear();
        tip.extend_from_slice(&self.arena.residual[(num_rows - 1) * h..num_rows * h]);
        for (place, out) in self.embedded.chunks_exact_mut(h).enumerate().take(num_rows) {
            self.model.embed(self.states[lane.0].backlog.next_tokens[place], out, host);
        }
        self.join(num_rows, host);
        let forward =
            Forward { spec: &self.layer_spec, rope: &self.rope, pool: host.pool, vectors: host.vectors };
        forward.project_qkv(&self.model.layer, &self.joined, &mut self.arena);
        forward.store_kv(0, &self.arena, &mut self.lanes);
        let state = &mut self.states[lane.0];
        state.backlog.drop_front(num_rows, features_len);
        state.num_read += num_rows;
        self.set_kv_len(lane);
    }

    /// The first `num_rows` features of the lane's backlog → `residual` through `fc`.
    fn fuse(&mut self, lane: LaneId, num_rows: usize, host: Host<'_>) {
        let (h, width, eps) = (self.spec.hidden_size, self.spec.target_hidden_size, self.spec.norm_eps);
        let (features, norms) = (&self.states[lane.0].backlog.features, &self.model.fc_norms);
        self.featured.fill(host.pool, num_rows, NUM_CAPTURED * width, |row_idx, out| {
            let row = &features[row_idx * NUM_CAPTURED * width..][..NUM_CAPTURED * width];
            if norms.is_empty() {
                out.copy_from_slice(row);
                return;
            }
            for ((x, weight), out) in row.chunks_exact(width).zip(norms).zip(out.chunks_exact_mut(width)) {
                host.vectors.run(RmsNorm { x, weight, eps, out });
            }
        });
        linear(host.pool, &self.model.fc, &self.featured, &mut self.arena.residual[..num_rows * h]);
    }

    /// What each row of the plan goes on from → `residual`, and its token's embedding.
    fn fill_hidden(&mut self, plan: &DraftPlan, host: Host<'_>) {
        let h = self.spec.hidden_size;
        for (place, row) in plan.rows.iter().enumerate() {
            let state = &self.states[row.lane.0];
            let hidden = match row.parent {
                None => &state.tip,
                Some(parent) => &state.drafted.outputs[parent * h..(parent + 1) * h],
            };
            self.arena.residual[place * h..(place + 1) * h].copy_from_slice(hidden);
            self.model.embed(row.token, &mut self.embedded[place * h..(place + 1) * h], host);
        }
        self.join(plan.rows.len(), host);
    }

    /// Embedding and hidden, each normed, beside each other; the normed hidden is the residual where the head wants it so.
    fn join(&mut self, num_rows: usize, host: Host<'_>) {
        let (h, eps) = (self.spec.hidden_size, self.spec.norm_eps);
        let (embedded, residual, model) = (&self.embedded, &self.arena.residual, &self.model);
        self.joined.fill(host.pool, num_rows, 2 * h, |row_idx, out| {
            let (first, second) = out.split_at_mut(h);
            let range = row_idx * h..(row_idx + 1) * h;
            let weight = &model.layer.input_norm;
            host.vectors.run(RmsNorm { x: &embedded[range.clone()], weight, eps, out: first });
            host.vectors.run(RmsNorm { x: &residual[range], weight: &model.hidden_norm, eps, out: second });
        });
        if self.spec.norm_before_residual {
            for (row_idx, residual) in self.arena.residual.chunks_exact_mut(h).enumerate().take(num_rows) {
                residual.copy_from_slice(&self.joined.row(row_idx)[h..]);
            }
        }
    }

    /// The whole layer over the rows laid out, and the last norm where it is fed back.
    fn run_layer(&mut self, rows: &[DraftRow], host: Host<'_>) {
        let forward =
            Forward { spec: &self.layer_spec, rope: &self.rope, pool: host.pool, vectors: host.vectors };
        let (layer, arena) = (&self.model.layer, &mut self.arena);
        forward.project_qkv(layer, &self.joined, arena);
        forward.store_kv(0, arena, &mut self.lanes);
        forward.attend(0, arena, &self.lanes);
        forward.project_output(layer, arena);
        forward.feed_forward(layer, arena);
        if self.spec.norm_output {
            let h = self.spec.hidden_size;
            for residual in arena.residual.chunks_exact_mut(h).take(rows.len()) {
                let out = &mut arena.delta[..h];
                host.vectors.run(RmsNorm {
                    x: residual,
                    weight: &self.model.norm,
                    eps: self.spec.norm_eps,
                    out,
                });
                residual.copy_from_slice(out);
            }
        }
    }

    /// The output head over all rows, and the likeliest tokens of each.
    fn propose(&mut self, plan: &DraftPlan, host: Host<'_>) -> DraftOutput<'_> {
        let (h, vocab_size, num_rows) = (self.spec.hidden_size, self.spec.draft_vocab_size, plan.rows.len());
        let (residual, norm_output, eps) = (&self.arena.residual, self.spec.norm_output, self.spec.norm_eps);
        let norm = &self.model.norm;
        self.arena.last.fill(host.pool, num_rows, h, |row_idx, out| {
            let x = &residual[row_idx * h..][..h];
            if norm_output {
                out.copy_from_slice(x); // normed already, as it is fed back
            } else {
                host.vectors.run(RmsNorm { x, weight: norm, eps, out });
            }
        });
        let logits = &mut self.arena.logits[..num_rows * vocab_size];
        linear(host.pool, &self.model.lm_head, &self.arena.last, logits);
        let num_proposals = plan.top_k.min(vocab_size);
        let lists =
            self.tokens.chunks_exact_mut(num_proposals).zip(self.log_probs.chunks_exact_mut(num_proposals));
        for (logits, (ids, log_probs)) in logits.chunks_exact(vocab_size).zip(lists) {
            host.vectors.run(TopK { logits, ids, log_probs });
            ids.iter_mut().for_each(|id| *id = self.model.targets[*id as usize]);
        }
        DraftOutput {
            num_proposals,
            tokens: &self.tokens[..num_rows * num_proposals],
            log_probs: &self.log_probs[..num_rows * num_proposals],
            logits: if plan.wants_logits { logits } else { &[] },
        }
    }

    fn set_kv_len(&mut self, lane: LaneId) {
        let num_read = self.states[lane.0].num_read;
        let held = self.lanes.committed_len(lane);
        if num_read > held {
            self.lanes.commit(lane, num_read - held);
        } else if num_read < held {
            // Never fails: there are as many.
            let _ = self.lanes.truncate(lane, num_read);
        }
    }
}

impl DraftModel {
    /// The head's embedding of `token`, which is in the vocabulary.
    fn embed(&self, token: TokenId, out: &mut [f32], host: Host<'_>) {
        match &self.embedding {
            None => (host.embed)(token, out),
            Some(rows) => {
                let width = out.len() * 2;
                let row = &rows[token as usize * width..][..width];
                MatrixView { num_rows: 1, num_cols: out.len(), data: MatrixData::Bf16(row) }
                    .dequantize_row(0, out);
            }
        }
    }
}

impl lane::Drafted {
    /// Rows from below the root down to the parent of `number`, and `number` itself, as numbers; the root is not among them.
    fn ancestors(&self, number: usize) -> impl Iterator<Item = usize> + '_ {
        let depth = self.parents[number].1;
        (1..=depth).map(move |level| {
            let up = std::iter::successors(Some(number), |&node| Some(self.parents[node].0));
            up.skip(depth - level).next().unwrap_or(0)
        })
    }
}
