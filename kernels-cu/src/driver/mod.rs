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
//!
//! # What the compiler does not check
//! A device address is a number, and a kernel writes where it points. So whoever puts work into a stream vouches for it, although the calls are
//! not marked `unsafe`, which would mark every line of a step and say nothing more:
//! - Every address of a launch, copy or graph is of memory, as large as the kernel takes it to be, that lives until the stream was waited for, or
//!   until its context is lost. Launches of [`crate::launch`] are checked for shapes and alignment; what [`crate::launch::Launch::new`] is given
//!   for a kernel has to be that kernel's parameters.
//! - Nobody holds [`memory::MappedBuffer::bytes`] or its like while work that writes there is in the stream, nor writes to bytes that such work reads.
//!
//! A backend has it from the borrow checker: one value owns the stream, its graphs and its buffers, starts work under `&mut self`, and waits for it
//! before it returns; what it shows of a buffer borrows it. Work that it does not wait for names only what is dropped after the stream, whose drop
//! waits.
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
