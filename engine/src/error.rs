//! What can go wrong in this crate.

use std::path::PathBuf;

/// Result of this crate's functions.
pub type Result<T, E = EngineError> = std::result::Result<T, E>;

/// Every failure of the engine. Messages state what was found, what was expected and, where there is one, what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A file could not be read.
    #[error("cannot read {path:?}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The directory is no engine, or one whose contents do not hold.
    #[error("corrupt engine {path:?}: {fact}")]
    Corrupt {
        /// The offending file or directory.
        path: PathBuf,
        /// What was found and what was expected.
        fact: String,
    },
    /// A feature of the model or file that this version does not know.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// A tensor that does not have the expected shape or type, or is missing.
    #[error("tensor {name:?}: {fact}")]
    Tensor {
        /// Name in the file.
        name: String,
        /// What was found and what was expected.
        fact: String,
    },
    /// Something does not fit: lane, context, memory.
    #[error("{0}")]
    Capacity(String),
    /// The caller's input is invalid.
    #[error("{0}")]
    Input(String),
    /// The form asked of an answer is refused. `at` is the place in the described value, as `/steps/*/name`; empty for the whole.
    #[error("grammar{}{at}: {fact}", if .at.is_empty() { "" } else { " at " })]
    Grammar {
        /// JSON pointer into the described value, `*` for every item or any key.
        at: String,
        /// What was found, what was expected and what to do.
        fact: String,
    },
    /// The tokenizer or chat template failed.
    #[error("text: {0}")]
    Text(String),
    /// The backend failed while running a step.
    #[error("backend: {0}")]
    Backend(String),
    /// Whoever wanted the engine ended before it was open.
    #[error("interrupted while the engine was being opened")]
    Interrupted,
}

impl EngineError {
    /// True when the request asked for more than the engine has room for.
    #[must_use]
    pub fn is_capacity(&self) -> bool {
        matches!(self, Self::Capacity(_))
    }

    /// True when the engine directory itself is damaged.
    #[must_use]
    pub fn is_corrupt(&self) -> bool {
        matches!(self, Self::Corrupt { .. } | Self::Tensor { .. })
    }
}
