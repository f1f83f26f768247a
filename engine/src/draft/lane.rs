//! What a head knows of one lane, wherever its rows lie.
//!
//! ```text
//! [0, num_read)                      rows read: their keys and values are in the head's lane
//! [num_read, num_read + waiting)     features kept until their next tokens are known and enough of them wait
//! ```
//!
//! Both together are the target's committed tokens, as long as the lane is *warm*.

use super::MAX_DRAFT_ROWS;
use crate::TokenId;

/// One lane's state.
#[derive(Debug, Clone, Default)]
pub(crate) struct DraftLane {
    /// Whether the head is to read along.
    pub follows: bool,
    /// Whether it has read along from the first token on.
    pub is_warm: bool,
    /// Rows read.
    pub num_read: usize,
    /// Whether the fused features of the last row read, from which a draft begins, are known.
    pub has_tip: bool,
    /// Features that wait.
    pub waiting: Waiting,
    /// Rows proposed since the root; the root is the first.
    pub drafted: Drafted,
    /// First token of the lane's tree in the last step's features, and the tree's tokens; none after anything else.
    pub tree_start: usize,
    pub tree_tokens: Vec<TokenId>,
}

/// Rows whose features are known but not read yet.
#[derive(Debug, Clone, Default)]
pub(crate) struct Waiting {
    pub num_rows: usize,
    /// The token after each: `num_rows` of them, or one less when the last one's is not known.
    pub next_tokens: Vec<TokenId>,
}

/// What the head has said since the root.
#[derive(Debug, Clone, Default)]
pub(crate) struct Drafted {
    /// For each row its parent and its depth; the root is 0 at depth 0.
    parents: Vec<(usize, usize)>,
}

impl DraftLane {
    /// Sets memory aside for `max_waiting` rows that wait.
    pub fn new(max_waiting: usize) -> Self {
        Self {
            follows: true,
            is_warm: true,
            waiting: Waiting { num_rows: 0, next_tokens: Vec::with_capacity(max_waiting) },
            drafted: Drafted { parents: Vec::with_capacity(MAX_DRAFT_ROWS) },
            tree_tokens: Vec::with_capacity(MAX_DRAFT_ROWS),
            ..Self::default()
        }
    }

    /// Tokens read or waiting.
    pub fn held(&self) -> usize {
        self.num_read + self.waiting.num_rows
    }

    /// Nothing is known of the lane any more, until it is emptied.
    pub fn go_cold(&mut self) {
        self.num_read = 0;
        self.pause();
    }

    /// The text goes on beyond what the head was made for: what was read stays, for a text that begins alike.
    pub fn pause(&mut self) {
        self.is_warm = false;
        self.has_tip = false;
        self.waiting.clear();
        self.forget_drafted();
    }

    /// The target's lane holds `len` tokens from now on, fewer than before.
    pub fn truncate(&mut self, len: usize) {
        self.forget_drafted();
        if len < self.num_read {
            self.has_tip = false;
        }
        if len == 0 {
            self.is_warm = self.follows;
            self.num_read = 0;
            self.waiting.clear();
            return;
        }
        if !self.is_warm {
            self.is_warm = self.follows && len <= self.num_read;
            self.waiting.clear();
        }
        self.num_read = self.num_read.min(len);
        self.waiting.truncate(len - self.num_read);
    }

    pub fn forget_drafted(&mut self) {
        self.drafted.parents.clear();
        self.tree_tokens.clear();
    }
}

impl Waiting {
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// The token after the last one, if that was missing.
    pub fn resolve(&mut self, token: TokenId) {
        if self.next_tokens.len() < self.num_rows {
            self.next_tokens.push(token);
        }
    }

    /// Adds one row and, where it is known, the token after it.
    pub fn push(&mut self, next: Option<TokenId>) {
        self.num_rows += 1;
        self.next_tokens.extend(next);
    }

    /// Forgets the first `num_rows`.
    pub fn drop_front(&mut self, num_rows: usize) {
        self.num_rows -= num_rows;
        self.next_tokens.drain(..num_rows);
    }

    fn truncate(&mut self, num_rows: usize) {
        self.num_rows = self.num_rows.min(num_rows);
        // What came after the last one is to come again.
        self.next_tokens.truncate(num_rows.saturating_sub(1));
    }
}

impl Drafted {
    /// Rows drafted.
    pub fn len(&self) -> usize {
        self.parents.len()
    }

    /// Adds a row behind `parent`, which was drafted, or the root; returns its number and depth.
    pub fn push(&mut self, parent: Option<usize>) -> (usize, usize) {
        let (number, depth) = (self.len(), parent.map_or(0, |parent| self.parents[parent].1 + 1));
        self.parents.push((parent.unwrap_or(0), depth));
        (number, depth)
    }

    /// Rows from below the root down to the parent of `number`, and `number` itself, as numbers; the root is not among them.
    pub fn ancestors(&self, number: usize) -> impl Iterator<Item = usize> + '_ {
        let depth = self.parents[number].1;
        (1..=depth).map(move |level| {
            let mut up = std::iter::successors(Some(number), |&node| Some(self.parents[node].0));
            up.nth(depth - level).unwrap_or(0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ancestors_lead_from_below_the_root_to_the_row_itself() {
        let mut drafted = Drafted::default();
        for (parent, expected) in
            [(None, (0, 0)), (Some(0), (1, 1)), (Some(0), (2, 1)), (Some(1), (3, 2)), (Some(3), (4, 3))]
        {
            assert_eq!(drafted.push(parent), expected);
        }
        let path = |number| drafted.ancestors(number).collect::<Vec<_>>();
        assert_eq!((path(0), path(2), path(4)), (vec![], vec![2], vec![1, 3, 4]));
    }

    #[test]
    fn a_row_that_becomes_the_last_waits_for_its_next_token_again() {
        let mut lane = DraftLane::new(8);
        (10..14).for_each(|next| lane.waiting.push(Some(next)));
        lane.truncate(3);
        assert_eq!((lane.held(), &lane.waiting.next_tokens[..]), (3, &[10, 11][..]));
        lane.waiting.resolve(77);
        lane.waiting.resolve(78);
        assert_eq!(lane.waiting.next_tokens, [10, 11, 77]);
    }
}
