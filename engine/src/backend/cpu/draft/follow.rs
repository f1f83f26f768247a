//! Reading along: what the target commits becomes the head's context, however it comes: slices, steps, paths of trees, snapshots.

use std::ops::Range;

use super::{
    CpuDraft, Host, Snapshot,
    lane::{MAX_BACKLOG, MAX_WAITING},
};
use crate::{
    Result,
    backend::cpu::{linear::linear, rope::PrepareHeads},
    kv::{LaneId, RowAddress, SnapshotId},
    step::StepPlan,
};

impl CpuDraft {
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
            if held != before {
                state.go_cold(); // somebody else wrote to the lane
                continue;
            }
            if end >= self.facts.max_positions {
                state.pause();
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
            let num_waiting = self.states[segment.lane.0].backlog.len(features_len);
            if tokens.len() > 1 || num_waiting >= MAX_WAITING {
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
                state.pause();
                break;
            }
            if state.backlog.len(features_len) == MAX_BACKLOG {
                self.read(lane, host);
            }
        }
        // With the step, which is measured so, rather than with the next draft.
        self.read(lane, host);
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
        let kv = self.lanes.save_snapshot(lane, num_read)?;
        self.snapshots.insert(id, Snapshot { is_warm: holds_all, num_read, kv, backlog: kept.backlog });
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

    /// Reads the backlog of `lane` as far as its next tokens are known: keys and values only.
    pub(super) fn read(&mut self, lane: LaneId, host: Host<'_>) {
        let features_len = self.spec.features_len();
        let state = &self.states[lane.0];
        let num_rows = state.backlog.next_tokens.len();
        if num_rows == 0 {
            return;
        }
        let first = state.num_read;
        self.fuse(lane, num_rows, host);
        let h = self.spec.hidden_size;
        let tip = &mut self.states[lane.0].tip;
        tip.clear();
        tip.extend_from_slice(&self.arena.residual[(num_rows - 1) * h..num_rows * h]);
        for (place, out) in self.embedded.chunks_exact_mut(h).enumerate().take(num_rows) {
            self.model.embed(self.states[lane.0].backlog.next_tokens[place], out, host);
        }
        self.join(num_rows, host);
        self.store_rows(lane, first..first + num_rows, host);
        let state = &mut self.states[lane.0];
        state.backlog.drop_front(num_rows, features_len);
        state.num_read += num_rows;
        self.set_kv_len(lane);
    }

    /// The joined rows → keys and values of `rows` of `lane`.
    fn store_rows(&mut self, lane: LaneId, rows: Range<usize>, host: Host<'_>) {
        let (kv_dim, head_dim) = (self.spec.kv_dim(), self.spec.head_dim);
        let kv = &mut self.arena.qkv[..rows.len() * 2 * kv_dim];
        linear(host.pool, &self.model.kv, &self.joined, kv);
        for (row, kv) in rows.zip(kv.chunks_exact_mut(2 * kv_dim)) {
            host.vectors.run(PrepareHeads {
                qkv: kv,
                bias: &[],
                qk_norm: None,
                eps: self.spec.norm_eps,
                dims: (0, kv_dim),
                head_dim,
                rotation: self.rope.rotation(row),
            });
            let (keys, values) = kv.split_at(kv_dim);
            for (kv_head, (key, value)) in
                keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim)).enumerate()
            {
                self.lanes.store(RowAddress { lane, layer_idx: 0, kv_head, position: row }, key, value);
            }
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
