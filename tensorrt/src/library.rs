//! `libnvinfer`, opened at run time.

use std::fmt;

use crate::{Result, TensorRtError};

/// A TensorRT release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The interface is another one in each.
    pub major: u32,
    /// Plans are of one.
    pub minor: u32,
    /// Of that.
    pub patch: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// An opened TensorRT.
#[derive(Debug, Clone)]
pub struct TensorRt {
    version: Version,
}

impl TensorRt {
    /// Opens the library of the major version whose headers this build was compiled with, and checks that it is of that version before anything else
    /// is called.
    ///
    /// # Errors
    /// [`TensorRtError::Missing`] without the shim or the library, or with a library of another major version, with what to do.
    pub fn open() -> Result<Self> {
        Err(TensorRtError::Missing("this takt was built without TensorRT".into()))
    }

    /// The library's.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }
}

/// What a machine and this build have of TensorRT, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The headers this build was compiled with; `None` without the feature `tensorrt`.
    pub headers: Option<Version>,
    /// The library, or why it cannot be used.
    pub library: std::result::Result<Version, String>,
    /// The ONNX parser, which building takes, or why it cannot be used.
    pub parser: std::result::Result<Version, String>,
}

/// Looks what there is, without keeping it open.
#[must_use]
pub fn probe() -> Probe {
    let missing = || Err("this takt was built without TensorRT".to_owned());
    Probe { headers: None, library: missing(), parser: missing() }
}
