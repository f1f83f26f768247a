//! What was learnt about a drafter, depth by depth.

use takt_engine::TokenId;

use super::Record;
use crate::tree::{DraftTree, Growth};

/// Depths told apart; deeper ones count as the last.
pub const MAX_DEPTH: usize = 16;

/// Share that the past loses with each new observation of a depth: about the last 32 count.
const FADING: f32 = 1.0 / 32.0;

/// Share that every depth loses with each tree, tried or not: what was not tried for long is taken for what the depths above it suggest.
const FORGETTING: f32 = 1.0 / 512.0;

/// Observations that the prior stands for.
const PRIOR_WEIGHT: f32 = 4.0;

/// Acceptance of a drafter nobody has measured.
const UNKNOWN_ACCEPTANCE: f32 = 0.6;

/// Sums over the past, weighted by recency.
#[derive(Debug, Clone, Copy, Default)]
struct Depth {
    /// Paths that reached the depth above, where something was proposed and verified.
    num_reached: f32,
    /// Of those, which went on; and which went on to the first proposal.
    num_accepted: f32,
    /// What the drafter thought `num_accepted` to be.
    num_predicted: f32,
    /// As `num_reached`, with proposals that were not worth verifying, by the chance of getting there.
    num_tried: f32,
    /// First proposals accepted, or their chance.
    num_first: f32,
}

impl Depth {
    fn scale(&mut self, factor: f32) {
        let Self { num_reached, num_accepted, num_predicted, num_tried, num_first } = self;
        for sum in [num_reached, num_accepted, num_predicted, num_tried, num_first] {
            *sum *= factor;
        }
    }
}

/// How often proposals are accepted, given that what is above them was; and how much the drafter overstates it.
///
/// Depths count from the root, forced tokens included: what a drafter knows fades with the distance from what the target has seen.
#[derive(Debug, Clone)]
pub struct Acceptance {
    /// `[depth − 1]`.
    depths: [Depth; MAX_DEPTH],
    prior: [f32; MAX_DEPTH],
    /// `[depth − 1]`, of the above.
    calibration: [f32; MAX_DEPTH],
    forecast: [f32; MAX_DEPTH],
}

impl Acceptance {
    /// Nothing learnt yet: as on `record`, its last depth standing for those below it; without one, middling.
    #[must_use]
    pub fn new(record: Option<&Record>) -> Self {
        let mut prior = [UNKNOWN_ACCEPTANCE; MAX_DEPTH];
        if let Some(recorded) =
            record.map(|record| record.acceptance.as_slice()).filter(|list| !list.is_empty())
        {
            for (depth, prior) in prior.iter_mut().enumerate() {
                *prior = recorded[depth.min(recorded.len() - 1)].clamp(0.0, 1.0);
            }
        }
        let depths = [Depth::default(); MAX_DEPTH];
        Self { depths, prior, calibration: [1.0; MAX_DEPTH], forecast: prior }
    }

    /// Learns from a verified `tree`, of which `path` was accepted; `next` is the token after it, `None` when the answer ended there,
    /// which says nothing about what was proposed for later.
    pub fn observe(&mut self, tree: &DraftTree, path: &[usize], next: Option<TokenId>) {
        if tree.num_drafted() == 0 {
            return;
        }
        self.depths.iter_mut().for_each(|depth| depth.scale(1.0 - FORGETTING));
        for (idx, &node) in path.iter().enumerate() {
            let accepted = path.get(idx + 1).copied();
            if accepted.is_some() || next.is_some() {
                self.observe_children(tree, node, accepted);
            }
        }
        self.estimate();
    }

    fn observe_children(&mut self, tree: &DraftTree, node: usize, accepted: Option<usize>) {
        let above = tree.cumulative_log_probs[node];
        let mut first = None;
        let mut predicted = 0.0;
        for child in tree.children(node).filter(|&child| child >= tree.num_certain) {
            first = first.or(Some(child));
            predicted += conditional(tree.cumulative_log_probs[child], above);
        }
        if first.is_none() {
            return;
        }
        let depth = &mut self.depths[tree.depths[node].min(MAX_DEPTH - 1)];
        depth.scale(1.0 - FADING);
        depth.num_reached += 1.0;
        depth.num_tried += 1.0;
        depth.num_predicted += predicted;
        if accepted.is_some() {
            depth.num_accepted += 1.0;
            depth.num_first += if accepted == first { 1.0 } else { 0.0 };
        }
    }

    /// Learns from proposals that were not worth verifying: what would be expected of the first one at `depth`, 1 or more, was `expected` in a
    /// place that is reached with chance `reached`. Without this a modest drafter would be asked again and again, and in vain.
    pub(super) fn expect(&mut self, depth: usize, reached: f32, expected: f32) {
        let depth = &mut self.depths[depth.saturating_sub(1).min(MAX_DEPTH - 1)];
        depth.num_tried += reached - FADING * reached * depth.num_tried;
        depth.num_first += reached * expected - FADING * reached * depth.num_first;
    }

    /// Brings the estimates up to date with the sums. What little is known of a depth is filled up with what the depth above suggests.
    pub(super) fn estimate(&mut self) {
        let (mut calibration, mut trust) = (1.0, 1.0);
        for (idx, depth) in self.depths.iter().enumerate() {
            let weight = PRIOR_WEIGHT * self.prior[idx];
            calibration =
                (depth.num_accepted + weight * calibration) / (depth.num_predicted + weight).max(1e-6);
            let expected = self.prior[idx] * trust;
            let forecast = (depth.num_first + PRIOR_WEIGHT * expected) / (depth.num_tried + PRIOR_WEIGHT);
            self.calibration[idx] = calibration;
            self.forecast[idx] = forecast;
            trust = (forecast / self.prior[idx].max(1e-6)).min(1.0);
        }
    }

    /// What to take a drafter's probabilities at `depth`, 1 or more, times: below 1 for one that is overconfident.
    #[must_use]
    pub fn calibration(&self, depth: usize) -> f32 {
        self.calibration[depth.saturating_sub(1).min(MAX_DEPTH - 1)]
    }

    /// Chance that the first proposal at `depth`, 1 or more, is accepted if what is above it is.
    #[must_use]
    pub fn forecast(&self, depth: usize) -> f32 {
        self.forecast[depth.saturating_sub(1).min(MAX_DEPTH - 1)]
    }

    /// Share of the last rounds that went on to `depth`, 1 or more, of those that reached the depth above it; `None` if none was tried.
    #[must_use]
    pub fn conditional(&self, depth: usize) -> Option<f32> {
        let depth = self.depths.get(depth.checked_sub(1)?)?;
        (depth.num_reached > 0.0).then(|| depth.num_accepted / depth.num_reached)
    }

    /// The chance that `node` of `growth`, no certain one, is accepted; `above` is its parent's.
    pub(super) fn chance(&self, growth: &Growth, node: usize, above: f32) -> f32 {
        let parent = growth.cumulative_log_prob(growth.parent(node));
        let predicted = conditional(growth.cumulative_log_prob(node), parent);
        above * (predicted * self.calibration(growth.depth(node))).min(1.0)
    }
}

/// Probability of a node after its parent, by the cumulative log-probabilities of both.
fn conditional(node: f32, parent: f32) -> f32 {
    let difference = node - parent;
    // Both may be −∞.
    if difference.is_nan() { 0.0 } else { difference.exp() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(log_prob: f32) -> DraftTree {
        let mut tree = DraftTree::root(0);
        for parent in 0..3 {
            tree.push(parent, 7, (parent + 1) as f32 * log_prob);
        }
        tree
    }

    #[test]
    fn an_overconfident_drafter_is_scaled_down_at_depths_it_was_never_tried_at_too() {
        let mut acceptance = Acceptance::new(None);
        let tree = chain(0.9_f32.ln());
        for round in 0..300 {
            acceptance.observe(&tree, if round % 5 == 0 { &[0, 1] } else { &[0] }, Some(1));
        }
        assert!((acceptance.conditional(1).unwrap() - 0.2).abs() < 0.03);
        assert!((acceptance.calibration(1) - 0.2 / 0.9).abs() < 0.05, "{acceptance:?}");
        assert!((acceptance.forecast(1) - 0.2).abs() < 0.06);
        assert_eq!(acceptance.conditional(2), Some(0.0));
        assert!(acceptance.calibration(9) < 0.25 && acceptance.forecast(9) < 0.25);
        assert_eq!(
            (acceptance.conditional(3), acceptance.conditional(0), acceptance.conditional(99)),
            (None, None, None)
        );
    }

    #[test]
    fn estimates_start_from_the_record_and_follow_what_happens() {
        let record = Record { acceptance: vec![0.8, 0.5] };
        let mut acceptance = Acceptance::new(Some(&record));
        assert_eq!(
            (acceptance.forecast(1), acceptance.forecast(2), acceptance.forecast(40)),
            (0.8, 0.5, 0.5)
        );
        for _ in 0..100 {
            acceptance.observe(&chain(-0.1), &[0], Some(1));
        }
        assert!(acceptance.forecast(1) < 0.15);
        for _ in 0..100 {
            acceptance.observe(&chain(-0.1), &[0, 1, 2, 3], Some(1));
        }
        assert!(acceptance.forecast(1) > 0.85 && acceptance.forecast(3) > 0.8);
    }

    #[test]
    fn where_the_answer_ended_nothing_is_learnt_about_what_was_proposed() {
        let mut acceptance = Acceptance::new(None);
        acceptance.observe(&chain(-0.1), &[0, 1], None);
        assert_eq!((acceptance.conditional(1), acceptance.conditional(2)), (Some(1.0), None));
    }

    #[test]
    fn forced_tokens_are_no_proposals() {
        let mut acceptance = Acceptance::new(None);
        let mut tree = chain(-0.1);
        tree.num_certain = 3;
        acceptance.observe(&tree, &[0, 1, 2, 3], Some(1));
        assert_eq!((acceptance.conditional(1), acceptance.conditional(3)), (None, Some(1.0)));
    }
}
