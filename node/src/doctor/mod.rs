//! What this machine has, and what follows from what it lacks.
//!
//! Architecture invariant: nothing here changes anything, and an unreadable fact is "unknown", never a failure.

mod board;
mod cpu;
mod gpu;
mod limits;
mod network;
mod ros2;
mod tensorrt;

use std::path::Path;

use serde::Serialize;

pub use board::compare;
pub use cpu::processor;

/// How good a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// As it should be.
    Good,
    /// Works, with the stated effect.
    Note,
    /// Something Takt needs does not hold.
    Bad,
}

/// One fact about the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How good it is.
    pub level: Level,
    /// What was looked at.
    pub topic: &'static str,
    /// What was found.
    pub found: String,
    /// What follows from it; empty when nothing does.
    pub effect: String,
}

impl Finding {
    fn good(topic: &'static str, found: impl Into<String>) -> Self {
        Self { level: Level::Good, topic, found: found.into(), effect: String::new() }
    }

    fn note(topic: &'static str, found: impl Into<String>, effect: impl Into<String>) -> Self {
        Self { level: Level::Note, topic, found: found.into(), effect: effect.into() }
    }

    fn bad(topic: &'static str, found: impl Into<String>, effect: impl Into<String>) -> Self {
        Self { level: Level::Bad, topic, found: found.into(), effect: effect.into() }
    }
}

/// Examines this machine; `lookup` gives an environment variable's value.
#[must_use]
pub fn examine(lookup: impl Fn(&str) -> Option<String>) -> Vec<Finding> {
    let mut findings = cpu::examine();
    findings.extend(limits::examine());
    findings.extend(gpu::examine(&lookup));
    findings.push(tensorrt::examine(&lookup));
    findings.extend(ros2::examine(&lookup));
    findings.extend(network::examine());
    findings
}

/// A small system file's text without surrounding white space.
fn read(path: impl AsRef<Path>) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.trim_end_matches(['\n', '\0', ' ']).to_owned())
}

/// Value of `name: value` or `name value` lines, as in `/proc/cpuinfo` and `/proc/meminfo`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shortcoming_says_what_follows_from_it() {
        let findings = examine(|_| None);
        assert!(findings.iter().any(|finding| finding.topic == "cpu"));
        for finding in findings {
            assert!(!finding.found.is_empty(), "{finding:?}");
            assert_eq!(finding.level == Level::Good, finding.effect.is_empty(), "{finding:?}");
        }
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "model\t\t: 85\nmodel name\t: Cortex-A78AE\nMemTotal:  12 kB\n";
        assert_eq!(field(text, "model name"), Some("Cortex-A78AE"));
        assert_eq!(field(text, "MemTotal"), Some("12 kB"));
        assert_eq!(field(text, "Mem"), None);
    }
}
