//! Who runs next. Time is a sequence of non-preemptible **sections**; at each boundary the worker asks the planner.
//!
//! | module | decides or knows |
//! |---|---|
//! | [`cost_table`] | what a section costs on this device, at most and usually |
//! | [`class`] | what a request is promised |
//! | [`admission`] | whether a request's deadline can be promised, and which could be |
//! | [`ledger`] | the promises given, for admission on other threads |
//! | [`bandwidth_server`] | how much background work may claim |
//! | [`edf`] | the order of those who wait |
//! | [`waiting_room`] | who of those who wait gets the next lane |
//! | [`lanes`] | which lane a request gets and what it can reuse of the lane's tokens |
//! | [`preemption`] | whose lane goes to somebody more urgent |
//! | [`prefix`] | which prompt prefixes are kept as snapshots |
//! | [`job`] | a request as the planner sees it, and its mandatory part |
//! | [`cut`] | who is out of time |
//! | [`round`] | a round of speculation, and what it costs at most |
//! | [`round_costs`] | what rounds usually take, for the policy that chooses their shape |
//! | [`safety`] | which sections endanger nobody |
//! | [`planner`] | what the next section computes |
//!
//! Architecture invariant: nothing here reads a clock or touches a backend; the planner is a pure function of what it is given.

pub mod admission;
pub mod bandwidth_server;
pub mod class;
pub mod cost_table;
pub mod cut;
pub mod edf;
pub mod job;
pub mod lanes;
pub mod ledger;
pub mod planner;
pub mod preemption;
pub mod prefix;
pub mod round;
pub mod round_costs;
pub mod safety;
pub mod waiting_room;
