//! What is tried with NVIDIA's TensorRT, tried on the stand-in first.

use std::path::Path;

use takt_engine::{backend::cuda::GpuOptions, quant::WeightKind};
use takt_engine_builder::plans::PlanOptions;
use takt_kernels_cu::Target;
use takt_tensorrt::{TensorRt, Version};

use crate::{
    cubins,
    emulator::driver::EmulatedDevice,
    models::{SOURCES, on_the_stand_in},
    standin::Standin,
    trials::{
        Ground, demo, green,
        refit::{Came, every_case},
        refusals, streaming,
    },
};

/// Every 1200th line: 2 of 2,400.
const STRIDE: usize = 1200;

/// A Thor; the body runs in a process of its own.
fn on_thor(test: &'static str, body: impl FnOnce(&Ground, &Standin)) {
    on_the_stand_in(EmulatedDevice::new(test).kernels(&SOURCES).sm(110).num_sms(20), |device, standin, _| {
        let kernel_cache = Some(cubins::folder(Target::Thor));
        let gpu = |_: &Path| GpuOptions { kernel_cache, ..GpuOptions::default() };
        body(&Ground::new(gpu, STRIDE, true), standin);
        assert_eq!(standin.alive(), [""; 0]);
        assert_eq!(device.report().leaks(), [""; 0]);
    });
}

/// The release of the stand-in.
fn release() -> (u32, u32) {
    let Version { major, minor, .. } = TensorRt::open().unwrap().version();
    (major, minor)
}

#[test]
fn a_plan_with_other_weights_says_what_a_plan_built_of_them_says() {
    on_thor("rehearsal::a_plan_with_other_weights_says_what_a_plan_built_of_them_says", |ground, _| {
        for (case, came) in every_case(ground) {
            let is_here = ground.plans(PlanOptions::default()).unwrap().takes(case.weights);
            // The stand-in takes every weight anew.
            assert_eq!(came, if is_here { Came::Refitted } else { Came::NotHere }, "{case:?}");
        }
    });
}

#[test]
fn a_plan_that_streams_says_the_same_with_every_budget() {
    on_thor("rehearsal::a_plan_that_streams_says_the_same_with_every_budget", |ground, standin| {
        streaming::every_budget(ground);
        // From nothing to all, which is what the trial is about.
        let set: Vec<u64> = standin
            .record()
            .iter()
            .filter_map(|call| call.split_once("setWeightStreamingBudgetV2("))
            .map(|(_, rest)| rest.split(')').next().unwrap().parse().unwrap())
            .collect();
        let all = *set.iter().max().unwrap();
        let num_between = set.iter().filter(|&&budget| budget > 0 && budget < all).count();
        assert!(set.contains(&0) && num_between == 2, "{set:?}");
    });
}

#[test]
fn a_plan_timed_on_a_part_of_the_gpu_says_there_what_it_says_on_all_of_it() {
    let test = "rehearsal::a_plan_timed_on_a_part_of_the_gpu_says_there_what_it_says_on_all_of_it";
    on_thor(test, |ground, _| {
        assert_eq!(green::on_a_part_of_the_gpu(ground), release() >= (10, 16));
    });
}

#[test]
fn what_cannot_be_a_plan_of_this_machine_is_refused_and_what_can_runs_on() {
    let test = "rehearsal::what_cannot_be_a_plan_of_this_machine_is_refused_and_what_can_runs_on";
    on_thor(test, |ground, standin| {
        standin.refuse_operator(refusals::NO_OPERATOR);
        refusals::of_bad_input(ground);
    });
}

/// Files that say they are of this machine and are not, which only the stand-in can build.
#[test]
fn a_plan_of_another_machine_under_this_ones_name_is_refused_by_tensorrt_with_both() {
    let test = "rehearsal::a_plan_of_another_machine_under_this_ones_name_is_refused_by_tensorrt_with_both";
    on_thor(test, |ground, standin| {
        let dir = ground.engine("foreign", &demo(), WeightKind::Int4);
        let (major, minor, patch) = standin.built().version;
        let say = |patch: u32| {
            let [major, minor, patch] = [major, minor, patch].map(|number| i32::try_from(number).unwrap());
            standin.set_version(major, minor, patch);
        };
        let build = || ground.add(&dir, &ground.plans(PlanOptions::default()).unwrap()).unwrap();
        // Of one release plans are taken; a library that does not take those of another patch says so.
        say(patch + 1);
        build();
        say(patch);
        let other = format!("{major}.{minor}.{}", patch + 1);
        let todo = "--plans-only` builds the plan again";
        ground.assert_refused(&dir, &["loading the plan failed", "Version tag does not match", &other, todo]);
        standin.set_sm(87);
        build();
        standin.set_sm(110);
        ground.assert_refused(
            &dir,
            &["loading the plan failed", "expecting compute 11.0 got compute 8.7", todo],
        );
        build();
        ground.open(&dir, |_| {}).unwrap();
    });
}
