//! A step's rows of logits: they stay on the device but for lists, rows that were asked for whole, and rows that are fetched.

use std::{ops::Range, time::Duration};

use takt_kernels_cu::{
    driver::{context::Context, memory::MappedBuffer, module::Kernels, stream::Stream},
    launch::DeviceAddress,
};

use super::{
    captures,
    choices::Choices,
    lists::{ListRoom, ListShape, Lists, MAX_LISTS},
};
use crate::{
    Result,
    backend::{no_row, plan_check::num_logits_rows},
    rows::{Choice, Likeliest},
    step::{Detail, Segment, StepPlan},
};

/// Most of everything.
#[derive(Debug, Clone, Copy)]
pub(in crate::backend) struct RowLimits {
    /// Segments of a step.
    pub max_segments: usize,
    /// Rows that are handed out.
    pub max_rows: usize,
    /// Rows on the device: as many, or more where some pad.
    pub max_places: usize,
}

impl RowLimits {
    fn logits_bytes(self, vocab_size: usize) -> usize {
        self.max_rows * vocab_size * size_of::<f32>()
    }
}

/// The rows of the last step.
#[derive(Debug)]
pub(in crate::backend) struct StepRows {
    lists: Lists,
    choices: Choices,
    max_segments: usize,
    /// Of the step that is about to run.
    wanted: Vec<ListShape>,
    /// Where the step leaves them, F32 `[P, V]`.
    on_device: DeviceAddress,
    /// On the host, `[R, V]`; each has its place.
    logits: MappedBuffer,
    vocab_size: usize,
    first_row: Vec<usize>,
    /// Which row on the device each is.
    places: Vec<usize>,
    /// Which rows were brought with the step.
    whole: Vec<bool>,
}

impl StepRows {
    /// For steps within `limits`, which leave their rows at `on_device`.
    pub(in crate::backend) fn new(
        context: &Context,
        limits: RowLimits,
        (on_device, vocab_size): (DeviceAddress, usize),
        room: ListRoom,
    ) -> Result<Self> {
        let RowLimits { max_segments, max_rows, max_places } = limits;
        Ok(Self {
            lists: Lists::new(context, max_places, (on_device, vocab_size), room)?,
            choices: Choices::new(context, max_segments, (max_rows, max_places), (room.choices, vocab_size))?,
            max_segments,
            wanted: Vec::with_capacity(MAX_LISTS),
            on_device,
            logits: MappedBuffer::new(context, limits.logits_bytes(vocab_size), "logits")?,
            vocab_size,
            first_row: Vec::with_capacity(max_segments + 1),
            places: Vec::with_capacity(max_rows),
            whole: Vec::with_capacity(max_rows),
        })
    }

    /// Bytes of pinned memory.
    pub(in crate::backend) fn pinned_bytes(limits: RowLimits, vocab_size: usize) -> usize {
        let choices = Choices::num_bytes(limits.max_places);
        limits.logits_bytes(vocab_size) + Lists::pinned_bytes(limits.max_places, vocab_size) + choices
    }

    /// Notes which rows `plan` wants, each in its order on the device, and returns how many; nothing of the step before is left.
    pub(in crate::backend) fn lay_out(&mut self, plan: &StepPlan) -> usize {
        self.first_row.clear();
        self.whole.clear();
        self.lists.forget();
        self.choices.lay_out(plan);
        self.wanted.clear();
        let mut num_rows = 0;
        for segment in &plan.segments {
            self.first_row.push(num_rows);
            num_rows += num_logits_rows(segment);
            self.whole.resize(num_rows, segment.detail == Detail::Whole);
        }
        self.first_row.push(num_rows);
        self.places.clear();
        self.places.extend(0..num_rows);
        num_rows
    }

    /// Row `row` of those that were laid out is `place` on the device.
    pub(in crate::backend) fn put(&mut self, row: usize, place: usize) {
        if let Some(known) = self.places.get_mut(row) {
            *known = place;
        }
    }

    /// Has room for what decoding and forms usually ask of as many runs of rows.
    pub(in crate::backend) fn make_room(&mut self, num_runs: usize) {
        self.lists.make_room(num_runs);
    }

    /// Captures what samplers of all kinds and forms ask of the rows `rows` on the device, for single tokens and for trees. Choices beside lists in one
    /// step are captured when they first come: that takes milliseconds.
    pub(in crate::backend) fn capture_usual(
        &mut self,
        stream: &Stream,
        kernels: &mut Kernels,
        rows: Range<usize>,
    ) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        self.lists.capture_usual(stream, kernels, (rows, self.max_segments), &self.choices)
    }

    /// Puts what greedy decoding asks of the rows `rows`, which was captured, into the stream, for nobody: the first time that a graph runs the
    /// driver's function is looked up, which allocates.
    pub(in crate::backend) fn rehearse(&mut self, stream: &Stream, rows: Range<usize>) -> Result<()> {
        for shape in self.lists.usual(rows, self.max_segments).into_iter().filter(|shape| shape.is_plain()) {
            // All of them pad.
            shape.run().into_iter().for_each(|run| self.choices.begin(run));
            self.lists.find(stream, &[shape])?;
        }
        self.lists.forget();
        Ok(())
    }

    /// Notes that `segments` have their rows among `rows` on the device, whose lists, of padding too, they may need. After [`Self::lay_out`]; `rows` of
    /// one step do not meet.
    pub(in crate::backend) fn want<'a>(
        &mut self,
        segments: impl Iterator<Item = &'a Segment>,
        rows: Range<usize>,
    ) {
        self.wanted.extend(self.lists.shape_of(segments, rows, self.max_segments));
    }

    /// Captures what is wanted for `plan`, unless that is there, and writes what is to be chosen. The step before must be done.
    pub(in crate::backend) fn prepare(
        &mut self,
        stream: &Stream,
        kernels: &mut Kernels,
        plan: &StepPlan,
    ) -> Result<()> {
        for &shape in &self.wanted {
            self.lists.capture(stream, kernels, shape, &self.choices)?;
        }
        self.wanted.iter().filter_map(|shape| shape.run()).for_each(|run| self.choices.begin(run));
        for (idx, segment) in plan.segments.iter().enumerate() {
            self.ask(plan, idx, segment);
        }
        Ok(())
    }

    /// Asks for the choice of segment `idx` of `plan`, where it wants one.
    fn ask(&mut self, plan: &StepPlan, idx: usize, segment: &Segment) {
        let (Detail::Chosen(sampler), Some(&[start, end])) =
            (segment.detail, self.first_row.get(idx..idx + 2).and_then(|rows| rows.first_chunk()))
        else {
            return;
        };
        // Down a tree by all of its rows, else by the last.
        let rows = if segment.is_tree { start..end } else { end.saturating_sub(1).max(start)..end };
        let Some(&place) = self.places.get(rows.start).filter(|_| !rows.is_empty()) else { return };
        let mut runs = self.wanted.iter().filter_map(|shape| shape.run());
        let Some(run) = runs.find(|run| run.rows().contains(&place)) else { return };
        let parents = if segment.is_tree { &plan.parents[segment.tokens.clone()] } else { &[0] };
        self.choices.ask(run, sampler, (rows, place), parents);
    }

    /// Brings what was wanted with the step, in the stream's order.
    pub(in crate::backend) fn bring(&mut self, stream: &Stream) -> Result<()> {
        self.lists.find(stream, &self.wanted)?;
        for rows in self.first_row.windows(2) {
            if rows[0] < rows[1] && self.whole[rows[0]] {
                self.copy(stream, rows[0]..rows[1])?;
            }
        }
        Ok(())
    }

    /// Neighbours in one copy.
    fn copy(&self, stream: &Stream, rows: Range<usize>) -> Result<()> {
        let row_bytes = self.vocab_size * size_of::<f32>();
        let mut first = rows.start;
        while first < rows.end {
            let place = self.places[first];
            let run = self.places[first..rows.end].iter().zip(place..);
            let len = run.take_while(|(found, next)| *found == next).count();
            let from = self.on_device.offset(place * row_bytes)?;
            stream.fetch_to(from, &self.logits, first * row_bytes, len * row_bytes)?;
            first += len;
        }
        Ok(())
    }

    /// First row of each segment, and one past the last row.
    pub(in crate::backend) fn first_row(&self) -> &[usize] {
        &self.first_row
    }

    /// See [`crate::rows::RowSource::here`].
    pub(in crate::backend) fn here(&self, rows: Range<usize>) -> Option<&[f32]> {
        let all_here = self.whole.get(rows.clone())?.iter().all(|&is_here| is_here);
        let logits = self.logits.floats().get(rows.start * self.vocab_size..rows.end * self.vocab_size);
        logits.filter(|_| all_here)
    }

    /// The list of row `row`, if there is one.
    pub(in crate::backend) fn list(&self, row: usize) -> Option<Likeliest<'_>> {
        self.lists.row(*self.places.get(row)?)
    }

    /// What was chosen by row `row`, if something was.
    pub(in crate::backend) fn choice(&self, row: usize) -> Option<Choice> {
        self.choices.row(row)
    }

    /// Brings row `row` and waits for it, within `limit`. The caller sees to it that nobody looks at a row meanwhile.
    pub(in crate::backend) fn fetch(&self, stream: &Stream, row: usize, limit: Duration) -> Result<&[f32]> {
        if row >= self.whole.len() {
            return Err(no_row(row, self.whole.len()));
        }
        stream.context().make_current()?;
        self.copy(stream, row..row + 1)?;
        captures::wait(stream, Duration::ZERO, limit)?;
        Ok(&self.logits.floats()[row * self.vocab_size..][..self.vocab_size])
    }
}
