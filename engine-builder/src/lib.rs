//! Takt's builder: ONNX and Hugging Face checkpoints → one internal decoder description → a quantized engine directory.

pub mod checkpoint;
mod error;

pub use error::{BuildError, Result};
