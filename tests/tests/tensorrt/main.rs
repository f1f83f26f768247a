//! The TensorRT backend on a stand-in for TensorRT, over the emulated device: real ONNX models become plans, which an interpreter of ours computes.
//!
//! Without the feature `tensorrt` there is no shim, and every test is skipped: `cargo run -p xtask -- tensorrt --test` runs them.

#![cfg(feature = "tensorrt")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod conformance;
mod cubins;
#[path = "../../../kernels-cu/tests/emulator/mod.rs"]
mod emulator;
mod faults;
mod forward;
mod green;
mod head;
mod lists;
#[allow(dead_code, reason = "other suites use the rest")]
mod models;
mod opened;
mod padding;
mod plans;
mod real;
mod rehearsal;
mod road;
#[path = "../../../tensorrt/tests/standin/mod.rs"]
#[allow(unused_imports, reason = "its own tests use more of it")]
mod standin;
mod steps;
mod streaming;
mod trials;
