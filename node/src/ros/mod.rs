//! ROS 2: the node's topics, services and action, and the clients that ask it.
//!
//! `transport` is the seam; `dds` the implementation that needs nothing installed, `rcl` (feature `r2r`) the one through the robot's own
//! ROS 2. Above the seam everything is plain messages and names:
//! `answering` (questions to answers), `action`, `lifecycle`, `parameters`, `diagnostics`, `rosout`, `clock`.

mod action;
mod answering;
pub mod cdr;
pub mod client;
pub mod clock;
pub mod dds;
mod diagnostics;
pub mod endpoints;
mod error;
mod governed;
mod join;
pub mod lifecycle;
pub mod message;
pub mod name;
pub mod names;
pub mod node;
pub mod options;
mod parameter_value;
pub mod parameters;
pub mod presence;
pub mod qos_overrides;
#[cfg(feature = "r2r")]
pub mod rcl;
pub mod rosout;
mod service;
mod slot;
pub mod transport;

pub use answering::AskDefaults;
pub use client::AskClient;
pub use error::RosError;
pub use join::join;
pub use message::{Answer, Question, RosDuration};
pub use name::{NodeName, TypeName};
pub use names::{Names, Remap};
pub use node::{Engine, NodeSettings, RosNode, serve};
pub use options::{RosOptions, TransportKind};
pub use parameter_value::ParameterValue;
pub use qos_overrides::QosOverrides;
pub use slot::Ready;
