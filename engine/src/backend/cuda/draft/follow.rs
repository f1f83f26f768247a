//! Reading along: which features a step leaves where, and what is read of them, whether they come as slices, steps, paths of trees or snapshots.
//!
//! A lane's features that wait have a ring of slots of their own, behind the rows of a step's tokens. What a step commits and is due goes through
//! the step's rows; what is to wait goes straight to its slot, which no row that is read with this step has.

use std::time::{Duration, Instant};

use takt_kernels_cu::driver::{
    memory::DeviceBuffer,
    stream::{Found, Stream},
};

use super::{CudaDraft, FeatureRows, Host, Snapshot, input::ReadRow, shape::ReadShape};
use crate::{
    Result,
    backend::cuda::captures,
    draft::{Following, MAX_DRAFT_ROWS, MAX_WAITING},
    kv::{LaneBook, LaneId, SnapshotId},
    step::{Segment, StepPlan},
};

impl CudaDraft {
    /// Lays out what a step of `plan` leaves for the head, of which `book` says what lanes hold before it, and what of that is read with it: if
    /// there is something ([`Self::has_to_read`]), [`Self::read_and_wait`] comes behind the step.
    ///
    /// # Errors
    /// [`crate::EngineError::Capacity`] or [`crate::EngineError::Backend`] when a graph cannot be captured; nothing was noted then.
    pub fn follow_step(
        &mut self,
        plan: &StepPlan,
        book: &LaneBook,
        step: &mut dyn FeatureRows,
        host: &mut Host<'_>,
    ) -> Result<()> {
        let due = plan.segments.iter().map(|segment| {
            match self.book.following(segment, book.committed_len(segment.lane)) {
                Following::Rows { num_due } => num_due,
                Following::Nothing | Following::Tree => 0,
            }
        });
        self.begin_reading(due.sum(), host)?;
        for segment in &plan.segments {
            let before = book.committed_len(segment.lane);
            match self.book.begin_segment(plan, segment, before) {
                Following::Nothing => {}
                Following::Tree => {
                    segment.tokens.clone().for_each(|token| step.put_feature_row(token, token))
                }
                Following::Rows { num_due } => self.follow_rows(plan, segment, num_due, step),
            }
        }
        Ok(())
    }

    /// Whether something is laid out to be read.
    pub fn has_to_read(&self) -> bool {
        self.reading.is_some()
    }

    fn follow_rows(
        &mut self,
        plan: &StepPlan,
        segment: &Segment,
        num_due: usize,
        step: &mut dyn FeatureRows,
    ) {
        let (lane, end) = (segment.lane, segment.tokens.end);
        let num_before = self.book.num_waiting(lane);
        let last_slot = self.slot(lane, num_before);
        for token in segment.tokens.clone() {
            let is_last = token + 1 == end;
            step.put_feature_row(token, if is_last { last_slot } else { token });
            self.book.push(lane, plan.tokens.get(token + 1).copied().filter(|_| !is_last));
        }
        if num_due > 0 {
            let first_token = segment.tokens.start;
            self.push_reads(lane, num_due, |lane_rows, idx| match idx.checked_sub(num_before) {
                Some(new) => first_token + new,
                None => lane_rows.slot(lane, idx),
            });
            self.keep_last_in(lane, num_before);
        }
    }

    /// Runs what was laid out behind what usually takes `others`, and waits for both. Returns how it was found, and what reading usually takes.
    pub fn read_and_wait(&mut self, stream: &Stream, others: Duration) -> Result<(Found, Duration)> {
        let own = self.reading.take().map_or(Ok(Duration::ZERO), |shape| self.reads.start(stream, shape));
        let all = others + own.as_ref().map_or(Duration::ZERO, |own| *own);
        // What is in front of it runs all the same.
        let found = captures::wait(stream, all, self.options.step_limit)?;
        Ok((found, own?))
    }

    /// Captures what keeping `path` will run, before anything is kept.
    pub fn prepare_keep(&mut self, lane: LaneId, path: &[usize], host: &mut Host<'_>) -> Result<()> {
        match self.book.num_due_to_keep(lane, path) {
            0 => Ok(()),
            num_due => self.capture_read(ReadShape::of(num_due, self.max_read_rows), host),
        }
    }

    /// Reads the `path` kept of the last step's tree: with the step, which is measured so, rather than with the next draft.
    ///
    /// # Errors
    /// [`crate::EngineError::Backend`] when the device fails; the lane is cold then.
    pub fn keep(&mut self, lane: LaneId, path: &[usize], stream: &Stream) -> Result<()> {
        self.read_path(lane, path, stream).inspect_err(|_| self.book.go_cold(lane))
    }

    fn read_path(&mut self, lane: LaneId, path: &[usize], stream: &Stream) -> Result<()> {
        let num_due = self.book.num_due_to_keep(lane, path);
        let Some(tree_start) = self.book.begin_keep(lane, path) else { return Ok(()) };
        let Some(&last_node) = path.last() else { return Ok(()) };
        let start = Instant::now();
        stream.context().make_current()?;
        let num_before = self.book.num_waiting(lane);
        for place in 0..path.len() {
            let next = self.book.token_after(lane, path, place);
            self.book.push(lane, next);
        }
        // The last row's next token is not known: it waits.
        let row_bytes = self.spec.features_len() * size_of::<f32>();
        let row = |row: usize| self.workspace.features.offset(row * row_bytes);
        stream.copy(row(tree_start + last_node)?, row(self.slot(lane, num_before))?, row_bytes)?;
        if num_due == 0 {
            self.book.end_keep(lane);
            captures::wait(stream, Duration::ZERO, self.options.step_limit)?;
            return Ok(());
        }
        let shape = ReadShape::of(num_due, self.max_read_rows);
        self.read_input.clear(shape);
        self.reading = Some(shape);
        self.push_reads(lane, num_due, |lane_rows, idx| match idx.checked_sub(num_before) {
            Some(new) => tree_start + path.get(new).copied().unwrap_or(0),
            None => lane_rows.slot(lane, idx),
        });
        self.keep_last_in(lane, num_before);
        self.book.end_keep(lane);
        let (found, _) = self.read_and_wait(stream, Duration::ZERO)?;
        self.reads.learn(shape, Duration::ZERO, found, start.elapsed());
        Ok(())
    }

    pub fn truncate(&mut self, lane: LaneId, len: usize) {
        self.book.truncate(lane, len);
        self.lanes.book.set(lane, self.book.num_read(lane));
    }

    /// Keeps the first `len` tokens of `lane` under the target's snapshot `id`.
    pub fn save_snapshot(
        &mut self,
        lane: LaneId,
        len: usize,
        id: SnapshotId,
        host: &mut Host<'_>,
    ) -> Result<()> {
        let Some(saved) = self.book.saved(lane, len) else { return Ok(()) };
        if !saved.is_warm {
            self.snapshots.insert(id, Snapshot { saved, kv: None, features: None });
            return Ok(());
        }
        self.lanes.book.set(lane, self.book.num_read(lane));
        let features = self.saved_features(lane, saved.num_waiting, host)?;
        let kv = self.lanes.save_snapshot(host.stream, host.kernels, lane, saved.num_read)?;
        captures::wait(host.stream, Duration::ZERO, self.options.step_limit)?;
        self.snapshots.insert(id, Snapshot { saved, kv: Some(kv), features });
        Ok(())
    }

    /// Copies of what waits first in `lane`.
    fn saved_features(&self, lane: LaneId, num_rows: usize, host: &Host<'_>) -> Result<Option<DeviceBuffer>> {
        if num_rows == 0 {
            return Ok(None);
        }
        let row_bytes = self.spec.features_len() * size_of::<f32>();
        let (context, what) = (host.stream.context(), "features of a prefix snapshot");
        let buffer = DeviceBuffer::new(context, num_rows * row_bytes, what)?;
        context.make_current()?;
        for idx in 0..num_rows {
            let from = self.workspace.features.offset(self.slot(lane, idx) * row_bytes)?;
            host.stream.copy(from, buffer.address().offset(idx * row_bytes)?, row_bytes)?;
        }
        Ok(Some(buffer))
    }

    /// `lane` holds what the target's snapshot `id` holds; it is cold after an error.
    pub fn restore_snapshot(&mut self, lane: LaneId, id: SnapshotId, host: &mut Host<'_>) -> Result<()> {
        self.copy_back(lane, id, host).inspect_err(|_| self.book.go_cold(lane))
    }

    fn copy_back(&mut self, lane: LaneId, id: SnapshotId, host: &mut Host<'_>) -> Result<()> {
        let snapshot = self.snapshots.get(&id);
        let is_restored = self.book.restore(lane, snapshot.map(|snapshot| &snapshot.saved));
        let Some(snapshot) = snapshot.filter(|_| is_restored) else { return Ok(()) };
        host.stream.context().make_current()?;
        if let Some(features) = &snapshot.features {
            let row_bytes = self.spec.features_len() * size_of::<f32>();
            for idx in 0..snapshot.saved.num_waiting {
                let to = self.workspace.features.offset(self.slot(lane, idx) * row_bytes)?;
                host.stream.copy(features.address().offset(idx * row_bytes)?, to, row_bytes)?;
            }
        }
        if let Some(kv) = snapshot.kv {
            self.lanes.restore_snapshot(host.stream, host.kernels, lane, kv)?;
        }
        // A snapshot may be dropped right after it was restored.
        captures::wait(host.stream, Duration::ZERO, self.options.step_limit)?;
        Ok(())
    }

    pub fn drop_snapshot(&mut self, id: SnapshotId) {
        if let Some(kv) = self.snapshots.remove(&id).and_then(|snapshot| snapshot.kv) {
            self.lanes.drop_snapshot(kv);
        }
    }

    /// Rows to read are laid out from here on, `num_due` of them.
    pub(super) fn begin_reading(&mut self, num_due: usize, host: &mut Host<'_>) -> Result<()> {
        self.reading = None;
        if num_due > 0 {
            let shape = ReadShape::of(num_due, self.max_read_rows);
            self.capture_read(shape, host)?;
            self.read_input.clear(shape);
            self.reading = Some(shape);
        }
        Ok(())
    }

    /// The first `num_rows` that wait in `lane` are to be read; `source` says where each has its features.
    pub(super) fn push_reads(
        &mut self,
        lane: LaneId,
        num_rows: usize,
        source: impl Fn(&Self, usize) -> usize,
    ) {
        let Some(shape) = self.reading else { return };
        let first = self.book.num_read(lane);
        for idx in 0..num_rows {
            let row = ReadRow {
                source: source(self, idx),
                next_token: self.book.next_tokens(lane).get(idx).copied().unwrap_or_default(),
                lane: lane.0,
                position: first + idx,
                tip: (idx + 1 == num_rows).then(|| hidden_row(lane, None)),
            };
            self.read_input.push(shape, row);
        }
        self.book.note_read(lane, num_rows);
    }

    /// The features of the `idx`-th row that waits in `lane`.
    pub(super) fn slot(&self, lane: LaneId, idx: usize) -> usize {
        let slot = (self.first_slot[lane.0] + idx) % MAX_WAITING;
        self.options.max_step_tokens + lane.0 * MAX_WAITING + slot
    }

    /// Of the rows that waited only the last is left, in what was slot `idx`.
    fn keep_last_in(&mut self, lane: LaneId, idx: usize) {
        self.first_slot[lane.0] = (self.first_slot[lane.0] + idx) % MAX_WAITING;
    }
}

/// Where the hidden row lies from which a draft goes on: that of the last row read, or of row `number` since the root.
pub(super) fn hidden_row(lane: LaneId, number: Option<usize>) -> usize {
    lane.0 * (1 + MAX_DRAFT_ROWS) + number.map_or(0, |number| 1 + number)
}
