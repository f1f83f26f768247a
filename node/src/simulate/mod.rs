//! The scheduler in virtual time: a trace of requests, a cost table, and what becomes of every one of them.
//!
//! The same admission, ledger, planner and background server as in service; only the sections are not computed. Other policies
//! play the same trace for comparison.

pub mod gantt;
pub mod machine;
pub mod policy;
pub mod report;
pub mod trace;

pub use machine::{Outcome, Run, Settings, play};
pub use policy::Policy;
pub use report::Report;
pub use trace::{Arrivals, Demand, TraceError};

#[cfg(test)]
mod tests;
