//! Plans that share the GPU: timed in a green context, and run in one if they were.

use std::path::{Path, PathBuf};

use takt_engine::{
    Engine, EngineOptions,
    backend::cuda::{GpuOptions, GpuShare},
    dir::Manifest,
    engine::BackendKind,
    quant::WeightKind,
};
use takt_engine_builder::{
    BuildOptions, build,
    plans::{DevicePlans, PlanOptions, add_plans},
};
use takt_kernels_cu::Target;
use takt_tensorrt::{TensorRt, Version};
use takt_tests::checkpoint::fixtures;
use tempfile::TempDir;

use crate::{
    cubins,
    models::{on_the_stand_in, orin},
};

fn engine() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("engine");
    build(&fixtures().join("hf/tiny-llama"), &path, &BuildOptions::new(WeightKind::Bf16), &mut |_| {})
        .unwrap();
    (folder, path)
}

fn plans(sm_share: Option<u8>) -> takt_engine_builder::Result<DevicePlans> {
    DevicePlans::open(PlanOptions { lane_capacity: Some(64), sm_share, ..PlanOptions::default() }, None)
}

/// Whether TensorRT is one that is timed in green contexts; says that it is not.
fn has_green_contexts() -> bool {
    let Version { major, minor, .. } = TensorRt::open().unwrap().version();
    let has = (major, minor) >= (10, 16);
    if !has {
        eprintln!("skipped: TensorRT {major}.{minor} is given no green context");
    }
    has
}

/// Builds a plan, and gives on how many multiprocessors it was timed.
fn add(engine: &Path, sm_share: Option<u8>) -> Option<u32> {
    add_plans(engine, &plans(sm_share).unwrap(), None, &mut |_| {}).unwrap();
    Manifest::read(engine).unwrap().plans[0].timed_in_green_context
}

fn options(percent: u8) -> EngineOptions {
    EngineOptions {
        backend: BackendKind::TensorRt,
        max_step_tokens: 64,
        gpu: GpuOptions {
            share: GpuShare::GreenContext { percent },
            kernel_cache: Some(cubins::folder(Target::Orin)),
            ..GpuOptions::default()
        },
        ..EngineOptions::default()
    }
}

#[test]
fn a_plan_runs_in_a_green_context_if_it_was_timed_in_one_that_was_not_larger() {
    let test = "green::a_plan_runs_in_a_green_context_if_it_was_timed_in_one_that_was_not_larger";
    on_the_stand_in(orin(test), |device, standin, _| {
        if !has_green_contexts() {
            return;
        }
        let (_folder, path) = engine();
        let green = |percent: u8| {
            let engine = Engine::open(&path, &options(percent)).unwrap();
            let num_green = device.report().value("green_contexts");
            drop(engine);
            assert_eq!(device.report().value("green_contexts"), 0);
            num_green
        };
        let timed = |sm_share| {
            standin.clear();
            let timed = add(&path, sm_share);
            assert_eq!(device.report().value("green_contexts"), 0, "given back");
            let is_set = standin.record().iter().any(|line| line.contains("setProfileStream(@"));
            assert_eq!(is_set, timed.is_some());
            timed
        };
        assert_eq!(timed(None), None);
        assert_eq!(green(50), 0);
        assert_eq!(timed(Some(50)), Some(8));
        assert_eq!((green(50), green(100), green(1)), (1, 1, 0));
        assert_eq!(timed(Some(100)), Some(16));
        assert_eq!((green(100), green(50)), (1, 0));
        assert_eq!(standin.alive(), [""; 0]);
    });
}

#[test]
fn a_green_context_that_cannot_be_timed_in_is_refused_with_the_reason() {
    let refused = |part: &str| {
        let error = plans(Some(50)).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("leave out --plan-sm-share"), "{error}");
    };
    let test = "green::a_green_context_that_cannot_be_timed_in_is_refused_with_the_reason";
    on_the_stand_in(orin(test), |device, _, _| {
        for percent in [0, 101] {
            let error = plans(Some(percent)).unwrap_err().to_string();
            assert!(error.contains("expected 1 to 100"), "{error}");
        }
        if !has_green_contexts() {
            refused("green contexts take TensorRT 10.16 or later");
            plans(None).unwrap();
            return;
        }
        device.fail_call("cuGreenCtxCreate", 1, 801);
        refused("there is no green context: ");
        device.fail_call("cuGreenCtxCreate", 0, 0);
        plans(Some(50)).unwrap();
    });
}

#[test]
fn a_driver_before_cuda_13_is_refused_for_plans_in_a_green_context() {
    let test = "green::a_driver_before_cuda_13_is_refused_for_plans_in_a_green_context";
    on_the_stand_in(orin(test).cuda(12, 6), |_, _, _| {
        if !has_green_contexts() {
            return;
        }
        let error = plans(Some(50)).unwrap_err().to_string();
        assert!(error.contains("a driver of CUDA 13.0") && error.contains("this one is of 12.6"), "{error}");
        plans(None).unwrap();
    });
}
