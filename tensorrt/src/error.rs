//! What can go wrong with TensorRT.

use takt_kernels_cu::driver::DriverError;

/// Facts first, then what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TensorRtError {
    /// This build, or this machine, has no TensorRT that can be used.
    #[error("{0}")]
    Missing(String),
    /// What was asked cannot be done with what is there; nothing was tried.
    #[error("{0}")]
    Refused(String),
    /// TensorRT did not do what was asked.
    #[error("TensorRT: {call} failed: {reason}")]
    Failed {
        /// What was being done.
        call: &'static str,
        /// What TensorRT said.
        reason: String,
    },
    /// Memory ran out, the device's or the host's.
    #[error("TensorRT: {call}: out of memory: {reason}")]
    OutOfMemory {
        /// What was being done.
        call: &'static str,
        /// What TensorRT said.
        reason: String,
    },
    /// The caller ended it.
    #[error("cancelled")]
    Cancelled,
    /// The CUDA driver failed.
    #[error(transparent)]
    Driver(#[from] DriverError),
}

/// Of this crate.
pub type Result<T, E = TensorRtError> = std::result::Result<T, E>;
