//! The layer of ROS 2's command line: the node's name, and parameters under the names of configuration keys.
//!
//! A parameter is called `section.name`, as `scheduler.queue_len`; what other ROS 2 nodes call `use_sim_time` and `autostart` is
//! called so here, too. A name nobody knows is a fault, unless it was said to many nodes at once: then it may be another's.

use super::{
    Layers, NodeParameter, Origin, RosArgs, Value,
    file::did_you_mean,
    ros_args::quoted,
    schema::{Accepts, KEYS, Key, position},
};
use crate::ros::{NodeName, ParameterValue, qos_overrides};

/// Most unknown parameters that are looked at closely.
const MAX_HINTS: usize = 8;
/// Longest name that is compared with known ones.
const MAX_HINTED_LEN: usize = 100;
/// Parameters of ROS 2 that every node has under a name without a section, and ours.
const ALIASES: [(&str, &str); 2] = [("autostart", "ros.autostart"), ("use_sim_time", "ros.use_sim_time")];

impl Layers {
    /// Adds what `--ros-args` said: names, then the parameters of the node of that name.
    #[must_use]
    pub fn ros_arguments(mut self, args: &RosArgs) -> Self {
        self.ros_names(args);
        self.ros_parameters(args);
        self
    }

    /// Adds the node's name and namespace.
    pub fn ros_names(&mut self, args: &RosArgs) {
        if let Some(name) = args.node_name(&self.text_of("ros", "node_name")) {
            self.set_argument("ros", "node_name", Value::Text(name.to_owned()), "-r __node");
        }
        if let Some(namespace) = args.namespace(&self.text_of("ros", "node_name")) {
            self.set_argument("ros", "namespace", Value::Text(namespace.to_owned()), "-r __ns");
        }
    }

    /// Adds the parameters that are said to the node of the name that the layers so far give it.
    pub fn ros_parameters(&mut self, args: &RosArgs) {
        if args.parameters.is_empty() {
            return;
        }
        match NodeName::new(&self.text_of("ros", "namespace"), &self.text_of("ros", "node_name")) {
            Ok(node) => {
                let mut foreign = Vec::new();
                for parameter in args.parameters_for(&node) {
                    if !self.ros_parameter(&parameter) {
                        foreign.push(parameter);
                    }
                }
                self.notice_foreign(&foreign);
            }
            Err(error) => self.faults.push(error.to_string()),
        }
    }

    /// Takes a parameter; `false` if it is probably another node's.
    fn ros_parameter(&mut self, parameter: &NodeParameter) -> bool {
        let NodeParameter { name, value, origin, is_shared } = parameter;
        if name.starts_with(qos_overrides::PREFIX) {
            if let Err(fact) = self.qos_overrides.set(name, value, origin) {
                self.faults.push(format!("{origin}: {fact}"));
            }
            return true;
        }
        let Some((key_idx, key)) = key_of(name) else {
            if !is_shared {
                let hint = hint(name, self.faults.len());
                self.faults.push(format!("{origin}: unknown parameter `{name}`{hint}"));
            }
            return !is_shared;
        };
        let rule = match (key.section, key.name) {
            ("ros", "node_name") => "-r __node:=NAME",
            ("ros", "namespace") => "-r __ns:=/NAMESPACE",
            _ => "",
        };
        if !rule.is_empty() {
            // Parameters are said to a node, which has a name by then.
            self.faults.push(format!("{origin}: `{name}` is no parameter: name the node with {rule}"));
            return true;
        }
        match convert(value, key.accepts) {
            Ok(value) => self.settings[key_idx] = (value, Origin::Parameter(origin.clone())),
            Err(fact) => self.faults.push(format!("{origin}: `{name}`: {fact}")),
        }
        true
    }

    /// One notice for all: a robot's file may hold dozens of other nodes' parameters.
    fn notice_foreign(&mut self, parameters: &[NodeParameter]) {
        let Some(first) = parameters.first() else { return };
        let named: Vec<_> =
            parameters.iter().take(MAX_HINTS).map(|p| format!("`{}`", quoted(&p.name))).collect();
        let rest = match parameters.len().saturating_sub(MAX_HINTS) {
            0 => String::new(),
            rest => format!(" and {rest} more"),
        };
        let (named, origin) = (named.join(", "), &first.origin);
        let fact = "ignored, as they are said to many nodes at once and may be others'";
        self.notices.push(format!("{origin}: unknown parameters {fact}: {named}{rest}"));
    }

    fn text_of(&self, section: &str, name: &str) -> String {
        match position(section, name).and_then(|key_idx| self.settings.get(key_idx)) {
            Some((Value::Text(text), _)) => text.clone(),
            _ => String::new(),
        }
    }
}

/// The parameter that sets a key.
#[must_use]
pub fn name_of(key: &Key) -> String {
    let full = format!("{}.{}", key.section, key.name);
    ALIASES.iter().find(|(_, aliased)| *aliased == full).map_or(full, |(alias, _)| (*alias).to_owned())
}

/// The key that a parameter sets.
#[must_use]
pub fn key_of(name: &str) -> Option<(usize, &'static Key)> {
    let alias = ALIASES.iter().find(|(alias, _)| *alias == name);
    let (section, key) = alias.map_or(name, |(_, full)| full).split_once('.')?;
    let key_idx = position(section, key)?;
    KEYS.get(key_idx).map(|key| (key_idx, key))
}

/// ": did you mean `x`?" or something else that helps, if there are not too many faults to help with each.
fn hint(name: &str, num_faults: usize) -> String {
    if let Some(key) = KEYS.iter().find(|key| key.name == name) {
        return format!(": did you mean `{}.{name}`?", key.section);
    }
    // Comparing a long name with all keys takes long.
    if num_faults > MAX_HINTS || name.len() > MAX_HINTED_LEN {
        return String::new();
    }
    match did_you_mean(name, KEYS.iter().map(name_of)) {
        near if near.is_empty() => ": `takt serve --print-config` lists all, as section.name".to_owned(),
        near => near,
    }
}

/// A parameter's value as one that a key accepts.
///
/// # Errors
/// What was found and what is expected.
pub fn convert(value: &ParameterValue, accepts: Accepts) -> Result<Value, String> {
    use ParameterValue as V;
    let converted = match (value, accepts) {
        (V::String(text), Accepts::Text | Accepts::Word(_)) => Some(Value::Text(text.clone())),
        // YAML takes a bare `off` for a flag.
        (V::Bool(flag), Accepts::Word(words)) => {
            let word = if *flag { "on" } else { "off" };
            words.contains(&word).then(|| Value::Text(word.to_owned()))
        }
        (V::Bool(flag), Accepts::Flag) => Some(Value::Flag(*flag)),
        (V::Integer(number), Accepts::Whole(..)) => u64::try_from(*number).ok().map(Value::Whole),
        (V::Double(number), Accepts::Number(..)) => Some(Value::Number(*number)),
        // `ros2 param set N sampling.temperature 1` says an integer.
        (V::Integer(number), Accepts::Number(..)) => Some(Value::Number(*number as f64)),
        (V::IntegerArray(numbers), Accepts::Wholes(_)) => {
            let wholes = numbers.iter().map(|number| u64::try_from(*number)).collect::<Result<_, _>>();
            wholes.ok().map(Value::Wholes)
        }
        (V::ByteArray(bytes), Accepts::Wholes(_)) => {
            Some(Value::Wholes(bytes.iter().map(|byte| u64::from(*byte)).collect()))
        }
        (V::StringArray(texts), Accepts::Texts) => Some(Value::Texts(texts.clone())),
        (list, Accepts::Texts) if list.is_empty_array() => Some(Value::Texts(Vec::new())),
        (list, Accepts::Wholes(_)) if list.is_empty_array() => Some(Value::Wholes(Vec::new())),
        _ => None,
    };
    let Some(converted) = converted else {
        let is_text = matches!(accepts, Accepts::Text) && !matches!(value, V::String(_));
        let hint = if is_text { ", in quotes" } else { "" };
        return Err(format!("{value} ({}) found, {accepts}{hint} expected", value.type_name()));
    };
    converted.check(accepts)?;
    Ok(converted)
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsString, path::Path};

    use super::{super::Config, *};
    use crate::ros::{
        qos_overrides::Role,
        transport::{Qos, Reliability},
    };

    fn ros_args(args: &[&str]) -> RosArgs {
        let args = ["--ros-args"].iter().chain(args).map(OsString::from);
        RosArgs::split(args).unwrap().0
    }

    fn config(args: &[&str]) -> Config {
        Layers::default().ros_arguments(&ros_args(args)).resolve().unwrap()
    }

    fn faults(args: &[&str]) -> String {
        Layers::default().ros_arguments(&ros_args(args)).resolve().unwrap_err().to_string()
    }

    #[test]
    fn parameters_win_over_file_and_environment_but_not_over_the_nodes_own_flags() {
        let environment = |name: &str| (name == "ROS_DOMAIN_ID").then(|| "42".to_owned());
        let file = "[scheduler]\nqueue_len = 8\n[engine]\nlanes = 2\n";
        let args =
            ros_args(&["-p", "scheduler.queue_len:=9", "-p", "ros.domain_id:=7", "-p", "engine.lanes:=3"]);
        let mut layers =
            Layers::default().text(file, Path::new("a.toml")).environment(environment).ros_arguments(&args);
        layers.set_argument("engine", "lanes", Value::Whole(5), "--lanes");
        let config = layers.resolve().unwrap();
        let found = [("scheduler", "queue_len"), ("ros", "domain_id"), ("engine", "lanes")]
            .map(|(section, name)| config.whole(section, name));
        assert_eq!(found, [9, 7, 5]);
        let described = config.describe();
        assert!(described.contains("# -p scheduler.queue_len; requests that may wait"), "{described}");
    }

    #[test]
    fn every_kind_of_key_can_be_a_parameter() {
        let config = config(&[
            "-p",
            "engine.dir:=/opt/e",
            "-p",
            "engine.kv:=int8",
            "-p",
            "engine.drafter:=off",
            "-p",
            "realtime.cores:=[2, 3]",
            "-p",
            "realtime.lock_memory:=yes",
            "-p",
            "use_sim_time:=true",
            "-p",
            "autostart:=false",
            "-p",
            "ros.system_prompt:='Kind: robot'",
        ]);
        assert_eq!(config.engine_dir(), Some("/opt/e".into()));
        assert_eq!((config.text("engine", "kv"), config.text("engine", "drafter")), ("int8", "off"));
        assert_eq!(config.realtime().cores, [2, 3]);
        assert!(config.flag("realtime", "lock_memory") && config.flag("ros", "use_sim_time"));
        assert!(!config.flag("ros", "autostart"));
        assert_eq!(config.text("ros", "system_prompt"), "Kind: robot");
        let empty = Layers::default().text("[realtime]\ncores = [1]\n", Path::new("a"));
        let empty = empty.ros_arguments(&ros_args(&["-p", "realtime.cores:=[]"])).resolve().unwrap();
        assert!(empty.realtime().cores.is_empty());
    }

    #[test]
    fn parameters_are_those_of_the_node_as_it_is_renamed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.yaml");
        let text = "takt: {ros__parameters: {engine.lanes: 2}}\n/arm/left:\n  ros__parameters:\n    engine.lanes: 3\n";
        std::fs::write(&path, text).unwrap();
        let path = path.to_str().unwrap();
        assert_eq!(config(&["--params-file", path]).whole("engine", "lanes"), 2);
        let renamed = config(&["--params-file", path, "-r", "takt:__node:=left", "-r", "left:__ns:=/arm"]);
        assert_eq!(renamed.whole("engine", "lanes"), 3);
        let described = renamed.describe();
        for line in [
            &format!("# --params-file {path}:4; requests that advance together"),
            "# command line -r __node; node name",
            "namespace = \"/arm\"",
        ] {
            assert!(described.contains(line), "{line:?} not in {described}");
        }
    }

    #[test]
    fn an_unknown_parameter_is_a_fault_with_the_nearest_known_one() {
        for (rule, part) in [
            (
                "scheduler.queue_lenn:=8",
                "-p scheduler.queue_lenn: unknown parameter `scheduler.queue_lenn`: did you mean `scheduler.queue_len`?",
            ),
            ("queue_len:=8", "did you mean `scheduler.queue_len`?"),
            ("use_sim_tim:=true", "did you mean `use_sim_time`?"),
            ("xyzzy:=1", "--print-config"),
            ("ros.node_name:=left", "name the node with -r __node:=NAME"),
            ("ros.namespace:=/a", "name the node with -r __ns:=/NAMESPACE"),
            ("scheduler.queue_len:=0", "0 found, a whole number from 1 to 65536 expected"),
            ("scheduler.queue_len:=-1", "-1 (integer) found, a whole number"),
            ("scheduler.queue_len:=8.0", "8.0 (double) found, a whole number"),
            ("scheduler.queue_len:='8'", "\"8\" (string) found, a whole number"),
            ("ros.system_prompt:=5", "5 (integer) found, text, in quotes expected"),
            ("engine.kv:=fp4", "\"fp4\" found, one of auto, bf16"),
            ("engine.kv:=off", "false (boolean) found, one of auto"),
            ("autostart:=1", "1 (integer) found, true or false"),
            ("realtime.cores:=[-1]", "[-1] (integer array) found, a list"),
            ("realtime.cores:=[a]", "[\"a\"] (string array) found, a list"),
            (
                "qos_overrides./a.publisher.dept:=1",
                "-p qos_overrides./a.publisher.dept: `qos_overrides./a.publisher.dept`: \"dept\"",
            ),
        ] {
            let found = faults(&["-p", rule]);
            assert!(found.contains(part), "{rule}: {part:?} not in {found:?}");
        }
        let all = faults(&["-p", "a:=1", "-p", "b:=2", "-p", "engine.lanes:=0"]);
        assert_eq!(all.lines().count(), 3, "{all}");
    }

    #[test]
    fn unknown_parameters_that_a_file_has_for_many_nodes_are_noted_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("robot.yaml");
        std::fs::write(&path, "/**:\n  ros__parameters:\n    robot_radius: 0.3\n    engine.lanes: 2\n")
            .unwrap();
        let config = config(&["--params-file", path.to_str().unwrap()]);
        assert_eq!(config.whole("engine", "lanes"), 2);
        let notice = &config.notices()[0];
        assert!(notice.contains("robot.yaml:3: unknown parameters ignored"), "{notice}");
        assert!(notice.ends_with(": `robot_radius`"), "{notice}");
        let many: String = (0..500).map(|i| format!("    p{i}: 1\n")).collect();
        std::fs::write(&path, format!("/**:\n  ros__parameters:\n{many}")).unwrap();
        let notices = self::config(&["--params-file", path.to_str().unwrap()]).notices().to_vec();
        assert!(notices.len() == 1 && notices[0].ends_with("`p7` and 492 more"), "{notices:?}");
        // A wrong value of a parameter that is ours is a fault all the same.
        std::fs::write(&path, "/**:\n  ros__parameters:\n    engine.lanes: 0\n").unwrap();
        assert!(
            faults(&["--params-file", path.to_str().unwrap()])
                .contains("robot.yaml:3: `engine.lanes`: 0 found")
        );
    }

    #[test]
    fn overrides_of_the_quality_of_service_are_kept_and_shown() {
        let config = config(&[
            "-p",
            "qos_overrides./takt/tokens.publisher.reliability:=best_effort",
            "-p",
            "qos_overrides./takt/tokens.publisher.depth:=5",
        ]);
        let qos = config.qos_overrides().apply("/takt/tokens", Role::Publisher, Qos::STREAM);
        assert_eq!((qos.reliability, qos.depth), (Reliability::BestEffort, 5));
        let described = config.describe();
        let line = "# qos_overrides./takt/tokens.publisher.depth = 5  # -p qos_overrides./takt/tokens.publisher.depth";
        assert!(described.contains(line), "{described}");
        Layers::default().text(&described, Path::new("printed.toml")).resolve().unwrap();
    }

    #[test]
    fn a_name_that_ros_refuses_is_a_fault_when_parameters_are_to_be_found_for_it() {
        let layers = Layers::default().text("[ros]\nnode_name = \"ta-kt\"\n", Path::new("a.toml"));
        let error = layers.ros_arguments(&ros_args(&["-p", "engine.lanes:=2"])).resolve().unwrap_err();
        assert!(error.to_string().contains("ta-kt"), "{error}");
    }
}
