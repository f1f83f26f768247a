//! The three ways to ask a node, each as a robot's program would use it: a participant of its own, one request at a time.

mod action;
mod service;
mod topic;

use std::time::Duration;

use serde::Serialize;

use crate::ros::{Answer, Question, RosError, RosOptions, dds::DdsTransport, transport::Call};

/// Longest wait for the node's endpoints.
const DISCOVERY: Duration = Duration::from_secs(10);
/// What has not come by then is lost: far longer than any answer asked for here takes.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DoorKind {
    /// `~/prompt`, answered on `~/reply`.
    Topic,
    /// `~/ask`.
    Service,
    /// `~/generate`: the goal, then its result.
    Action,
}

impl DoorKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Topic, Self::Service, Self::Action];

    /// Its name in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Topic => "topic",
            Self::Service => "service",
            Self::Action => "action",
        }
    }

    /// Finds the node of `ros`.
    ///
    /// # Errors
    /// [`RosError::NoNode`], [`RosError::Name`], [`RosError::Transport`].
    pub fn open(self, ros: &RosOptions) -> Result<Box<dyn Door>, RosError> {
        // A leading underscore hides a node from `ros2 node list`.
        let node_name = format!("_takt_bench_{}_{}", self.name(), std::process::id());
        let transport = DdsTransport::join(&RosOptions { node_name, ..ros.clone() })?;
        Ok(match self {
            Self::Topic => Box::new(topic::TopicDoor::open(transport, ros)?),
            Self::Service => Box::new(service::ServiceDoor::open(transport, ros)?),
            Self::Action => Box::new(action::ActionDoor::open(transport, ros)?),
        })
    }
}

/// A request as its client saw it.
#[derive(Debug, Clone, PartialEq)]
pub struct Trip {
    /// Sent to its end known.
    pub round_trip: Duration,
    /// Sent to known whether it is let in, where that is told apart: by the action.
    pub decided: Option<Duration>,
    /// A [`crate::request::Status`] by name.
    pub status: String,
    /// Arrival to reply in the node, as the reply says; `None` for a goal that is refused, of which its client learns no more.
    pub in_node: Option<Duration>,
}

impl Trip {
    fn of(answer: &Answer, round_trip: Duration) -> Self {
        Self {
            round_trip,
            decided: None,
            status: answer.status.clone(),
            in_node: Duration::try_from_secs_f64(answer.total_ms / 1e3).ok(),
        }
    }

    /// What of the round trip was not spent in the node.
    #[must_use]
    pub fn overhead(&self) -> Option<Duration> {
        self.in_node.map(|in_node| self.round_trip.saturating_sub(in_node))
    }
}

/// A way to ask.
pub trait Door {
    /// Asks and waits for the end; `None` if it has not come within [`PATIENCE`].
    ///
    /// # Errors
    /// [`RosError`] if the question cannot be sent or the answer not be read.
    fn ask(&mut self, question: &Question) -> Result<Option<Trip>, RosError>;
}

fn found(is_found: bool, ros: &RosOptions) -> Result<(), RosError> {
    if is_found {
        return Ok(());
    }
    let (node, domain_id) = (ros.node()?.to_string(), ros.domain_id);
    Err(RosError::NoNode { node, domain_id, waited: DISCOVERY })
}

fn found_server(call: &dyn Call, ros: &RosOptions) -> Result<(), RosError> {
    found(call.wait_for_server(DISCOVERY), ros)
}
