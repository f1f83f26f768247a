//! Configuration: built-in values < file < environment < ROS parameters < command line, each value with where it came from.
//!
//! Architecture invariant: the environment is read here and nowhere else, through the `lookup` a caller passes in.

mod file;
mod ros_args;
pub mod ros_parameters;
pub mod schema;
mod value;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

pub use ros_args::{
    LogLevels, LogOutputs, NodeParameter, NodePattern, NodeRule, ParameterRule, RosArgs, Severity,
};
pub use value::{Origin, Value};

use crate::ros::{
    QosOverrides, RosOptions, TransportKind, options::EnvironmentRange, qos_overrides::QosOverride,
};
use schema::{KEYS, position};

/// The value of an environment variable of this process: the one place that reads them.
#[must_use]
pub fn process_environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Every fault of a configuration, one a line.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(pub Vec<String>);

/// Values by layers; the last one set wins.
#[derive(Debug)]
pub struct Layers {
    settings: Vec<(Value, Origin)>,
    qos_overrides: QosOverrides,
    notices: Vec<String>,
    faults: Vec<String>,
}

impl Default for Layers {
    /// The built-in values.
    fn default() -> Self {
        let settings = KEYS.iter().map(|key| (Value::from(key.built_in), Origin::BuiltIn)).collect();
        Self { settings, qos_overrides: QosOverrides::default(), notices: Vec::new(), faults: Vec::new() }
    }
}

impl Layers {
    /// Adds a configuration file.
    #[must_use]
    pub fn file(mut self, path: &Path) -> Self {
        match std::fs::read_to_string(path) {
            Ok(text) => self.text(&text, path),
            Err(error) => {
                self.faults.push(format!("cannot read configuration {}: {error}", path.display()));
                self
            }
        }
    }

    /// Adds the text of a configuration file.
    #[must_use]
    pub fn text(mut self, text: &str, path: &Path) -> Self {
        match file::parse(text, path) {
            Ok(entries) => {
                for entry in entries {
                    self.settings[entry.key_idx] = (entry.value, Origin::File(path.to_owned(), entry.line));
                }
            }
            Err(faults) => self.faults.extend(faults),
        }
        self
    }

    /// Adds what ROS 2's environment variables say; `lookup` gives a variable's value.
    #[must_use]
    pub fn environment(mut self, lookup: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| lookup(name).filter(|value| !value.is_empty());
        if let Some(text) = set("ROS_DOMAIN_ID") {
            match text.trim().parse() {
                Ok(id) => {
                    self.set("ros", "domain_id", Value::Whole(id), Origin::Environment("ROS_DOMAIN_ID"))
                }
                Err(_) => {
                    self.faults.push(format!("ROS_DOMAIN_ID={text:?}: a number from 0 to 232 is expected"))
                }
            }
        }
        let range = set("ROS_AUTOMATIC_DISCOVERY_RANGE").map(|v| (v, "ROS_AUTOMATIC_DISCOVERY_RANGE"));
        for (text, name) in
            range.into_iter().chain(set("ROS_LOCALHOST_ONLY").map(|v| (v, "ROS_LOCALHOST_ONLY")))
        {
            match localhost_only(name, &text) {
                Ok(flag) => self.set("ros", "localhost_only", Value::Flag(flag), Origin::Environment(name)),
                Err(fault) => self.faults.push(fault),
            }
        }
        self
    }

    /// Adds an argument's value; `flag` is how the user wrote it.
    pub fn set_argument(&mut self, section: &str, name: &str, value: Value, flag: &str) {
        self.set(section, name, value, Origin::CommandLine(flag.to_owned()));
    }

    fn set(&mut self, section: &str, name: &str, value: Value, origin: Origin) {
        let Some(key_idx) = position(section, name) else {
            self.faults.push(format!("{origin}: no key `{name}` in [{section}]"));
            return;
        };
        let value = value.for_key(KEYS[key_idx].accepts);
        match value.check(KEYS[key_idx].accepts) {
            Ok(()) => self.settings[key_idx] = (value, origin),
            Err(fact) => self.faults.push(format!("{origin}: {fact}")),
        }
    }

    /// The typed configuration.
    ///
    /// # Errors
    /// Every fault of every layer.
    pub fn resolve(self) -> Result<Config, ConfigError> {
        let Self { settings, qos_overrides, notices, faults } = self;
        if faults.is_empty() {
            Ok(Config { settings, qos_overrides, notices })
        } else {
            Err(ConfigError(faults))
        }
    }
}

fn localhost_only(name: &str, text: &str) -> Result<bool, String> {
    let range = name == "ROS_AUTOMATIC_DISCOVERY_RANGE";
    match text.to_ascii_uppercase().as_str() {
        "1" if !range => Ok(true),
        "0" if !range => Ok(false),
        "LOCALHOST" if range => Ok(true),
        "SUBNET" | "SYSTEM_DEFAULT" | "NOT_SET" if range => Ok(false),
        // The built-in DDS cannot, and refuses it when it joins.
        "OFF" if range => Ok(true),
        _ if range => Err(format!("{name}={text:?}: LOCALHOST, SUBNET, OFF or SYSTEM_DEFAULT is expected")),
        _ => Err(format!("{name}={text:?}: 0 or 1 is expected")),
    }
}

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    settings: Vec<(Value, Origin)>,
    qos_overrides: QosOverrides,
    notices: Vec<String>,
}

/// How the worker thread is to run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RealtimeSettings {
    /// SCHED_FIFO priority; `None` for the ordinary policy.
    pub fifo_priority: Option<u8>,
    /// Cores it may use; empty for all.
    pub cores: Vec<usize>,
    /// Whether all memory is kept resident.
    pub lock_memory: bool,
}

impl Config {
    /// Every key's built-in value.
    #[must_use]
    pub fn built_in() -> Self {
        Self {
            settings: Layers::default().settings,
            qos_overrides: QosOverrides::default(),
            notices: Vec::new(),
        }
    }

    /// A text or word; empty for a key that is not text.
    #[must_use]
    pub fn text(&self, section: &str, name: &str) -> &str {
        match self.value(section, name) {
            Some(Value::Text(text)) => text,
            _ => "",
        }
    }

    /// A whole number; 0 for a key that is not one.
    #[must_use]
    pub fn whole(&self, section: &str, name: &str) -> u64 {
        match self.value(section, name) {
            Some(Value::Whole(number)) => *number,
            _ => 0,
        }
    }

    /// A list of texts; empty for a key that is not one.
    #[must_use]
    pub fn texts(&self, section: &str, name: &str) -> &[String] {
        match self.value(section, name) {
            Some(Value::Texts(texts)) => texts,
            _ => &[],
        }
    }

    /// True when the key has its built-in value, whoever set it.
    #[must_use]
    pub fn is_built_in(&self, section: &str, name: &str) -> bool {
        let key = position(section, name).map(|key_idx| &KEYS[key_idx]);
        key.is_none_or(|key| self.value(section, name) == Some(&Value::from(key.built_in)))
    }

    /// A whole number as a count of things in memory.
    #[must_use]
    pub fn count(&self, section: &str, name: &str) -> usize {
        usize::try_from(self.whole(section, name)).unwrap_or(usize::MAX)
    }

    /// A number; 0 for a key that is not one.
    #[must_use]
    pub fn number(&self, section: &str, name: &str) -> f64 {
        match self.value(section, name) {
            Some(Value::Number(number)) => *number,
            _ => 0.0,
        }
    }

    /// A flag; false for a key that is not one.
    #[must_use]
    pub fn flag(&self, section: &str, name: &str) -> bool {
        matches!(self.value(section, name), Some(Value::Flag(true)))
    }

    /// The engine directory, when one is named.
    #[must_use]
    pub fn engine_dir(&self) -> Option<PathBuf> {
        Some(self.text("engine", "dir")).filter(|dir| !dir.is_empty()).map(PathBuf::from)
    }

    /// Deadline of requests that name none.
    #[must_use]
    pub fn default_deadline(&self) -> Option<Duration> {
        Some(self.whole("scheduler", "default_deadline_ms")).filter(|ms| *ms > 0).map(Duration::from_millis)
    }

    /// The node's place on the ROS 2 network; `lookup` gives an environment variable's value (`ROS_DISTRO` decides a wire detail).
    ///
    /// # Errors
    /// [`ConfigError`] when ROS 2's own variables do not hold.
    pub fn ros(&self, lookup: impl Fn(&str) -> Option<String>) -> Result<RosOptions, ConfigError> {
        let base = RosOptions::from_lookup(lookup).map_err(|error| ConfigError(vec![error.to_string()]))?;
        Ok(RosOptions {
            domain_id: u16::try_from(self.whole("ros", "domain_id")).unwrap_or(0),
            node_name: self.text("ros", "node_name").to_owned(),
            namespace: self.text("ros", "namespace").to_owned(),
            localhost_only: self.flag("ros", "localhost_only"),
            environment_range: if self.is_from_environment("ros", "localhost_only") {
                base.environment_range
            } else {
                EnvironmentRange::Unset
            },
            transport: TransportKind::named(self.text("ros", "transport")),
            ..base
        })
    }

    /// What parameters change of topics' quality of service.
    #[must_use]
    pub fn qos_overrides(&self) -> &QosOverrides {
        &self.qos_overrides
    }

    /// What was accepted but has no effect, to be logged once.
    #[must_use]
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// How the worker thread is to run.
    #[must_use]
    pub fn realtime(&self) -> RealtimeSettings {
        let priority = u8::try_from(self.whole("realtime", "priority")).unwrap_or(1);
        let cores = match self.value("realtime", "cores") {
            Some(Value::Wholes(cores)) => {
                cores.iter().filter_map(|core| usize::try_from(*core).ok()).collect()
            }
            _ => Vec::new(),
        };
        RealtimeSettings {
            fifo_priority: (self.text("realtime", "policy") == "fifo").then_some(priority),
            cores,
            lock_memory: self.flag("realtime", "lock_memory"),
        }
    }

    /// Every value with its explanation and where it came from, as a TOML file.
    #[must_use]
    pub fn describe(&self) -> String {
        let lines =
            KEYS.iter().zip(&self.settings).map(|(key, (value, _))| format!("{} = {value}", key.name));
        let width = lines.clone().map(|line| line.chars().count()).max().unwrap_or(0);
        let mut text = String::new();
        let mut seen = BTreeSet::new();
        for ((key, (_, origin)), line) in KEYS.iter().zip(&self.settings).zip(lines) {
            if seen.insert(key.section) {
                let gap = if text.is_empty() { "" } else { "\n" };
                text += &format!("{gap}[{}]\n", key.section);
            }
            text += &format!("{line:<width$}  # {origin}; {}\n", key.doc);
        }
        if !self.qos_overrides.is_empty() {
            text += "\n# Parameters without a place in a configuration file:\n";
        }
        for QosOverride { name, value, origin, .. } in self.qos_overrides.iter() {
            text += &format!("# {name} = {value}  # {origin}\n");
        }
        text
    }

    fn is_from_environment(&self, section: &str, name: &str) -> bool {
        let origin = position(section, name).and_then(|key_idx| self.settings.get(key_idx));
        matches!(origin, Some((_, Origin::Environment(_))))
    }

    fn value(&self, section: &str, name: &str) -> Option<&Value> {
        self.value_at(position(section, name)?)
    }

    /// The value of the key at `key_idx` of [`KEYS`].
    #[must_use]
    pub fn value_at(&self, key_idx: usize) -> Option<&Value> {
        self.settings.get(key_idx).map(|(value, _)| value)
    }

    /// Sets the key at `key_idx` of [`KEYS`] while the node runs.
    ///
    /// # Errors
    /// What was found and what the key accepts.
    pub fn set_parameter(&mut self, key_idx: usize, value: Value) -> Result<(), String> {
        let (Some(key), Some(setting)) = (KEYS.get(key_idx), self.settings.get_mut(key_idx)) else {
            return Err("no such key".to_owned());
        };
        let value = value.for_key(key.accepts);
        value.check(key.accepts)?;
        *setting = (value, Origin::Parameter("set while the node ran".to_owned()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn the_command_line_wins_over_the_environment_over_the_file() {
        let file = "[ros]\ndomain_id = 7\nnode_name = \"arm\"\nnamespace = \"/cell\"\n";
        let environment = |name: &str| (name == "ROS_DOMAIN_ID").then(|| "42".to_owned());
        let mut layers = Layers::default().text(file, Path::new("a.toml")).environment(environment);
        layers.set_argument("ros", "node_name", Value::Text("left_arm".into()), "-r __node:=left_arm");
        let config = layers.resolve().unwrap();
        assert_eq!(config.whole("ros", "domain_id"), 42);
        assert_eq!(config.text("ros", "node_name"), "left_arm");
        assert_eq!(config.text("ros", "namespace"), "/cell");
        let described = config.describe();
        for line in [
            "domain_id = 42",
            "# environment ROS_DOMAIN_ID; DDS domain",
            "# command line -r __node:=left_arm; node name",
            "# a.toml:4; namespace",
            "# built-in; requests that advance together",
        ] {
            assert!(described.contains(line), "{line:?} not in\n{described}");
        }
    }

    #[test]
    fn what_is_printed_can_be_read_back_and_means_the_same() {
        let file = "[board]\nname = \"a \\\"board\\\"\"\nengines = [\"qwen3-0.6b nvfp4\", \"x\"]\n";
        let layers = Layers::default().text(file, Path::new("a.toml")).environment(nothing);
        let config = layers.resolve().unwrap();
        let again = Layers::default().text(&config.describe(), Path::new("printed.toml")).resolve().unwrap();
        let values =
            |config: &Config| config.settings.iter().map(|(value, _)| value.clone()).collect::<Vec<_>>();
        assert_eq!(values(&config), values(&again));
    }

    #[test]
    fn faults_of_all_layers_are_reported_together() {
        let mut layers = Layers::default()
            .text("[engine]\nlanse = 1\n", Path::new("a.toml"))
            .environment(|name| (name == "ROS_LOCALHOST_ONLY").then(|| "yes".to_owned()));
        layers.set_argument("engine", "lanes", Value::Whole(0), "--lanes");
        let error = layers.resolve().unwrap_err().to_string();
        for part in [
            "a.toml:2: unknown key `lanse` in [engine]: did you mean `lanes`?",
            "ROS_LOCALHOST_ONLY=\"yes\"",
            "--lanes: 0 found",
        ] {
            assert!(error.contains(part), "{part:?} not in {error}");
        }
    }

    #[test]
    fn every_shipped_configuration_resolves_and_host_states_every_built_in_value() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../jetson-configs");
        let mut num_files = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "toml") {
                let config = Layers::default().file(&path).resolve().unwrap();
                num_files += 1;
                if path.ends_with("host.toml") {
                    let built_in = Layers::default().resolve().unwrap();
                    for (i, key) in KEYS.iter().enumerate().filter(|(_, key)| key.name != "dir") {
                        assert!(
                            matches!(config.settings[i].1, Origin::File(..)),
                            "host.toml lacks {}",
                            key.name
                        );
                        assert_eq!(config.settings[i].0, built_in.settings[i].0, "{}", key.name);
                    }
                }
            }
        }
        assert!(num_files > 0);
    }
}
