//! A tree while it grows: everything that was proposed, of which a part will be verified.

use std::ops::Range;

use takt_engine::{EngineError, Result, TokenId};

use super::{DraftTree, Frontier, Proposals};

/// One token of the tree before it is pruned.
#[derive(Debug, Clone, Copy)]
struct Node {
    parent: usize,
    token: TokenId,
    depth: usize,
    cumulative_log_prob: f32,
}

/// The tree of one sequence under construction. Starting again keeps the memory.
///
/// Nodes are numbered as they come: the root, the forced tokens below it, then candidates in the order they were proposed. The *open* ones
/// may be expanded next; what is passed over on its level is not expanded any more, but may still be verified.
#[derive(Debug, Clone)]
pub struct Growth {
    nodes: Vec<Node>,
    /// The root and the forced tokens, a chain.
    num_certain: usize,
    open: Range<usize>,
    /// Tokens that end an answer: nothing follows them.
    terminals: Vec<TokenId>,
    /// Nodes by likelihood, while choosing.
    order: Vec<usize>,
    /// By node, its number in the pruned tree; 0 for what was not kept, for the root is its own.
    kept_as: Vec<usize>,
}

impl Growth {
    /// An empty one with room for `max_nodes`: with `top_k` rows a level and `top_k` proposals for each,
    /// `certain + top_k + top_k² · (levels − 1)`.
    #[must_use]
    pub fn with_capacity(max_nodes: usize) -> Self {
        Self {
            nodes: Vec::with_capacity(max_nodes),
            num_certain: 0,
            open: 0..0,
            terminals: Vec::new(),
            order: Vec::with_capacity(max_nodes),
            kept_as: Vec::with_capacity(max_nodes),
        }
    }

    /// Begins a tree. `pending[0]` is the root, the token chosen last; any others follow it for certain, because a grammar leaves no choice:
    /// a chain that is expanded one by one, so that the drafter has read it, and that is never pruned.
    ///
    /// # Errors
    /// [`EngineError::Input`] when nothing is pending.
    pub fn start(&mut self, pending: &[TokenId]) -> Result<()> {
        if pending.is_empty() {
            return Err(EngineError::Input("a draft tree without a root token".into()));
        }
        self.nodes.clear();
        self.nodes.extend(pending.iter().enumerate().map(|(depth, &token)| Node {
            parent: depth.saturating_sub(1),
            token,
            depth,
            cumulative_log_prob: 0.0,
        }));
        self.num_certain = pending.len();
        self.open = 0..1;
        Ok(())
    }

    /// Tokens that end the answer, for this and later trees: what is proposed of them is verified, but not expanded.
    pub fn set_terminals(&mut self, tokens: &[TokenId]) {
        self.terminals.clear();
        self.terminals.extend_from_slice(tokens);
    }

    /// All nodes so far, the root included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// True before the first [`Self::start`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The root and the forced tokens: nodes `[0, num_certain)`.
    #[must_use]
    pub fn num_certain(&self) -> usize {
        self.num_certain
    }

    /// Nodes that may be expanded next, in the order they were proposed: the newest level; while certain nodes are left to expand, the next of
    /// those alone.
    #[must_use]
    pub fn open(&self) -> Range<usize> {
        self.open.clone()
    }

    /// The open nodes after which something can come.
    pub fn expandable(&self) -> impl Iterator<Item = usize> + '_ {
        self.open
            .clone()
            .filter(|&node| node < self.num_certain || !self.terminals.contains(&self.nodes[node].token))
    }

    /// Certain nodes to be expanded after the open one before there are proposals to keep; 0 once there are.
    #[must_use]
    pub fn num_levels_to_read(&self) -> usize {
        if self.open.is_empty() { 0 } else { self.num_certain.saturating_sub(self.open.end) }
    }

    /// Node `node` as a drafter of `slot` sees it; `None` when there are fewer.
    #[must_use]
    pub fn frontier(&self, slot: usize, node: usize) -> Option<Frontier> {
        let &Node { parent, token, depth, .. } = self.nodes.get(node)?;
        Some(Frontier { slot, node, parent, token, depth })
    }

    /// Log-probability of the path to `node`, which is there, by the drafter: at most its parent's, 0 for certain ones.
    #[must_use]
    pub fn cumulative_log_prob(&self, node: usize) -> f32 {
        self.nodes[node].cumulative_log_prob
    }

    /// The node before `node`, which is there; the root's is itself.
    #[must_use]
    pub fn parent(&self, node: usize) -> usize {
        self.nodes[node].parent
    }

    /// Steps from the root to `node`, which is there.
    #[must_use]
    pub fn depth(&self, node: usize) -> usize {
        self.nodes[node].depth
    }

    /// Appends the `top_k` likeliest open nodes to `level`, likeliest first.
    pub fn push_likeliest(&mut self, slot: usize, top_k: usize, level: &mut Vec<Frontier>) {
        self.sort_by_likelihood(self.open.clone());
        let mut order = std::mem::take(&mut self.order);
        order.retain(|&node| self.expandable().any(|open| open == node));
        self.order = order;
        let chosen = self.order.iter().take(top_k);
        level.extend(chosen.filter_map(|&node| self.frontier(slot, node)));
    }

    /// Adds what was proposed for the nodes of `slot` in `level`, which were open; one list for each of `level`. Its other open nodes close; a
    /// sequence without a node in the level has done growing.
    ///
    /// # Errors
    /// [`EngineError::Input`] when there are more or fewer lists, or a node was not open.
    pub fn add_level(&mut self, slot: usize, level: &[Frontier], proposals: &Proposals) -> Result<()> {
        if proposals.num_lists() != level.len() {
            let (found, expected) = (proposals.num_lists(), level.len());
            return Err(EngineError::Input(format!("{found} lists of proposals for {expected} nodes")));
        }
        let begin = self.nodes.len();
        let mut next = begin..begin;
        for (idx, frontier) in level.iter().enumerate().filter(|(_, frontier)| frontier.slot == slot) {
            let node = frontier.node;
            if !self.open.contains(&node) {
                return Err(EngineError::Input(format!("node {node} of slot {slot} is not open")));
            }
            if node + 1 < self.num_certain {
                next = node + 1..node + 2; // what follows is known: the proposals are of no use
            } else {
                self.add(node, proposals, idx);
                next.end = self.nodes.len();
            }
        }
        self.open = next;
        Ok(())
    }

    fn add(&mut self, parent: usize, proposals: &Proposals, list_idx: usize) {
        let Node { depth, cumulative_log_prob, .. } = self.nodes[parent];
        self.nodes.extend(proposals.list(list_idx).iter().map(|proposal| {
            // Never above the parent's, whatever a drafter says: the kept nodes must form a tree.
            let log_prob = if proposal.log_prob.is_nan() { f32::NEG_INFINITY } else { proposal.log_prob };
            Node {
                parent,
                token: proposal.token,
                depth: depth + 1,
                cumulative_log_prob: cumulative_log_prob + log_prob.min(0.0),
            }
        }));
    }

    /// Makes `tree` the root, the forced tokens and the `num_kept` likeliest candidates, of equals those that were proposed first.
    pub fn prune(&mut self, num_kept: usize, tree: &mut DraftTree) {
        self.sort_by_likelihood(self.num_certain..self.nodes.len());
        let mut kept = std::mem::take(&mut self.order);
        kept.truncate(num_kept);
        kept.sort_unstable();
        self.keep(&kept, tree);
        self.order = kept;
    }

    /// Makes `tree` the root, the forced tokens and the candidates `kept`, in ascending order. What does not hang on to a kept one is left
    /// out; before the first [`Self::start`] the tree becomes empty.
    pub fn keep(&mut self, kept: &[usize], tree: &mut DraftTree) {
        let Some(root) = self.nodes.first() else { return tree.clear() };
        tree.refill(root.token);
        self.kept_as.clear();
        self.kept_as.resize(self.nodes.len(), 0);
        let candidates = kept.iter().copied().filter(|&node| node >= self.num_certain);
        for idx in (1..self.num_certain).chain(candidates) {
            let Some(&Node { parent, token, cumulative_log_prob, .. }) = self.nodes.get(idx) else {
                continue;
            };
            if parent == 0 || self.kept_as[parent] > 0 {
                self.kept_as[idx] = tree.push(self.kept_as[parent], token, cumulative_log_prob);
            }
        }
        tree.num_certain = self.num_certain;
    }

    /// Fills `order`: likeliest first; among equals the one that was proposed first.
    fn sort_by_likelihood(&mut self, nodes: Range<usize>) {
        self.order.clear();
        self.order.extend(nodes);
        let likelihood = |node: usize| self.nodes[node].cumulative_log_prob;
        // Unstable, as the stable sort allocates; the second key decides all ties.
        self.order.sort_unstable_by(|&a, &b| likelihood(b).total_cmp(&likelihood(a)).then(a.cmp(&b)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Proposal;

    fn lists(of: &[&[(TokenId, f32)]]) -> Proposals {
        let mut proposals = Proposals::default();
        for list in of {
            list.iter().for_each(|&(token, log_prob)| proposals.push(Proposal { token, log_prob }));
            proposals.end_list();
        }
        proposals
    }

    fn level_of(growth: &mut Growth, slot: usize, top_k: usize) -> Vec<Frontier> {
        let mut level = Vec::new();
        growth.push_likeliest(slot, top_k, &mut level);
        level
    }

    #[test]
    fn forced_tokens_are_read_one_by_one_and_all_kept() {
        let mut growth = Growth::with_capacity(8);
        for _ in 0..2 {
            growth.start(&[10, 11, 12]).unwrap();
            for node in 0..3 {
                assert_eq!(growth.num_levels_to_read(), 2 - node);
                let level = level_of(&mut growth, 5, 4);
                let expected =
                    Frontier { slot: 5, node, parent: node.max(1) - 1, token: 10 + node as u32, depth: node };
                assert_eq!(level, [expected]);
                growth.add_level(5, &level, &lists(&[&[(1, -0.1), (2, -2.0)]])).unwrap();
            }
            assert_eq!((growth.open(), growth.depth(3), growth.num_levels_to_read()), (3..5, 3, 0));
            let mut tree = DraftTree::with_capacity(4);
            growth.prune(1, &mut tree);
            assert_eq!(
                (tree.tokens.as_slice(), tree.parents.as_slice()),
                (&[10, 11, 12, 1][..], &[0, 0, 1, 2][..])
            );
            assert_eq!((tree.num_certain, tree.num_drafted()), (3, 1));
            assert_eq!(tree.cumulative_log_probs, [0.0, 0.0, 0.0, -0.1]);
            growth.prune(0, &mut tree);
            assert_eq!(tree.tokens, [10, 11, 12]);
        }
    }

    #[test]
    fn slots_of_one_level_keep_to_themselves_and_stop_when_left_out() {
        let mut growths = [Growth::with_capacity(8), Growth::with_capacity(8)];
        let mut level = Vec::new();
        for (slot, growth) in growths.iter_mut().enumerate() {
            growth.start(&[slot as u32]).unwrap();
            growth.push_likeliest(slot, 1, &mut level);
        }
        let proposals = lists(&[&[(5, -0.1)], &[(6, -0.2), (7, -0.3)]]);
        for (slot, growth) in growths.iter_mut().enumerate() {
            growth.add_level(slot, &level, &proposals).unwrap();
        }
        assert_eq!((growths[0].open(), growths[1].open()), (1..2, 1..3));
        let level = level_of(&mut growths[1], 1, 1);
        assert_eq!(level.iter().map(|node| node.token).collect::<Vec<_>>(), [6]);
        for (slot, growth) in growths.iter_mut().enumerate() {
            growth.add_level(slot, &level, &lists(&[&[(8, -0.5)]])).unwrap();
        }
        assert_eq!((growths[0].open().len(), growths[1].open()), (0, 3..4));
        let mut tree = DraftTree::root(0);
        growths[1].prune(9, &mut tree);
        assert_eq!((tree.tokens.as_slice(), tree.parents.as_slice()), (&[1, 6, 7, 8][..], &[0, 0, 0, 1][..]));
        growths[1].keep(&[2, 3], &mut tree);
        assert_eq!(tree.tokens, [1, 7], "8 follows 6, which is not kept");
    }

    #[test]
    fn nothing_is_expanded_after_a_token_that_ends_the_answer() {
        let mut growth = Growth::with_capacity(8);
        growth.set_terminals(&[9]);
        growth.start(&[9]).unwrap();
        let level = level_of(&mut growth, 0, 2);
        assert_eq!(level.len(), 1, "the root is no proposal");
        growth.add_level(0, &level, &lists(&[&[(9, -0.1), (5, -2.0), (6, -3.0)]])).unwrap();
        assert_eq!((growth.open(), growth.expandable().collect::<Vec<_>>()), (1..4, vec![2, 3]));
        let level = level_of(&mut growth, 0, 1);
        assert_eq!(level.iter().map(|node| node.token).collect::<Vec<_>>(), [5]);
        let mut tree = DraftTree::root(0);
        growth.prune(1, &mut tree);
        assert_eq!(tree.tokens, [9, 9], "but it is verified");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut growth = Growth::with_capacity(4);
        assert!(growth.start(&[]).unwrap_err().to_string().contains("without a root"));
        growth.start(&[1]).unwrap();
        let level = level_of(&mut growth, 0, 3);
        let error = growth.add_level(0, &level, &lists(&[])).unwrap_err();
        assert!(error.to_string().contains("0 lists of proposals for 1 nodes"), "{error}");
        growth.add_level(0, &level, &lists(&[&[(1, f32::NAN), (2, -1.0)]])).unwrap();
        assert_eq!(level_of(&mut growth, 0, 1)[0].token, 2, "what is no number comes last");
        let error = growth.add_level(0, &level, &lists(&[&[]])).unwrap_err();
        assert!(error.to_string().contains("node 0 of slot 0 is not open"), "{error}");
    }
}
