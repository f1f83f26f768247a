//! A round of speculation in the place of a decode step: what it may use at most, and what that costs at most.

use std::time::Duration;

use super::cost_table::{Bounds, SectionKind, SectionShape};

/// Nodes expanded on a level, and proposals for each, in one lane at most.
pub const MAX_TOP_K: usize = 4;
/// Levels of the deepest tree.
pub const MAX_LEVELS: usize = 8;
/// Proposals verified for each lane at most.
pub const MAX_PROPOSALS: usize = 24;
/// Tokens that must have been met before for what followed them to be proposed.
pub const MIN_MATCH_LEN: usize = 2;
/// Proposals whose validity under a grammar is found in the time one mask is bounded by: following a token is far cheaper than a mask of all.
const CHECKS_PER_MASK: u32 = 4;

/// At most so much drafting and verifying. The drafter may use less; promises count all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Round {
    /// Levels drafted, each by one call of the draft head.
    pub num_levels: usize,
    /// Nodes expanded on a level, and proposals for each, in each lane.
    pub top_k: usize,
    /// Proposals verified, for each lane; any of them may take those of the others.
    pub num_proposals: usize,
    /// Nodes verified over all lanes, their roots and forced tokens included.
    pub max_nodes: usize,
    /// Whether drafting runs a draft head; looking tokens up costs nothing worth counting.
    pub has_head: bool,
}

impl Round {
    /// Nodes verified at most for `num_lanes` lanes with `num_certain` tokens that are no proposals.
    #[must_use]
    pub fn num_nodes(&self, num_lanes: usize, num_certain: usize) -> usize {
        (num_certain + num_lanes * self.num_proposals).min(self.max_nodes)
    }

    /// Whether there is room for a proposal at all.
    #[must_use]
    pub fn fits(&self, num_certain: usize) -> bool {
        self.num_levels > 0 && self.num_proposals > 0 && num_certain < self.max_nodes
    }

    /// Its bound for `num_lanes` lanes with `num_certain` tokens that are no proposals, whose contexts are at most `context_len` before it;
    /// `num_forms` of the lanes answer in a form.
    #[must_use]
    pub fn cost(
        &self,
        num_lanes: usize,
        num_certain: usize,
        context_len: usize,
        num_forms: usize,
        bounds: &Bounds,
    ) -> Duration {
        let num_nodes = self.num_nodes(num_lanes, num_certain);
        let context_len = context_len + num_nodes.saturating_sub(num_lanes.saturating_sub(1));
        let cost = |kind, size: usize| bounds.of(SectionShape { kind, size: size.max(1), context_len });
        let times = |num: usize| u32::try_from(num).unwrap_or(u32::MAX);
        let levels = if self.has_head {
            let further = self.num_levels.saturating_sub(1);
            cost(SectionKind::Draft, num_lanes).saturating_add(
                cost(SectionKind::Draft, num_lanes * self.top_k).saturating_mul(times(further)),
            )
        } else {
            Duration::ZERO
        };
        // A mask for every token that comes of it, the target's own included, and a check for every proposal.
        let num_checks = times(num_forms * self.num_levels * self.top_k * self.top_k);
        let num_masks =
            times(num_forms * (self.num_levels + 1)).saturating_add(num_checks.div_ceil(CHECKS_PER_MASK));
        let verify = cost(SectionKind::Verify, num_nodes);
        levels.saturating_add(verify).saturating_add(bounds.mask().saturating_mul(num_masks))
    }

    /// One with about half of everything; `None` when nothing is left.
    #[must_use]
    pub fn halved(self) -> Option<Self> {
        let half = Self {
            num_levels: self.num_levels / 2,
            top_k: self.top_k.div_ceil(2),
            num_proposals: self.num_proposals / 2,
            ..self
        };
        (half.num_levels > 0 && half.num_proposals > 0).then_some(half)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::cost_table::{Cost, CostTable, Grid};

    #[test]
    fn a_round_costs_its_levels_its_verification_and_its_masks() {
        let ms = Duration::from_millis;
        let grid = Grid {
            prefill_sizes: vec![8],
            decode_sizes: vec![4],
            verify_sizes: vec![4, 16],
            draft_sizes: vec![2, 8],
            context_lens: vec![1000],
        };
        let costs: Vec<Cost> = [50, 20, 30, 40, 1, 3].map(|cost| Cost::exactly(ms(cost))).into();
        let mut table = CostTable::with_margin(grid, &costs, 1.0);
        let round = Round { num_levels: 3, top_k: 4, num_proposals: 6, max_nodes: 15, has_head: true };
        assert_eq!(round.cost(2, 2, 10, 0, table.bounds()), ms(1 + 2 * 3 + 40));
        assert_eq!((round.num_nodes(2, 2), round.num_nodes(3, 3)), (14, 15));
        assert_eq!(Round { has_head: false, ..round }.cost(1, 1, 10, 0, table.bounds()), ms(40));
        assert_eq!(round.halved().unwrap().cost(1, 1, 10, 0, table.bounds()), ms(1 + 30));
        assert_eq!(round.halved().unwrap().halved(), None);
        assert!(!round.fits(15) && round.fits(14));
        for _ in 0..100 {
            table.record_mask(ms(1));
        }
        let mask = table.bounds().mask();
        assert_eq!(round.cost(2, 2, 10, 1, table.bounds()), ms(47) + mask * (4 + 12));
    }
}
