//! ROS 2: the node's topics and service, and the clients that ask it.
//!
//! `transport` is the seam; `dds` its one implementation. Above the seam everything is plain messages and names.

mod ask;
pub mod cdr;
pub mod client;
pub mod dds;
mod diagnostics;
mod error;
mod form;
mod intake;
pub mod message;
pub mod name;
pub mod names;
pub mod node;
pub mod options;
mod outlet;
mod parameter_value;
pub mod presence;
pub mod qos_overrides;
pub mod transport;

pub use ask::AskDefaults;
pub use client::AskClient;
pub use error::RosError;
pub use message::{AskReply, AskRequest, RosDuration};
pub use name::{NodeName, TypeName};
pub use names::{Names, Remap};
pub use node::{RosNode, serve};
pub use options::RosOptions;
pub use parameter_value::ParameterValue;
pub use qos_overrides::QosOverrides;
