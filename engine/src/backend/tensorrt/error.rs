//! TensorRT's errors as the engine's.

use takt_tensorrt::TensorRtError;

use crate::EngineError;

impl From<TensorRtError> for EngineError {
    fn from(error: TensorRtError) -> Self {
        match error {
            TensorRtError::Driver(error) => error.into(),
            TensorRtError::OutOfMemory { .. } => Self::Capacity(format!(
                "{error}; end what else uses the GPU's memory, or build a plan with fewer lanes or a shorter context (--plan-lanes, --plan-context)"
            )),
            TensorRtError::Missing(_) | TensorRtError::Refused(_) => Self::Unsupported(error.to_string()),
            _ => Self::Backend(error.to_string()),
        }
    }
}
