//! An ONNX model becomes a plan.

use std::{ops::ControlFlow, path::Path};

use crate::{Result, TensorRt, TensorRtError, tensor::ShapeRange};

/// Shapes that a plan is optimized for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// For people.
    pub name: String,
    /// Of every input that has a dimension of no fixed length.
    pub inputs: Vec<(String, ShapeRange)>,
}

/// What a plan is to be able to do beside running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PlanFlags {
    /// Weights can be given anew (`kREFIT`).
    pub refittable: bool,
    /// Weights that can be given anew are left out (`kSTRIP_PLAN`), and have to be given before it runs. Implies `refittable`.
    pub stripped: bool,
    /// Weights may stay in the host's memory and be sent when they are needed (`kWEIGHT_STREAMING`).
    pub weight_streaming: bool,
}

/// What to build.
#[derive(Debug, Clone, Copy)]
pub struct PlanRequest<'a> {
    /// The model; its data lies beside it.
    pub onnx: &'a Path,
    /// In the order of their indices.
    pub profiles: &'a [Profile],
    /// What else it is to be able to do.
    pub flags: PlanFlags,
    /// Most device memory a layer may take beside its weights and its values; TensorRT's choice when `None`.
    pub workspace_bytes: Option<usize>,
    /// 0 (quickest to build) to 5 (longest search); TensorRT's choice when `None`.
    pub optimization_level: Option<u32>,
    /// What was measured on this device before, as [`BuiltPlan::timing_cache`]; empty for none.
    pub timing_cache: &'a [u8],
}

/// How far a build is. Phases nest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BuildProgress<'a> {
    /// What is being done.
    pub phase: &'a str,
    /// The phase it is part of.
    pub parent: Option<&'a str>,
    /// Steps so far.
    pub done: usize,
    /// In all.
    pub total: usize,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltPlan {
    /// The serialized network.
    pub plan: Vec<u8>,
    /// What was measured, with what was measured before: for the next build on this device with this TensorRT.
    pub timing_cache: Vec<u8>,
    /// Whether `timing_cache` of the request was of use, or of another device or version.
    pub used_timing_cache: bool,
    /// Layers that were told to be taken apart where there is no fused kernel.
    pub num_decomposable: usize,
    /// What TensorRT warned of.
    pub warnings: Vec<String>,
}

/// Builds a plan. Takes minutes; `progress` is told of every step and can end it.
///
/// # Errors
/// [`TensorRtError::Failed`] with what TensorRT said of the model or the build, [`TensorRtError::OutOfMemory`], [`TensorRtError::Cancelled`].
pub fn build_plan(
    trt: &TensorRt,
    request: &PlanRequest<'_>,
    progress: &mut dyn FnMut(BuildProgress<'_>) -> ControlFlow<()>,
) -> Result<BuiltPlan> {
    let _ = (trt, request, progress);
    Err(TensorRtError::Missing("this takt was built without TensorRT".into()))
}
