//! Takt's node: command line, worker, ROS 2 and configuration.

pub mod request;
