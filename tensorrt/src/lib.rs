//! TensorRT through a thin shim: plans built from ONNX models, and plans run. Knows no model.
//!
//! | module | concept |
//! |---|---|
//! | `api` | the shim's table of functions, linked in with the feature `tensorrt` |
//! | [`library`] | `libnvinfer` opened at run time, its version checked before anything else is called |
//! | [`tensor`] | names, types and shapes of what goes in and comes out |
//! | [`build`] | an ONNX model becomes a plan |
//! | [`runtime`] | a plan becomes executions that are put into a stream |
//!
//! All of it is compiled without the feature too; opening the library then says that this build has no shim.

mod api;
pub mod build;
mod error;
pub mod library;
pub mod runtime;
pub mod tensor;

pub use error::{Result, TensorRtError};
pub use library::{Probe, TensorRt, Version, probe};
