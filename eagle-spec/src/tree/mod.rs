//! What is proposed: a tree of tokens below the one that the target has already chosen.

mod grow;

use takt_engine::{Result, TokenId};

pub use grow::{TreeShape, grow};

/// A token a drafter proposes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Proposal {
    /// The target's token.
    pub token: TokenId,
    /// Its log-probability after its parent, by the drafter.
    pub log_prob: f32,
}

/// A candidate to be expanded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frontier {
    /// Its number.
    pub candidate: usize,
    /// The candidate it follows, which was expanded before; `None` for the root.
    pub parent: Option<usize>,
    /// Its token.
    pub token: TokenId,
    /// 1 right below the root.
    pub depth: usize,
}

/// Proposes tokens.
pub trait Drafter {
    /// The `top_k` likeliest tokens after the root, likeliest first; fewer, or none, when it knows no more.
    ///
    /// # Errors
    /// Whatever keeps it from proposing.
    fn begin(&mut self, top_k: usize) -> Result<Vec<Proposal>>;

    /// The `top_k` likeliest tokens after `node`, likeliest first; fewer, or none, when it knows no more.
    ///
    /// # Errors
    /// As [`Self::begin`].
    fn expand(&mut self, node: &Frontier, top_k: usize) -> Result<Vec<Proposal>>;
}

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
}

impl DraftTree {
    /// A tree of the root alone, which verifies as a plain decode step.
    #[must_use]
    pub fn root(token: TokenId) -> Self {
        Self { tokens: vec![token], parents: vec![0], depths: vec![0], cumulative_log_probs: vec![0.0] }
    }

    /// Nodes, the root included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Never true: there is a root.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Children of `node`, likeliest first.
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

    /// Adds a node below `parent`; returns its number.
    fn push(&mut self, parent: usize, token: TokenId, cumulative_log_prob: f32) -> usize {
        self.tokens.push(token);
        self.parents.push(parent);
        self.depths.push(self.depths[parent] + 1);
        self.cumulative_log_probs.push(cumulative_log_prob);
        self.len() - 1
    }
}
