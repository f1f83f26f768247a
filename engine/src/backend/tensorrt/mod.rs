//! NVIDIA GPUs through TensorRT plans, which `takt build --tensorrt` makes of an engine.
//!
//! | module | concept |
//! |---|---|
//! | [`options`] | how the backend is set up |
//! | [`entry`] | which of an engine's plans is for this machine |
//! | [`open`] | from a machine and an engine directory to a backend |
//! | [`ports`] | a plan's tensors: everything that is expected is there, and nothing else |
//! | [`fit`] | whether a plan can be run as asked, and everything beside it fits |
//! | [`load`] | a plan loaded, and everything that would keep it from running refused |
//! | [`budget`] | what a memory budget allows, and all that counts against it |
//! | [`sizes`] | how large everything is, and that the plan's profiles are for it |
//! | [`batch`] | a step as sections, each one execution of the plan: a pure function |
//! | [`padding`] | the token that pads lanes |
//! | [`input`] | what a section is about; the bytes that travel to the device |
//! | [`memory`] | where everything lies that executions read and write |
//! | [`executions`] | executions by shape, and the graphs captured of them |
//! | [`usual`] | how long sections took lately |
//! | [`features`] | residual streams that a plan puts out, and their way to a draft head |
//! | [`head`] | a draft head beside a plan |
//! | [`backend`] | all of it as a [`Backend`](crate::backend::Backend) |
//!
//! Lanes, rows of logits, their lists, choices and room are the CUDA backend's: `backend::device`. A draft head is, too, and how it goes with the lanes: `cuda::draft`.
//!
//! Architecture invariants. A section's padding writes rows that no lane holds, and sees none but its own. A step of one kind is one graph, one
//! more for its lists of likeliest tokens and what is chosen by them, and one wait, and allocates nothing once its shape was captured. Lanes are zeroed once, and what padding writes to them is finite, because rows that are not
//! seen are multiplied by nothing all the same.

mod backend;
mod batch;
mod budget;
mod entry;
mod error;
mod executions;
mod features;
mod fit;
mod head;
mod input;
mod load;
mod memory;
mod open;
mod options;
mod padding;
mod ports;
mod sizes;
mod usual;

pub use backend::{SerializedPlan, TensorRtBackend};
pub(crate) use open::{Asked, open};
pub use open::{kernel_sources, plan_for_this_machine};
pub use options::TensorRtOptions;
