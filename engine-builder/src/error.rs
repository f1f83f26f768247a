//! What can go wrong while building.

use std::path::PathBuf;

/// Result of this crate's functions.
pub type Result<T, E = BuildError> = std::result::Result<T, E>;

/// Every failure of the builder. Messages state what was found, what was expected and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A file could not be read or written.
    #[error("cannot {action} {path:?}: {source}")]
    Io {
        /// `read`, `write`, `create`, `rename`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The source is not something the builder reads.
    #[error("{path:?}: {fact}")]
    Source {
        /// The file or folder.
        path: PathBuf,
        /// What was found, what was expected, what to do.
        fact: String,
    },
    /// A model feature this version does not know, by its name in the source.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// A tensor that is absent, misshapen or not finite.
    #[error("tensor {name:?}: {fact}")]
    Tensor {
        /// Name in the source.
        name: String,
        /// What was found and what was expected.
        fact: String,
    },
    /// The engine would not be valid.
    #[error(transparent)]
    Engine(#[from] takt_engine::EngineError),
    /// Kernels could not be compiled, or there is nothing to compile them with.
    #[error(transparent)]
    Kernels(#[from] takt_kernels_cu::BuildError),
    /// There is no TensorRT that plans could be built with, or what was asked is not what it does.
    #[error(transparent)]
    TensorRt(#[from] takt_tensorrt::TensorRtError),
    /// TensorRT built no plan.
    #[error("plan of the {role}: {source}; {advice}")]
    Plan {
        /// The model.
        role: takt_engine::dir::PlanRole,
        /// What it said.
        source: takt_tensorrt::TensorRtError,
        /// What to do.
        advice: String,
    },
    /// The caller stopped the build.
    #[error("build cancelled")]
    Cancelled,
}
