//! The policy against brute force, and over long runs with drafters of every kind.

use proptest::prelude::*;

use super::{
    Limits, Policy, Record, RoundCosts, Verdict,
    simulation::{Account, Quality, StepCosts, Worker, World, fixed_shape_ratio},
};
use crate::tree::{DraftTree, TreeShape};

const LIMITS: Limits = Limits { max_nodes: 32, max_levels: 6, top_k: 4 };

fn honest(claimed: &[f32], spread: f32) -> Quality {
    Quality { claimed: claimed.to_vec(), spread, honesty: 1.0 }
}

fn good() -> Quality {
    honest(&[0.8, 0.75, 0.7, 0.65], 0.2)
}

fn useless() -> Quality {
    Quality { honesty: 0.02, ..good() }
}

fn rising(least: u64, stairs: &[u64]) -> Vec<u64> {
    let sum = stairs.iter().scan(least, |sum, stair| {
        *sum += stair;
        Some(*sum)
    });
    std::iter::once(least).chain(sum).collect()
}

/// Costs with stairs; verifying one node is as good as decoding one lane.
fn costs() -> impl Strategy<Value = StepCosts> {
    let stairs = |most| prop::collection::vec(0..most, 6);
    (stairs(2000_u64), stairs(6000), 100_u64..3000, stairs(1000)).prop_map(
        |(decode, verify, draft, drafts)| StepCosts {
            decode_us: rising(8000, &decode),
            verify_us: rising(8000, &verify),
            draft_us: rising(draft, &drafts),
        },
    )
}

fn ms(duration: std::time::Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Expected tokens of `trees` by what was claimed, without the certain ones.
fn expected(trees: &[DraftTree]) -> f64 {
    let chances = trees.iter().flat_map(|tree| &tree.cumulative_log_probs[tree.num_certain..]);
    chances.map(|log_prob| f64::from(log_prob.exp())).sum()
}

fn step_cost(costs: &StepCosts, num_lanes: usize, num_drafted: usize) -> f64 {
    ms(if num_drafted == 0 { costs.decode(num_lanes) } else { costs.verify(num_lanes + num_drafted) })
}

proptest! {
    /// Chains whose acceptance is known beforehand: no other number of lanes, levels and nodes is worth more.
    #[test]
    fn rounds_are_worth_as_much_as_the_best_of_all_lanes_levels_and_nodes(
        costs in costs(), claimed in prop::collection::vec(0.05_f32..0.97, 6), num_lanes in 1_usize..5,
        max_levels in 1_usize..7, max_nodes in 1_usize..33,
    ) {
        let limits = Limits { max_nodes, max_levels, top_k: 1 };
        let policy = Policy::new(Some(&Record { acceptance: claimed.clone() }));
        let mut world = World::new(honest(&claimed, 0.0), 1);
        let mut worker = Worker::new(policy, costs.clone(), limits, num_lanes);
        let rate = num_lanes as f64 / ms(costs.decode(num_lanes));
        let (verdict, num_levels, drafting) = worker.draft(&mut world, &vec![1; num_lanes]);
        let num_drafted = worker.trees.iter().map(DraftTree::num_drafted).sum::<usize>();
        prop_assert_eq!(verdict == Verdict::Plain, num_drafted == 0);
        let found = expected(&worker.trees) - rate * (step_cost(&costs, num_lanes, num_drafted) + ms(drafting));
        let mut best = (-rate * ms(costs.decode(num_lanes)), 0, 0);
        for num_chains in 1..=num_lanes {
            let mut all: Vec<f64> = Vec::new();
            let mut chance = 1.0;
            for (level, acceptance) in claimed.iter().enumerate().take(max_levels) {
                chance *= f64::from(*acceptance);
                all.extend(vec![chance; num_chains]);
                let drafting = ms(costs.draft(num_chains)) * (level + 1) as f64;
                for num_kept in 0..=all.len().min(max_nodes.saturating_sub(num_lanes)) {
                    let tokens: f64 = all[..num_kept].iter().sum();
                    let worth = tokens - rate * (step_cost(&costs, num_lanes, num_kept) + drafting);
                    if worth > best.0 {
                        best = (worth, level + 1, num_kept);
                    }
                }
            }
        }
        prop_assert!(found >= best.0 - 1e-4, "{found} with {num_levels} levels and {num_drafted}, best {best:?}");
        if num_lanes == 1 {
            prop_assert!(found <= best.0 + 1e-4, "{found}, {best:?}: nothing else is possible with one lane");
        }
    }

    /// Whatever has grown, no other set of nodes that hangs together is worth more than what is verified.
    #[test]
    fn no_other_part_of_the_grown_trees_is_worth_more(costs in costs(), seed in any::<u64>(), max_nodes in 2_usize..12) {
        let limits = Limits { max_nodes, max_levels: 2, top_k: 2 };
        let claimed = [0.7, 0.6];
        let policy = Policy::new(Some(&Record { acceptance: claimed.to_vec() }));
        let mut worker = Worker::new(policy, costs.clone(), limits, 2);
        worker.draft(&mut World::new(honest(&claimed, 0.3), seed), &[1, 1]);
        let rate = 2.0 / ms(costs.decode(2));
        let num_drafted = worker.trees.iter().map(DraftTree::num_drafted).sum::<usize>();
        let found = expected(&worker.trees) - rate * step_cost(&costs, 2, num_drafted);
        let nodes: Vec<(usize, usize)> = (0..2).flat_map(|slot| {
            (1..worker.growths[slot].len()).map(move |node| (slot, node))
        }).collect();
        prop_assert!(nodes.len() <= 12);
        for set in 0_u32..1 << nodes.len() {
            let holds = |wanted: (usize, usize)| {
                wanted.1 == 0 || nodes.iter().position(|&node| node == wanted).is_some_and(|idx| set >> idx & 1 == 1)
            };
            let chosen: Vec<(usize, usize)> = nodes.iter().copied().filter(|&node| holds(node)).collect();
            let is_closed = chosen.iter().all(|&(slot, node)| holds((slot, worker.growths[slot].parent(node))));
            if !is_closed || chosen.len() + 2 > max_nodes {
                continue;
            }
            let chance = |&(slot, node): &(usize, usize)| f64::from(worker.growths[slot].cumulative_log_prob(node).exp());
            let worth = chosen.iter().map(chance).sum::<f64>() - rate * step_cost(&costs, 2, chosen.len());
            prop_assert!(found >= worth - 1e-4, "{found}, but {chosen:?} is worth {worth}");
        }
    }

    #[test]
    fn limits_hold_in_every_round(
        costs in costs(), claimed in prop::collection::vec(0.05_f32..0.97, 4), honesty in 0.0_f32..1.0, seed in any::<u64>(),
        rounds in prop::collection::vec((0_usize..40, 0_usize..7, 0_usize..5, prop::collection::vec(1_usize..5, 4)), 1..40),
    ) {
        let quality = Quality { claimed, spread: 0.2, honesty };
        let mut world = World::new(quality, seed);
        let mut worker = Worker::new(Policy::new(None), costs, LIMITS, 4);
        for (max_nodes, max_levels, top_k, num_certain) in rounds {
            worker.limits = Limits { max_nodes, max_levels, top_k };
            let (verdict, num_levels, took) = worker.draft(&mut world, &num_certain);
            prop_assert!(num_levels <= max_levels);
            let (total, certain) = (worker.trees.iter().map(DraftTree::len).sum::<usize>(), num_certain.iter().sum::<usize>());
            match verdict {
                Verdict::Plain => prop_assert_eq!(total, certain),
                Verdict::Verify { num_nodes } => {
                    prop_assert_eq!(total, num_nodes);
                    prop_assert!(total <= max_nodes && total > certain && num_levels > 0);
                }
            }
            let mut path = Vec::new();
            for (tree, num_certain) in worker.trees.iter().zip(num_certain) {
                prop_assert_eq!(tree.num_certain, num_certain);
                prop_assert!((1..tree.len()).all(|node| tree.parents[node] < node && tree.depths[node] <= num_certain - 1 + max_levels.max(1)));
                let (_, next) = world.verify(tree, &mut path);
                worker.policy.observe(tree, &path, next);
            }
            let plain = worker.policy.plain_equivalent(certain);
            if num_levels == 0 { worker.policy.record_plain(plain) } else { worker.policy.record_round(took + plain, plain) }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// To the letter: 1.5 %, a dozen steps, and the round that is running when those are spent.
    #[test]
    fn no_turn_of_events_loses_more_than_is_allowed(
        costs in costs(), num_lanes in 1_usize..5, seed in any::<u64>(),
        phases in prop::collection::vec((0.05_f32..0.97, 0.0_f32..1.0, 1_usize..800), 1..6),
    ) {
        let longest = costs.draft(16) * LIMITS.max_levels as u32 + costs.verify(LIMITS.max_nodes);
        let step = costs.decode(num_lanes);
        let mut worker = Worker::new(Policy::new(None), costs, LIMITS, num_lanes);
        let mut world = World::new(useless(), seed);
        let mut account = Account::default();
        for (claimed, honesty, num_steps) in phases {
            world.quality = Quality { claimed: vec![claimed], spread: 0.2, honesty };
            (0..num_steps).for_each(|_| worker.step(&mut world, &mut account));
            let allowed = account.plain.mul_f64(1.015) + 12 * step + longest;
            prop_assert!(account.took <= allowed, "{account:?}, allowed {allowed:?}");
        }
    }
}

fn worker(num_lanes: usize) -> Worker {
    Worker::new(Policy::new(None), StepCosts::typical(), LIMITS, num_lanes)
}

#[test]
fn a_useless_drafter_costs_less_than_three_percent() {
    for num_lanes in [1, 3, 8] {
        let account = worker(num_lanes).run(&mut World::new(useless(), 1), 20_000);
        assert!(account.ratio() <= 1.03, "{num_lanes} lanes: {account:?}");
        // Nor does one that knows that it knows nothing.
        let modest = World::new(honest(&[0.03], 0.02), 1);
        let account = worker(num_lanes).run(&mut modest.clone(), 20_000);
        assert!(account.ratio() <= 1.03, "{num_lanes} lanes: {account:?}");
    }
}

/// The least time of a round of one lane with the same shape every time, in plain decoding's time.
fn best_fixed_shape(quality: &Quality, costs: &StepCosts) -> (f64, TreeShape) {
    let mut best = (f64::INFINITY, TreeShape::chain(1));
    for top_k in [1, 2, 4] {
        for num_levels in 1..=6 {
            for num_nodes in [2, 3, 4, 5, 6, 8, 12, 16, 24, 32] {
                let shape = TreeShape { top_k, num_levels, num_nodes };
                let mut world = World::new(quality.clone(), 4);
                let ratio = fixed_shape_ratio(&mut world, costs, shape, 2000);
                best = if ratio < best.0 { (ratio, shape) } else { best };
            }
        }
    }
    best
}

#[test]
fn a_good_drafter_is_used_about_as_well_as_with_the_best_fixed_shape() {
    for quality in [good(), honest(&[0.6, 0.5, 0.4], 0.3), honest(&[0.95, 0.93, 0.9, 0.88], 0.03)] {
        let found = worker(1).run(&mut World::new(quality.clone(), 3), 20_000).ratio();
        let best = best_fixed_shape(&quality, &StepCosts::typical());
        assert!(found < best.0 * 1.1, "{quality:?}: {found:.3}, {best:?}");
    }
}

/// The faster a run, the more a millisecond of it is worth: with steep costs that decides between small trees and large ones.
#[test]
fn a_fast_run_does_not_spend_its_time_on_what_would_do_for_a_slow_one() {
    let mut worker = worker(1);
    worker.costs.verify_us = vec![8000, 8000, 8500, 10_500, 14_500, 22_500];
    worker.costs.draft_us = vec![300];
    let quality = honest(&[0.9, 0.85, 0.8, 0.7, 0.5, 0.4], 0.1);
    let found = worker.run(&mut World::new(quality.clone(), 3), 20_000).ratio();
    let best = best_fixed_shape(&quality, &worker.costs);
    assert!(found < best.0 * 1.01, "{found:.3}, {best:?}");
}

/// Claimed are nine in ten, accepted two: worth a short chain with these costs, and no more.
#[test]
fn an_overconfident_drafter_costs_less_than_three_percent_and_is_seen_through() {
    let quality = Quality { claimed: vec![0.9], spread: 0.0, honesty: 0.2 / 0.9 };
    let account = worker(1).run(&mut World::new(quality.clone(), 5), 20_000);
    assert!(account.ratio() <= 1.03, "{account:?}");
    let best = best_fixed_shape(&quality, &StepCosts::typical());
    assert!(account.ratio() < best.0 * 1.02, "{account:?}, {best:?}");
}

#[test]
fn rounds_that_take_longer_than_measured_are_planned_as_if_that_were_measured() {
    let slowed = |costs: &[u64]| costs.iter().map(|cost| cost * 17 / 10).collect();
    let typical = StepCosts::typical();
    let dear = StepCosts {
        verify_us: slowed(&typical.verify_us),
        draft_us: slowed(&typical.draft_us),
        ..StepCosts::typical()
    };
    let known = Worker::new(Policy::new(None), dear, LIMITS, 1).run(&mut World::new(good(), 5), 20_000);
    let mut worker = worker(1);
    worker.slowness = 1.7;
    let found = worker.run(&mut World::new(good(), 5), 20_000);
    assert!(found.ratio() < known.ratio() * 1.01, "{found:?}, {known:?}");
    worker.slowness = 4.0;
    let found = worker.run(&mut World::new(good(), 5), 20_000);
    assert!(found.ratio() <= 1.03, "{found:?}");
}

/// The promise rests on sums of time alone: here all that is learnt is wrong, and every round loses.
#[test]
fn whatever_the_estimates_say_losses_stay_below_three_percent() {
    let mut worker = worker(1);
    let mut world = World::new(good(), 1);
    let mut account = Account::default();
    for _ in 0..5_000 {
        let (verdict, num_levels, drafting) = worker.draft(&mut world, &[1]);
        let tree = &worker.trees[0];
        worker.policy.observe(tree, &tree.path(tree.len() - 1), Some(1));
        let plain = worker.policy.plain_equivalent(1);
        let took = match verdict {
            Verdict::Plain => drafting + plain,
            Verdict::Verify { num_nodes } => drafting + worker.costs.verify(num_nodes),
        };
        if num_levels == 0 {
            worker.policy.record_plain(took)
        } else {
            worker.policy.record_round(took, plain)
        }
        account.num_rounds += usize::from(num_levels > 0);
        account.took += took;
        account.plain += plain;
    }
    assert!((1.015..=1.03).contains(&account.ratio()), "{account:?}: less, and nothing was tested");
}

/// What was proposed and not worth verifying counts: otherwise a level that never pays would be drafted each time, in the hope it were as usual.
#[test]
fn a_drafter_that_knows_where_its_knowledge_ends_is_not_asked_further() {
    let mut worker = worker(1);
    worker.costs.draft_us = vec![1500];
    let mut world = World::new(honest(&[0.85, 0.03], 0.02), 1);
    worker.run(&mut world, 500);
    let num_levels: usize = (0..100)
        .map(|_| {
            let (_, num_levels, _) = worker.draft(&mut world, &[1]);
            num_levels
        })
        .sum();
    assert!((90..=110).contains(&num_levels), "{num_levels} levels in 100 rounds");
}

#[test]
fn a_drafter_that_turns_useless_is_left_alone_and_one_that_turns_good_comes_back() {
    let mut worker = worker(2);
    let mut world = World::new(good(), 2);
    let mut phase = |quality: Quality, num_tokens| -> Account {
        world.quality = quality;
        worker.run(&mut world, num_tokens)
    };
    let before = phase(good(), 5_000);
    assert!(before.share_of_rounds() > 0.95 && before.ratio() < 0.6, "{before:?}");
    let useless = phase(useless(), 20_000);
    assert!(useless.share_of_rounds() < 0.1 && useless.ratio() < 1.03, "{useless:?}");
    let change = phase(good(), 1_500);
    assert!(change.share_of_rounds() > 0.5, "{change:?}");
    let after = phase(good(), 5_000);
    assert!(after.ratio() < before.ratio() * 1.05, "{before:?}, {after:?}");
}

#[test]
fn what_was_learnt_is_reported() {
    let mut worker = worker(1);
    worker.policy = Policy::new(Some(&Record { acceptance: vec![0.8, 0.75, 0.7] }));
    let mut world = World::new(good(), 2);
    worker.run(&mut world, 3_000);
    let policy = &worker.policy;
    assert!((policy.acceptance().conditional(1).unwrap() - 0.85).abs() < 0.15, "{:?}", policy.acceptance());
    assert!(policy.counters().mean_accept_len().unwrap() > 2.0 && policy.speedup() > 1.5);
    let (rounds, plain) = policy.rounds_and_plain();
    assert!(rounds < plain);
    assert_eq!(policy.collapse(), None);
    world.quality = useless();
    worker.run(&mut world, 20_000);
    assert!(worker.policy.collapse().is_some());
}
