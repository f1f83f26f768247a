//! Tokens chosen on the device, behind the lists of a step and in the same graph: trees are walked, and one token is taken for whoever decodes. What travels
//! is a few words a tree.
//!
//! ```text
//! input, from byte `first_row · ROW_BYTES` on, of N trees and R rows:
//!          [N] Tree | [N] Sampler | [R] I32 tokens | [R] I32 parents
//! results, from word `first_row · RESULT_WORDS` on:
//!          [N, RESULT_HEADER + longest path] I32
//! ```
//!
//! Each run of rows that lie together has trees of its own. It has no more of them than rows, so that runs that do not meet have input and results that do
//! not.

use std::ops::Range;

use takt_kernels_cu::{
    driver::{DriverError, context::Context, memory::MappedBuffer, stream::Stream},
    launch::{
        DeviceAddress, Launch,
        accept::{self, Accept, Acceptance, RESULT_HEADER},
        logits::Logits,
    },
};

use super::lanes::MAX_TREE_DEPTH;
use crate::{
    Result, TokenId,
    backend::plan_check::num_logits_rows,
    rows::Choice,
    sampler::SamplerState,
    step::{Segment, StepPlan},
};

/// Most nodes of a path; a longer one is for the host to walk on.
const MAX_PATH: usize = MAX_TREE_DEPTH;
const TREE_BYTES: usize = size_of::<accept::Tree>();
const SAMPLER_BYTES: usize = size_of::<accept::SamplerState>();
const WORD_BYTES: usize = size_of::<i32>();
/// Of a run with as many trees as rows, which is the most.
const ROW_BYTES: usize = (TREE_BYTES + SAMPLER_BYTES + 2 * WORD_BYTES).next_multiple_of(16);
const RESULT_WORDS: usize = RESULT_HEADER + MAX_PATH;

/// What is chosen of a run of rows, as far as a graph depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::backend) struct ChoiceShape {
    /// Those that pad included.
    num_trees: usize,
    /// Most nodes of a path.
    max_path: usize,
    /// Whether a sampler needs whole rows.
    is_wide: bool,
}

impl ChoiceShape {
    /// Tokens of `num_rows` rows for at most `max_segments` samplers, the paths of as many trees, and of one.
    pub(super) fn usual(num_rows: usize, max_segments: usize, is_wide: bool) -> impl Iterator<Item = Self> {
        let all = num_rows.min(max_segments);
        let [tokens, trees] = [1, MAX_PATH].map(|max_path| Self { num_trees: all, max_path, is_wide });
        let has_trees = num_rows > 1;
        let several = (has_trees && all > 1).then_some(trees);
        [tokens].into_iter().chain(has_trees.then_some(Self { num_trees: 1, ..trees })).chain(several)
    }

    /// Whether a path may have more than its root.
    pub(super) fn has_branches(self) -> bool {
        self.max_path > 1
    }
}

/// What the segments of a run ask to be chosen.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Asked {
    num_trees: usize,
    has_branches: bool,
    is_wide: bool,
}

impl Asked {
    /// `segment` asks for a choice, for which a list is enough, or not.
    pub(super) fn add(&mut self, segment: &Segment, is_wide: bool) {
        self.num_trees += 1;
        self.has_branches |= segment.is_tree && segment.tokens.len() > 1;
        self.is_wide |= is_wide;
    }

    /// `None` where nothing is chosen; else of one tree, or of as many segments as may have some of `num_rows` rows, so that there are few shapes.
    pub(super) fn shape(self, num_rows: usize, max_segments: usize) -> Option<ChoiceShape> {
        let num_trees = match (self.num_trees, self.has_branches) {
            (0, _) => return None,
            (1, true) => 1,
            _ => num_rows.min(max_segments),
        };
        let max_path = if self.has_branches { MAX_PATH } else { 1 };
        Some(ChoiceShape { num_trees, max_path, is_wide: self.is_wide })
    }
}

/// A run of rows on the device, and what is chosen of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub first_row: usize,
    pub num_rows: usize,
    pub shape: ChoiceShape,
}

impl Run {
    /// Its rows, on the device.
    pub(super) fn rows(self) -> Range<usize> {
        self.first_row..self.first_row + self.num_rows
    }

    /// First byte of its input.
    fn start(self) -> usize {
        self.first_row * ROW_BYTES
    }

    /// Bytes of its input before samplers, tokens and parents, and all of them.
    fn fields(self) -> [usize; 4] {
        let samplers = self.shape.num_trees * TREE_BYTES;
        let tokens = samplers + self.shape.num_trees * SAMPLER_BYTES;
        let parents = tokens + self.num_rows * WORD_BYTES;
        [samplers, tokens, parents, parents + self.num_rows * WORD_BYTES]
    }

    fn result_len(self) -> usize {
        RESULT_HEADER + self.shape.max_path
    }

    /// Words of the result of tree `idx`.
    fn result(self, idx: usize) -> Range<usize> {
        let start = self.first_row * RESULT_WORDS + idx * self.result_len();
        start..start + self.result_len()
    }
}

/// What chooses in a run, and where on the device its input and results are.
pub(super) struct Choosing {
    run: Run,
    pub launch: Launch,
    input: DeviceAddress,
    results: DeviceAddress,
}

/// A segment of which something is chosen.
#[derive(Debug, Clone)]
struct Asking {
    sampler: SamplerState,
    /// Those of the step's rows that are chosen by: of a tree all.
    rows: Range<usize>,
    /// Its run's first row on the device.
    run: usize,
    /// Words.
    result: Range<usize>,
}

/// The choices of the last step.
#[derive(Debug)]
pub(super) struct Choices {
    input: MappedBuffer,
    results: MappedBuffer,
    /// Both on the device.
    rooms: [DeviceAddress; 2],
    vocab_size: usize,
    asking: Vec<Asking>,
    /// By row of the step: the token whose logits it has.
    tokens: Vec<TokenId>,
}

impl Choices {
    /// None yet, of steps with at most `max_segments` segments and `max_rows` rows of `vocab_size` logits, of which `max_places` are on the device. `room` has
    /// [`Self::num_bytes`].
    pub(super) fn new(
        context: &Context,
        max_segments: usize,
        (max_rows, max_places): (usize, usize),
        (room, vocab_size): (DeviceAddress, usize),
    ) -> Result<Self> {
        let [input, results] = bytes(max_places);
        Ok(Self {
            input: MappedBuffer::new(context, input, "what is to be chosen")?,
            results: MappedBuffer::new(context, results, "what was chosen")?,
            rooms: [room, room.offset(input)?],
            vocab_size,
            asking: Vec::with_capacity(max_segments),
            tokens: Vec::with_capacity(max_rows),
        })
    }

    /// Bytes on the device for `max_places` rows, and as many of pinned memory.
    pub(super) fn num_bytes(max_places: usize) -> usize {
        bytes(max_places).iter().sum()
    }

    /// Forgets what was asked, and notes the tokens of the rows that `plan` wants.
    pub(super) fn lay_out(&mut self, plan: &StepPlan) {
        self.asking.clear();
        self.tokens.clear();
        for segment in &plan.segments {
            let wanted = segment.tokens.end - num_logits_rows(segment)..segment.tokens.end;
            self.tokens.extend_from_slice(&plan.tokens[wanted]);
        }
    }

    /// Nothing is asked of `run`: all of its trees pad. What was sent of the step before must be done.
    pub(super) fn begin(&mut self, run: Run) {
        let [trees, ..] = run.fields();
        self.input.part_mut(run.start()..run.start() + trees).fill(255);
    }

    /// Has `sampler` choose in `run` down a tree: its nodes have the `rows` of the step, which lie from `place` on on the device, and `parents`, each before
    /// its children.
    pub(super) fn ask(
        &mut self,
        run: Run,
        sampler: SamplerState,
        (rows, place): (Range<usize>, usize),
        parents: &[usize],
    ) {
        let idx = self.asking.iter().filter(|asking| asking.run == run.first_row).count();
        let Some(root) = place.checked_sub(run.first_row).filter(|_| idx < run.shape.num_trees) else {
            return;
        };
        let [samplers, tokens, all_parents, num_bytes] = run.fields();
        let sampler_words = self.words_of(&sampler);
        let mut words = Words { bytes: self.input.part_mut(run.start()..run.start() + num_bytes) };
        words.put(idx * TREE_BYTES, [idx, root, rows.len(), root].map(word));
        words.put(samplers + idx * SAMPLER_BYTES, sampler_words);
        words.put(tokens + root * WORD_BYTES, self.tokens[rows.clone()].iter().copied());
        let parents = parents.iter().take(rows.len());
        words.put(all_parents + root * WORD_BYTES, parents.map(|&parent| word(parent)));
        self.asking.push(Asking { sampler, rows, run: run.first_row, result: run.result(idx) });
    }

    /// An [`accept::SamplerState`].
    fn words_of(&self, sampler: &SamplerState) -> impl Iterator<Item = u32> + use<> {
        // One that keeps all is none.
        let top_k = sampler.params().top_k.filter(|&k| k < self.vocab_size).unwrap_or(0);
        let wide = [sampler.top_p(), sampler.min_weight(), sampler.random()];
        let halves = wide.map(|value| [value as u32, (value >> 32) as u32]);
        [sampler.scale().to_bits(), word(top_k)].into_iter().chain(halves.into_iter().flatten())
    }

    /// What chooses in `run`, whose lists of `logits` are found before.
    pub(super) fn choosing(&self, run: Run, logits: &Logits) -> Result<Choosing> {
        let [input, results] = self.rooms;
        let start = input.offset(run.start())?;
        let [samplers, tokens, parents, _] = run.fields();
        let results = results.offset(run.result(0).start * WORD_BYTES)?;
        let accept = Accept {
            trees: start,
            samplers: start.offset(samplers)?,
            tokens: start.offset(tokens)?,
            parents: start.offset(parents)?,
            logits: logits.logits,
            vocab_size: logits.vocab_size,
            lists: logits.output,
            k: logits.k,
            is_wide: run.shape.is_wide,
            results,
            num_trees: run.shape.num_trees,
            max_path: run.shape.max_path,
        };
        Ok(Choosing { run, launch: accept.launch()?, input: start, results })
    }

    /// Sends what is asked, in the stream's order.
    pub(super) fn send(&self, stream: &Stream, choosing: &Choosing) -> Result<(), DriverError> {
        let [.., num_bytes] = choosing.run.fields();
        stream.send_from(&self.input, choosing.run.start(), num_bytes, choosing.input)
    }

    /// Brings what was chosen.
    pub(super) fn bring(&self, stream: &Stream, choosing: &Choosing) -> Result<(), DriverError> {
        let run = choosing.run;
        let num_bytes = run.shape.num_trees * run.result_len() * WORD_BYTES;
        stream.fetch_to(choosing.results, &self.results, run.result(0).start * WORD_BYTES, num_bytes)
    }

    /// What was chosen by row `row` of the step.
    pub(super) fn row(&self, row: usize) -> Option<Choice> {
        let asking = self.asking.iter().find(|asking| asking.rows.contains(&row))?;
        let found = Acceptance::read(self.results.integers().get(asking.result.clone())?)?;
        let node = i32::try_from(row - asking.rows.start).ok()?;
        let depth = found.path.iter().position(|&other| other == node)?;
        let token = match found.path.get(depth + 1) {
            // What was chosen is what the child that was come to says.
            Some(&child) => *self.tokens.get(asking.rows.clone())?.get(usize::try_from(child).ok()?)?,
            None => TokenId::try_from(found.token?).ok()?,
        };
        Some(Choice { token, sampler: asking.sampler.after(depth) })
    }
}

/// Of the input and of the results, of `max_places` rows.
fn bytes(max_places: usize) -> [usize; 2] {
    [max_places * ROW_BYTES, max_places * RESULT_WORDS * WORD_BYTES]
}

/// The pinned bytes of one run, as 32-bit words.
struct Words<'a> {
    bytes: &'a mut [u8],
}

impl Words<'_> {
    /// From byte `at` on; what has no room is left out.
    fn put(&mut self, at: usize, words: impl IntoIterator<Item = u32>) {
        let places = self.bytes.get_mut(at..).unwrap_or_default().chunks_exact_mut(WORD_BYTES);
        places.zip(words).for_each(|(place, word)| place.copy_from_slice(&word.to_ne_bytes()));
    }
}

/// Counts of a checked plan are far below 2^31.
fn word(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(0)
}
