//! `takt demo`: a simulated robot asks a real node over real ROS 2 traffic.
//!
//! ```text
//! this process                                          child process
//! control loop (10 Hz) → asker (ROS 2 client) ⇄ loopback ⇄ `takt serve`
//!        ↓ events
//!      screen
//! ```
//! The control loop never waits: questions go out through a channel and answers come back through another.

mod control;
mod engine;
mod node_process;
mod robot;
mod situation;
mod summary;

pub use control::{Answer, Asker, Happening, Pace, Question, play, screen_room};
pub use engine::{PreparedEngine, find_model, prepare_engine};
pub use node_process::NodeProcess;
pub use robot::{Action, Robot};
pub use situation::{RobotState, Situation};
pub use summary::{Exchange, LoopTimes, Summary, percentile};

/// Why the demo could not be played.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The shipped model is not where it should be.
    #[error("{0}")]
    NoModel(String),
    /// The model could not be built.
    #[error(transparent)]
    Build(#[from] takt_engine_builder::BuildError),
    /// The node did not start, or ended.
    #[error("{0}")]
    Node(String),
    /// ROS 2 did not work.
    #[error(transparent)]
    Ros(#[from] crate::ros::RosError),
}
