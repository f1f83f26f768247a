//! One unit of device work (a *section*): what goes in and what comes out.

use std::ops::Range;

use crate::{
    EngineError, Result, TokenId,
    kv::LaneId,
    rows::{LogitsRow, RowSource},
    sampler::SamplerState,
};

/// Which positions of a segment the caller wants logits of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogitsWanted {
    /// None: a prefill slice that is not the prompt's last.
    None,
    /// The last token's: prefill's end, or a decode step.
    Last,
    /// Every token's: scoring, verify rounds.
    All,
}

/// How much of each of its logits rows a segment is handed with the step. The rest of a row can always be had, one row at a time
/// ([`LogitsRow::whole`]), for as long as the step's output is looked at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Detail {
    /// All of them.
    Whole,
    /// At least that many of the likeliest tokens, or the whole row where the backend has no shorter list: what is enough to choose a token.
    Likeliest(usize),
    /// Nothing: whoever looks at a row fetches it. For trees, of whose rows few are looked at.
    OnDemand,
    /// No row, but what a sampler in this state chooses: by the last row; of a tree by the root's, and on by those of the children that hold what was
    /// chosen, for as long as there are such ([`LogitsRow::choice`]). A backend that does not choose hands out what [`SamplerState::detail`] asks for, or
    /// more, and of trees may hand out nothing. Either way a row that has no choice can be chosen by.
    Chosen(SamplerState),
}

/// Tokens of one lane after its committed ones: consecutive, and committed by the step; or a tree of proposals.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    /// The lane; at most one segment a lane in a plan.
    pub lane: LaneId,
    /// Half-open range into [`StepPlan::tokens`].
    pub tokens: Range<usize>,
    /// Which logits to compute.
    pub logits: LogitsWanted,
    /// How much of them to hand out.
    pub detail: Detail,
    /// Whether the tokens are a tree: each is at the position after its parent's and sees the lane, its ancestors and itself. The step commits
    /// none of them; [`crate::backend::Backend::keep`] commits a path.
    pub is_tree: bool,
}

/// What one call of [`crate::backend::Backend::run_step`] computes: prefill slices and decode steps of several lanes together.
#[derive(Debug, Clone, Default)]
pub struct StepPlan {
    /// Tokens of all segments, one after another.
    pub tokens: Vec<TokenId>,
    /// For each token of a tree its parent, counted from the segment's first token, which is the root and its own parent; for the others the
    /// token before.
    pub parents: Vec<usize>,
    /// The segments, in the order of their tokens.
    pub segments: Vec<Segment>,
}

impl StepPlan {
    /// An empty plan with room for `max_tokens` tokens of `max_segments` lanes, so that filling it allocates nothing.
    #[must_use]
    pub fn with_capacity(max_tokens: usize, max_segments: usize) -> Self {
        Self {
            tokens: Vec::with_capacity(max_tokens),
            parents: Vec::with_capacity(max_tokens),
            segments: Vec::with_capacity(max_segments),
        }
    }

    /// Forgets all segments, keeping the memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.parents.clear();
        self.segments.clear();
    }

    /// Appends `tokens` for `lane`, with whole rows of logits; see [`Self::last_needs`].
    pub fn push(&mut self, lane: LaneId, tokens: &[TokenId], logits: LogitsWanted) {
        self.parents.extend((0..tokens.len()).map(|idx| idx.saturating_sub(1)));
        self.add(lane, tokens, logits, false);
    }

    /// Appends a tree of proposals for `lane`, with the logits of every node; `parents` as in [`Self::parents`], for as many tokens.
    pub fn push_tree(&mut self, lane: LaneId, tokens: &[TokenId], parents: &[usize]) {
        self.parents.extend_from_slice(parents);
        self.add(lane, tokens, LogitsWanted::All, true);
    }

    /// The segment that was appended last needs no more of its rows than `detail`; nothing happens without one.
    pub fn last_needs(&mut self, detail: Detail) {
        if let Some(segment) = self.segments.last_mut() {
            segment.detail = detail;
        }
    }

    fn add(&mut self, lane: LaneId, tokens: &[TokenId], logits: LogitsWanted, is_tree: bool) {
        let start = self.tokens.len();
        self.tokens.extend_from_slice(tokens);
        let tokens = start..self.tokens.len();
        self.segments.push(Segment { lane, tokens, logits, detail: Detail::Whole, is_tree });
    }
}

/// Logits of one step, borrowed from the backend until the next step.
#[derive(Debug)]
pub struct StepOutput<'a> {
    /// `[num_rows, vocab_size]`, F32: the wanted rows of segment 0, then of segment 1, …, as far as they were asked for.
    rows: &'a dyn RowSource,
    first_row: &'a [usize],
    vocab_size: usize,
    features: &'a [f32],
}

impl<'a> StepOutput<'a> {
    /// What a backend hands out. `first_row`, of `num_segments + 1` values, has the first row of each segment, and one past the last row at
    /// the end; for `features` see [`Self::features`].
    #[must_use]
    pub fn new(
        rows: &'a dyn RowSource,
        first_row: &'a [usize],
        vocab_size: usize,
        features: &'a [f32],
    ) -> Self {
        Self { rows, first_row, vocab_size, features }
    }

    /// Logits of a row.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// `[num_tokens, num_captured · hidden_size]`, F32, for every token of the plan in its order; empty when nothing is captured.
    #[must_use]
    pub fn features(&self) -> &'a [f32] {
        self.features
    }

    /// Rows that segment `segment_idx` asked for; none for a segment that does not exist.
    #[must_use]
    pub fn num_rows(&self, segment_idx: usize) -> usize {
        self.rows_of(segment_idx).map_or(0, |rows| rows.len())
    }

    /// Row `row_idx` of those that segment `segment_idx` asked for.
    ///
    /// # Errors
    /// [`EngineError::Backend`] when there is no such row.
    pub fn row(&mut self, segment_idx: usize, row_idx: usize) -> Result<LogitsRow<'_>> {
        let row = self.rows_of(segment_idx).and_then(|mut rows| rows.nth(row_idx));
        let row = row.ok_or_else(|| {
            EngineError::Backend(format!("no logits came back for row {row_idx} of segment {segment_idx}"))
        })?;
        Ok(LogitsRow::behind(self.rows, row, self.vocab_size))
    }

    /// The row of the last wanted position of segment `segment_idx`.
    ///
    /// # Errors
    /// [`EngineError::Backend`] when none were wanted.
    pub fn last_row(&mut self, segment_idx: usize) -> Result<LogitsRow<'_>> {
        self.row(segment_idx, self.num_rows(segment_idx).saturating_sub(1))
    }

    /// Logits of the last wanted position of segment `segment_idx`, `[vocab_size]`; `None` when none were wanted, or not whole.
    #[must_use]
    pub fn last_logits(&self, segment_idx: usize) -> Option<&[f32]> {
        let row = self.rows_of(segment_idx)?.next_back()?;
        self.rows.here(row..row + 1)
    }

    /// All wanted logits of segment `segment_idx`, `[num_rows, vocab_size]`; `None` when they were not wanted whole.
    #[must_use]
    pub fn segment_logits(&self, segment_idx: usize) -> Option<&[f32]> {
        self.rows.here(self.rows_of(segment_idx)?)
    }

    fn rows_of(&self, segment_idx: usize) -> Option<Range<usize>> {
        Some(*self.first_row.get(segment_idx)?..*self.first_row.get(segment_idx + 1)?)
    }
}
