//! What is called of TensorRT, in which order, and what happens when a call fails: with the stand-in for its libraries, made of the headers
//! this was compiled with. `TAKT_REQUIRE_TENSORRT_HEADERS=1` where it must not be skipped.
#![cfg(feature = "tensorrt")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

#[path = "../../../kernels-cu/tests/emulator/mod.rs"]
mod emulator;
#[path = "../standin/mod.rs"]
mod standin;

mod bench;
mod building;
mod contexts;
mod faults;
mod model;
mod opening;
mod running;
mod settings;
mod weights;

use std::{ops::ControlFlow, path::Path};

use takt_tensorrt::{
    Result, TensorRt,
    build::{BuiltPlan, PlanFlags, PlanRequest, Profile, build_plan},
    tensor::ShapeRange,
};

/// A profile in which `batch` is 1 to 2 and `sequence` as said.
fn profile(name: &str, sequence: [usize; 3]) -> Profile {
    let [min, opt, max] = sequence;
    let ids = ShapeRange { min: vec![1, min], opt: vec![1, opt], max: vec![2, max] };
    let cache = |batch| vec![batch, 2, 8, 16];
    let past = ShapeRange { min: cache(1), opt: cache(1), max: cache(2) };
    Profile { name: name.into(), inputs: vec![("ids".into(), ids), ("past".into(), past)] }
}

/// Of `onnx`, with nothing asked for.
fn request<'a>(onnx: &'a Path, profiles: &'a [Profile]) -> PlanRequest<'a> {
    PlanRequest {
        onnx,
        profiles,
        flags: PlanFlags::default(),
        workspace_bytes: None,
        optimization_level: None,
        timing_cache: &[],
        stream: None,
    }
}

/// Whether the headers are of this version or a later one.
fn from(major: u32, minor: u32) -> bool {
    let headers = takt_tensorrt::probe().headers.unwrap();
    (headers.major, headers.minor) >= (major, minor)
}

/// Without a word of how far it is.
fn build(trt: &TensorRt, request: &PlanRequest<'_>) -> Result<BuiltPlan> {
    build_plan(trt, request, &mut |_| ControlFlow::Continue(()))
}
