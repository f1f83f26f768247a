//! TensorRT through a thin shim: plans built from ONNX models, and plans run. Knows no model.
//!
//! | module | concept |
//! |---|---|
//! | `api` | the shim's table of functions, linked in with the feature `tensorrt` |
//! | [`library`] | `libnvinfer` opened at run time, its version checked before anything else is called |
//! | `journal` | what TensorRT says, until a failed call asks what it was |
//! | `object` | TensorRT's objects that we own |
//! | [`tensor`] | names, types and shapes of what goes in and comes out |
//! | [`build`] | an ONNX model becomes a plan |
//! | [`runtime`] | a plan becomes executions that are put into a stream |
//!
//! All of it is compiled without the feature too; opening the library then says that this build has no shim.
//!
//! Addresses are numbers here, as in `takt-kernels-cu`'s launches: nothing holds the memory behind them. What is given to
//! [`bind`](runtime::Execution::bind) and [`set_scratch`](runtime::Execution::set_scratch) has to be device memory of the plan's context, as large as the
//! tensor or the scratch memory, until the stream of the last [`enqueue`](runtime::Execution::enqueue), or of the last run of a graph that was captured
//! from one, was waited for. That is the convention these safe functions rest on; whoever owns the memory keeps it.
//!
//! Architecture invariant: what is decided is decided in Rust. The shim turns one C call into one of TensorRT's, whatever its major version; it holds no
//! state, and no exception leaves it. Where the headers differ, `shim.cpp` is the only place that knows.

mod api;
pub mod build;
#[cfg(test)]
#[path = "../build_include.rs"]
mod build_include;
mod error;
mod journal;
pub mod library;
mod object;
pub mod runtime;
pub mod tensor;

pub use error::{Result, TensorRtError};
pub use library::{Probe, TensorRt, Version, probe};
