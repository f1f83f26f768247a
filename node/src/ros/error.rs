//! What can go wrong between the node and ROS 2.

use std::time::Duration;

use super::cdr::CdrError;

/// Facts first, then what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RosError {
    /// An environment variable or an option holds something ROS 2 would not accept.
    #[error("{name}={value:?}: {expected}")]
    Option {
        /// Variable or option.
        name: &'static str,
        /// What it held.
        value: String,
        /// What would be accepted.
        expected: &'static str,
    },
    /// A node, topic or service name breaks ROS 2's naming rules.
    #[error("{what} {name:?}: {rule}")]
    Name {
        /// `node name`, `namespace`.
        what: &'static str,
        /// The name.
        name: String,
        /// The rule it breaks.
        rule: &'static str,
    },
    /// Another node of the same name is on the network.
    #[error(
        "another node named {node} is already running in domain {domain_id}: stop it, or choose another name, namespace or ROS_DOMAIN_ID"
    )]
    NameTaken {
        /// Full name.
        node: String,
        /// Domain both are in.
        domain_id: u16,
    },
    /// A lifecycle transition failed.
    #[error("{reason}")]
    Lifecycle {
        /// Why.
        reason: String,
    },
    /// The DDS library refused to create something.
    #[error("ROS 2 transport: {what}: {reason}")]
    Transport {
        /// What was being created or done.
        what: String,
        /// The library's words.
        reason: String,
    },
    /// A message could not be sent in the time allowed: a subscriber does not acknowledge.
    #[error("{topic}: not sent, a subscriber has not acknowledged for too long")]
    Congested {
        /// DDS topic.
        topic: String,
    },
    /// The node can no longer hear anybody.
    #[error(
        "{node} hears nothing any more, a thread of its transport has ended: start it again, and report what the log says"
    )]
    Deaf {
        /// Full name.
        node: String,
    },
    /// Nobody answers on a service.
    #[error(
        "no node {node} found in domain {domain_id} within {waited:.1?}: is `takt serve` running, with the same ROS_DOMAIN_ID and the same discovery range (ROS_AUTOMATIC_DISCOVERY_RANGE, ROS_LOCALHOST_ONLY)?"
    )]
    NoNode {
        /// Full name of the node looked for.
        node: String,
        /// Domain it was looked for in.
        domain_id: u16,
        /// How long.
        waited: Duration,
    },
    /// The node was found but did not answer.
    #[error("{node} did not answer within {waited:.1?}: look at its log, or ask with a longer deadline")]
    NoReply {
        /// Full name of the node asked.
        node: String,
        /// How long.
        waited: Duration,
    },
    /// A message's bytes are not what its type says.
    #[error("{what}: {error}")]
    Message {
        /// Type or topic.
        what: &'static str,
        /// What is wrong.
        error: CdrError,
    },
    /// More calls in flight than the client keeps.
    #[error("{in_flight} calls are in flight, the limit: wait for replies first")]
    TooManyCalls {
        /// The limit.
        in_flight: usize,
    },
}
