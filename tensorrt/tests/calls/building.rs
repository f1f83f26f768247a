//! Builds.

use std::ops::ControlFlow;

use takt_tensorrt::{TensorRt, TensorRtError, build::{PlanFlags, PlanRequest, build_plan}};

use crate::{build, model, profile, request, standin::{Failure, Standin}};

#[test]
fn a_build_is_this_sequence_of_calls() {
    let Some(standin) = Standin::load() else { return };
    let folder = tempfile::tempdir().unwrap();
    let onnx = model::write(&model::decoder(true), folder.path());
    let trt = TensorRt::open().unwrap();
    let profiles = [profile("prefill", [1, 4, 8]), profile("decode", [1, 1, 1])];
    let built = build(&trt, &PlanRequest { workspace_bytes: Some(1 << 30), optimization_level: Some(2), ..request(&onnx, &profiles) }).unwrap();
    for line in standin.record() { println!("{line}"); }
    println!("{:?} {:?}", built, standin.faults());
    drop(built);
    println!("{:?}", standin.alive());
}
