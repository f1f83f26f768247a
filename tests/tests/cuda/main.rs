//! The CUDA backend on an emulated device: the real kernels, compiled for the processor, behind a driver that is one in all but speed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod choices;
mod conformance;
mod draft;
#[path = "../../../kernels-cu/tests/emulator/mod.rs"]
mod emulator;
mod faults;
mod forward;
mod gpu_faults;
mod lists;
mod mapped;
mod memory;
mod models;
mod older_drivers;
mod required;
mod same_bits;
mod shipped;
mod steps;
mod worker;
