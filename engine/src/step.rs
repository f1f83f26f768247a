//! One unit of device work (a *section*): what goes in and what comes out.

use std::ops::Range;

use crate::{TokenId, kv::LaneId};

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

/// Tokens of one lane after its committed ones: consecutive, and committed by the step; or a tree of proposals.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// The lane; at most one segment a lane in a plan.
    pub lane: LaneId,
    /// Half-open range into [`StepPlan::tokens`].
    pub tokens: Range<usize>,
    /// Which logits to compute.
    pub logits: LogitsWanted,
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

    /// Appends `tokens` for `lane`.
    pub fn push(&mut self, lane: LaneId, tokens: &[TokenId], logits: LogitsWanted) {
        self.parents.extend((0..tokens.len()).map(|idx| idx.saturating_sub(1)));
        self.add(lane, tokens, logits, false);
    }

    /// Appends a tree of proposals for `lane`, with the logits of every node; `parents` as in [`Self::parents`], for as many tokens.
    pub fn push_tree(&mut self, lane: LaneId, tokens: &[TokenId], parents: &[usize]) {
        self.parents.extend_from_slice(parents);
        self.add(lane, tokens, LogitsWanted::All, true);
    }

    fn add(&mut self, lane: LaneId, tokens: &[TokenId], logits: LogitsWanted, is_tree: bool) {
        let start = self.tokens.len();
        self.tokens.extend_from_slice(tokens);
        self.segments.push(Segment { lane, tokens: start..self.tokens.len(), logits, is_tree });
    }
}

/// Logits of one step, borrowed from the backend until the next step.
#[derive(Debug, Clone, Copy)]
pub struct StepOutput<'a> {
    /// `[num_rows, vocab_size]`, F32, row-major: the wanted rows of segment 0, then of segment 1, …
    pub logits: &'a [f32],
    /// First row of each segment, and one past the last row at the end; `num_segments + 1` values.
    pub first_row: &'a [usize],
    /// Columns of `logits`.
    pub vocab_size: usize,
    /// `[num_tokens, num_captured · hidden_size]`, F32, for every token of the plan in its order; empty when nothing is captured.
    pub features: &'a [f32],
}

impl<'a> StepOutput<'a> {
    /// Logits of the last wanted position of segment `segment_idx`, `[vocab_size]`; `None` when none were wanted.
    #[must_use]
    pub fn last_logits(&self, segment_idx: usize) -> Option<&'a [f32]> {
        let (first, end) = (*self.first_row.get(segment_idx)?, *self.first_row.get(segment_idx + 1)?);
        if first == end { None } else { self.row(end - 1) }
    }

    /// All wanted logits of segment `segment_idx`, `[num_rows, vocab_size]`.
    #[must_use]
    pub fn segment_logits(&self, segment_idx: usize) -> Option<&'a [f32]> {
        let (first, end) = (*self.first_row.get(segment_idx)?, *self.first_row.get(segment_idx + 1)?);
        self.logits.get(first * self.vocab_size..end * self.vocab_size)
    }

    fn row(&self, row_idx: usize) -> Option<&'a [f32]> {
        self.logits.get(row_idx * self.vocab_size..(row_idx + 1) * self.vocab_size)
    }
}
