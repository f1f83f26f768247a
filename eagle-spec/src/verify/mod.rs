//! What is accepted of a tree, so that the output is the target's own.

mod greedy;
mod sampling;

use takt_engine::TokenId;

pub use greedy::verify_greedy;
pub use sampling::verify_sampled;

/// What a round brings: the accepted nodes and one more token of the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// Nodes of the tree from the root on, the root included: their rows stay in the target's lane.
    pub path: Vec<usize>,
    /// The target's token after the last of them: the next root.
    pub next: TokenId,
}

impl Accepted {
    /// Tokens that the round adds to the answer: the accepted proposals and `next`.
    #[must_use]
    pub fn num_new(&self) -> usize {
        self.path.len()
    }
}
