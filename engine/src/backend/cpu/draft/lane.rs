//! What a head knows of one lane besides its keys and values.
//!
//! ```text
//! [0, num_read)                      rows read: their keys and values are in the head's lane
//! [num_read, num_read + backlog)     features kept until their next tokens are known and enough of them wait
//! ```
//!
//! Both together are the target's committed tokens, as long as the lane is *warm*.

use crate::TokenId;

/// Features that wait at most while a slice is read; then they are read together.
pub(super) const MAX_BACKLOG: usize = 32;
/// Features that wait at most from step to step: few, so that no step takes much longer than the others.
pub(super) const MAX_WAITING: usize = 8;
pub(super) use crate::draft::MAX_DRAFT_ROWS as MAX_ROWS;

/// One lane's state.
#[derive(Debug, Clone, Default)]
pub(super) struct LaneState {
    /// Whether the head is to read along.
    pub follows: bool,
    /// Whether it has read along from the first token on.
    pub is_warm: bool,
    /// Rows read.
    pub num_read: usize,
    /// Fused features of the last row read `[h]`, from which a draft begins; empty when they are not known.
    pub tip: Vec<f32>,
    /// Features that wait.
    pub backlog: Backlog,
    /// Rows proposed since the root; the root is the first.
    pub drafted: Drafted,
    /// First token of the lane's tree in the last step's features, and the tree's tokens; none after anything else.
    pub tree_start: usize,
    pub tree_tokens: Vec<TokenId>,
}

/// Features whose rows are not read yet.
#[derive(Debug, Clone, Default)]
pub(super) struct Backlog {
    /// `[n, 3 · H]`.
    pub features: Vec<f32>,
    /// The token after each: `n` of them, or one less when the last one's is not known.
    pub next_tokens: Vec<TokenId>,
}

/// What the head has said since the root.
#[derive(Debug, Clone, Default)]
pub(super) struct Drafted {
    /// What is fed back after each row `[num_rows, h]`.
    pub outputs: Vec<f32>,
    /// For each row its parent and its depth; the root is 0 at depth 0.
    pub parents: Vec<(usize, usize)>,
}

impl LaneState {
    /// Sets all memory aside for features of `features_len` values and a head `hidden_size` wide.
    pub fn new(features_len: usize, hidden_size: usize) -> Self {
        Self {
            follows: true,
            is_warm: true,
            num_read: 0,
            tip: Vec::with_capacity(hidden_size),
            backlog: Backlog {
                features: Vec::with_capacity(MAX_BACKLOG * features_len),
                next_tokens: Vec::with_capacity(MAX_BACKLOG),
            },
            drafted: Drafted {
                outputs: Vec::with_capacity(MAX_ROWS * hidden_size),
                parents: Vec::with_capacity(MAX_ROWS),
            },
            tree_start: 0,
            tree_tokens: Vec::with_capacity(MAX_ROWS),
        }
    }

    /// Nothing is known of the lane any more, until it is emptied.
    pub fn go_cold(&mut self) {
        self.is_warm = false;
        self.num_read = 0;
        self.tip.clear();
        self.backlog.clear();
        self.forget_drafted();
    }

    /// The text goes on beyond what the head was made for: what was read stays, for a text that begins alike.
    pub fn pause(&mut self) {
        self.is_warm = false;
        self.tip.clear();
        self.backlog.clear();
        self.forget_drafted();
    }

    /// The target's lane holds `len` tokens from now on, fewer than before.
    pub fn truncate(&mut self, len: usize, features_len: usize) {
        self.forget_drafted();
        if len < self.num_read {
            self.tip.clear();
        }
        if len == 0 {
            self.is_warm = self.follows;
            self.num_read = 0;
            self.backlog.clear();
            return;
        }
        if !self.is_warm {
            self.is_warm = self.follows && len <= self.num_read;
            self.backlog.clear();
        }
        self.num_read = self.num_read.min(len);
        self.backlog.truncate(len - self.num_read, features_len);
    }

    pub fn forget_drafted(&mut self) {
        self.drafted.outputs.clear();
        self.drafted.parents.clear();
        self.tree_tokens.clear();
    }
}

impl Backlog {
    pub fn clear(&mut self) {
        self.features.clear();
        self.next_tokens.clear();
    }

    /// Rows that wait.
    pub fn len(&self, features_len: usize) -> usize {
        self.features.len() / features_len
    }

    /// The token after the last one, if that was missing.
    pub fn resolve(&mut self, token: TokenId, features_len: usize) {
        if self.next_tokens.len() < self.len(features_len) {
            self.next_tokens.push(token);
        }
    }

    /// Adds one token's features and, where it is known, the token after it.
    pub fn push(&mut self, features: &[f32], next: Option<TokenId>) {
        self.features.extend_from_slice(features);
        self.next_tokens.extend(next);
    }

    /// Forgets the first `num_rows`.
    pub fn drop_front(&mut self, num_rows: usize, features_len: usize) {
        self.features.drain(..num_rows * features_len);
        self.next_tokens.drain(..num_rows);
    }

    fn truncate(&mut self, num_rows: usize, features_len: usize) {
        self.features.truncate(num_rows * features_len);
        // What came after the last one is to come again.
        self.next_tokens.truncate(num_rows.saturating_sub(1));
    }
}

impl Drafted {
    /// Rows from below the root down to the parent of `number`, and `number` itself, as numbers; the root is not among them.
    pub fn ancestors(&self, number: usize) -> impl Iterator<Item = usize> + '_ {
        let depth = self.parents[number].1;
        (1..=depth).map(move |level| {
            let mut up = std::iter::successors(Some(number), |&node| Some(self.parents[node].0));
            up.nth(depth - level).unwrap_or(0)
        })
    }
}
