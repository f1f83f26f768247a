//! What a step asks of the driver.

use takt_engine::{
    backend::Backend,
    kv::{KvKind, LaneId},
    quant::WeightKind,
    step::{LogitsWanted, StepPlan},
};
use takt_tests::{backends::run_slices, memory_weights::MemoryWeights};

use crate::models::{emulated, on_device, open, options, spec, tokens};

#[test]
fn a_step_is_one_graph_and_one_event_and_allocates_nothing() {
    emulated("steps::a_step_is_one_graph_and_one_event_and_allocates_nothing").run(|device| {
        let spec = spec();
        let model = MemoryWeights::random(&spec, WeightKind::Nvfp4, WeightKind::Nvfp4, 1);
        let mut backend = open(&spec, &model, &options(KvKind::Fp8)).unwrap();
        run_slices(&mut backend, LaneId(0), &tokens(&spec, 20), 20);
        // What serving meets: a decode step and a prompt, a tree, a prompt beside a lane that decodes, a tree beside one, decoding together. Nothing
        // of it was run before.
        let runs: [&[(usize, usize, bool)]; 6] = [
            &[(0, 1, false)],
            &[(0, 5, false)],
            &[(0, 6, true)],
            &[(0, 1, false), (1, 7, false)],
            &[(0, 1, false), (1, 3, true)],
            &[(0, 1, false), (1, 1, false)],
        ];
        let mut plan = StepPlan::default();
        for run in runs {
            plan.clear();
            for &(lane, num_tokens, is_tree) in run {
                match is_tree {
                    true => plan.push_tree(LaneId(lane), &tokens(&spec, num_tokens), &vec![0; num_tokens]),
                    false => plan.push(LaneId(lane), &tokens(&spec, num_tokens), LogitsWanted::Last),
                }
            }
            let before = device.report();
            backend.run_step(&plan).unwrap();
            let calls = device.report().calls_since(&before);
            let count = |name: &str| calls.get(name).copied().unwrap_or(0);
            assert_eq!((count("cuGraphLaunch"), count("cuEventRecord")), (1, 1), "{run:?}: {calls:?}");
            let usual =
                ["cuGraphLaunch", "cuMemcpyDtoHAsync_v2", "cuEventRecord", "cuEventQuery", "cuCtxSetCurrent"];
            assert!(calls.keys().all(|name| usual.contains(&name.as_str())), "{run:?}: {calls:?}");
        }
    });
}

#[test]
fn an_engine_that_does_not_fit_is_refused_with_all_sizes_before_anything_is_allocated() {
    let test = "steps::an_engine_that_does_not_fit_is_refused_with_all_sizes_before_anything_is_allocated";
    emulated(test).memory_bytes(148 << 20).run(|device| {
        let spec = spec();
        let model = MemoryWeights::random(&spec, WeightKind::Nvfp4, WeightKind::Nvfp4, 1);
        let mut large = options(KvKind::Bf16);
        (large.num_lanes, large.lane_capacity) = (64, 256);
        let error = open(&spec, &model, &large).unwrap_err();
        assert!(error.is_capacity());
        let text = error.to_string();
        for part in ["weights ", "KV cache ", "workspace ", " are free"] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(device.report().leaks(), Vec::<String>::new());
        assert!(open(&spec, &model, &options(KvKind::Bf16)).is_ok());
    });
}

#[test]
fn plans_that_do_not_hold_are_refused_and_change_nothing() {
    on_device("steps::plans_that_do_not_hold_are_refused_and_change_nothing").run(|_| {
        let spec = spec();
        let model = MemoryWeights::random(&spec, WeightKind::Bf16, WeightKind::Bf16, 1);
        let mut backend = open(&spec, &model, &options(KvKind::Bf16)).unwrap();
        run_slices(&mut backend, LaneId(0), &tokens(&spec, 10), 10);
        let refused =
            |backend: &mut dyn Backend, plan: &StepPlan| backend.run_step(plan).unwrap_err().to_string();
        let mut plan = StepPlan::default();
        assert!(refused(&mut backend, &plan).contains("empty plan"));
        plan.push(LaneId(3), &[1], LogitsWanted::Last);
        assert!(refused(&mut backend, &plan).contains("lane 3 does not exist"));
        plan.clear();
        plan.push(LaneId(0), &[96], LogitsWanted::Last);
        assert!(refused(&mut backend, &plan).contains("outside the vocabulary"));
        plan.clear();
        let deep: Vec<usize> = (0..70_usize).map(|node| node.saturating_sub(1)).collect();
        plan.push_tree(LaneId(0), &[1; 70], &deep);
        assert!(refused(&mut backend, &plan).contains("64 tokens from root to leaf"));
        assert_eq!(backend.committed_len(LaneId(0)), 10);
        assert!(backend.truncate(LaneId(0), 11).is_err());
        assert!(backend.save_snapshot(LaneId(0), 11).is_err());
    });
}
