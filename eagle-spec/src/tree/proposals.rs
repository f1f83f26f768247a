//! Lists of proposed tokens, stored flat.

use takt_engine::TokenId;

/// A token a drafter proposes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Proposal {
    /// The target's token.
    pub token: TokenId,
    /// Its log-probability after its parent, by the drafter.
    pub log_prob: f32,
}

/// One list of proposals for each node of a level. Clearing keeps the memory.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Proposals {
    /// Of all lists, one after another.
    all: Vec<Proposal>,
    /// For each list one past its last.
    ends: Vec<usize>,
}

impl Proposals {
    /// No lists, with room for `max_lists` of `max_len` proposals each.
    #[must_use]
    pub fn with_capacity(max_lists: usize, max_len: usize) -> Self {
        let all = Vec::with_capacity(max_lists.saturating_mul(max_len));
        Self { all, ends: Vec::with_capacity(max_lists) }
    }

    /// Forgets all lists.
    pub fn clear(&mut self) {
        self.all.clear();
        self.ends.clear();
    }

    /// Appends to the list that is being made.
    pub fn push(&mut self, proposal: Proposal) {
        self.all.push(proposal);
    }

    /// Ends the list that is being made, which may be empty; the next begins.
    pub fn end_list(&mut self) {
        self.ends.push(self.all.len());
    }

    /// List `idx`; empty when there are fewer.
    #[must_use]
    pub fn list(&self, idx: usize) -> &[Proposal] {
        let start = if idx == 0 { Some(0) } else { self.ends.get(idx - 1).copied() };
        let range = start.zip(self.ends.get(idx)).map(|(start, &end)| start..end);
        range.and_then(|range| self.all.get(range)).unwrap_or_default()
    }

    /// Lists that were ended.
    #[must_use]
    pub fn num_lists(&self) -> usize {
        self.ends.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_come_back_as_they_were_made() {
        let mut proposals = Proposals::with_capacity(2, 2);
        let proposal = |token| Proposal { token, log_prob: -1.0 };
        for round in 0..2 {
            proposals.clear();
            proposals.end_list();
            proposals.push(proposal(round));
            proposals.push(proposal(7));
            proposals.end_list();
            proposals.push(proposal(9));
            assert_eq!(proposals.num_lists(), 2);
            assert_eq!(proposals.list(0), []);
            assert_eq!(proposals.list(1), [proposal(round), proposal(7)]);
            assert_eq!(proposals.list(2), [], "not ended");
        }
    }
}
