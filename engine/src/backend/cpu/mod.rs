//! The CPU backend: SIMD kernels chosen at run time over interleaved weights, several threads, a scalar oracle beside each kernel.

mod activations;
mod aligned;
mod arena;
mod attention;
mod backend;
mod disjoint;
mod draft;
mod forward;
mod interleave;
pub mod kernels;
mod largest;
mod linear;
mod load;
mod model;
mod norm;
mod packed;
mod pool;
mod rope;
mod rows;
mod simd;
mod swiglu;
mod vectors;
mod workspace;

pub use activations::{Activations, Arithmetic};
pub use attention::StoredHead;
pub use backend::{ActivationArithmetic, CpuBackend, CpuOptions};
pub use linear::{linear, linear_on};
pub use packed::PackedMatrix;
pub use pool::ThreadPool;
pub use workspace::workspace_bytes;
