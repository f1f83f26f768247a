//! A round of drafting, choosing and walking allocates nothing once buffers have grown. One test only: the counter counts every thread.

use std::{
    convert::Infallible,
    time::{Duration, Instant},
};

use takt_eagle_spec::{
    lookup::PromptLookup,
    policy::{Limits, Policy, Record, RoundCosts, Verdict},
    tree::{DraftTree, Drafter, Growth, Proposals},
    verify::walk,
};
use takt_engine::TokenId;
use takt_tests::counting::{CountingAllocator, num_allocations};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

struct Costs;

impl RoundCosts for Costs {
    fn decode(&self, _: usize) -> Duration {
        Duration::from_millis(8)
    }

    fn verify(&self, num_nodes: usize) -> Duration {
        Duration::from_millis(8) + Duration::from_micros(50) * num_nodes.next_power_of_two() as u32
    }

    fn draft(&self, num_rows: usize) -> Duration {
        Duration::from_micros(100 + 5 * num_rows.next_power_of_two() as u64)
    }
}

#[test]
fn steady_rounds_allocate_nothing() {
    const NUM_LANES: usize = 4;
    const NUM_ROUNDS: usize = 400;
    let limits = Limits { max_nodes: 64, max_levels: 6, top_k: 4 };
    // Texts that repeat themselves with a few changes.
    let texts: Vec<Vec<TokenId>> = (0..NUM_LANES as u32)
        .map(|lane| {
            (0..600_u32).map(|i| if i * (7 + lane) % 19 == 0 { i % 5 } else { 10 + i % 23 }).collect()
        })
        .collect();
    let mut policy = Policy::new(Some(&Record { acceptance: vec![0.8, 0.7] }));
    let mut growths: Vec<Growth> = (0..NUM_LANES).map(|_| Growth::with_capacity(128)).collect();
    let mut trees: Vec<DraftTree> = (0..NUM_LANES).map(|_| DraftTree::with_capacity(64)).collect();
    let (mut level, mut proposals) = (Vec::with_capacity(64), Proposals::with_capacity(64, 4));
    let (mut lookup, mut path) = (PromptLookup::new(1), Vec::with_capacity(16));
    let (mut before, mut num_verified, mut start) = (0, 0, Instant::now());
    for round in 0..2 * NUM_ROUNDS {
        if round == NUM_ROUNDS {
            (before, num_verified, start) = (num_allocations(), 0, Instant::now());
        }
        let at = 100 + round % NUM_ROUNDS;
        let histories: [&[TokenId]; NUM_LANES] = std::array::from_fn(|lane| &texts[lane][..at]);
        for (growth, history) in growths.iter_mut().zip(histories) {
            growth.start(&history[at - 1..]).unwrap();
        }
        policy.begin_round(&growths, limits, &Costs);
        let mut drafter = lookup.over(&histories);
        let mut num_levels = 0;
        while policy.next_level(&growths, &mut level) {
            proposals.clear();
            drafter.propose(&level, limits.top_k, &mut proposals).unwrap();
            for (slot, growth) in growths.iter_mut().enumerate() {
                growth.add_level(slot, &level, &proposals).unwrap();
            }
            num_levels += 1;
        }
        if let Verdict::Verify { num_nodes } = policy.choose(&mut growths, &mut trees) {
            num_verified += num_nodes;
        }
        let mut num_tokens = 0;
        for (tree, text) in trees.iter().zip(&texts) {
            let choose = |node: usize| Ok::<_, Infallible>(text.get(at + tree.depths[node]).copied());
            let next = walk(tree, choose, &mut path).unwrap();
            policy.observe(tree, &path, next);
            num_tokens += path.len();
        }
        let plain = policy.plain_equivalent(num_tokens);
        if num_levels == 0 { policy.record_plain(plain) } else { policy.record_round(plain / 2, plain) }
    }
    let (found, took) = (num_allocations() - before, start.elapsed());
    println!("{:?} a round, {:.1} nodes", took / NUM_ROUNDS as u32, num_verified as f64 / NUM_ROUNDS as f64);
    assert!(num_verified > NUM_ROUNDS, "nothing was drafted");
    assert_eq!(found, 0);
}
