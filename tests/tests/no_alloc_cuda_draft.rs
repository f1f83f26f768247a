//! Rounds of speculation on the emulated device allocate nothing once their shapes were captured: steps that a head reads along, levels, chains that
//! are kept. One test only: the counter counts every thread.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

#[path = "../../kernels-cu/tests/emulator/mod.rs"]
mod emulator;
#[path = "cuda/models.rs"]
#[allow(dead_code, reason = "other suites use the rest")]
mod models;

use takt_engine::{
    backend::Backend as _,
    dir::EngineDir,
    draft::{DraftPlan, DraftRow},
    kv::{KvKind, LaneId},
    sampler::{Sampler, SamplerState, SamplingParams},
    step::{Detail, LogitsWanted, StepPlan},
};
use takt_tests::{
    checkpoint::fixtures,
    counting::{CountingAllocator, num_allocations},
    eagle::{HEADS, build_with},
};

use models::{emulated, open, options};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const NUM_ROUNDS: u32 = 6;

#[test]
fn steady_rounds_on_the_device_allocate_nothing() {
    emulated("steady_rounds_on_the_device_allocate_nothing").run(|_| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engine");
        build_with(&fixtures().join("eagle3").join(HEADS[0].0), HEADS[0].1, &path);
        let dir = EngineDir::open(&path).unwrap();
        let mut backend = open(&dir.manifest().spec, &dir, &options(KvKind::Int8)).unwrap();
        let head = dir.draft().unwrap();
        backend.attach_draft(&head.manifest().spec, head).unwrap();
        let mut plan = StepPlan::with_capacity(8, 3);
        let mut level = DraftPlan { rows: Vec::with_capacity(8), top_k: 4, wants_logits: false };
        let hot = SamplingParams { temperature: 0.7, top_k: Some(20), ..SamplingParams::default() };
        let sampled = Sampler::new(&hot).unwrap().state();
        let mut before = 0;
        for round in 0..2 * NUM_ROUNDS {
            if round == NUM_ROUNDS {
                before = num_allocations();
            }
            for lane in [LaneId(0), LaneId(1)] {
                // More steps than features wait, so that some are read.
                for token in 0..9 {
                    plan.clear();
                    plan.push(lane, &[token], LogitsWanted::Last);
                    plan.last_needs(Detail::Chosen(SamplerState::default()));
                    backend.run_step(&plan).unwrap();
                }
            }
            let row = |lane, parent| DraftRow { lane: LaneId(lane), parent, token: 5 };
            for rows in [
                &[row(0, None), row(1, None)][..],
                &[row(0, Some(0)), row(0, Some(0)), row(1, Some(0))],
                &[row(1, Some(1))],
            ] {
                level.rows.clear();
                level.rows.extend_from_slice(rows);
                assert_eq!(backend.draft(&level).unwrap().row(0).count(), 4);
            }
            plan.clear();
            plan.push_tree(LaneId(0), &[5, 6, 7], &[0, 0, 1]);
            // A form's list, and what a top-k chooses, which nobody captured before.
            plan.last_needs(Detail::Likeliest(64));
            plan.push(LaneId(1), &[5], LogitsWanted::Last);
            plan.last_needs(Detail::Chosen(sampled));
            let mut output = backend.run_step(&plan).unwrap();
            assert!(output.last_row(1).unwrap().choice().is_some());
            backend.keep(LaneId(0), &[0, 1, 2]).unwrap();
        }
        assert_eq!(num_allocations() - before, 0);
    });
}
