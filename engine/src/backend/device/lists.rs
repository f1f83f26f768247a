//! Short lists of the likeliest tokens: found on the device behind a step's graph, in the same stream, so that they travel instead of logits.
//!
//! ```text
//! results, from word `first_row · (2 + 2 · longest)` on:
//!          [R] U32 status | [R, k] U32 tokens, NO_TOKEN behind the last | [R, k] F32 logits | [R] F32 log-sum-exp, which stays
//! ```
//!
//! A step has a list for each run of rows that lie together, whose places do not meet. A graph of its own for each first row, number of rows R and length k, of which those that were not run for longest give way: a step's graph does not depend on what its caller wants of the logits. Where tokens
//! are chosen by the lists ([`super::choices`]), that is in the same graph, and lists that nobody else asked for stay on the device.

use std::ops::Range;

use takt_kernels_cu::{
    driver::{context::Context, memory::MappedBuffer, module::Kernels, stream::Stream},
    launch::{
        DeviceAddress,
        accept::MAX_VOCAB_SIZE,
        logits::{self, Logits, LogitsOutput, LogitsScratch},
    },
};

use super::{
    captures::Captures,
    choices::{Asked, ChoiceShape, Choices, Run},
};
use crate::{
    Result, TokenId,
    backend::plan_check::num_logits_rows,
    rows::{Likeliest, MAX_LIST_LEN},
    step::{Detail, Segment},
};

/// Lists of a step that are usual, at most: single tokens, trees, a prompt in each of 64 lanes, a text that is scored.
pub(in crate::backend) const MAX_LISTS: usize = 67;
/// Lengths that lists are rounded up to. Finding the likeliest takes a pass over what a block holds for each, so they are few but not one.
const LENS: [usize; 5] = [1, 8, 16, 32, MAX_LIST_LEN];
/// Graphs of a run of rows that are usual, at most: of tokens, one tree and several by each length and by whole rows, and a form's.
const NUM_USUAL: usize = 3 * (LENS.len() + 1) + 1;
/// In place of a token where a row has no more; the kernel writes −1.
const NO_TOKEN: TokenId = TokenId::MAX;

/// A list's graph: rows, those that pad the step's shape included, and tokens of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::backend) struct ListShape {
    /// Of all rows there are on the device.
    pub first_row: usize,
    pub num_rows: usize,
    pub len: usize,
    /// Whether the lists come to the host.
    pub travels: bool,
    /// What is chosen by them.
    pub choice: Option<ChoiceShape>,
}

impl ListShape {
    /// Lists of `len` of `rows`, which travel.
    fn travelling(rows: Range<usize>, len: usize) -> Self {
        Self { first_row: rows.start, num_rows: rows.len(), len, travels: true, choice: None }
    }

    /// Lists of `len` of `rows`, for nobody but what chooses by them.
    fn choosing(rows: Range<usize>, len: usize, choice: ChoiceShape) -> Self {
        Self { first_row: rows.start, num_rows: rows.len(), len, travels: false, choice: Some(choice) }
    }

    /// Whether it is what a decode step asks for that chooses greedily or by whole rows, or a form's.
    pub(super) fn is_plain(self) -> bool {
        self.choice.is_none_or(|choice| self.len == 1 && !choice.has_branches())
    }

    /// What is chosen, where something is.
    pub(super) fn run(self) -> Option<Run> {
        let Self { first_row, num_rows, .. } = self;
        self.choice.map(|shape| Run { first_row, num_rows, shape })
    }

    /// Bytes of what travels.
    fn num_bytes(self) -> usize {
        self.num_rows * (1 + 2 * self.len) * size_of::<u32>()
    }

    /// Word in the results at which it begins where no list is longer than `max_len`: rows that do not meet have lists that do not.
    fn start(self, max_len: usize) -> usize {
        self.first_row * (2 + 2 * max_len)
    }

    /// Word in the results at which the status, the tokens, the logits and the log-sum-exp begin.
    fn words(self, max_len: usize) -> [usize; 4] {
        let Self { num_rows, len, .. } = self;
        [0, num_rows, num_rows * (1 + len), num_rows * (1 + 2 * len)].map(|word| self.start(max_len) + word)
    }
}

/// Where the lists' kernels work, for the most rows and the longest lists.
#[derive(Debug, Clone, Copy)]
pub(in crate::backend) struct ListRoom {
    /// U64 `[R, slices, k]`.
    pub keys: DeviceAddress,
    /// F32 `[R, slices, 2]`.
    pub sums: DeviceAddress,
    /// See the top of this file.
    pub results: DeviceAddress,
    /// See the top of [`super::choices`].
    pub choices: DeviceAddress,
}

impl ListRoom {
    /// Bytes of its four buffers.
    pub(in crate::backend) fn num_bytes(max_rows: usize, vocab_size: usize) -> Result<[usize; 4]> {
        let len = max_len(vocab_size);
        let none = DeviceAddress::NULL;
        let room = Self { keys: none, sums: none, results: none, choices: none };
        let largest = ListShape::travelling(0..max_rows, len);
        let (keys, sums) = room.logits(none, vocab_size, largest)?.scratch_lens()?;
        let results = largest.num_bytes() + largest.num_rows * size_of::<f32>();
        Ok([keys * size_of::<u64>(), sums * size_of::<f32>(), results, Choices::num_bytes(max_rows)])
    }

    fn logits(&self, logits: DeviceAddress, vocab_size: usize, shape: ListShape) -> Result<Logits> {
        let [status, tokens, values, log_sum_exp] = shape.words(max_len(vocab_size));
        let at = |word: usize| self.results.offset(word * size_of::<u32>());
        Ok(Logits {
            logits,
            masks: None,
            scratch: LogitsScratch { keys: self.keys, sums: self.sums },
            output: LogitsOutput {
                tokens: at(tokens)?,
                values: at(values)?,
                log_sum_exp: at(log_sum_exp)?,
                status: at(status)?,
            },
            num_rows: shape.num_rows,
            vocab_size,
            k: shape.len,
        })
    }
}

/// The longest list that the kernel finds in so many logits, and anybody asks for.
fn max_len(vocab_size: usize) -> usize {
    logits::max_top_k(vocab_size).min(MAX_LIST_LEN)
}

/// The lists of the last step.
#[derive(Debug)]
pub(in crate::backend) struct Lists {
    graphs: Captures<ListShape>,
    results: MappedBuffer,
    room: ListRoom,
    logits: DeviceAddress,
    vocab_size: usize,
    /// Whether rows are not too long to be chosen by.
    chooses: bool,
    /// What the results are of; none when the last step had no lists.
    found: Vec<ListShape>,
}

impl Lists {
    /// Of rows of `vocab_size` logits at `logits`, none found yet.
    pub(in crate::backend) fn new(
        context: &Context,
        max_rows: usize,
        (logits, vocab_size): (DeviceAddress, usize),
        room: ListRoom,
    ) -> Result<Self> {
        let results =
            MappedBuffer::new(context, Self::pinned_bytes(max_rows, vocab_size), "lists of tokens")?;
        let found = Vec::with_capacity(MAX_LISTS);
        let chooses = vocab_size <= MAX_VOCAB_SIZE;
        Ok(Self { graphs: Captures::default(), results, room, logits, vocab_size, chooses, found })
    }

    /// Bytes of pinned memory.
    pub(in crate::backend) fn pinned_bytes(max_rows: usize, vocab_size: usize) -> usize {
        let len = max_len(vocab_size);
        ListShape::travelling(max_rows..max_rows, len).start(len) * size_of::<u32>()
    }

    /// What the lists of `rows` are that `segments`, of `max_segments` at most, need; `None` where they need none. Who asks for a longer one than there is
    /// fetches rows.
    pub(in crate::backend) fn shape_of<'a>(
        &self,
        segments: impl Iterator<Item = &'a Segment>,
        rows: Range<usize>,
        max_segments: usize,
    ) -> Option<ListShape> {
        let max_len = max_len(self.vocab_size);
        let (mut longest, mut travels, mut asked) = (0, false, Asked::default());
        for segment in segments.filter(|segment| num_logits_rows(segment) > 0) {
            match segment.detail {
                Detail::Likeliest(len) if len <= max_len => {
                    (longest, travels) = (longest.max(len).max(1), true);
                }
                Detail::Chosen(sampler) if self.chooses => {
                    let listed = match sampler.detail(self.vocab_size) {
                        Detail::Likeliest(len) if len <= max_len => Some(len),
                        _ => None,
                    };
                    asked.add(segment, listed.is_none());
                    // Of a whole row that is chosen by, its largest logit.
                    longest = longest.max(listed.unwrap_or(1));
                }
                // Rows that are too long to be chosen by.
                Detail::Chosen(sampler) => {
                    if let Detail::Likeliest(len) = sampler.detail(self.vocab_size)
                        && len <= max_len
                    {
                        (longest, travels) = (longest.max(len), true);
                    }
                }
                _ => {}
            }
        }
        let rounded = LENS.into_iter().find(|&len| len >= longest);
        let len = rounded.map_or(max_len, |len| len.min(max_len));
        let choice = asked.shape(rows.len(), max_segments);
        (longest > 0).then_some(ListShape { len, travels, choice, ..ListShape::travelling(rows, len) })
    }

    /// Has room for the usual lists of as many runs of rows: none gives way to another of them.
    pub(in crate::backend) fn make_room(&mut self, num_runs: usize) {
        self.graphs.make_room(NUM_USUAL * num_runs);
    }

    /// Captures what is usual of `rows`, unless it is there: whatever is chosen, for at most `max_segments` at a time, and forms' lists.
    pub(super) fn capture_usual(
        &mut self,
        stream: &Stream,
        kernels: &mut Kernels,
        (rows, max_segments): (Range<usize>, usize),
        choices: &Choices,
    ) -> Result<()> {
        let usual = self.usual(rows, max_segments);
        usual.into_iter().try_for_each(|shape| self.capture(stream, kernels, shape, choices))
    }

    /// What is usual of `rows`: all but choices beside lists.
    pub(super) fn usual(&self, rows: Range<usize>, max_segments: usize) -> Vec<ListShape> {
        let max_len = max_len(self.vocab_size);
        let mut shapes = vec![ListShape::travelling(rows.clone(), max_len)];
        if !self.chooses {
            shapes.push(ListShape::travelling(rows, 1));
            return shapes;
        }
        let mut lens = LENS.map(|len| len.min(max_len)).to_vec();
        lens.dedup();
        // By whole rows, too, beside lists of one.
        let kinds = lens.into_iter().map(|len| (len, false)).chain([(1, true)]);
        for (len, is_wide) in kinds {
            let choices = ChoiceShape::usual(rows.len(), max_segments, is_wide);
            shapes.extend(choices.map(|choice| ListShape::choosing(rows.clone(), len, choice)));
        }
        shapes
    }

    /// Captures the graph of `shape`, unless it is there.
    pub(super) fn capture(
        &mut self,
        stream: &Stream,
        kernels: &mut Kernels,
        shape: ListShape,
        choices: &Choices,
    ) -> Result<()> {
        if self.graphs.keeps(shape) {
            return Ok(());
        }
        let first = self.logits.offset(shape.first_row * self.vocab_size * size_of::<f32>())?;
        let logits = self.room.logits(first, self.vocab_size, shape)?;
        let choosing = shape.run().map(|run| choices.choosing(run, &logits)).transpose()?;
        let launches = logits.launches()?;
        stream.context().make_current()?;
        let all = || launches.iter().chain(choosing.iter().map(|choosing| &choosing.launch));
        all().try_for_each(|launch| kernels.prepare(launch))?;
        let at = shape.start(max_len(self.vocab_size)) * size_of::<u32>();
        let found = self.room.results.offset(at)?;
        let graph = stream.capture(|stream| {
            choosing.iter().try_for_each(|choosing| choices.send(stream, choosing))?;
            all().try_for_each(|launch| stream.launch(kernels, launch))?;
            choosing.iter().try_for_each(|choosing| choices.bring(stream, choosing))?;
            if shape.travels { stream.fetch_to(found, &self.results, at, shape.num_bytes()) } else { Ok(()) }
        })?;
        self.graphs.insert(shape, graph);
        Ok(())
    }

    /// Finds the lists `shapes` of the step that is in the stream, in its order.
    pub(in crate::backend) fn find(&mut self, stream: &Stream, shapes: &[ListShape]) -> Result<()> {
        self.found.clear();
        for &shape in shapes {
            self.graphs.start(stream, shape)?;
            self.found.push(shape);
        }
        Ok(())
    }

    /// Forgets what was found: the step failed.
    pub(in crate::backend) fn forget(&mut self) {
        self.found.clear();
    }

    /// The list of row `row` of those on the device; `None` without one, or when the row has no logits to choose by: then the whole row says what is wrong with it.
    pub(in crate::backend) fn row(&self, row: usize) -> Option<Likeliest<'_>> {
        let within = |shape: &ListShape| row.checked_sub(shape.first_row).filter(|&row| row < shape.num_rows);
        let mut here = self.found.iter().filter(|shape| shape.travels);
        let (shape, row) = here.find_map(|shape| Some((*shape, within(shape)?)))?;
        let [status, tokens, values, _] = shape.words(max_len(self.vocab_size));
        let words = self.results.words();
        if words.get(status + row) != Some(&0) {
            return None;
        }
        let first = row * shape.len;
        let listed = words.get(tokens + first..tokens + first + shape.len)?;
        let len = listed.iter().position(|&token| token == NO_TOKEN).unwrap_or(shape.len);
        let values = self.results.floats().get(values + first..values + first + len)?;
        Some(Likeliest::new(&listed[..len], values, shape.len))
    }
}
