//! Counts for reports.

use crate::tree::DraftTree;

/// Accepted tokens that the histogram tells apart; more count as this many.
const MAX_ACCEPTED: usize = 31;

/// What came of verified trees, one count for each sequence and round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counters {
    /// Trees with at least one proposal that were verified.
    pub num_rounds: u64,
    /// Proposals that were verified.
    pub num_drafted: u64,
    /// Proposals that were accepted.
    pub num_accepted: u64,
    /// `[accept_len − 1]`: rounds by tokens they emitted, the target's own included, forced ones not.
    pub accept_lens: [u64; MAX_ACCEPTED + 1],
}

impl Default for Counters {
    fn default() -> Self {
        Self { num_rounds: 0, num_drafted: 0, num_accepted: 0, accept_lens: [0; MAX_ACCEPTED + 1] }
    }
}

impl Counters {
    /// Counts a verified `tree` of which `path` was accepted; nothing for one without proposals.
    pub fn observe(&mut self, tree: &DraftTree, path: &[usize]) {
        if tree.num_drafted() == 0 {
            return;
        }
        let num_accepted = path.iter().filter(|&&node| node >= tree.num_certain).count();
        self.num_rounds += 1;
        self.num_drafted += tree.num_drafted() as u64;
        self.num_accepted += num_accepted as u64;
        self.accept_lens[num_accepted.min(MAX_ACCEPTED)] += 1;
    }

    /// Tokens a round emits on average: the acceptance length; `None` before the first.
    #[must_use]
    pub fn mean_accept_len(&self) -> Option<f64> {
        (self.num_rounds > 0).then(|| 1.0 + self.num_accepted as f64 / self.num_rounds as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_proposals_are_counted_and_forced_tokens_are_not() {
        let mut counters = Counters::default();
        assert_eq!(counters.mean_accept_len(), None);
        let mut tree = DraftTree::root(0);
        counters.observe(&tree, &[0]);
        assert_eq!(counters, Counters::default(), "a plain step is no round");
        for token in 1..4 {
            tree.push(token as usize - 1, token, -1.0);
        }
        tree.num_certain = 2;
        counters.observe(&tree, &[0, 1, 2, 3]);
        counters.observe(&tree, &[0]);
        assert_eq!((counters.num_rounds, counters.num_drafted, counters.num_accepted), (2, 4, 2));
        assert_eq!(counters.accept_lens[..4], [1, 0, 1, 0]);
        assert_eq!(counters.mean_accept_len(), Some(2.0));
    }
}
