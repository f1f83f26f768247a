//! The node's parameters: every configuration key as `section.name`, described, ranged and checked by the configuration's own table.
//!
//! Which of them may change when:
//!
//! | | |
//! |---|---|
//! | at once, for the next request | deadlines and limits of requests, class limits, sampling, speculation, the system prompt and the schema of sentences |
//! | in the state unconfigured, for the next `configure` | everything about the engine, the scheduler's structure, real time |
//! | never | what the node was joined to the network with: its name, namespace, domain; `use_sim_time`; QoS overrides |

mod convert;
mod service;
mod store;

pub(super) use service::offer;
pub use store::{Fixed, ParameterStore};

/// When a parameter may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    /// At once.
    Live,
    /// Only while the node is unconfigured.
    Unconfigured,
    /// Never.
    Never,
}

/// The keys that take effect with the next request.
const LIVE: [(&str, &str); 14] = [
    ("engine", "speculate"),
    ("scheduler", "default_class"),
    ("scheduler", "default_deadline_ms"),
    ("scheduler", "default_max_tokens"),
    ("scheduler", "max_open_control"),
    ("scheduler", "max_open_interactive"),
    ("scheduler", "max_open_background"),
    ("sampling", "override_engine"),
    ("sampling", "temperature"),
    ("sampling", "top_k"),
    ("sampling", "top_p"),
    ("sampling", "min_p"),
    ("ros", "system_prompt"),
    ("ros", "schema"),
];

impl Change {
    fn of(section: &str, name: &str) -> Self {
        if LIVE.contains(&(section, name)) {
            Self::Live
        } else if section == "ros" {
            Self::Never
        } else {
            Self::Unconfigured
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::schema::position;

    #[test]
    fn every_live_parameter_is_a_key() {
        for (section, name) in LIVE {
            assert!(position(section, name).is_some(), "{section}.{name}");
        }
    }
}
