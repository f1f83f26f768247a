//! Steps through a TensorRT plan on the stand-in and the emulated device allocate nothing once their shapes were captured. One test only: the counter
//! counts every thread.

#![cfg(feature = "tensorrt")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

#[path = "../../kernels-cu/tests/emulator/mod.rs"]
mod emulator;
#[path = "tensorrt/models.rs"]
#[allow(dead_code, reason = "other suites use the rest")]
mod models;
#[path = "../../tensorrt/tests/standin/mod.rs"]
#[allow(unused_imports, reason = "its own tests use more of it")]
mod standin;

use takt_engine::{
    backend::Backend,
    kv::LaneId,
    sampler::SamplerState,
    step::{Detail, LogitsWanted, StepPlan},
};
use takt_tests::counting::{CountingAllocator, num_allocations};

use emulator::driver::Device;
use models::{KINDS, Kind, Planned, compute_nothing, emulated, options};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const NUM_ROUNDS: u32 = 6;

/// Tokens a lane holds: two lengths of the cache are looked at where rows are updated in place, up to 256 and all of it.
const CAPACITY: usize = 340;

/// Everything was captured when the backend was opened, so not even the first step of all allocates.
fn decode_with_every_set_of_lanes(backend: &mut impl Backend, plan: &mut StepPlan, device: &Device) {
    // Its own maps of calls are not counted.
    let calls = device.report();
    let before = num_allocations();
    for lanes in 1..8_usize {
        plan.clear();
        for lane in (0..3).filter(|lane| lanes >> lane & 1 == 1) {
            plan.push(LaneId(lane), &[3], LogitsWanted::Last);
            plan.last_needs(Detail::Chosen(SamplerState::default()));
        }
        backend.run_step(plan).unwrap();
    }
    assert_eq!(num_allocations() - before, 0);
    let calls = device.report().calls_since(&calls);
    assert_eq!(calls.get("cuStreamBeginCapture_v2"), None, "{calls:?}");
    assert_eq!(calls["cuGraphLaunch"], 7 * 2, "a section, and what is chosen of it: {calls:?}");
}

#[test]
fn steady_steps_rounds_and_slices_through_a_plan_allocate_nothing() {
    let test = "steady_steps_rounds_and_slices_through_a_plan_allocate_nothing";
    emulated(test, |device, standin, _| {
        // Who computes allocates, in whatever thread, so nobody does.
        compute_nothing(standin);
        for kind in [KINDS[2], KINDS[3]] {
            let mut backend = Planned::holding(kind, CAPACITY).open(&options()).unwrap();
            let mut plan = StepPlan::with_capacity(32, 3);
            for held in [0, 260] {
                fill(&mut backend, held);
                decode_with_every_set_of_lanes(&mut backend, &mut plan, device);
                decode_and_verify(&mut backend, &mut plan, kind);
            }
            assert!((0..3).all(|lane| backend.committed_len(LaneId(lane)) > 256));
            read_prompts(&mut backend, &mut plan, kind);
        }
    });
}

/// Has every lane hold `len` tokens, which allocates.
fn fill(backend: &mut impl Backend, len: usize) {
    let mut plan = StepPlan::default();
    for lane in (0..3).map(LaneId) {
        while backend.committed_len(lane) < len {
            let missing = len - backend.committed_len(lane);
            plan.clear();
            plan.push(lane, &[3; 90][..missing.min(90)], LogitsWanted::None);
            backend.run_step(&plan).unwrap();
        }
    }
}

/// The first rounds capture what they need.
fn decode_and_verify(backend: &mut impl Backend, plan: &mut StepPlan, kind: Kind) {
    let mut before = 0;
    for round in 0..2 * NUM_ROUNDS {
        if round == NUM_ROUNDS {
            before = num_allocations();
        }
        plan.clear();
        plan.push(LaneId(0), &[3], LogitsWanted::Last);
        plan.push(LaneId(2), &[4], LogitsWanted::Last);
        plan.last_needs(Detail::Chosen(SamplerState::default()));
        backend.run_step(plan).unwrap();
        plan.clear();
        plan.push_tree(LaneId(0), &[5, 6, 7], &[0, 0, 1]);
        plan.last_needs(Detail::OnDemand);
        plan.push(LaneId(1), &[5], LogitsWanted::Last);
        let mut output = backend.run_step(plan).unwrap();
        output.row(0, 1).unwrap().whole().unwrap();
        backend.keep(LaneId(0), &[0, 1, 2]).unwrap();
    }
    assert_eq!(num_allocations() - before, 0, "{kind:?}");
}

/// Slices go as they are, each with shapes of its own: the first rounds make what a lane's slices need.
fn read_prompts(backend: &mut impl Backend, plan: &mut StepPlan, kind: Kind) {
    let mut before = 0;
    for round in 0..2 * NUM_ROUNDS {
        if round == NUM_ROUNDS {
            before = num_allocations();
        }
        backend.truncate(LaneId(1), 0).unwrap();
        for slice in [&[3; 20][..], &[4; 7], &[5; 13]] {
            plan.clear();
            plan.push(LaneId(1), slice, LogitsWanted::Last);
            plan.last_needs(Detail::Chosen(SamplerState::default()));
            plan.push(LaneId(0), &[6], LogitsWanted::Last);
            plan.last_needs(Detail::Chosen(SamplerState::default()));
            backend.run_step(plan).unwrap();
        }
        backend.truncate(LaneId(0), 256).unwrap();
    }
    assert_eq!(num_allocations() - before, 0, "{kind:?}: slices of a prompt");
}
