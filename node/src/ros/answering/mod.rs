//! From a question on any of the node's doors to its answer on the same.
//!
//! `ask` checks a question, `intake` hands it to the worker, `outlet` follows what the worker says of it, `topics` tells it.

mod ask;
mod form;
mod intake;
mod outlet;
mod sentence;
mod session;
mod topics;

pub use ask::AskDefaults;
pub(super) use intake::{Gate, Intake, NOT_ACTIVE, OpenCounts};
pub(super) use outlet::{Command, Outlet};
pub(super) use topics::Topics;
