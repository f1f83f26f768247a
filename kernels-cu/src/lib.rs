//! Takt's CUDA kernels: the sources, their compilation, and their checked launches. Knows no model.
//!
//! | module | concept |
//! |---|---|
//! | [`target`] | the boards a kernel is compiled for |
//! | [`source`] | the CUDA C++ files, with their headers, as text inside the program |
//! | [`compiler`] | text → cubin, with NVRTC |
//! | [`image`] | a cubin, and what it says about its kernels: registers, spills, shared memory, parameters |
//! | [`cache`] | cubins on disk |
//! | [`kernel_set`] | every kernel for one target, from wherever its cubins are |
//! | [`driver`] | contexts, memory, modules, streams and graphs of `libcuda`, opened at run time |
//! | [`launch`] | shapes and device addresses in, a checked launch out |
//!
//! Architecture invariant: CUDA is called in `compiler` and `driver` only, through libraries opened at run time. Everything else is pure, so
//! a launch is tested, and a kernel's numbers are checked through an emulator, on a machine without a GPU.

pub mod cache;
pub mod compiler;
mod cuda_version;
pub mod driver;
mod error;
pub mod image;
pub mod kernel_set;
pub mod launch;
pub mod source;
pub mod target;

pub use cuda_version::{CudaVersion, NotAVersion};
pub use error::{BuildError, Result};
pub use target::Target;
