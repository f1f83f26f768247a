//! When the device fails: every failure is told, nothing stays behind, and an engine can be opened again.

use std::time::Duration;

use takt_engine::{
    backend::Backend,
    backend::cuda::CudaOptions,
    kv::{KvKind, LaneId},
    quant::WeightKind,
    step::{LogitsWanted, StepPlan},
};
use takt_tests::{backends::run_slices, memory_weights::MemoryWeights};

use crate::{
    emulator::driver::Device,
    models::{emulated, open, options, spec, tokens},
};

fn model() -> MemoryWeights {
    MemoryWeights::random(&spec(), WeightKind::Nvfp4, WeightKind::Nvfp4, 1)
}

/// Few shapes, so that opening is quick.
fn small() -> CudaOptions {
    CudaOptions { num_lanes: 2, max_step_tokens: 8, max_logits_rows: 8, ..options(KvKind::Int8) }
}

#[track_caller]
fn nothing_is_left(device: &Device) {
    assert_eq!(device.report().leaks(), Vec::<String>::new());
}

#[test]
fn memory_that_runs_out_at_any_allocation_is_told_and_given_back() {
    emulated("faults::memory_that_runs_out_at_any_allocation_is_told_and_given_back").run(|device| {
        let (model, spec) = (model(), spec());
        let mut num_refused = 0;
        for n in 1.. {
            device.fail_allocation(n);
            match open(&spec, &model, &small()) {
                Ok(_) => break,
                Err(error) => {
                    assert!(error.is_capacity(), "allocation {n}: {error}");
                    num_refused += 1;
                }
            }
            nothing_is_left(device);
        }
        assert!(num_refused >= 5, "only {num_refused} allocations");
        device.fail_allocation(0);
        nothing_is_left(device);
    });
}

#[test]
fn a_kernel_that_faults_ends_the_backend_and_another_can_be_opened() {
    emulated("faults::a_kernel_that_faults_ends_the_backend_and_another_can_be_opened").run(|device| {
        let (model, spec) = (model(), spec());
        let mut backend = open(&spec, &model, &small()).unwrap();
        let expected = run_slices(&mut backend, LaneId(0), &tokens(&spec, 6), 6);
        let mut plan = StepPlan::default();
        plan.push(LaneId(0), &[3], LogitsWanted::Last);
        device.fail_launch(5);
        let error = backend.run_step(&plan).unwrap_err().to_string();
        assert!(error.contains("opened anew"), "{error}");
        assert_eq!(backend.committed_len(LaneId(0)), 6);
        assert!(backend.run_step(&plan).is_err(), "a lost context does not come back");
        assert!(backend.truncate(LaneId(0), 0).is_err(), "and nothing seems to go on");
        drop(backend);
        let mut again = open(&spec, &model, &small()).unwrap();
        assert_eq!(run_slices(&mut again, LaneId(0), &tokens(&spec, 6), 6), expected);
    });
}

#[test]
fn a_kernel_that_hangs_is_given_up_after_the_limit() {
    emulated("faults::a_kernel_that_hangs_is_given_up_after_the_limit").run(|device| {
        let (model, spec) = (model(), spec());
        let options = CudaOptions { step_limit: Duration::from_millis(300), ..small() };
        let mut backend = open(&spec, &model, &small()).unwrap();
        drop(run_slices(&mut backend, LaneId(0), &tokens(&spec, 6), 6));
        drop(backend);
        let mut backend = open(&spec, &model, &options).unwrap();
        let mut plan = StepPlan::default();
        plan.push(LaneId(0), &[3], LogitsWanted::Last);
        device.hang_launch(3);
        let error = backend.run_step(&plan).unwrap_err().to_string();
        assert!(error.contains("did not finish within"), "{error}");
        drop(backend);
        let mut again = open(&spec, &model, &small()).unwrap();
        assert!(again.run_step(&plan).is_ok());
    });
}
