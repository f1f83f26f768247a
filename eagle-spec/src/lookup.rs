//! Prompt lookup: what followed the last tokens the time before. Needs no model; robots repeat the text of their state.
//!
//! After Saxena's "Prompt Lookup Decoding" (2023), with counts over all earlier places instead of the first one found, so that it grows
//! trees as any other drafter.

use takt_engine::{EngineError, Result, TokenId};

use crate::tree::{Drafter, Frontier, Proposal, Proposals};

/// Longest run of last tokens that is looked for.
const MAX_MATCH_LEN: usize = 4;

/// What was said so far in each of several sequences.
pub trait Histories {
    /// Prompt and answer of the sequence in `slot`, up to and with the root of its tree; empty for a slot there is none of.
    fn history(&self, slot: usize) -> &[TokenId];
}

impl<H: AsRef<[TokenId]>> Histories for [H] {
    fn history(&self, slot: usize) -> &[TokenId] {
        self.get(slot).map_or(&[], AsRef::as_ref)
    }
}

impl<H: AsRef<[TokenId]>, const N: usize> Histories for [H; N] {
    fn history(&self, slot: usize) -> &[TokenId] {
        self.as_slice().history(slot)
    }
}

/// Memory of a drafter that looks the last tokens up in what was said before; [`Self::over`] makes it one.
#[derive(Debug, Clone)]
pub struct PromptLookup {
    /// Fewest last tokens that must have been met before: 1 proposes often, more is more often right.
    min_match_len: usize,
    /// By slot and node: what was expanded, so that a path can be read upwards.
    expanded: Vec<Vec<Option<Expanded>>>,
    /// Tokens that followed, with how often.
    found: Vec<(TokenId, usize)>,
}

#[derive(Debug, Clone, Copy)]
struct Expanded {
    parent: usize,
    token: TokenId,
}

/// Proposes by looking the last tokens up in `histories`.
#[derive(Debug)]
pub struct Lookup<'a, H: ?Sized> {
    memory: &'a mut PromptLookup,
    histories: &'a H,
}

/// The last tokens before a place, at most [`MAX_MATCH_LEN`] of them.
struct Run {
    /// Filled from the end.
    tokens: [TokenId; MAX_MATCH_LEN],
    len: usize,
}

impl Run {
    /// Puts `token` before the others.
    fn prepend(&mut self, token: TokenId) {
        if self.len < MAX_MATCH_LEN {
            self.len += 1;
            self.tokens[MAX_MATCH_LEN - self.len] = token;
        }
    }

    /// The last `len`.
    fn last(&self, len: usize) -> &[TokenId] {
        &self.tokens[MAX_MATCH_LEN - len..]
    }
}

impl PromptLookup {
    /// A drafter that asks for a match of `min_match_len` tokens, at least 1; more than four are never looked for.
    #[must_use]
    pub fn new(min_match_len: usize) -> Self {
        Self { min_match_len: min_match_len.max(1), expanded: Vec::new(), found: Vec::new() }
    }

    /// The drafter for trees below the ends of `histories`.
    pub fn over<'a, H: Histories + ?Sized>(&'a mut self, histories: &'a H) -> Lookup<'a, H> {
        Lookup { memory: self, histories }
    }

    /// Notes that `node` is expanded. A root forgets the tree before.
    fn note(&mut self, node: &Frontier) -> Result<()> {
        if self.expanded.len() <= node.slot {
            self.expanded.resize_with(node.slot + 1, Vec::new);
        }
        let expanded = &mut self.expanded[node.slot];
        if node.node == 0 {
            expanded.clear();
        } else if expanded.get(node.parent).is_none_or(Option::is_none) {
            let Frontier { node, parent, slot, .. } = node;
            let fact = format!("node {parent} of slot {slot} was not expanded, but its child {node} is");
            return Err(EngineError::Input(fact));
        }
        if expanded.len() <= node.node {
            expanded.resize(node.node + 1, None);
        }
        expanded[node.node] = Some(Expanded { parent: node.parent, token: node.token });
        Ok(())
    }

    /// The last tokens of `history` and the path below it to `node`.
    fn run(&self, history: &[TokenId], node: &Frontier) -> Run {
        let mut run = Run { tokens: [0; MAX_MATCH_LEN], len: 0 };
        let mut at = node.node;
        while at > 0 && run.len < MAX_MATCH_LEN {
            let Some(Expanded { parent, token }) = self.expanded[node.slot][at] else { break };
            run.prepend(token);
            at = parent;
        }
        history.iter().rev().take(MAX_MATCH_LEN).for_each(|&token| run.prepend(token));
        run
    }

    /// What followed the longest end of `run` that was met before, the more frequent first and among equals the more recent.
    fn propose(&mut self, history: &[TokenId], run: &Run, top_k: usize, out: &mut Proposals) {
        for match_len in (self.min_match_len..=run.len).rev() {
            self.find_followers(history, run.last(match_len));
            if self.found.is_empty() {
                continue;
            }
            // As if something else had followed once: a single place is no certainty.
            let total: usize = 1 + self.found.iter().map(|(_, count)| count).sum::<usize>();
            for &(token, count) in self.found.iter().take(top_k) {
                out.push(Proposal { token, log_prob: (count as f32 / total as f32).ln() });
            }
            return;
        }
    }

    /// Fills `found` with the tokens that followed earlier places of `run`.
    fn find_followers(&mut self, history: &[TokenId], run: &[TokenId]) {
        self.found.clear();
        // From the end, so that the more recent comes first; the place at the very end is the run itself.
        for window in history.windows(run.len() + 1).rev() {
            let (place, next) = (&window[..run.len()], window[run.len()]);
            if place != run {
                continue;
            }
            match self.found.iter_mut().find(|(token, _)| *token == next) {
                Some((_, count)) => *count += 1,
                None => self.found.push((next, 1)),
            }
        }
        // Stable, so that the more recent stays first; allocates for more than a few different followers only.
        self.found.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    }
}

impl<H: Histories + ?Sized> Drafter for Lookup<'_, H> {
    fn propose(&mut self, level: &[Frontier], top_k: usize, out: &mut Proposals) -> Result<()> {
        for node in level {
            self.memory.note(node)?;
            let history = self.histories.history(node.slot);
            let run = self.memory.run(history, node);
            self.memory.propose(history, &run, top_k, out);
            out.end_list();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tree::{TreeShape, grow};

    fn chain(history: &[TokenId], min_match_len: usize, num_tokens: usize) -> Vec<TokenId> {
        let root = *history.last().unwrap();
        let tree =
            grow(&mut PromptLookup::new(min_match_len).over(&[history]), root, TreeShape::chain(num_tokens))
                .unwrap();
        tree.tokens[1..].to_vec()
    }

    #[test]
    fn what_followed_before_is_proposed_again() {
        let history = [5, 6, 7, 8, 9, 1, 2, 5, 6];
        assert_eq!(chain(&history, 1, 3), [7, 8, 9]);
        // The copy runs on into itself: 1, 2, 5, 6 follow, and then the same again.
        assert_eq!(chain(&history, 1, 9), [7, 8, 9, 1, 2, 5, 6, 7, 8]);
        assert!(chain(&[1, 2, 3], 1, 4).is_empty(), "nothing was met before");
        assert!(chain(&[7, 1, 8, 2, 7], 2, 4).is_empty(), "one token is not enough");
        assert!(chain(&[3], 1, 4).is_empty());
    }

    #[test]
    fn the_longer_run_decides_then_the_number_of_places_then_the_more_recent() {
        assert_eq!(chain(&[1, 2, 9, 3, 2, 8, 3, 2, 8, 1, 2], 1, 1), [9]);
        let twice_and_once = [2, 8, 0, 2, 8, 0, 2, 8, 0, 2, 9, 0, 2];
        assert_eq!(chain(&twice_and_once, 1, 1), [8], "after 0 2, twice against once");
        assert_eq!(chain(&[4, 7, 5, 7, 6, 9, 7], 1, 1), [6]);
    }

    #[test]
    fn a_tree_holds_the_other_ways_on_as_well() {
        let history = [1, 2, 9, 1, 3, 8, 1];
        let shape = TreeShape { top_k: 2, num_levels: 2, num_nodes: 5 };
        let tree = grow(&mut PromptLookup::new(1).over(&[&history[..]]), 1, shape).unwrap();
        assert_eq!(tree.tokens, [1, 3, 2, 8, 9]);
        assert_eq!(tree.parents, [0, 0, 0, 1, 2]);
    }

    #[test]
    fn slots_are_looked_up_each_in_its_own_history_and_memory_is_kept() {
        let histories = [vec![1, 2, 1], vec![1, 9, 8, 1]];
        let mut lookup = PromptLookup::new(1);
        for _ in 0..2 {
            let mut drafter = lookup.over(&histories);
            let mut proposals = Proposals::default();
            let root = |slot| Frontier { slot, node: 0, parent: 0, token: 1, depth: 0 };
            drafter.propose(&[root(1), root(0)], 4, &mut proposals).unwrap();
            assert_eq!((proposals.list(0)[0].token, proposals.list(1)[0].token), (9, 2));
            proposals.clear();
            let child = Frontier { slot: 1, node: 1, parent: 0, token: 9, depth: 1 };
            drafter.propose(&[child], 4, &mut proposals).unwrap();
            assert_eq!(proposals.list(0)[0].token, 8);
            let orphan = Frontier { slot: 0, node: 2, parent: 1, token: 9, depth: 2 };
            let error = drafter.propose(&[orphan], 4, &mut proposals).unwrap_err();
            assert!(error.to_string().contains("node 1 of slot 0 was not expanded"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn every_proposal_followed_the_same_token_before(
            history in prop::collection::vec(0_u32..6, 1..40), top_k in 1_usize..4, num_levels in 1_usize..6,
        ) {
            let root = *history.last().unwrap();
            let shape = TreeShape { top_k, num_levels, num_nodes: 30 };
            let tree = grow(&mut PromptLookup::new(1).over(&[&history[..]]), root, shape).unwrap();
            for node in 1..tree.len() {
                let pair = [tree.tokens[tree.parents[node]], tree.tokens[node]];
                prop_assert!(history.windows(2).any(|window| window == pair), "{pair:?} in {history:?}");
                prop_assert!(tree.cumulative_log_probs[node] < 0.0);
            }
        }
    }
}
