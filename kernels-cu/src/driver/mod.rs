//! The CUDA driver, thinly: contexts of our own, memory, modules, streams, graphs and events. Calls CUDA; knows no kernel.
//!
//! | module | concept |
//! |---|---|
//! | [`device`] | is there a driver, which devices, and what they are |
//! | [`context`] | a context of our own: a green one with a share of the multiprocessors, or a plain one |
//! | [`host_memory`] | a mapped file, for instance, that the device reads in place |
//! | [`memory`] | device memory and pinned host memory that the device reads and writes |
//! | `entry` | which functions the driver has: older ones lack some |
//! | [`module`] | cubins and their kernels |
//! | [`stream`] | work in order: launches, copies, captured graphs, events |
//!
//! `libcuda` is opened at run time, of CUDA 12.0 or later. Without it [`device::probe`] says so, and nothing else can be called: everything needs a
//! [`device::Device`], and that comes from `probe` alone.
//!
//! Architecture invariant: whatever holds a handle also holds its [`context::Context`], so that handles are given back before it, and
//! makes it current first: an owner may move to another thread.
#![expect(unsafe_code, reason = "foreign functions of libcuda")]

pub mod context;
pub mod device;
mod entry;
mod error;
pub mod host_memory;
pub mod memory;
pub mod module;
pub mod stream;

pub use error::{DriverError, Result};
