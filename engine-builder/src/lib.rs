//! Takt's builder: ONNX and Hugging Face checkpoints → one internal decoder description → a quantized engine directory, with a published
//! EAGLE-3 head where one is given.

mod build;
pub mod checkpoint;
pub mod draft;
mod error;
pub mod hf;
pub mod onnx;
mod quantize;
mod report;
mod source;
mod staging;
mod text_files;
mod write;

pub use build::{BuildOptions, Progress, build, build_checkpoint};
pub use error::{BuildError, Result};
pub use report::{BuildReport, DraftReport, GroupError, TensorError};
