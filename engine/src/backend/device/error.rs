//! The driver's and the launches' errors as the engine's.

use takt_kernels_cu::{driver::DriverError, launch::LaunchError};

use crate::EngineError;

impl From<DriverError> for EngineError {
    fn from(error: DriverError) -> Self {
        match error {
            DriverError::OutOfMemory { .. } | DriverError::NoMemory { .. } => {
                Self::Capacity(error.to_string())
            }
            DriverError::NoDriver
            | DriverError::NoDevice(_)
            | DriverError::TooOld { .. }
            | DriverError::Incomplete { .. } => Self::Unsupported(error.to_string()),
            _ => Self::Backend(error.to_string()),
        }
    }
}

impl From<LaunchError> for EngineError {
    fn from(error: LaunchError) -> Self {
        match error {
            LaunchError::Unsupported { .. } => Self::Unsupported(format!("cuda: {error}")),
            _ => Self::Backend(format!("cuda: {error}")),
        }
    }
}
