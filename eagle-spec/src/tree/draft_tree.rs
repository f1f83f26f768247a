//! What one sequence has verified in a round.

use takt_engine::TokenId;

/// A tree to verify. Node 0 is the root, the token the target has chosen last; parents come before their children.
#[derive(Debug, Clone, PartialEq)]
pub struct DraftTree {
    /// Token of each node.
    pub tokens: Vec<TokenId>,
    /// Parent of each node; the root's is itself.
    pub parents: Vec<usize>,
    /// Steps below the root.
    pub depths: Vec<usize>,
    /// Log-probability of each node's path, by the drafter; 0 for the root.
    pub cumulative_log_probs: Vec<f32>,
    /// Nodes at the front that nobody proposed: the root, and a chain of tokens that a grammar has fixed.
    pub num_certain: usize,
}

impl DraftTree {
    /// A tree of the root alone, which verifies as a plain decode step.
    #[must_use]
    pub fn root(token: TokenId) -> Self {
        let mut tree = Self::with_capacity(1);
        tree.refill(token);
        tree
    }

    /// A tree without even a root, to be refilled, with room for `max_nodes`.
    #[must_use]
    pub fn with_capacity(max_nodes: usize) -> Self {
        Self {
            tokens: Vec::with_capacity(max_nodes),
            parents: Vec::with_capacity(max_nodes),
            depths: Vec::with_capacity(max_nodes),
            cumulative_log_probs: Vec::with_capacity(max_nodes),
            num_certain: 0,
        }
    }

    /// Makes it a tree of the root alone again, keeping the memory.
    pub fn refill(&mut self, root: TokenId) {
        self.clear();
        self.tokens.push(root);
        self.parents.push(0);
        self.depths.push(0);
        self.cumulative_log_probs.push(0.0);
        self.num_certain = 1;
    }

    /// Forgets all nodes, the root too, keeping the memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.parents.clear();
        self.depths.clear();
        self.cumulative_log_probs.clear();
        self.num_certain = 0;
    }

    /// Nodes, the root included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// True only before [`Self::refill`], and after [`Self::clear`]: otherwise there is a root.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Proposed nodes.
    #[must_use]
    pub fn num_drafted(&self) -> usize {
        self.len().saturating_sub(self.num_certain)
    }

    /// Children of `node`, in the order they were proposed: likeliest first.
    pub fn children(&self, node: usize) -> impl Iterator<Item = usize> + '_ {
        (1..self.len()).filter(move |&child| self.parents[child] == node)
    }

    /// Nodes from the root to `node`, both included.
    #[must_use]
    pub fn path(&self, node: usize) -> Vec<usize> {
        let up = std::iter::successors(Some(node), |&node| (node > 0).then(|| self.parents[node]));
        let mut path: Vec<usize> = up.collect();
        path.reverse();
        path
    }

    /// Adds a node below `parent`, which is there; returns its number.
    pub(crate) fn push(&mut self, parent: usize, token: TokenId, cumulative_log_prob: f32) -> usize {
        self.tokens.push(token);
        self.parents.push(parent);
        self.depths.push(self.depths[parent] + 1);
        self.cumulative_log_probs.push(cumulative_log_prob);
        self.len() - 1
    }
}
