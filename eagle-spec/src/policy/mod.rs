//! How much to speculate: decided anew in each round, from what rounds cost and from what was accepted before.
//!
//! ```text
//! policy.begin_round(growths, limits, costs)
//! while policy.next_level(growths, level)     empty: enough, or plain
//!       drafter.propose(level, top_k, lists); growth.add_level(slot, level, lists) for each slot
//! policy.choose(growths, trees)               plain, or so many nodes to verify
//! policy.observe(tree, path, next)            for each slot of a verify round
//! policy.record_round(took, plain)    or record_plain(took), when nothing was drafted
//! ```
//!
//! | module | concept |
//! |---|---|
//! | `acceptance` | what was learnt about the drafter, depth by depth |
//! | `economy` | what a round is worth: tokens against time, as the same number |
//! | `allowance` | how much speculation may lose, so that a run is never much slower than a plain one |
//! | `collapse` | a drafter that does far worse than it once did |
//! | `counters` | what reports say |
//! | `rounds` | all of them together: [`Policy`] |
//!
//! Architecture invariant: no clock and no logging. Time comes in as numbers, decisions go out as values, so that a test decides alike.

mod acceptance;
mod allowance;
mod collapse;
mod counters;
mod economy;
mod rounds;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use acceptance::{Acceptance, MAX_DEPTH};
pub use collapse::{ALARMING_SHARE, Collapse, Record};
pub use counters::Counters;
pub use rounds::{Policy, Verdict};

/// What the parts of a round typically take, as measured: medians, by bucket of rows.
pub trait RoundCosts {
    /// A plain decode step of `num_lanes` lanes.
    fn decode(&self, num_lanes: usize) -> Duration;
    /// A verify step of `num_nodes` nodes, all trees of the round together, roots included.
    fn verify(&self, num_nodes: usize) -> Duration;
    /// One level of the drafter, `num_rows` nodes of all sequences together.
    fn draft(&self, num_rows: usize) -> Duration;
}

/// What a round may use at most: what a deadline leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Nodes to verify, of all sequences together, their roots and forced tokens included.
    pub max_nodes: usize,
    /// Calls of the drafter.
    pub max_levels: usize,
    /// Nodes expanded on a level in each sequence, and proposals for each.
    pub top_k: usize,
}
