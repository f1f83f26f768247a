//! An interpreter of exported ONNX models, for tests: it computes what TensorRT's stand-in was given as a plan.
//!
//! Independent of the code that writes models: messages, number formats and operators are its own. Arithmetic is in 32 bits, sums of a norm and of a
//! softmax in 64; every result is rounded to its tensor's type. An operator, an attribute or a type that is not there is an error with its name.
//!
//! | module | concept |
//! |---|---|
//! | `proto`, `attributes`, `constants`, `port` | what a file holds |
//! | [`element`], `tensor` | numbers |
//! | `operators` | every operator there is; `elementwise`, `movement`, `product`, `normalization`, `attention`, `quantization` compute them |
//! | [`model`](Model) | a graph that was read, constants computed once |
//! | `run`, [`Binding`] | one run over memory that is not ours: a cache is updated in its place |
//! | [`executor`] | the C function that the stand-in calls |

mod attention;
mod attributes;
mod constants;
pub mod element;
mod elementwise;
pub mod executor;
mod memory;
mod model;
mod movement;
mod normalization;
mod operators;
mod port;
mod product;
mod proto;
mod quantization;
mod run;
mod tensor;
#[cfg(test)]
mod tests;

use std::fmt;

pub use constants::File;
pub use element::Element;
pub use memory::Binding;
pub use model::Model;

/// Why a model was not read or not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunError(String);

impl RunError {
    /// The same, of `what` called `name`.
    fn at(self, what: &str, name: &str) -> Self {
        Self(format!("{what} {name:?}: {}", self.0))
    }
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for RunError {}

/// Of this module.
pub type Result<T, E = RunError> = std::result::Result<T, E>;
