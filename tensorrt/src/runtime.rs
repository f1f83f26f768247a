//! A plan becomes executions that are put into a stream.

use takt_kernels_cu::{
    driver::{context::Context, stream::Stream},
    launch::DeviceAddress,
};

use crate::{
    Result, TensorRt, TensorRtError,
    tensor::{DataType, ShapeRange, TensorInfo},
};

/// A plan in device memory. Cheap to clone; given back with the last of it and its executions.
#[derive(Debug, Clone)]
pub struct Plan {
    tensors: Vec<TensorInfo>,
    num_profiles: usize,
}

impl Plan {
    /// Reads a serialized plan and copies its weights to the device of `context`.
    ///
    /// # Errors
    /// [`TensorRtError::Failed`] with what TensorRT said, as for a plan of another version or device; [`TensorRtError::OutOfMemory`].
    pub fn load(trt: &TensorRt, context: &Context, plan: &[u8]) -> Result<Self> {
        let _ = (trt, context, plan);
        Err(missing())
    }

    /// All inputs and outputs, in TensorRT's order.
    #[must_use]
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Profiles that [`Execution::new`] chooses from.
    #[must_use]
    pub fn num_profiles(&self) -> usize {
        self.num_profiles
    }

    /// Shapes that input `name` may have in a profile.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`] for an input or profile that there is not.
    pub fn profile_shape(&self, name: &str, profile_idx: usize) -> Result<ShapeRange> {
        let _ = (name, profile_idx);
        Err(missing())
    }

    /// Device memory that an execution in a profile takes while it runs, for the largest shapes; executions that do not run at the same time may
    /// share it.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`] for a profile that there is not.
    pub fn scratch_bytes(&self, profile_idx: usize) -> Result<usize> {
        let _ = profile_idx;
        Err(missing())
    }

    /// Bytes of weights that may stay in the host's memory; 0 for a plan that was not built for it.
    #[must_use]
    pub fn streamable_bytes(&self) -> usize {
        0
    }

    /// Keeps at most `num_bytes` of the streamable weights on the device; before the first execution.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`] for a plan that was not built for it, [`TensorRtError::Failed`].
    pub fn set_weight_budget(&mut self, num_bytes: usize) -> Result<()> {
        let _ = num_bytes;
        Err(missing())
    }

    /// Gives a refittable plan its weights, by the names of the ONNX model's constants.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`] for a plan that was not built for it, [`TensorRtError::Failed`] with the names that are missing or refused.
    pub fn refit(&mut self, weights: &[(&str, DataType, &[u8])]) -> Result<()> {
        let _ = weights;
        Err(missing())
    }
}

/// A plan in one profile with its memory and shapes.
#[derive(Debug)]
pub struct Execution {
    _plan: Plan,
}

impl Execution {
    /// In profile `profile_idx`, without memory and shapes yet.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`] for a profile that there is not, [`TensorRtError::Failed`], [`TensorRtError::OutOfMemory`].
    pub fn new(plan: &Plan, profile_idx: usize, stream: &Stream) -> Result<Self> {
        let _ = (plan, profile_idx, stream);
        Err(missing())
    }

    /// Where it may write while it runs: at least [`Plan::scratch_bytes`], aligned to 256 bytes.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`] when that is too little, [`TensorRtError::Failed`].
    pub fn set_scratch(&mut self, address: DeviceAddress, num_bytes: usize) -> Result<()> {
        let _ = (address, num_bytes);
        Err(missing())
    }

    /// Where tensor `name` is. Its memory must live for as long as this runs, or a graph that was captured of it.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`] for a tensor that there is not, [`TensorRtError::Failed`].
    pub fn bind(&mut self, name: &str, address: DeviceAddress) -> Result<()> {
        let _ = (name, address);
        Err(missing())
    }

    /// What shape input `name` has.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`] for one outside the profile, or of an input that there is not.
    pub fn set_shape(&mut self, name: &str, shape: &[usize]) -> Result<()> {
        let _ = (name, shape);
        Err(missing())
    }

    /// Checks that all shapes and addresses are there.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`] with the names of those that are not.
    pub fn check_ready(&mut self) -> Result<()> {
        Err(missing())
    }

    /// Puts it into `stream`, of the context that the plan was loaded in; captured when the stream is.
    ///
    /// # Errors
    /// [`TensorRtError::Failed`] with what TensorRT said.
    pub fn enqueue(&mut self, stream: &Stream) -> Result<()> {
        let _ = stream;
        Err(missing())
    }
}

fn missing() -> TensorRtError {
    TensorRtError::Missing("this takt was built without TensorRT".into())
}
