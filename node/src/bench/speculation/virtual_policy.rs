//! The adaptive policy in virtual time: it decides as it would, at costs that were measured and with acceptance that is assumed.

use std::{collections::BTreeMap, time::Duration};

use takt_eagle_spec::{
    policy::{Policy, RoundCosts},
    tree::{DraftTree, Drafter, Frontier, Growth, Proposal, Proposals},
    verify::walk,
};
use takt_engine::EngineError;

use super::{
    median,
    method::{Method, Proposer},
    player::LIMITS,
    profile::{Assumed, Profile},
    report::MethodRow,
    simulated::{draw, us},
    tally::Sums,
};
use crate::random::SplitMix64;

/// Tokens played: the policy's start counts little among so many.
const NUM_TOKENS: u64 = 4000;

/// What parts of rounds took, by size.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PartCosts {
    /// By nodes; a plain step is one of 1.
    verify_us: BTreeMap<usize, f64>,
    /// By rows of a level.
    draft_us: BTreeMap<usize, f64>,
}

impl PartCosts {
    /// From measured rows, the first of which is plain decoding. A chain's levels have a row each; a tree's first has one, and the others as many
    /// as it is wide.
    pub fn of(rows: &[MethodRow]) -> Self {
        let (mut verify, mut draft) =
            (BTreeMap::<usize, Vec<f64>>::new(), BTreeMap::<usize, Vec<f64>>::new());
        verify.entry(1).or_default().extend(rows.first().map(|plain| 1e6 / plain.tok_s.max(1e-9)));
        let fixed = rows.iter().filter_map(|row| Some((row, row.top_k?, row.levels?, row.nodes?)));
        for (row, top_k, levels, _) in fixed.clone().filter(|&(_, top_k, ..)| top_k == 1) {
            draft.entry(top_k).or_default().extend(row.draft_us.map(|all| all / levels.max(1) as f64));
        }
        let root = median(draft.get(&1).into_iter().flatten().copied());
        for (row, top_k, levels, nodes) in fixed {
            // A narrow tree may not have as many nodes as it has room for.
            let nodes = row.nodes_per_round.map_or(nodes, |nodes| nodes.round() as usize); // a small count
            verify.entry(nodes).or_default().extend(row.verify_us);
            if top_k > 1 && levels > 1 {
                let others = row.draft_us.map(|all| (all - root).max(0.0) / (levels - 1) as f64);
                draft.entry(top_k).or_default().extend(others);
            }
        }
        let medians = |lists: BTreeMap<usize, Vec<f64>>| {
            lists.into_iter().map(|(size, list)| (size, median(list))).collect()
        };
        Self { verify_us: medians(verify), draft_us: medians(draft) }
    }
}

/// On the line between the measured sizes around `size`; beyond the last in proportion to it.
fn between(points: &BTreeMap<usize, f64>, size: usize) -> f64 {
    let low = points.range(..=size).next_back();
    let high = points.range(size..).next();
    match (low, high) {
        (Some((&low, &at_low)), Some((&high, &at_high))) if high > low => {
            at_low + (at_high - at_low) * (size - low) as f64 / (high - low) as f64
        }
        (Some((_, &at)), Some(_)) | (None, Some((_, &at))) => at,
        (Some((&low, &at)), None) => at * size as f64 / low.max(1) as f64,
        (None, None) => 0.0,
    }
}

impl RoundCosts for PartCosts {
    fn decode(&self, _num_lanes: usize) -> Duration {
        us(between(&self.verify_us, 1))
    }

    fn verify(&self, num_nodes: usize) -> Duration {
        us(between(&self.verify_us, num_nodes))
    }

    fn draft(&self, num_rows: usize) -> Duration {
        us(between(&self.draft_us, num_rows))
    }
}

/// Proposes tokens 0, 1, 2, … everywhere.
struct Counting;

impl Drafter for Counting {
    fn propose(&mut self, level: &[Frontier], top_k: usize, out: &mut Proposals) -> Result<(), EngineError> {
        for _ in level {
            (0..).take(top_k).for_each(|token| out.push(Proposal { token, log_prob: 0.0 }));
            out.end_list();
        }
        Ok(())
    }
}

/// The adaptive row.
pub(super) fn play(profile: &Profile, costs: &PartCosts) -> MethodRow {
    let mut sums = Sums::default();
    // Nothing here can fail but a lost row of the tree, which ends the play with what there is.
    let _ = play_into(profile, costs, &mut sums);
    let step_us = costs.decode(1).as_secs_f64() * 1e6;
    let per_token_us = sums.took.as_secs_f64() * 1e6 / sums.num_tokens.max(1) as f64;
    let (draft_us, verify_us) = (sums.us_per_round(sums.drafting), sums.us_per_round(sums.verifying));
    let round_us = draft_us.zip(verify_us).map(|(draft, verify)| draft + verify);
    MethodRow {
        tok_s: 1e6 / per_token_us.max(1e-9),
        speedup: step_us / per_token_us.max(1e-9),
        accept_len: sums.accept_len(),
        accept_len_shares: sums.accept_shares(),
        rounds: sums.num_rounds as f64,
        plain_steps: sums.num_plain as f64,
        nodes_per_round: (sums.num_rounds > 0).then(|| sums.num_nodes as f64 / sums.num_rounds as f64),
        draft_us,
        verify_us,
        round_us,
        round_cost: round_us.map(|round| round / step_us.max(1e-9)),
        ..MethodRow::named(Method::Adaptive(Proposer::Head))
    }
}

fn play_into(profile: &Profile, costs: &PartCosts, sums: &mut Sums) -> Result<(), EngineError> {
    let (mut policy, mut random) = (Policy::new(None), SplitMix64(11));
    let (mut growths, mut trees) = ([Growth::with_capacity(64)], [DraftTree::with_capacity(64)]);
    let (mut level, mut proposals, mut scratch) = (Vec::new(), Proposals::default(), Proposals::default());
    let mut path = Vec::new();
    while sums.num_tokens < NUM_TOKENS {
        growths[0].start(&[0])?;
        policy.begin_round(&growths, LIMITS, costs);
        let mut drafting = Duration::ZERO;
        while policy.next_level(&growths, &mut level) {
            proposals.clear();
            let mut drafter = Assumed { inner: Counting, profile, scratch: &mut scratch };
            drafter.propose(&level, LIMITS.top_k, &mut proposals)?;
            growths[0].add_level(0, &level, &proposals)?;
            drafting += costs.draft(level.len());
        }
        policy.choose(&mut growths, &mut trees);
        let tree = &trees[0];
        let choose = |node| Ok::<_, EngineError>(Some(draw(tree, node, &mut random).unwrap_or(u32::MAX)));
        let next = walk(tree, choose, &mut path)?;
        let verifying = costs.verify(tree.len());
        if tree.num_drafted() > 0 {
            policy.observe(tree, &path, next);
        }
        if drafting.is_zero() {
            policy.record_plain(verifying);
        } else {
            let plain = policy.plain_equivalent(path.len());
            policy.record_round(drafting + verifying, plain);
        }
        sums.add_step(tree, &path, drafting, verifying);
        sums.took += drafting + verifying;
        sums.num_tokens += path.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(verify: &[(usize, f64)], draft: f64) -> PartCosts {
        PartCosts { verify_us: verify.iter().copied().collect(), draft_us: [(1, draft), (4, draft)].into() }
    }

    #[test]
    fn costs_lie_on_the_line_between_those_measured() {
        let costs = costs(&[(1, 100.0), (8, 170.0), (32, 410.0)], 10.0);
        assert_eq!(costs.decode(3), us(100.0));
        for (nodes, expected) in [(1, 100.0), (4, 130.0), (8, 170.0), (20, 290.0), (64, 820.0)] {
            assert_eq!(costs.verify(nodes), us(expected), "{nodes}");
        }
        assert_eq!(between(&BTreeMap::new(), 3), 0.0);
    }

    #[test]
    fn cheap_rounds_and_good_proposals_are_used_and_dear_ones_are_not() {
        let good: Profile = "good".parse().unwrap();
        let cheap = play(&good, &costs(&[(1, 100.0), (8, 110.0), (32, 150.0)], 5.0));
        assert!(cheap.speedup > 2.0 && cheap.accept_len.unwrap() > 2.5, "{cheap:?}");
        let poor: Profile = "0.05".parse().unwrap();
        let dear = play(&poor, &costs(&[(1, 100.0), (2, 190.0), (32, 3000.0)], 50.0));
        // Virtual time: the policy's promise holds to the letter.
        assert!(dear.speedup > 0.97 && dear.rounds < 0.1 * dear.plain_steps, "{dear:?}");
    }

    #[test]
    fn parts_are_found_in_measured_rows() {
        let row = |method: Method, draft: f64, verify: f64| MethodRow {
            tok_s: 1e4,
            draft_us: Some(draft),
            verify_us: Some(verify),
            ..MethodRow::named(method)
        };
        let all = Method::all(true, false, 64);
        let rows: Vec<MethodRow> = all
            .into_iter()
            .map(|method| match method.shape() {
                Some(shape) if shape.top_k == 1 => row(method, 10.0 * shape.num_levels as f64, 100.0),
                Some(shape) => row(method, 10.0 + 20.0 * (shape.num_levels - 1) as f64, 200.0),
                None => MethodRow { tok_s: 1e4, ..MethodRow::named(method) },
            })
            .collect();
        let found = PartCosts::of(&rows);
        assert_eq!((found.decode(1), found.draft(1), found.draft(2)), (us(100.0), us(10.0), us(20.0)));
        assert_eq!((found.verify(3), found.verify(32)), (us(100.0), us(200.0)));
    }
}
