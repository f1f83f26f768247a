//! `--ros-args … [--]`: the command line every ROS 2 node understands, read as rcl reads it.
//!
//! What differs from rcl, and why: unknown arguments are refused here and not by whoever looks at what is left over; of several
//! values for a parameter the one said last wins, whatever pattern of nodes it is for (rclcpp would let the pattern that appeared
//! last win); a remapping rule outside of `--ros-args` is no rule, as rcl has long warned.

mod log_level;
mod node_pattern;
mod parameter;
mod params_file;
mod remap;
mod yaml;

use std::{ffi::OsString, path::Path};

pub use log_level::{LogLevels, Severity};
pub use node_pattern::NodePattern;
pub use parameter::ParameterRule;
pub use remap::NodeRule;
pub(super) use yaml::quoted;

use crate::ros::{NodeName, ParameterValue, Remap};

/// What there is, for messages.
const KNOWN: &str = "-r RULE, -p NAME:=VALUE, --params-file FILE, --log-level LEVEL, -e ENCLAVE, \
    --{enable,disable}-{rosout,stdout,external-lib}-logs, --log-config-file FILE and --log-file-name PREFIX";

/// What `--ros-args` said.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct RosArgs {
    /// Rules that rename the node, in order; see [`Self::node_name`].
    pub node_names: Vec<NodeRule>,
    /// Rules that move it to another namespace, in order; see [`Self::namespace`].
    pub namespaces: Vec<NodeRule>,
    /// Rules that rename topics and services, in order; for [`Names`](crate::ros::Names).
    pub remaps: Vec<Remap>,
    /// Values of parameters, in order; see [`Self::parameters_for`].
    pub parameters: Vec<ParameterRule>,
    /// What is logged.
    pub log_levels: LogLevels,
    /// Where to.
    pub log_outputs: LogOutputs,
    /// What was accepted but has no effect, to be logged once.
    pub notices: Vec<String>,
}

/// Where log messages go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogOutputs {
    /// The topic `/rosout`.
    pub rosout: bool,
    /// The console.
    pub stdout: bool,
    /// A logging library's files.
    pub external_lib: bool,
}

impl Default for LogOutputs {
    fn default() -> Self {
        Self { rosout: true, stdout: true, external_lib: true }
    }
}

/// A parameter's value for one node.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeParameter {
    /// Its name, with points.
    pub name: String,
    /// Its value.
    pub value: ParameterValue,
    /// Where it was said.
    pub origin: String,
    /// Whether it is said to other nodes too, which may have parameters we have not.
    pub is_shared: bool,
}

impl RosArgs {
    /// Takes the `--ros-args … [--]` blocks out of `args`, reading the parameter files they name; returns what they said and the
    /// other arguments.
    ///
    /// # Errors
    /// The first argument that is not understood, and what is.
    pub fn split(args: impl IntoIterator<Item = OsString>) -> Result<(Self, Vec<OsString>), String> {
        let (mut found, mut others, mut is_inside) = (Self::default(), Vec::new(), false);
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            match arg.to_str() {
                Some("--ros-args") => is_inside = true,
                Some("--") if is_inside => is_inside = false,
                _ if !is_inside => others.push(arg),
                Some(flag) => found.take(flag, &mut args)?,
                None => return Err(format!("--ros-args: {arg:?} is not UTF-8 text")),
            }
        }
        Ok((found, others))
    }

    /// Understands `flag`, and what follows it.
    fn take(&mut self, flag: &str, args: &mut impl Iterator<Item = OsString>) -> Result<(), String> {
        let mut argument = |what: &str| -> Result<OsString, String> {
            args.next().ok_or_else(|| format!("--ros-args: nothing found after {flag}, {what} expected"))
        };
        let mut text = |what: &str| -> Result<String, String> {
            argument(what)?.into_string().map_err(|arg| format!("--ros-args {flag} {arg:?}: not UTF-8 text"))
        };
        match flag {
            "-r" | "--remap" => {
                let rule = text("a rule such as __node:=NAME or FROM:=TO")?;
                self.remap(&rule).map_err(|fact| format!("--ros-args {flag} {rule}: {fact}"))
            }
            "-p" | "--param" => {
                let rule = text("NAME:=VALUE")?;
                let parameter = ParameterRule::parse(&rule);
                self.add(parameter.map(|rule| vec![rule]))
                    .map_err(|fact| format!("--ros-args {flag} {rule}: {fact}"))
            }
            "--params-file" => {
                let path = argument("a file")?;
                self.add(params_file::read(Path::new(&path))).map_err(|fact| format!("--params-file {fact}"))
            }
            "--log-level" => {
                let rule = text("LEVEL or LOGGER:=LEVEL")?;
                self.log_levels.add(&rule).map_err(|fact| format!("--ros-args {flag} {rule}: {fact}"))
            }
            "-e" | "--enclave" => {
                let enclave = text("an enclave")?;
                self.notices.push(format!("{flag} {enclave} is ignored: the built-in DDS has no security"));
                Ok(())
            }
            // Nobody's robot should stay down because of how a log is laid out.
            "--log-config-file" | "--log-file-name" => {
                let value = argument("a file name")?;
                let why = "logs go to standard error, and no logging library reads it";
                self.notices.push(format!("{flag} {} is ignored: {why}", value.display()));
                Ok(())
            }
            _ => self.switch(flag),
        }
    }

    fn remap(&mut self, rule: &str) -> Result<(), String> {
        match remap::parse(rule)? {
            remap::Rule::NodeName(rule) => self.node_names.push(rule),
            remap::Rule::Namespace(rule) => self.namespaces.push(rule),
            remap::Rule::Name(rule) => self.remaps.push(rule),
        }
        Ok(())
    }

    fn add(&mut self, rules: Result<Vec<ParameterRule>, String>) -> Result<(), String> {
        self.parameters.append(&mut rules?);
        if self.parameters.len() > parameter::MAX_RULES {
            return Err(format!(
                "more than {} parameters in all, the most that are read",
                parameter::MAX_RULES
            ));
        }
        Ok(())
    }

    /// `--enable-…-logs` and `--disable-…-logs`.
    fn switch(&mut self, flag: &str) -> Result<(), String> {
        let unknown = || format!("--ros-args: unknown argument {flag:?}; it knows {KNOWN}");
        let (is_on, output) = match (flag.strip_prefix("--enable-"), flag.strip_prefix("--disable-")) {
            (Some(output), _) => (true, output),
            (_, Some(output)) => (false, output),
            _ => return Err(unknown()),
        };
        match output {
            "rosout-logs" => self.log_outputs.rosout = is_on,
            "stdout-logs" => self.log_outputs.stdout = is_on,
            "external-lib-logs" => self.log_outputs.external_lib = is_on,
            _ => return Err(unknown()),
        }
        Ok(())
    }

    /// The new name of the node that would be called `name`; the first rule for it wins.
    #[must_use]
    pub fn node_name(&self, name: &str) -> Option<&str> {
        first_for(&self.node_names, name)
    }

    /// The new namespace of the node called `name` by now; the first rule for it wins.
    #[must_use]
    pub fn namespace(&self, name: &str) -> Option<&str> {
        first_for(&self.namespaces, name)
    }

    /// The parameters of `node`, each once, with what was said last.
    #[must_use]
    pub fn parameters_for(&self, node: &NodeName) -> Vec<NodeParameter> {
        let mut seen = std::collections::HashSet::new();
        let mut found: Vec<NodeParameter> = self
            .parameters
            .iter()
            .rev()
            .filter(|rule| rule.nodes.matches(node) && seen.insert(rule.name.as_str()))
            .map(|rule| NodeParameter {
                name: rule.name.clone(),
                value: rule.value.clone(),
                origin: rule.origin.clone(),
                is_shared: rule.is_shared,
            })
            .collect();
        found.reverse();
        found
    }
}

fn first_for<'a>(rules: &'a [NodeRule], name: &str) -> Option<&'a str> {
    let rule = rules.iter().find(|rule| rule.node.as_deref().is_none_or(|node| node == name));
    rule.map(|rule| rule.to.as_str())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::ros::Names;

    fn split(line: &str) -> Result<(RosArgs, Vec<OsString>), String> {
        RosArgs::split(line.split_whitespace().map(OsString::from))
    }

    fn ros_args(line: &str) -> RosArgs {
        split(line).unwrap_or_else(|fault| panic!("{line}: {fault}")).0
    }

    fn params_file(folder: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn what_ros2_launch_passes_is_understood() {
        let folder = tempfile::tempdir().unwrap();
        let text = "/arm/left:\n  ros__parameters:\n    engine.lanes: 2\n    realtime.cores: !!python/tuple\n    - 1\n";
        let file = params_file(&folder, "launch_params_1", text);
        let line = format!(
            "takt serve --engine e --ros-args --log-level debug --ros-args -r __node:=left -r __ns:=/arm --params-file {} \
             -r ~/ask:=/question -- --lanes 2",
            file.display()
        );
        let (found, others) = split(&line).unwrap();
        assert_eq!((found.node_name("takt"), found.namespace("left")), (Some("left"), Some("/arm")));
        assert_eq!(others, ["takt", "serve", "--engine", "e", "--lanes", "2"]);
        assert_eq!(found.log_levels.default, Some(Severity::Debug));
        let node = NodeName::new("/arm", "left").unwrap();
        let parameters = found.parameters_for(&node);
        assert_eq!(parameters[0].value, ParameterValue::Integer(2));
        assert_eq!(parameters[0].origin, format!("--params-file {}:3", file.display()));
        assert_eq!(parameters[1].value, ParameterValue::IntegerArray(vec![1]));
        assert_eq!(Names::new(node, found.remaps).resolve_service("~/ask").unwrap(), "/question");
    }

    #[test]
    fn a_block_ends_with_two_dashes_and_further_ones_are_the_users() {
        let (found, others) = split("takt --ros-args -r a:=b -- x -- --ros-args --ros-args -- y").unwrap();
        assert_eq!(others, ["takt", "x", "--", "y"]);
        assert_eq!(found.remaps.len(), 1);
        assert_eq!(split("takt serve --ros-args").unwrap().0, RosArgs::default());
        assert_eq!(split("takt ask -r __node:=a -p b").unwrap().0, RosArgs::default());
    }

    #[test]
    fn of_rules_on_the_node_the_first_that_is_for_it_wins() {
        let found =
            ros_args("--ros-args -r other:__node:=x -r takt:__node:=a -r __node:=b -r __ns:=/c -r __ns:=/d");
        assert_eq!(found.node_name("takt"), Some("a"));
        assert_eq!(found.node_name("arm"), Some("b"));
        assert_eq!(found.namespace("a"), Some("/c"));
        assert_eq!(RosArgs::default().node_name("takt"), None);
    }

    #[test]
    fn of_values_of_a_parameter_the_last_one_on_the_line_wins() {
        let folder = tempfile::tempdir().unwrap();
        let one = params_file(
            &folder,
            "1",
            "/**: {ros__parameters: {a: 1, b: 1, c: 1}}\n/n: {ros__parameters: {a: 2}}\n",
        );
        let two = params_file(
            &folder,
            "2",
            "/**: {ros__parameters: {a: 3, e: 3}}\n/m: {ros__parameters: {c: 9}}\n",
        );
        let line = format!(
            "--ros-args -p b:=0 -p c:=0 --params-file {} -p b:=5 -p m:c:=8 -p n:d:=6 --ros-args --params-file {}",
            one.display(),
            two.display()
        );
        let found = ros_args(&line);
        let values = |name: &str| {
            let found = found.parameters_for(&NodeName::new("/", name).unwrap());
            found.into_iter().map(|p| format!("{}={}", p.name, p.value)).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(values("n"), "c=1 b=5 d=6 a=3 e=3");
        assert_eq!(values("m"), "b=5 a=3 e=3 c=9");
        let shared = found.parameters_for(&NodeName::new("/", "n").unwrap());
        let shared: Vec<_> = shared.iter().map(|p| (p.origin.as_str(), p.is_shared)).collect();
        assert_eq!((shared[1], shared[2]), (("-p b", false), ("-p n:d", false)));
        assert!(shared[0].1 && shared[0].0.starts_with("--params-file "));
    }

    #[test]
    fn log_outputs_are_switched_and_what_has_no_effect_is_said() {
        let found = ros_args(
            "--ros-args --disable-rosout-logs --disable-stdout-logs --enable-stdout-logs --disable-external-lib-logs \
             -e /arm --enclave /leg --log-config-file c.xml --log-file-name x --log-level takt:=info",
        );
        assert_eq!(found.log_outputs, LogOutputs { rosout: false, stdout: true, external_lib: false });
        assert_eq!(found.log_levels.loggers.len(), 1);
        assert_eq!(found.notices.len(), 4);
        assert!(found.notices[0].starts_with("-e /arm is ignored"), "{:?}", found.notices);
        assert!(found.notices[2].starts_with("--log-config-file c.xml is ignored"), "{:?}", found.notices);
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name_with_what_is_known() {
        for (line, part) in [
            ("--ros-args --nonsense", "unknown argument \"--nonsense\"; it knows -r RULE, -p"),
            ("--ros-args x:=y", "unknown argument \"x:=y\""),
            ("--ros-args --enable-logs", "unknown argument \"--enable-logs\""),
            ("--ros-args --disable-rosout-log", "unknown argument"),
            ("--ros-args -r", "nothing found after -r, a rule"),
            ("--ros-args -p", "nothing found after -p, NAME:=VALUE"),
            ("--ros-args --params-file", "nothing found after --params-file, a file"),
            ("--ros-args --log-level", "nothing found after --log-level"),
            ("--ros-args -r __node", "--ros-args -r __node: no := found"),
            ("--ros-args -p a", "--ros-args -p a: no := found"),
            ("--ros-args --log-level loud", "--log-level loud: \"loud\" found, debug"),
            ("--ros-args --params-file /nowhere.yaml", "--params-file /nowhere.yaml: cannot be read"),
        ] {
            let fault = split(line).unwrap_err();
            assert!(fault.contains(part), "{line}: {part:?} not in {fault:?}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn arguments_that_are_not_text_are_refused() {
        use std::os::unix::ffi::OsStringExt as _;
        let broken = || OsString::from_vec(b"a\xff".to_vec());
        for flag in ["-r", "-p", "--log-level", "-e", "--params-file", "--ros-args"] {
            let args = ["--ros-args".into(), flag.into(), broken()];
            assert!(RosArgs::split(args).is_err(), "{flag}");
        }
        assert_eq!(RosArgs::split([broken()]).unwrap().1, [broken()]);
    }
}
