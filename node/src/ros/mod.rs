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
pub mod node;
pub mod options;
mod outlet;
pub mod presence;
pub mod transport;

pub use ask::AskDefaults;
pub use client::AskClient;
pub use error::RosError;
pub use message::{AskReply, AskRequest, RosDuration};
pub use name::{NodeName, TypeName};
pub use node::{RosNode, serve};
pub use options::RosOptions;
