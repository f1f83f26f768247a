//! A drafter that does far worse than it once did: a head read wrongly, or of another target, still gives right output, only slowly.

use std::fmt;

use takt_engine::TokenId;

use crate::tree::DraftTree;

/// Rounds before anything is said.
const MIN_ROUNDS: u32 = 64;

/// Below this share of what is on record, something is wrong rather than the text unusual.
pub const ALARMING_SHARE: f32 = 0.4;

/// Weight of the newest round.
const NEWEST: f32 = 1.0 / 64.0;

/// What was measured when the drafter was known to be good: when the engine was built.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Record {
    /// `[depth − 1]`: how often the drafter's first proposal is right where the ones before it were.
    pub acceptance: Vec<f32>,
}

/// How far a drafter fell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Collapse {
    /// Acceptance of the first proposal on record.
    pub expected: f32,
    /// The same over the last rounds.
    pub found: f32,
    /// Tokens a round of the same chains would emit on record.
    pub expected_len: f32,
    /// Tokens they did emit.
    pub found_len: f32,
}

impl fmt::Display for Collapse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { expected, found, expected_len, found_len } = self;
        write!(
            f,
            "the drafter's first proposal is accepted in {:.0} % of rounds, {:.0} % when the engine was built: {found_len:.2} tokens \
             a round instead of {expected_len:.2}",
            found * 100.0,
            expected * 100.0,
        )
    }
}

/// Compares a drafter with its record, by the chain of first proposals in each tree, whatever else the tree holds.
#[derive(Debug, Clone)]
pub(super) struct Canary {
    record: Record,
    num_rounds: u32,
    /// Averages: first proposals accepted right below the root; along the chain; and of the latter, what is on record.
    first: f32,
    chain: f32,
    expected_chain: f32,
}

impl Canary {
    pub fn new(record: Record) -> Self {
        Self { record, num_rounds: 0, first: 0.0, chain: 0.0, expected_chain: 0.0 }
    }

    /// Counts a verified `tree`, of which `path` was accepted. Trees below forced tokens are left out: nothing of the kind is on record.
    /// Where the answer ended, `next` is `None`, and nothing is expected of what was proposed for later.
    pub fn observe(&mut self, tree: &DraftTree, path: &[usize], next: Option<TokenId>) {
        let says_nothing = next.is_none() && path.len() <= 1;
        if tree.num_drafted() == 0 || tree.num_certain != 1 || says_nothing {
            return;
        }
        let (mut accepted, mut expected, mut reached) = (0.0, 0.0, 1.0);
        let mut node = 0;
        for (idx, acceptance) in self.record.acceptance.iter().enumerate() {
            let Some(child) = tree.children(node).next() else { break };
            if next.is_none() && idx + 1 >= path.len() {
                break;
            }
            reached *= acceptance;
            expected += reached;
            // On the path as far as all before it were, for a node's depth is its place in the path.
            accepted += if path.get(idx + 1) == Some(&child) { 1.0 } else { 0.0 };
            node = child;
        }
        let first = if accepted > 0.0 { 1.0 } else { 0.0 };
        self.num_rounds = self.num_rounds.saturating_add(1);
        // A plain mean at first, of the last rounds later.
        let newest = (1.0 / self.num_rounds as f32).max(NEWEST);
        self.first += newest * (first - self.first);
        self.chain += newest * (accepted - self.chain);
        self.expected_chain += newest * (expected - self.expected_chain);
    }

    /// What is wrong, after enough rounds.
    pub fn check(&self) -> Option<Collapse> {
        let expected = *self.record.acceptance.first()?;
        let is_low =
            self.first < ALARMING_SHARE * expected || self.chain < ALARMING_SHARE * self.expected_chain;
        (self.num_rounds >= MIN_ROUNDS && is_low).then_some(Collapse {
            expected,
            found: self.first,
            expected_len: 1.0 + self.expected_chain,
            found_len: 1.0 + self.chain,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain() -> DraftTree {
        let mut tree = DraftTree::root(0);
        for parent in 0..3 {
            tree.push(parent, 7, -0.1);
        }
        tree
    }

    #[test]
    fn a_collapse_is_reported_after_enough_rounds_with_both_figures() {
        let mut canary = Canary::new(Record { acceptance: vec![0.71, 0.6, 0.5] });
        for round in 0..200 {
            assert_eq!(canary.check().is_some(), round >= 64, "{round}");
            canary.observe(&chain(), if round % 12 == 0 { &[0, 1] } else { &[0] }, Some(1));
        }
        let said = canary.check().unwrap().to_string();
        assert!(said.contains("in 8 % of rounds, 71 % when the engine was built: 1.08 tokens"), "{said}");
        assert!(said.ends_with("instead of 2.35"), "{said}");
    }

    #[test]
    fn a_drafter_as_recorded_or_somewhat_worse_is_let_be() {
        let mut canary = Canary::new(Record { acceptance: vec![0.7, 0.6, 0.5] });
        for round in 0..500 {
            canary.observe(&chain(), if round % 2 == 0 { &[0, 1, 2, 3] } else { &[0] }, Some(1));
            assert_eq!(canary.check(), None);
        }
        let mut forced = chain();
        forced.num_certain = 2;
        (0..500).for_each(|_| canary.observe(&forced, &[0, 1], Some(1)));
        assert_eq!(canary.check(), None, "forced tokens say nothing");
        (0..500).for_each(|_| canary.observe(&chain(), &[0], Some(1)));
        assert!(canary.check().is_some(), "a good past does not cover a collapse");
        assert_eq!(Canary::new(Record::default()).check(), None);
    }

    #[test]
    fn answers_that_end_soon_are_not_held_against_the_drafter() {
        let mut canary = Canary::new(Record { acceptance: vec![0.9, 0.9, 0.9] });
        for round in 0..300 {
            canary.observe(&chain(), if round % 3 == 0 { &[0, 1] } else { &[0] }, None);
            assert_eq!(canary.check(), None);
        }
        (0..100).for_each(|_| canary.observe(&chain(), &[0], Some(1)));
        assert!(canary.check().is_some(), "wrong proposals are");
    }
}
