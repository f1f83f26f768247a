//! Prompt lookup: what followed the last tokens the time before. Needs no model; robots repeat the text of their state.
//!
//! After Saxena's "Prompt Lookup Decoding" (2023), with counts over all earlier places instead of the first one found, so that it grows
//! trees as any other drafter.

use takt_engine::{Result, TokenId};

use crate::tree::{Drafter, Frontier, Proposal};

/// Longest run of last tokens that is looked for.
const MAX_MATCH_LEN: usize = 4;

/// Proposes by looking the last tokens up in what was said before.
#[derive(Debug, Clone)]
pub struct PromptLookup<'a> {
    /// The prompt and the answer, up to and with the root.
    history: &'a [TokenId],
    /// Fewest last tokens that must have been met before: 1 proposes often, more is more often right.
    min_match_len: usize,
    /// By candidate: the tokens from below the root down to it.
    paths: Vec<Vec<TokenId>>,
}

impl<'a> PromptLookup<'a> {
    /// A drafter after `history`, whose last token is the root.
    #[must_use]
    pub fn new(history: &'a [TokenId], min_match_len: usize) -> Self {
        Self { history, min_match_len: min_match_len.max(1), paths: Vec::new() }
    }

    /// What followed the longest run at the end of the history and `path` that was met before, the more frequent first and among equals the
    /// more recent.
    fn after(&self, path: &[TokenId], top_k: usize) -> Vec<Proposal> {
        let len = self.history.len() + path.len();
        for match_len in (self.min_match_len..=MAX_MATCH_LEN.min(len)).rev() {
            let found = self.followers(path, match_len);
            if found.is_empty() {
                continue;
            }
            // As if something else had followed once: a single place is no certainty.
            let total: usize = 1 + found.iter().map(|(_, count)| count).sum::<usize>();
            let proposal = |&(token, count): &(TokenId, usize)| Proposal {
                token,
                log_prob: (count as f32 / total as f32).ln(),
            };
            return found.iter().take(top_k).map(proposal).collect();
        }
        Vec::new()
    }

    /// Tokens that followed earlier places of the last `match_len` tokens, with how often.
    fn followers(&self, path: &[TokenId], match_len: usize) -> Vec<(TokenId, usize)> {
        let from_history = match_len.saturating_sub(path.len());
        let run_start = self.history.len() - from_history;
        let run: Vec<TokenId> = self.history[run_start..]
            .iter()
            .chain(&path[path.len().saturating_sub(match_len)..])
            .copied()
            .collect();
        let mut found: Vec<(TokenId, usize)> = Vec::new();
        // From the end, so that the more recent comes first; the place at the very end is the run itself.
        for window in self.history.windows(match_len + 1).rev() {
            let (place, next) = (&window[..match_len], window[match_len]);
            if place != run {
                continue;
            }
            match found.iter_mut().find(|(token, _)| *token == next) {
                Some((_, count)) => *count += 1,
                None => found.push((next, 1)),
            }
        }
        found.sort_by_key(|(_, count)| std::cmp::Reverse(*count)); // stable: the more recent stays first
        found
    }
}

impl Drafter for PromptLookup<'_> {
    fn begin(&mut self, top_k: usize) -> Result<Vec<Proposal>> {
        Ok(self.after(&[], top_k))
    }

    fn expand(&mut self, node: &Frontier, top_k: usize) -> Result<Vec<Proposal>> {
        let mut path = node.parent.and_then(|parent| self.paths.get(parent)).cloned().unwrap_or_default();
        path.push(node.token);
        let proposals = self.after(&path, top_k);
        if self.paths.len() <= node.candidate {
            self.paths.resize(node.candidate + 1, Vec::new());
        }
        self.paths[node.candidate] = path;
        Ok(proposals)
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
            grow(&mut PromptLookup::new(history, min_match_len), root, TreeShape::chain(num_tokens)).unwrap();
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
        let tree = grow(&mut PromptLookup::new(&history, 1), 1, shape).unwrap();
        assert_eq!(tree.tokens, [1, 3, 2, 8, 9]);
        assert_eq!(tree.parents, [0, 0, 0, 1, 2]);
    }

    proptest! {
        #[test]
        fn every_proposal_followed_the_same_token_before(
            history in prop::collection::vec(0_u32..6, 1..40), top_k in 1_usize..4, num_levels in 1_usize..6,
        ) {
            let root = *history.last().unwrap();
            let shape = TreeShape { top_k, num_levels, num_nodes: 30 };
            let tree = grow(&mut PromptLookup::new(&history, 1), root, shape).unwrap();
            for node in 1..tree.len() {
                let pair = [tree.tokens[tree.parents[node]], tree.tokens[node]];
                prop_assert!(history.windows(2).any(|window| window == pair), "{pair:?} in {history:?}");
                prop_assert!(tree.cumulative_log_probs[node] < 0.0);
            }
        }
    }
}
