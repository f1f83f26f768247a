//! A target's lanes and the head that reads them along, where there is one: whatever happens to a lane happens to both.

use std::time::Duration;

use takt_kernels_cu::driver::stream::{Found, Stream};

use super::{CudaDraft, FeatureRows, Host};
use crate::{
    Result,
    backend::{
        device::{captures, lanes::DeviceLanes},
        no_draft,
    },
    draft::{DraftFacts, DraftOutput, DraftPlan},
    kv::{LaneBook, LaneId, SnapshotId},
    step::StepPlan,
};

/// The lanes of a backend on a GPU. Fields are given back in their order: a head's graphs before the buffers they name.
#[derive(Debug)]
pub(in crate::backend) struct TargetLanes {
    head: Option<Box<CudaDraft>>,
    lanes: DeviceLanes,
}

impl TargetLanes {
    /// Without a head.
    pub fn new(lanes: DeviceLanes) -> Self {
        Self { head: None, lanes }
    }

    /// The target's own.
    pub fn on_device(&self) -> &DeviceLanes {
        &self.lanes
    }

    pub fn head(&self) -> Option<&CudaDraft> {
        self.head.as_deref()
    }

    /// What the target's lanes hold.
    pub fn book(&self) -> &LaneBook {
        &self.lanes.book
    }

    /// Bytes of both caches.
    pub fn num_bytes(&self) -> u64 {
        self.lanes.num_bytes() + self.head.as_ref().map_or(0, |head| head.kv_bytes())
    }

    /// From now on `head` reads along, or none. Lanes are empty afterwards. Returns the one of before.
    ///
    /// # Errors
    /// [`crate::EngineError::Input`] when a lane cannot be emptied; the head is the one of before then.
    pub fn attach(&mut self, head: Option<Box<CudaDraft>>) -> Result<Option<Box<CudaDraft>>> {
        (0..self.lanes.book.num_lanes()).try_for_each(|lane| self.truncate(LaneId(lane), 0))?;
        Ok(std::mem::replace(&mut self.head, head))
    }

    /// See [`CudaDraft::follow_step`]; nothing without a head.
    pub fn follow_step(
        &mut self,
        plan: &StepPlan,
        step: &mut dyn FeatureRows,
        host: &mut Host<'_>,
    ) -> Result<()> {
        match &mut self.head {
            Some(head) => head.follow_step(plan, &self.lanes.book, step, host),
            None => Ok(()),
        }
    }

    /// Waits for a step that usually takes `usual`, within `limit`; the head reads along behind it where it has to, if all of the step was `put` into the
    /// stream. Returns how it was found, and what reading usually takes.
    ///
    /// # Errors
    /// [`crate::EngineError::Backend`] for a device that faults or does not end.
    pub fn read_and_wait(
        &mut self,
        stream: &Stream,
        put: &Result<()>,
        (usual, limit): (Duration, Duration),
    ) -> Result<(Found, Duration)> {
        match self.head.as_mut().filter(|head| head.has_to_read() && put.is_ok()) {
            Some(head) => head.read_and_wait(stream, usual),
            None => Ok((captures::wait(stream, usual, limit)?, Duration::ZERO)),
        }
    }

    /// Notes what the lanes of `plan` hold after its step, of which `ran` came.
    ///
    /// # Errors
    /// Those of `ran`: nothing is committed then, and the head has to read these lanes anew.
    pub fn end_step(&mut self, plan: &StepPlan, ran: Result<()>) -> Result<()> {
        let book = &mut self.lanes.book;
        // Whatever came of it, the rows of earlier trees are overwritten.
        plan.segments.iter().for_each(|segment| book.forget_tree(segment.lane));
        if ran.is_err()
            && let Some(head) = &mut self.head
        {
            plan.segments.iter().for_each(|segment| head.go_cold(segment.lane));
        }
        ran?;
        for segment in &plan.segments {
            if segment.is_tree {
                book.note_tree(segment.lane, &plan.parents[segment.tokens.clone()]);
            } else {
                book.commit(segment.lane, segment.tokens.len());
            }
        }
        Ok(())
    }

    /// See [`crate::backend::Backend::keep`].
    pub fn keep(&mut self, lane: LaneId, path: &[usize], host: &mut Host<'_>) -> Result<()> {
        if let Some(head) = &mut self.head {
            head.prepare_keep(lane, path, host)?;
        }
        self.lanes.keep(host.stream, host.kernels, lane, path)?;
        self.head.as_mut().map_or(Ok(()), |head| head.keep(lane, path, host.stream))
    }

    /// See [`crate::backend::Backend::truncate`].
    pub fn truncate(&mut self, lane: LaneId, len: usize) -> Result<()> {
        self.lanes.book.truncate(lane, len)?;
        if let Some(head) = &mut self.head {
            head.truncate(lane, len);
        }
        Ok(())
    }

    /// See [`crate::backend::Backend::save_snapshot`].
    pub fn save_snapshot(&mut self, lane: LaneId, len: usize, host: &mut Host<'_>) -> Result<SnapshotId> {
        let snapshot = self.lanes.save_snapshot(host.stream, host.kernels, lane, len)?;
        if let Some(head) = &mut self.head
            && let Err(error) = head.save_snapshot(lane, len, snapshot, host)
        {
            self.lanes.drop_snapshot(snapshot);
            return Err(error);
        }
        Ok(snapshot)
    }

    /// See [`crate::backend::Backend::restore_snapshot`].
    pub fn restore_snapshot(
        &mut self,
        lane: LaneId,
        snapshot: SnapshotId,
        host: &mut Host<'_>,
    ) -> Result<()> {
        self.lanes.restore_snapshot(host.stream, host.kernels, lane, snapshot)?;
        self.head.as_mut().map_or(Ok(()), |head| head.restore_snapshot(lane, snapshot, host))
    }

    /// See [`crate::backend::Backend::drop_snapshot`].
    pub fn drop_snapshot(&mut self, snapshot: SnapshotId) {
        self.lanes.drop_snapshot(snapshot);
        if let Some(head) = &mut self.head {
            head.drop_snapshot(snapshot);
        }
    }

    /// See [`crate::backend::Backend::draft_facts`].
    pub fn draft_facts(&self) -> Option<&DraftFacts> {
        self.head().map(CudaDraft::facts)
    }

    /// See [`crate::backend::Backend::follow`].
    pub fn follow(&mut self, lane: LaneId, follows: bool) {
        let committed_len = self.lanes.book.committed_len(lane);
        if let Some(head) = &mut self.head {
            head.follow(lane, follows, committed_len);
        }
    }

    /// See [`crate::backend::Backend::can_draft`].
    pub fn can_draft(&self, lane: LaneId) -> bool {
        self.head().is_some_and(|head| head.is_warm(lane, self.lanes.book.committed_len(lane)))
    }

    /// See [`crate::backend::Backend::draft`], of which `backend` is the name.
    pub fn draft(&mut self, plan: &DraftPlan, backend: &str, host: &mut Host<'_>) -> Result<DraftOutput<'_>> {
        let Some(head) = &mut self.head else { return Err(no_draft(backend)) };
        head.draft(plan, |lane| self.lanes.book.committed_len(lane), host)
    }
}
