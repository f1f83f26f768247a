//! Helpers shared by the cross-crate suites.

pub mod backends;
pub mod checkpoint;
pub mod conformance;
pub mod counting;
pub mod eagle;
pub mod grammar;
pub mod heldout;
pub mod lister;
pub mod memory_weights;
pub mod onnx_run;
pub mod reference;
pub mod reference_head;
pub mod speculated;
pub mod virtual_backend;
pub mod worker_bench;
