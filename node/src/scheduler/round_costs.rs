//! What rounds usually take, for the policy.

use std::time::Duration;

use takt_eagle_spec::policy::RoundCosts;

use super::cost_table::{CostTable, SectionKind, SectionShape};

/// The table's medians at one context.
#[derive(Debug, Clone, Copy)]
pub struct TypicalRound<'a> {
    /// What sections cost here.
    pub table: &'a CostTable,
    /// Longest context of the round.
    pub context_len: usize,
    /// Tokens that other lanes compute in the same step.
    pub num_others: usize,
    /// Whether a draft head drafts; looking tokens up costs nothing worth counting.
    pub has_head: bool,
    /// What passes after every section before the next: a round is one, and so is each step whose place it takes.
    pub idle_gap: Duration,
}

impl TypicalRound<'_> {
    fn of(&self, kind: SectionKind, size: usize) -> Duration {
        self.table.typical(SectionShape { kind, size: size.max(1), context_len: self.context_len })
    }
}

impl RoundCosts for TypicalRound<'_> {
    fn decode(&self, num_lanes: usize) -> Duration {
        self.of(SectionKind::Decode, num_lanes + self.num_others) + self.idle_gap
    }

    fn verify(&self, num_nodes: usize) -> Duration {
        self.of(SectionKind::Verify, num_nodes + self.num_others) + self.idle_gap
    }

    fn draft(&self, num_rows: usize) -> Duration {
        if self.has_head { self.of(SectionKind::Draft, num_rows) } else { Duration::ZERO }
    }
}
