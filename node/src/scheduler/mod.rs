//! Who runs next. Time is a sequence of non-preemptible **sections**; at each boundary the worker asks the planner.
//!
//! | module | decides |
//! |---|---|
//! | [`admission`] | whether a request is let in at all |
//! | [`edf`] | the order of those who wait |
//! | [`lanes`] | which lane a request gets and what it can reuse of the lane's tokens |
//! | [`prefix`] | which prompt prefixes are kept as snapshots |
//! | [`pace`] | how long a section takes, from those measured |
//! | [`planner`] | what the next section computes, and who is out of time |
//!
//! Architecture invariant: nothing here reads a clock or touches a backend; the planner is a pure function of what it is given.

pub mod admission;
pub mod edf;
pub mod lanes;
pub mod pace;
pub mod planner;
pub mod prefix;
#[cfg(test)]
mod simulation;
