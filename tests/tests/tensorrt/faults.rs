//! When TensorRT or the device fails: every failure is told, nothing stays behind, lanes hold what they held.

use takt_engine::{
    backend::{Backend, tensorrt::TensorRtOptions},
    kv::LaneId,
    step::{Detail, LogitsWanted, StepPlan},
};
use takt_tests::backends::run_slices;

use crate::{
    models::{emulated, options, tokens, usual},
    standin::Failure,
};

fn small() -> TensorRtOptions {
    TensorRtOptions { num_lanes: 2, max_step_tokens: 32, max_logits_rows: 32, ..options() }
}

#[test]
fn memory_that_runs_out_at_any_allocation_is_told_and_given_back() {
    let test = "faults::memory_that_runs_out_at_any_allocation_is_told_and_given_back";
    emulated(test, |device, standin, _| {
        let planned = usual();
        let mut num_refused = 0;
        for n in 1.. {
            device.fail_allocation(n);
            match planned.open(&small()) {
                Ok(_) => break,
                Err(error) => {
                    assert!(error.is_capacity(), "allocation {n}: {error}");
                    num_refused += 1;
                }
            }
            assert_eq!(device.report().leaks(), Vec::<String>::new());
            assert_eq!(standin.alive(), [""; 0]);
        }
        assert!(num_refused >= 5, "only {num_refused} allocations");
        device.fail_allocation(0);
    });
}

#[test]
fn a_plan_that_tensorrt_refuses_is_told_with_its_reason() {
    emulated("faults::a_plan_that_tensorrt_refuses_is_told_with_its_reason", |device, standin, _| {
        let planned = usual();
        for (method, how) in [
            ("IRuntime::deserializeCudaEngine", Failure::Error),
            ("IRuntime::deserializeCudaEngine", Failure::OutOfMemory),
            ("ICudaEngine::createExecutionContext", Failure::OutOfMemory),
        ] {
            standin.fail(method, 1, how);
            let error = planned.open(&small()).unwrap_err();
            assert_eq!(error.is_capacity(), how == Failure::OutOfMemory, "{method}: {error}");
            assert_eq!(device.report().leaks(), Vec::<String>::new());
            assert_eq!(standin.alive(), [""; 0]);
        }
        planned.open(&small()).unwrap();
    });
}

#[test]
fn a_section_that_fails_commits_nothing_and_the_next_step_runs() {
    emulated("faults::a_section_that_fails_commits_nothing_and_the_next_step_runs", |_, standin, _| {
        let planned = usual();
        let mut backend = planned.open(&small()).unwrap();
        let all = tokens(&planned.spec, 30);
        let expected = {
            let logits = run_slices(&mut backend, LaneId(0), &all, 30);
            backend.truncate(LaneId(0), 0).unwrap();
            logits.last().unwrap().clone()
        };
        run_slices(&mut backend, LaneId(0), &all[..10], 10);
        let mut plan = StepPlan::default();
        // The verify section is of a new shape: it is run as it is, then captured; the slice is third.
        plan.push_tree(LaneId(1), &all[..3], &[0, 0, 1]);
        plan.push(LaneId(0), &all[10..30], LogitsWanted::Last);
        for n in [1, 3] {
            standin.fail("IExecutionContext::enqueueV3", n, Failure::Error);
            assert!(backend.run_step(&plan).is_err(), "enqueue {n}");
            assert_eq!([0, 1].map(|lane| backend.committed_len(LaneId(lane))), [10, 0]);
        }
        standin.fail("IExecutionContext::enqueueV3", 0, Failure::Error);
        let output = backend.run_step(&plan).unwrap();
        assert_eq!(output.last_logits(1).unwrap(), expected);
        assert_eq!([0, 1].map(|lane| backend.committed_len(LaneId(lane))), [30, 0]);
    });
}

#[test]
fn a_plan_that_cannot_be_captured_runs_all_the_same() {
    emulated("faults::a_plan_that_cannot_be_captured_runs_all_the_same", |device, standin, _| {
        let planned = usual();
        let all = tokens(&planned.spec, 20);
        let mut captured = planned.open(&small()).unwrap();
        let expected = run_slices(&mut captured, LaneId(0), &all, 1);
        drop(captured);
        // The first decode step is run once as it is; the second enqueue is the capture's.
        standin.fail("IExecutionContext::enqueueV3", 2, Failure::Error);
        let mut backend = planned.open(&small()).unwrap();
        let before = device.report();
        assert_eq!(run_slices(&mut backend, LaneId(0), &all, 1), expected);
        assert_eq!(device.report().calls_since(&before).get("cuGraphLaunch"), None);
    });
}

#[test]
fn a_capture_that_fails_later_costs_its_shape_three_tries_and_others_nothing() {
    let test = "faults::a_capture_that_fails_later_costs_its_shape_three_tries_and_others_nothing";
    emulated(test, |device, standin, _| {
        let planned = usual();
        let mut backend = planned.open(&small()).unwrap();
        let enqueue = "IExecutionContext::enqueueV3";
        // Whether a step was one graph; the second enqueue of a new shape is the capture's.
        let mut is_graph = |num_nodes: usize, fails: bool| {
            standin.fail(enqueue, if fails { 2 } else { 0 }, Failure::Error);
            let mut plan = StepPlan::default();
            plan.push_tree(LaneId(0), &vec![1; num_nodes], &vec![0; num_nodes]);
            plan.last_needs(Detail::Whole);
            let before = device.report();
            backend.run_step(&plan).unwrap();
            device.report().calls_since(&before).contains_key("cuGraphLaunch")
        };
        assert_eq!([true, false, false].map(|fails| is_graph(4, fails)), [false, false, true]);
        assert_eq!([true, true, true, false, false].map(|fails| is_graph(8, fails)), [false; 5]);
        assert_eq!(
            [(2, false), (2, false), (4, false)].map(|(n, fails)| is_graph(n, fails)),
            [false, true, true]
        );
    });
}

#[test]
fn a_device_that_faults_ends_the_backend_and_another_can_be_opened() {
    emulated("faults::a_device_that_faults_ends_the_backend_and_another_can_be_opened", |device, _, _| {
        let planned = usual();
        let all = tokens(&planned.spec, 6);
        let mut backend = planned.open(&small()).unwrap();
        let expected = run_slices(&mut backend, LaneId(0), &all, 6);
        let mut plan = StepPlan::default();
        plan.push_tree(LaneId(0), &[1, 2, 3], &[0, 0, 0]);
        backend.run_step(&plan).unwrap();
        // The kernel that moves the path's rows.
        device.fail_launch(1);
        backend.keep(LaneId(0), &[0, 2]).unwrap();
        plan.clear();
        plan.push(LaneId(0), &[3], LogitsWanted::Last);
        let error = backend.run_step(&plan).unwrap_err().to_string();
        assert!(error.contains("opened anew"), "{error}");
        assert!(backend.run_step(&plan).is_err(), "a lost context does not come back");
        assert!(backend.truncate(LaneId(0), 0).is_err(), "and nothing seems to go on");
        drop(backend);
        let mut again = planned.open(&small()).unwrap();
        assert_eq!(run_slices(&mut again, LaneId(0), &all, 6), expected);
    });
}
