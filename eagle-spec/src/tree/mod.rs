//! What is proposed: a tree of tokens below the one that the target has already chosen.
//!
//! A worker grows the trees of several sequences together, level by level, with one call of the drafter a level:
//!
//! ```text
//! growth.start(pending)                      for each sequence ("slot")
//! loop: level = nodes worth expanding        by `Growth::push_likeliest` or by the policy
//!       drafter.propose(level, top_k, lists)
//!       growth.add_level(slot, level, lists) for each slot
//! growth.prune(n, tree)                      or `keep`, for each slot
//! ```

mod draft_tree;
mod grow;
mod growth;
mod proposals;

use takt_engine::{Result, TokenId};

pub use draft_tree::DraftTree;
pub use grow::{TreeShape, grow};
pub use growth::Growth;
pub use proposals::{Proposal, Proposals};

/// A node to be expanded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frontier {
    /// Which of the sequences that grow together it belongs to, from 0.
    pub slot: usize,
    /// Its number within its sequence; 0 is the root.
    pub node: usize,
    /// The node it follows, which was expanded before; the root's is itself.
    pub parent: usize,
    /// Its token.
    pub token: TokenId,
    /// Steps below the root.
    pub depth: usize,
}

/// Proposes tokens.
pub trait Drafter {
    /// Appends to `out` one list for each of `level`, in its order: the `top_k` likeliest tokens after that node, likeliest first; fewer, or
    /// none, when it knows no more.
    ///
    /// The first node of a slot is its root, which makes the drafter forget what it proposed there before; every later one is a child, proposed
    /// or forced, of a node that was expanded by an earlier call.
    ///
    /// # Errors
    /// Whatever keeps it from proposing; [`takt_engine::EngineError::Input`] for a node whose parent was not expanded.
    fn propose(&mut self, level: &[Frontier], top_k: usize, out: &mut Proposals) -> Result<()>;
}
