//! Drafting, verifying and keeping through the backend allocates nothing once buffers have grown. One test only: the counter counts every thread.

use takt_eagle_spec::{
    drafter::{HeadDrafter, Rows},
    tree::{DraftTree, Drafter as _, Growth, Proposals},
};
use takt_engine::{
    TokenId,
    engine::{Engine, EngineOptions},
    kv::LaneId,
    quant::WeightKind,
    step::{LogitsWanted, StepPlan},
};
use takt_engine_builder::{BuildOptions, build, draft::DraftOptions};
use takt_tests::{
    checkpoint::fixtures,
    counting::{CountingAllocator, num_allocations},
};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const LANES: [LaneId; 2] = [LaneId(0), LaneId(1)];

/// What a worker keeps from round to round.
struct Memory {
    growths: [Growth; 2],
    trees: [DraftTree; 2],
    level: Vec<takt_eagle_spec::tree::Frontier>,
    proposals: Proposals,
    rows: Rows,
    plan: StepPlan,
}

/// Two trees of three levels each, verified in one step; the first path of each is kept, whatever the target thinks of it.
fn round(engine: &mut Engine, memory: &mut Memory, root: TokenId) {
    let Memory { growths, trees, level, proposals, rows, plan } = memory;
    growths.iter_mut().for_each(|growth| growth.start(&[root]).unwrap());
    for _ in 0..3 {
        level.clear();
        growths.iter_mut().enumerate().for_each(|(slot, growth)| growth.push_likeliest(slot, 2, level));
        proposals.clear();
        let mut drafter = HeadDrafter::with_rows(engine.backend.as_mut(), &LANES, std::mem::take(rows));
        drafter.propose(level, 3, proposals).unwrap();
        *rows = drafter.into_rows();
        for (slot, growth) in growths.iter_mut().enumerate() {
            growth.add_level(slot, level, proposals).unwrap();
        }
    }
    plan.clear();
    for ((growth, tree), lane) in growths.iter_mut().zip(trees.iter_mut()).zip(LANES) {
        growth.prune(7, tree);
        plan.push_tree(lane, &tree.tokens, &tree.parents);
    }
    engine.backend.run_step(plan).unwrap();
    LANES.into_iter().for_each(|lane| engine.backend.keep(lane, &[0, 1]).unwrap());
}

#[test]
fn steady_rounds_of_two_lanes_allocate_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("engine");
    let head = fixtures().join("eagle3/tiny-llama-midlayer");
    let draft = Some(DraftOptions { folder: &head, prompts: None, measures: false });
    let options = BuildOptions { draft, ..BuildOptions::new(WeightKind::Nvfp4) };
    build(&fixtures().join("hf/tiny-llama"), &path, &options, &mut |_| {}).unwrap();
    let options = EngineOptions { num_lanes: 2, lane_capacity: Some(200), ..EngineOptions::default() };
    let mut engine = Engine::open(&path, &options).unwrap();
    let mut memory = Memory {
        growths: [Growth::with_capacity(64), Growth::with_capacity(64)],
        trees: [DraftTree::with_capacity(64), DraftTree::with_capacity(64)],
        level: Vec::with_capacity(8),
        proposals: Proposals::with_capacity(8, 3),
        rows: Rows::default(),
        plan: StepPlan::with_capacity(64, 2),
    };
    memory.plan.push(LANES[0], &[1, 2, 3], LogitsWanted::Last);
    memory.plan.push(LANES[1], &[3, 2, 1, 4], LogitsWanted::Last);
    engine.backend.run_step(&memory.plan).unwrap();
    (0..5).for_each(|root| round(&mut engine, &mut memory, root));
    // On a busy machine a thread of the pool may start (and allocate, once) long after the pool was made; an allocation of a round would be in
    // every window.
    let mut window = |first: TokenId| {
        let before = num_allocations();
        (first..first + 10).for_each(|root| round(&mut engine, &mut memory, root));
        num_allocations() - before
    };
    let windows: Vec<usize> = (5..55).step_by(10).map(&mut window).collect();
    assert!(
        windows.contains(&0) && windows.iter().sum::<usize>() < 10,
        "allocations in 10 rounds: {windows:?}"
    );
}
