//! One level of drafting, over several lanes: what goes in and what comes out.

use crate::{TokenId, kv::LaneId};

/// One token to draft after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DraftRow {
    /// The lane.
    pub lane: LaneId,
    /// The lane's row it follows, counted from its root, which is 0; `None` for the root itself, which forgets all rows of the root before.
    pub parent: Option<usize>,
    /// The token: for the root the one the target has chosen last, otherwise a proposal.
    pub token: TokenId,
}

/// Rows drafted together. A lane's rows are numbered in the order they come, over all plans since its root.
#[derive(Debug, Clone, Default)]
pub struct DraftPlan {
    /// The rows; of one lane next to each other.
    pub rows: Vec<DraftRow>,
    /// Proposals wanted after each.
    pub top_k: usize,
    /// Whether all logits are wanted as well, as [`DraftOutput::logits`].
    pub wants_logits: bool,
}

/// What one level proposes, borrowed from the backend until the next.
#[derive(Debug, Clone, Copy)]
pub struct DraftOutput<'a> {
    /// Proposals for each row: `top_k`, or the draft vocabulary where that is smaller.
    pub num_proposals: usize,
    /// `[num_rows, num_proposals]`, the target's tokens, likeliest first; of equals the lower draft token.
    pub tokens: &'a [TokenId],
    /// `[num_rows, num_proposals]`, over the draft vocabulary.
    pub log_probs: &'a [f32],
    /// `[num_rows, draft_vocab_size]`; empty unless wanted.
    pub logits: &'a [f32],
}

impl<'a> DraftOutput<'a> {
    /// Proposals after row `row_idx` of the plan: tokens and their log-probabilities.
    pub fn row(&self, row_idx: usize) -> impl Iterator<Item = (TokenId, f32)> + 'a {
        let range = row_idx * self.num_proposals..(row_idx + 1) * self.num_proposals;
        let tokens = self.tokens.get(range.clone()).unwrap_or_default();
        let log_probs = self.log_probs.get(range).unwrap_or_default();
        tokens.iter().copied().zip(log_probs.iter().copied())
    }
}
