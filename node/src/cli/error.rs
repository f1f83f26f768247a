//! Why a command ended without doing its work.

use takt_engine::EngineError;
use takt_engine_builder::BuildError;

use crate::{config::ConfigError, demo::DemoError, ros::RosError};

/// A command's failure; each kind has a fixed exit status.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// Wrong usage that clap cannot find: exit status 2.
    #[error("{0}")]
    Usage(String),
    /// The engine could not be opened or failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The build failed.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The configuration does not hold.
    #[error("configuration")]
    Config(#[from] ConfigError),
    /// ROS 2 did not work.
    #[error(transparent)]
    Ros(#[from] RosError),
    /// The demo could not be played.
    #[error(transparent)]
    Demo(#[from] DemoError),
    /// Anything else, with what to do.
    #[error("{0}")]
    Failed(String),
    /// The failure is already on the screen or in the JSON.
    #[error("already reported")]
    Reported,
}

impl CliError {
    /// The process's exit status.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if matches!(self, Self::Usage(_)) { 2 } else { 1 }
    }
}
