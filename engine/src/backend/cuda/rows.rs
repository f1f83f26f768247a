//! A step's rows of logits: they stay on the device but for lists, rows that were asked for whole, and rows that are fetched.

use std::{ops::Range, time::Duration};

use takt_kernels_cu::{
    driver::{context::Context, memory::MappedBuffer, module::Kernels, stream::Stream},
    launch::DeviceAddress,
};

use super::{
    captures,
    lists::{ListShape, Lists},
    shape::ShapeLimits,
    workspace::Workspace,
};
use crate::{
    Result,
    backend::{no_row, plan_check::num_logits_rows},
    rows::Likeliest,
    step::{Detail, StepPlan},
};

/// The rows of the last step.
#[derive(Debug)]
pub(super) struct StepRows {
    lists: Lists,
    /// Of the step that is about to run.
    wanted: Option<ListShape>,
    /// Where the step leaves them, F32 `[R, V]`.
    on_device: DeviceAddress,
    /// As many on the host; each has its place.
    logits: MappedBuffer,
    vocab_size: usize,
    first_row: Vec<usize>,
    /// Which rows were brought with the step.
    whole: Vec<bool>,
}

impl StepRows {
    /// For steps within `limits`.
    pub(super) fn new(
        context: &Context,
        limits: ShapeLimits,
        vocab_size: usize,
        workspace: &Workspace,
    ) -> Result<Self> {
        let on_device = workspace.logits;
        Ok(Self {
            lists: Lists::new(context, limits, (on_device, vocab_size), workspace.lists)?,
            wanted: None,
            on_device,
            logits: MappedBuffer::new(context, limits.max_logits * vocab_size * size_of::<f32>(), "logits")?,
            vocab_size,
            first_row: Vec::with_capacity(limits.num_lanes + 1),
            whole: Vec::with_capacity(limits.max_logits),
        })
    }

    /// Bytes of pinned memory.
    pub(super) fn pinned_bytes(limits: ShapeLimits, vocab_size: usize) -> usize {
        limits.max_logits * vocab_size * size_of::<f32>() + Lists::pinned_bytes(limits, vocab_size)
    }

    /// Notes which rows `plan` wants, and returns how many; nothing of the step before is left.
    pub(super) fn lay_out(&mut self, plan: &StepPlan) -> usize {
        self.first_row.clear();
        self.whole.clear();
        self.lists.forget();
        let mut num_rows = 0;
        for segment in &plan.segments {
            self.first_row.push(num_rows);
            num_rows += num_logits_rows(segment);
            self.whole.resize(num_rows, segment.detail == Detail::Whole);
        }
        self.first_row.push(num_rows);
        num_rows
    }

    /// Captures what greedy decoding asks of `num_rows` rows.
    pub(super) fn capture_usual(
        &mut self,
        stream: &Stream,
        kernels: &mut Kernels,
        num_rows: usize,
    ) -> Result<()> {
        if num_rows == 0 {
            return Ok(());
        }
        self.lists.capture(stream, kernels, ListShape { num_rows, len: 1 })
    }

    /// Captures what `plan`, whose step has `num_rows` rows with padding, will ask of them, unless that is there.
    pub(super) fn prepare(
        &mut self,
        stream: &Stream,
        kernels: &mut Kernels,
        (plan, num_rows): (&StepPlan, usize),
    ) -> Result<()> {
        self.wanted = self.lists.shape_of(plan, num_rows);
        self.wanted.map_or(Ok(()), |shape| self.lists.capture(stream, kernels, shape))
    }

    /// Brings what `plan` wants with the step, in the stream's order.
    pub(super) fn bring(&mut self, stream: &Stream, plan: &StepPlan) -> Result<()> {
        self.lists.find(stream, self.wanted)?;
        for (segment, rows) in plan.segments.iter().zip(self.first_row.windows(2)) {
            if segment.detail == Detail::Whole && rows[0] < rows[1] {
                self.copy(stream, rows[0]..rows[1])?;
            }
        }
        Ok(())
    }

    fn copy(&self, stream: &Stream, rows: Range<usize>) -> Result<()> {
        let row_bytes = self.vocab_size * size_of::<f32>();
        let at = rows.start * row_bytes;
        Ok(stream.fetch_to(self.on_device.offset(at)?, &self.logits, at, rows.len() * row_bytes)?)
    }

    /// First row of each segment, and one past the last row.
    pub(super) fn first_row(&self) -> &[usize] {
        &self.first_row
    }

    /// See [`crate::rows::RowSource::here`].
    pub(super) fn here(&self, rows: Range<usize>) -> Option<&[f32]> {
        let all_here = self.whole.get(rows.clone())?.iter().all(|&is_here| is_here);
        let logits = self.logits.floats().get(rows.start * self.vocab_size..rows.end * self.vocab_size);
        logits.filter(|_| all_here)
    }

    /// The list of row `row`, if there is one.
    pub(super) fn list(&self, row: usize) -> Option<Likeliest<'_>> {
        self.lists.row(row)
    }

    /// Brings row `row` and waits for it, within `limit`. The caller sees to it that nobody looks at a row meanwhile.
    pub(super) fn fetch(&self, stream: &Stream, row: usize, limit: Duration) -> Result<&[f32]> {
        if row >= self.whole.len() {
            return Err(no_row(row, self.whole.len()));
        }
        stream.context().make_current()?;
        self.copy(stream, row..row + 1)?;
        captures::wait(stream, Duration::ZERO, limit)?;
        Ok(&self.logits.floats()[row * self.vocab_size..][..self.vocab_size])
    }
}
