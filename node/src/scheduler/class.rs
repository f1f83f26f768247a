//! How much a request's deadline is worth.

use serde::{Deserialize, Serialize};

/// What a request is promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// A control loop waits: admitted only when its deadline can be kept, and then nothing may endanger it.
    Control,
    /// A person waits: the deadline orders and ends it, but is not promised.
    Interactive,
    /// Nobody waits: no deadline; runs in a share of its own and in what the others leave.
    Background,
}

impl Class {
    /// All classes, the most urgent first.
    pub const ALL: [Self; 3] = [Self::Control, Self::Interactive, Self::Background];

    /// The name in configuration, messages and traces.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Interactive => "interactive",
            Self::Background => "background",
        }
    }
}
