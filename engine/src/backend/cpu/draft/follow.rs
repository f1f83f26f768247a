//! Reading along: what the target commits becomes the head's context, however it comes: slices, steps, paths of trees, snapshots.

use std::ops::Range;

use super::{CpuDraft, Host, MAX_BACKLOG, Snapshot};
use crate::{
    Result, TokenId,
    backend::cpu::{linear::linear, rope::PrepareHeads},
    draft::Following,
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
            let following = self.book.begin_segment(plan, segment, committed_len(segment.lane));
            self.forget_rows(segment.lane);
            let Following::Rows { num_due } = following else { continue };
            let rows = features[segment.tokens.start * features_len..].chunks_exact(features_len);
            for (idx, row) in segment.tokens.clone().zip(rows) {
                let next = plan.tokens.get(idx + 1).copied().filter(|_| idx + 1 < segment.tokens.end);
                self.push(segment.lane, row, next, host);
            }
            if num_due > 0 {
                self.read(segment.lane, host);
            }
        }
    }

    /// Notes which path of the last step's tree was kept; `features` are that step's.
    pub fn keep(&mut self, lane: LaneId, path: &[usize], features: &[f32], host: Host<'_>) {
        let features_len = self.spec.features_len();
        let start = self.book.begin_keep(lane, path);
        self.forget_rows(lane);
        let Some(start) = start else { return };
        for (place, &node) in path.iter().enumerate() {
            let next = self.book.token_after(lane, path, place);
            self.push(lane, &features[(start + node) * features_len..][..features_len], next, host);
        }
        // With the step, which is measured so, rather than with the next draft.
        self.read(lane, host);
        self.book.end_keep(lane);
    }

    /// One row more waits; when there is no room for another, all that can be are read.
    fn push(&mut self, lane: LaneId, row: &[f32], next: Option<TokenId>, host: Host<'_>) {
        self.rows[lane.0].features.extend_from_slice(row);
        self.book.push(lane, next);
        if self.book.num_waiting(lane) == MAX_BACKLOG {
            self.read(lane, host);
        }
    }

    /// Features of rows that do not wait any more are forgotten.
    pub(super) fn forget_rows(&mut self, lane: LaneId) {
        let num_values = self.book.num_waiting(lane) * self.spec.features_len();
        if let Some(rows) = self.rows.get_mut(lane.0) {
            rows.features.truncate(num_values);
        }
    }

    pub fn truncate(&mut self, lane: LaneId, len: usize) {
        self.book.truncate(lane, len);
        self.forget_rows(lane);
        self.set_kv_len(lane);
    }

    pub fn save_snapshot(&mut self, lane: LaneId, len: usize, id: SnapshotId) -> Result<()> {
        let Some(saved) = self.book.saved(lane, len) else { return Ok(()) };
        let kv = self.lanes.save_snapshot(lane, saved.num_read)?;
        let features = self.rows[lane.0].features[..saved.num_waiting * self.spec.features_len()].to_vec();
        self.snapshots.insert(id, Snapshot { saved, kv, features });
        Ok(())
    }

    pub fn restore_snapshot(&mut self, lane: LaneId, id: SnapshotId) -> Result<()> {
        let snapshot = self.snapshots.get(&id);
        let is_restored = self.book.restore(lane, snapshot.map(|snapshot| &snapshot.saved));
        let Some(rows) = self.rows.get_mut(lane.0) else { return Ok(()) };
        rows.features.clear();
        if let Some(snapshot) = snapshot.filter(|_| is_restored) {
            rows.features.extend_from_slice(&snapshot.features);
            self.lanes.restore_snapshot(lane, snapshot.kv)?;
        }
        Ok(())
    }

    pub fn drop_snapshot(&mut self, id: SnapshotId) {
        if let Some(snapshot) = self.snapshots.remove(&id) {
            self.lanes.drop_snapshot(snapshot.kv);
        }
    }

    /// Reads what waits in `lane` as far as its next tokens are known: keys and values only.
    pub(super) fn read(&mut self, lane: LaneId, host: Host<'_>) {
        let features_len = self.spec.features_len();
        let num_rows = self.book.next_tokens(lane).len();
        if num_rows == 0 {
            return;
        }
        let first = self.book.num_read(lane);
        self.fuse(lane, num_rows, host);
        let h = self.spec.hidden_size;
        let tip = &mut self.rows[lane.0].tip;
        tip.copy_from_slice(&self.arena.residual[(num_rows - 1) * h..num_rows * h]);
        let next_tokens = self.book.next_tokens(lane);
        for (&token, out) in next_tokens.iter().zip(self.embedded.chunks_exact_mut(h)) {
            self.model.embed(token, out, host);
        }
        self.join(num_rows, host);
        self.store_rows(lane, first..first + num_rows, host);
        self.rows[lane.0].features.drain(..num_rows * features_len);
        self.book.note_read(lane, num_rows);
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
        let num_read = self.book.num_read(lane);
        let held = self.lanes.committed_len(lane);
        if num_read > held {
            self.lanes.commit(lane, num_read - held);
        } else if num_read < held {
            // Never fails: there are as many.
            let _ = self.lanes.truncate(lane, num_read);
        }
    }
}
