//! The decisions of a round, and what is learnt from it.

use std::time::Duration;

use takt_engine::TokenId;

use super::{
    Acceptance, Collapse, Counters, Limits, Record, RoundCosts,
    allowance::{Allowance, ms},
    collapse::Canary,
    economy::Economy,
};
use crate::tree::{DraftTree, Frontier, Growth};

/// Proposals in a probe's chain.
const PROBE_LEN: usize = 2;

/// Weight of the newest step in the averages of speed and cost.
const NEWEST: f64 = 1.0 / 32.0;

/// How far measured costs may be from what rounds take, before it is their fault.
const FACTORS: (f64, f64) = (0.25, 4.0);

/// What to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The certain tokens alone.
    Plain,
    /// A verify step.
    Verify {
        /// Nodes of all trees, the certain ones included.
        num_nodes: usize,
    },
}

/// What this round is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Plain,
    Speculation,
    /// A small chain in one slot, to see whether things have changed.
    Probe {
        slot: usize,
        max_levels: usize,
    },
}

/// Decides how much one drafter speculates, for all sequences it serves, and learns from every round.
///
/// A run of some hundred steps or more is never slower than plain decoding by more than 3 %: rounds and probes stop when 1.5 % and a dozen steps are lost, whatever the
/// estimates say. That holds for measured costs of plain decoding that are right; rounds that take longer than measured are noticed.
#[derive(Debug, Clone)]
pub struct Policy {
    acceptance: Acceptance,
    canary: Canary,
    counters: Counters,
    allowance: Allowance,
    economy: Economy,
    /// Averages of what the last tokens took plainly and in truth, both in ms: how much faster than plain a run is.
    plain_ms: f64,
    taken_ms: f64,
    /// Average of what rounds take in truth for each ms of their typical cost.
    factor: f64,
    purpose: Purpose,
    limits: Limits,
    num_levels: usize,
    /// Levels so far and the chosen step, by typical cost times `factor`.
    expected_ms: f64,
    /// Of the round: a decode step, its lanes, and its certain tokens.
    decode_ms: f64,
    num_lanes: usize,
    num_certain: usize,
    num_probes: usize,
    kept: Vec<usize>,
}

impl Policy {
    /// A policy for a drafter that did as on `record` when it was measured; without one it is tried, and judged by what it does.
    #[must_use]
    pub fn new(record: Option<&Record>) -> Self {
        Self {
            acceptance: Acceptance::new(record),
            canary: Canary::new(record.cloned().unwrap_or_default()),
            counters: Counters::default(),
            allowance: Allowance::new(),
            economy: Economy::default(),
            plain_ms: 0.0,
            taken_ms: 0.0,
            factor: 1.0,
            purpose: Purpose::Plain,
            limits: Limits { max_nodes: 0, max_levels: 0, top_k: 0 },
            num_levels: 0,
            expected_ms: 0.0,
            decode_ms: 0.0,
            num_lanes: 0,
            num_certain: 0,
            num_probes: 0,
            kept: Vec::new(),
        }
    }

    /// Begins a round of `growths`, one for each lane that decodes, all of them started.
    pub fn begin_round(&mut self, growths: &[Growth], limits: Limits, costs: &dyn RoundCosts) {
        self.economy.begin_round(growths, limits, costs, self.factor);
        self.limits = limits;
        self.num_levels = 0;
        self.expected_ms = 0.0;
        self.purpose = Purpose::Plain;
        self.num_lanes = growths.len();
        self.num_certain = growths.iter().map(Growth::num_certain).sum();
        self.decode_ms = ms(costs.decode(growths.len()));
        self.allowance.begin_round(self.decode_ms);
        // A millisecond is worth what a run makes of it: at least what plain decoding would.
        let plain_rate = self.num_lanes as f64 / self.decode_ms.max(1e-6);
        self.economy.set_rate(plain_rate * self.speedup().max(1.0));
    }

    /// Fills `level` with the nodes to expand next; false, and none, when enough is drafted, or nothing should be.
    pub fn next_level(&mut self, growths: &[Growth], level: &mut Vec<Frontier>) -> bool {
        level.clear();
        if self.num_levels < self.limits.max_levels && self.economy.max_proposals() > 0 {
            self.economy.read(growths, &self.acceptance);
            if self.num_levels == 0 {
                self.begin_drafting(growths, level);
            } else {
                self.go_on_drafting(growths, level);
            }
        }
        if level.is_empty() {
            return false;
        }
        self.num_levels += 1;
        self.expected_ms += self.economy.draft_ms(level.len());
        true
    }

    fn begin_drafting(&mut self, growths: &[Growth], level: &mut Vec<Frontier>) {
        if self.allowance.is_positive() {
            self.purpose = Purpose::Speculation;
            self.economy.fill_level(growths, &self.acceptance, self.limits.max_levels, level);
        }
        if level.is_empty() {
            self.purpose = self.probe(growths).unwrap_or(Purpose::Plain);
            self.go_on_drafting(growths, level);
        }
    }

    fn go_on_drafting(&mut self, growths: &[Growth], level: &mut Vec<Frontier>) {
        match self.purpose {
            Purpose::Plain => {}
            Purpose::Speculation => {
                let max_levels = self.limits.max_levels - self.num_levels;
                self.economy.fill_level(growths, &self.acceptance, max_levels, level);
            }
            Purpose::Probe { slot, max_levels } if self.num_levels < max_levels => {
                // The first proposal is the likeliest.
                let first = growths[slot].expandable().next();
                level.extend(first.and_then(|node| growths[slot].frontier(slot, node)));
            }
            Purpose::Probe { .. } => {}
        }
    }

    /// A probe, if one is due and within the limits. The slots take turns.
    fn probe(&self, growths: &[Growth]) -> Option<Purpose> {
        let slot = self.num_probes.checked_rem(growths.len())?;
        let num_to_read = growths[slot].num_levels_to_read();
        let len = PROBE_LEN
            .min(self.limits.max_levels.saturating_sub(num_to_read))
            .min(self.economy.max_proposals());
        let max_levels = num_to_read + len;
        let drafting_ms = self.economy.draft_ms(1) * max_levels as f64;
        let loss_ms = drafting_ms + self.economy.step_ms(len) - self.economy.step_ms(0);
        let is_due = len > 0 && self.allowance.covers_probe(loss_ms);
        is_due.then_some(Purpose::Probe { slot, max_levels })
    }

    /// Ends the drafting: fills the `trees`, one for each of `growths`, with what is to be verified, and says which step to run.
    pub fn choose(&mut self, growths: &mut [Growth], trees: &mut [DraftTree]) -> Verdict {
        if self.num_levels > 0 {
            self.economy.read(growths, &self.acceptance);
        }
        let num_kept = match self.purpose {
            _ if self.num_levels == 0 => 0,
            Purpose::Probe { .. } => self.keep_probe(growths, trees),
            _ => self.keep_best(growths, trees),
        };
        if num_kept == 0 {
            growths.iter_mut().zip(trees).for_each(|(growth, tree)| growth.keep(&[], tree));
        }
        self.expected_ms += self.economy.step_ms(num_kept);
        if num_kept == 0 {
            Verdict::Plain
        } else {
            Verdict::Verify { num_nodes: self.num_certain + num_kept }
        }
    }

    fn keep_best(&mut self, growths: &mut [Growth], trees: &mut [DraftTree]) -> usize {
        let num_kept = self.economy.num_worth_verifying();
        let (kept, refused) = self.economy.known().split_at(num_kept);
        for candidate in refused.iter().filter(|candidate| is_first(&growths[candidate.slot], candidate.node))
        {
            let growth = &growths[candidate.slot];
            let reached = self.economy.chance(candidate.slot, growth.parent(candidate.node));
            if reached > 0.0 {
                let depth = growth.depth(candidate.node);
                self.acceptance.expect(depth, reached, candidate.chance / reached);
            }
        }
        self.acceptance.estimate();
        for (slot, (growth, tree)) in growths.iter_mut().zip(trees).enumerate() {
            let of_slot = kept.iter().filter(|candidate| candidate.slot == slot);
            self.kept.clear();
            self.kept.extend(of_slot.map(|candidate| candidate.node));
            self.kept.sort_unstable();
            growth.keep(&self.kept, tree);
        }
        num_kept
    }

    /// Keeps the first proposals alone, whatever they are worth.
    fn keep_probe(&mut self, growths: &mut [Growth], trees: &mut [DraftTree]) -> usize {
        let mut num_kept = 0;
        for (growth, tree) in growths.iter_mut().zip(trees) {
            self.kept.clear();
            let proposed = growth.num_certain()..growth.len();
            self.kept.extend(proposed.filter(|&node| is_first(growth, node)));
            self.kept.truncate(self.economy.max_proposals() - num_kept);
            num_kept += self.kept.len();
            growth.keep(&self.kept, tree);
        }
        num_kept
    }

    /// Learns from a verified `tree`, of which `path` was accepted, and `next` chosen after it, as [`crate::verify::walk`] leaves them.
    pub fn observe(&mut self, tree: &DraftTree, path: &[usize], next: Option<TokenId>) {
        self.observe_apart(tree, path, next);
        self.canary.observe(tree, path, next);
    }

    /// As [`Self::observe`], for an answer that the record says nothing of, because its tokens are sampled or a form narrows them: a drafter is not
    /// blamed for those.
    pub fn observe_apart(&mut self, tree: &DraftTree, path: &[usize], next: Option<TokenId>) {
        self.acceptance.observe(tree, path, next);
        self.counters.observe(tree, path);
    }

    /// What plain decoding typically takes for `num_tokens` of the round that began last, over all its lanes.
    #[must_use]
    pub fn plain_equivalent(&self, num_tokens: usize) -> Duration {
        let more = num_tokens.saturating_sub(self.num_certain) as f64 / self.num_lanes.max(1) as f64;
        let ms = self.economy.step_ms(0) + more * self.decode_ms;
        Duration::try_from_secs_f64(ms / 1e3).unwrap_or_default()
    }

    /// Learns what a round with drafting took, all its levels included, whatever was verified in the end, and what plain decoding would have
    /// taken for the tokens it brought: see [`Self::plain_equivalent`].
    pub fn record_round(&mut self, took: Duration, plain_equivalent: Duration) {
        self.allowance.record_round(took, plain_equivalent);
        if matches!(self.purpose, Purpose::Probe { .. }) {
            self.num_probes = self.num_probes.wrapping_add(1);
            self.allowance.record_probe(took < plain_equivalent);
        }
        self.average(ms(plain_equivalent), ms(took));
        if self.expected_ms > 0.0 {
            // `expected_ms` has the factor in it.
            let (least, most) = FACTORS;
            let found = (self.factor * ms(took) / self.expected_ms).clamp(least, most);
            self.factor += NEWEST * (found - self.factor);
        }
    }

    /// Learns what a step without any drafting took.
    pub fn record_plain(&mut self, took: Duration) {
        self.allowance.record_plain(took);
        self.average(self.decode_ms, self.decode_ms);
    }

    fn average(&mut self, plain_ms: f64, taken_ms: f64) {
        self.plain_ms += NEWEST * (plain_ms - self.plain_ms);
        self.taken_ms += NEWEST * (taken_ms - self.taken_ms);
    }

    /// How much faster than plain decoding the last steps were.
    #[must_use]
    pub fn speedup(&self) -> f64 {
        if self.taken_ms > 0.0 { self.plain_ms / self.taken_ms } else { 1.0 }
    }

    /// Time spent in rounds so far, and what plain decoding would have taken for their tokens.
    #[must_use]
    pub fn rounds_and_plain(&self) -> (Duration, Duration) {
        (self.allowance.rounds, self.allowance.plain_equivalent)
    }

    /// Whether the drafter does far worse than on record.
    #[must_use]
    pub fn collapse(&self) -> Option<Collapse> {
        self.canary.check()
    }

    /// What was learnt about acceptance.
    #[must_use]
    pub fn acceptance(&self) -> &Acceptance {
        &self.acceptance
    }

    /// Counts for reports.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}

/// Whether `node`, a proposed one, is the first proposal after its parent.
fn is_first(growth: &Growth, node: usize) -> bool {
    node == growth.num_certain() || growth.parent(node) != growth.parent(node - 1)
}
