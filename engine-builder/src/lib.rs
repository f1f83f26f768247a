//! Takt's builder: ONNX and Hugging Face checkpoints → one internal decoder description → a quantized engine directory, with a published
//! EAGLE-3 head where one is given, and CUDA kernels for the boards that are named. From an engine directory: ONNX models for TensorRT
//! ([`export`](mod@export)), and plans of them, built on the device that runs them ([`plans`]).

mod build;
pub mod checkpoint;
pub mod draft;
mod error;
pub mod export;
pub mod hf;
mod kernels;
pub mod onnx;
pub mod plans;
mod quantize;
mod report;
mod source;
mod staging;
mod text_files;
mod write;

pub use build::{BuildOptions, Progress, Stage, build, build_checkpoint};
pub use error::{BuildError, Result};
pub use kernels::{BoardKernels, add_kernels};
pub use report::{
    BuildReport, DraftReport, GroupError, KernelReport, PlanReport, PlansReport, TensorError, TimingCacheUse,
};
