//! The CPU backend: SIMD kernels chosen at run time over interleaved weights, several threads, a scalar oracle beside each kernel.

mod activations;
mod aligned;
mod disjoint;
pub mod kernels;
mod linear;
mod packed;
mod pool;

pub use activations::{Activations, Arithmetic};
pub use linear::{linear, linear_on};
pub use packed::PackedMatrix;
pub use pool::ThreadPool;
