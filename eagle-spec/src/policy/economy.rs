//! What a round is worth: `tokens − rate · time`, which a run makes most of when it maximises tokens per time and `rate` is what it then
//! reaches (Dinkelbach, "On Nonlinear Fractional Programming", 1967).

use super::{Acceptance, Limits, RoundCosts, allowance::ms};
use crate::tree::{Frontier, Growth};

/// Proposals that a round considers at most, whatever the limits: more than any step verifies.
const MAX_PROPOSALS: usize = 1024;

/// A proposed node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    /// Chance that it is accepted.
    pub chance: f32,
    pub slot: usize,
    pub node: usize,
}

/// A node that may be expanded.
#[derive(Debug, Clone, Copy)]
struct Open {
    at: Candidate,
    depth: usize,
    /// Levels before its own proposals count, while forced tokens are read.
    num_levels_to_read: usize,
}

/// One round's costs and candidates. Buffers are kept from round to round.
#[derive(Debug, Clone, Default)]
pub(super) struct Economy {
    /// Tokens that a millisecond is worth.
    rate: f64,
    /// `[num_proposals]`: a step that verifies so many, up to the limit; without any, a plain one.
    step_ms: Vec<f64>,
    /// `[num_rows]`: a level of the drafter.
    draft_ms: Vec<f64>,
    top_k: usize,
    /// By slot and node.
    chances: Vec<Vec<f32>>,
    /// All proposals, likeliest first; with equal chances parents come before their children.
    known: Vec<Candidate>,
    open: Vec<Open>,
    /// Open nodes by slot, while they are counted.
    num_open: Vec<usize>,
    /// Chances of known and expected proposals together.
    merged: Vec<f32>,
    /// By row of the level: the chance of what is expected on the last level.
    running: Vec<f32>,
}

impl Economy {
    /// Takes the costs of a round of `growths`, which have been started. `factor` is what rounds take in truth for each ms of their typical
    /// cost.
    pub fn begin_round(&mut self, growths: &[Growth], limits: Limits, costs: &dyn RoundCosts, factor: f64) {
        let num_certain: usize = growths.iter().map(Growth::num_certain).sum();
        let is_plain = num_certain == growths.len();
        let base = if is_plain { costs.decode(growths.len()) } else { costs.verify(num_certain) };
        self.step_ms.clear();
        self.step_ms.push(ms(base));
        let max_nodes = limits.max_nodes.min(num_certain.saturating_add(MAX_PROPOSALS));
        let verify = |num_nodes| ms(costs.verify(num_nodes)) * factor;
        self.step_ms.extend((num_certain + 1..=max_nodes).map(verify));
        // More rows than proposals that can be verified are of no use.
        let max_rows = self.max_proposals().min(growths.len().saturating_mul(limits.top_k));
        self.draft_ms.clear();
        self.draft_ms.push(0.0);
        self.draft_ms.extend((1..=max_rows).map(|num_rows| ms(costs.draft(num_rows)) * factor));
        self.top_k = limits.top_k;
        self.known.clear();
        self.chances.iter_mut().for_each(Vec::clear);
        if self.chances.len() < growths.len() {
            self.chances.resize_with(growths.len(), Vec::new);
        }
    }

    /// Sets the tokens that a millisecond is worth.
    pub fn set_rate(&mut self, rate: f64) {
        self.rate = rate;
    }

    /// Proposals that may be verified.
    pub fn max_proposals(&self) -> usize {
        self.step_ms.len().saturating_sub(1)
    }

    /// Time of a step that verifies `num_proposals`, at most [`Self::max_proposals`].
    pub fn step_ms(&self, num_proposals: usize) -> f64 {
        self.step_ms[num_proposals]
    }

    /// Time of a level of `num_rows`; infinite beyond the limits.
    pub fn draft_ms(&self, num_rows: usize) -> f64 {
        self.draft_ms.get(num_rows).copied().unwrap_or(f64::INFINITY)
    }

    /// Candidates that came since the last call.
    pub fn read(&mut self, growths: &[Growth], acceptance: &Acceptance) {
        for (slot, growth) in growths.iter().enumerate() {
            let chances = &mut self.chances[slot];
            for node in chances.len()..growth.len() {
                if node < growth.num_certain() {
                    chances.push(1.0);
                    continue;
                }
                let chance = acceptance.chance(growth, node, chances[growth.parent(node)]);
                chances.push(chance);
                self.known.push(Candidate { chance, slot, node });
            }
        }
        self.known.sort_unstable_by(likelier);
    }

    /// Fills `level` with the nodes that are worth expanding if at most `max_levels` more may be drafted: none when what is known is best
    /// verified as it is.
    ///
    /// Compared are all numbers of levels, and of rows for them, by what the round would be worth with the proposals that are then
    /// expected: one more below each row and level, as likely as such were before.
    pub fn fill_level(
        &mut self,
        growths: &[Growth],
        acceptance: &Acceptance,
        max_levels: usize,
        level: &mut Vec<Frontier>,
    ) {
        self.find_open(growths, max_levels);
        let (_, mut best) =
            best_prefix(self.known.iter().map(|known| known.chance), self.rate, &self.step_ms);
        let mut best_rows = 0;
        let max_rows = self.open.len().min(self.draft_ms.len() - 1);
        for num_rows in 1..=max_rows {
            let cost = self.draft_ms[num_rows];
            // Rows that a level has anyway cost nothing more.
            if num_rows < max_rows && self.draft_ms[num_rows + 1] <= cost {
                continue;
            }
            let worth = self.best_worth(num_rows, max_levels, acceptance);
            if worth > best {
                (best, best_rows) = (worth, num_rows);
            }
        }
        let rows = self.open[..best_rows].iter();
        level.extend(rows.filter_map(|row| growths[row.at.slot].frontier(row.at.slot, row.at.node)));
    }

    /// The most that a round can be worth with 1 to `max_levels` more levels of `num_rows`.
    fn best_worth(&mut self, num_rows: usize, max_levels: usize, acceptance: &Acceptance) -> f64 {
        let rows = &self.open[..num_rows];
        // Less likely ones than can be verified are out of the running.
        let max_proposals = self.max_proposals();
        self.merged.clear();
        self.merged.extend(self.known.iter().take(max_proposals).map(|known| known.chance));
        self.running.clear();
        self.running.extend(rows.iter().map(|row| row.at.chance));
        let (mut best, mut drafting) = (f64::NEG_INFINITY, 0.0);
        for num_levels in 1..=max_levels {
            drafting += self.rate * self.draft_ms[num_rows];
            for (row, chance) in rows.iter().zip(&mut self.running) {
                if num_levels > row.num_levels_to_read {
                    *chance *= acceptance.forecast(row.depth + num_levels);
                    self.merged.push(*chance);
                }
            }
            self.merged.sort_unstable_by(|a, b| b.total_cmp(a));
            self.merged.truncate(max_proposals);
            let (_, worth) = best_prefix(self.merged.iter().copied(), self.rate, &self.step_ms);
            best = best.max(worth - drafting);
        }
        best
    }

    /// The likeliest `top_k` open nodes of each slot, likeliest first.
    fn find_open(&mut self, growths: &[Growth], max_levels: usize) {
        self.open.clear();
        for (slot, growth) in growths.iter().enumerate() {
            let num_levels_to_read = growth.num_levels_to_read();
            if num_levels_to_read < max_levels {
                self.open.extend(growth.expandable().map(|node| Open {
                    at: Candidate { chance: self.chances[slot][node], slot, node },
                    depth: growth.depth(node),
                    num_levels_to_read,
                }));
            }
        }
        self.open.sort_unstable_by(|a, b| likelier(&a.at, &b.at));
        self.num_open.clear();
        self.num_open.resize(growths.len(), 0);
        let (num_open, top_k) = (&mut self.num_open, self.top_k);
        self.open.retain(|open| {
            num_open[open.at.slot] += 1;
            num_open[open.at.slot] <= top_k
        });
    }

    /// How many of the known proposals, likeliest first, are worth verifying; 0 is a plain step.
    pub fn num_worth_verifying(&self) -> usize {
        best_prefix(self.known.iter().map(|known| known.chance), self.rate, &self.step_ms).0
    }

    /// All proposals, likeliest first; a prefix of them is closed under parents.
    pub fn known(&self) -> &[Candidate] {
        &self.known
    }

    /// Chance that `node` of `slot` is accepted.
    pub fn chance(&self, slot: usize, node: usize) -> f32 {
        self.chances[slot][node]
    }
}

/// Likeliest first; among equals the one proposed first, and the first slot.
fn likelier(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.chance.total_cmp(&a.chance).then(a.node.cmp(&b.node)).then(a.slot.cmp(&b.slot))
}

/// How many of `chances`, likeliest first, to verify so that a round is worth most, and how much, beyond its certain tokens. A step's cost
/// has stairs, so that all numbers are compared; of equals the smallest wins.
fn best_prefix(chances: impl Iterator<Item = f32>, rate: f64, step_ms: &[f64]) -> (usize, f64) {
    let mut best = (0, -rate * step_ms[0]);
    let mut tokens = 0.0;
    for (chance, (num_kept, cost)) in chances.zip(step_ms.iter().enumerate().skip(1)) {
        tokens += f64::from(chance);
        let worth = tokens - rate * cost;
        if worth > best.1 {
            best = (num_kept, worth);
        }
    }
    best
}
