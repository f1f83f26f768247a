//! An ONNX model becomes a plan.
#![expect(unsafe_code, reason = "TensorRT is called through the shim")]

mod progress;
mod steps;

use std::{fmt, ops::ControlFlow, ops::Deref, path::Path, slice};

use takt_kernels_cu::driver::stream::Stream;

use crate::{
    Result, TensorRt, TensorRtError,
    api::MemoryObject,
    object::Owned,
    tensor::{self, ShapeRange},
};

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
    /// Weights can be given anew, and others than those it was built with (`kREFIT`). TensorRT's headers say that such a plan has one profile.
    pub refittable: bool,
    /// Weights that can be given anew are left out (`kSTRIP_PLAN`), and have to be given before it runs: the same that it was built with
    /// (`kREFIT_IDENTICAL`), so that it is as fast as another; with `refittable` others too. As many profiles as with `refittable`.
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
    /// What kernels are timed in: a stream of the context the plan is to run in, as a green one with few multiprocessors. TensorRT's headers say
    /// from 11.4 on that a plan which was not timed in a green context may fail in one. `None` for a stream of TensorRT's own in the primary
    /// context of the first device.
    pub stream: Option<&'a Stream>,
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
#[derive(Debug)]
pub struct BuiltPlan {
    /// The serialized network.
    pub plan: PlanBytes,
    /// What was measured, with what was measured before: for the next build on this device with this TensorRT. Empty with a warning when TensorRT
    /// cannot write it.
    pub timing_cache: Vec<u8>,
    /// Whether `timing_cache` of the request was of use, or of another device or version.
    pub used_timing_cache: bool,
    /// Attention layers, which were told to be taken apart where there is no fused kernel; 0 with headers before TensorRT 10.14, which have none.
    pub num_decomposable: usize,
    /// What TensorRT warned of.
    pub warnings: Vec<String>,
}

/// A plan's bytes where TensorRT wrote them: it may be as large as the model.
pub struct PlanBytes {
    /// Never null; alive as long as `_memory`.
    bytes: *const u8,
    num_bytes: usize,
    _memory: Owned<MemoryObject>,
    _trt: TensorRt,
}

// SAFETY: bytes that nobody writes any more, in memory of no thread.
unsafe impl Send for PlanBytes {}
// SAFETY: as above.
unsafe impl Sync for PlanBytes {}

impl PlanBytes {
    /// `None` when it holds nothing.
    pub(crate) fn new(trt: &TensorRt, memory: Owned<MemoryObject>) -> Option<Self> {
        // SAFETY: alive; both only ask.
        let (bytes, num_bytes) =
            unsafe { ((trt.api().memory_bytes)(memory.get()), (trt.api().memory_num_bytes)(memory.get())) };
        let num_bytes = usize::try_from(num_bytes).ok().filter(|num| *num > 0)?;
        (!bytes.is_null()).then(|| Self {
            bytes: bytes.cast(),
            num_bytes,
            _memory: memory,
            _trt: trt.clone(),
        })
    }
}

impl Deref for PlanBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: so many bytes, which live as long as `_memory`, and are not written any more.
        unsafe { slice::from_raw_parts(self.bytes, self.num_bytes) }
    }
}

impl AsRef<[u8]> for PlanBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for PlanBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PlanBytes({} bytes)", self.num_bytes)
    }
}

/// Builds a plan. Takes minutes; `progress` is told of every step, on this thread, and can end it.
///
/// TensorRT works on a thread of its own meanwhile, so that this one's CUDA context stays what it is.
///
/// # Errors
/// [`TensorRtError::Missing`] without the ONNX parser; [`TensorRtError::Refused`] for a request that makes no sense; [`TensorRtError::Failed`] with
/// what TensorRT said of the model or the build; [`TensorRtError::OutOfMemory`]; [`TensorRtError::Cancelled`].
pub fn build_plan(
    trt: &TensorRt,
    request: &PlanRequest<'_>,
    progress: &mut dyn FnMut(BuildProgress<'_>) -> ControlFlow<()>,
) -> Result<BuiltPlan> {
    check(request)?;
    let parser = trt.parser()?;
    let steps = steps::Steps::new(trt, parser, request)?;
    progress::watched(progress, move |monitor| steps.run(monitor))
}

/// What can be known without TensorRT.
fn check(request: &PlanRequest<'_>) -> Result<()> {
    let refused = |reason: String| Err(TensorRtError::Refused(reason));
    if !request.onnx.is_file() {
        return refused(format!("{} is no file: expected an ONNX model", request.onnx.display()));
    }
    if let Some(level @ 6..) = request.optimization_level {
        return refused(format!("optimization level {level}: expected 0 to 5"));
    }
    for profile in request.profiles {
        for (input, range) in &profile.inputs {
            let checked = range.check().and_then(|()| tensor::to_raw(&range.max).map(|_| ()));
            if let Err(reason) = checked {
                return refused(format!("profile {}, input {input}: {reason}", profile.name));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(onnx: &Path) -> PlanRequest<'_> {
        PlanRequest {
            onnx,
            profiles: &[],
            flags: PlanFlags::default(),
            workspace_bytes: None,
            optimization_level: None,
            timing_cache: &[],
            stream: None,
        }
    }

    #[test]
    fn a_request_that_makes_no_sense_is_refused_before_anything_is_done() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        check(&request(&here)).unwrap();
        let error = check(&request(Path::new("/nowhere/model.onnx"))).unwrap_err().to_string();
        assert_eq!(error, "/nowhere/model.onnx is no file: expected an ONNX model");
        let error =
            check(&PlanRequest { optimization_level: Some(6), ..request(&here) }).unwrap_err().to_string();
        assert_eq!(error, "optimization level 6: expected 0 to 5");
        let range = ShapeRange { min: vec![1, 2], opt: vec![1, 1], max: vec![1, 4] };
        let profiles = [Profile { name: "decode".into(), inputs: vec![("input_ids".into(), range)] }];
        let error = check(&PlanRequest { profiles: &profiles, ..request(&here) }).unwrap_err().to_string();
        assert_eq!(
            error,
            "profile decode, input input_ids: smallest [1, 2], usual [1, 1] and largest [1, 4] are not in this order"
        );
    }
}
