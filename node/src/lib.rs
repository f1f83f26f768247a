//! Takt's node: command line, worker, ROS 2 and configuration.

pub mod bag;
pub mod bench;
pub mod board;
pub mod calibrate;
pub mod cli;
pub mod clock;
pub mod config;
pub mod demo;
pub mod doctor;
pub mod random;
pub mod request;
pub mod ros;
pub mod rt;
pub mod scheduler;
pub mod simulate;
pub mod systemd;
pub mod worker;
