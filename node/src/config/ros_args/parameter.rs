//! One value for one parameter of some nodes; and `-p [NODE:]NAME:=VALUE`, which says one.

use super::{
    node_pattern::NodePattern,
    yaml::{parse_value, quoted},
};
use crate::ros::ParameterValue;

/// Longest name of a parameter; ours are shorter, and so are topics in `qos_overrides`.
const MAX_NAME_LEN: usize = 512;
/// Most rules that are kept, of all files and arguments together.
pub const MAX_RULES: usize = 4096;

/// A parameter's value for the nodes a pattern stands for.
#[derive(Debug, Clone, PartialEq)]
pub struct ParameterRule {
    /// Which nodes.
    pub nodes: NodePattern,
    /// The parameter's name, with points: `scheduler.queue_len`.
    pub name: String,
    /// Its value.
    pub value: ParameterValue,
    /// Where it was said: `-p scheduler.queue_len`, `--params-file robot.yaml:12`.
    pub origin: String,
    /// Whether it is said to other nodes too, which may have parameters we have not.
    pub is_shared: bool,
}

impl ParameterRule {
    /// Reads what follows `-p`.
    ///
    /// # Errors
    /// What was found and what is expected.
    pub fn parse(rule: &str) -> Result<Self, String> {
        let (left, value) = rule.split_once(":=").ok_or("no := found, NAME:=VALUE expected")?;
        let (nodes, name) = match left.split_once(':') {
            Some((node, name)) => (NodePattern::parse(node)?, name),
            None => (NodePattern::every(), left),
        };
        check_written_name(name)?;
        let value = parse_value(value).map_err(|fact| format!("value of {name:?}: {fact}"))?;
        let origin = format!("-p {left}");
        Ok(Self { nodes, name: name.to_owned(), value, origin, is_shared: false })
    }
}

/// Checks the length of a parameter's name: names are joined from nested keys, and must not grow by nesting.
///
/// # Errors
/// What was found and what is expected.
pub fn check_name_len(name: &str) -> Result<(), String> {
    if name.len() <= MAX_NAME_LEN {
        return Ok(());
    }
    let (len, start) = (name.len(), quoted(name));
    Err(format!("a name of {len} characters ({start:?}), at most {MAX_NAME_LEN} expected"))
}

/// Checks a name in an argument; those in files are any text, as in rcl.
fn check_written_name(name: &str) -> Result<(), String> {
    check_name_len(name)?;
    let is_part = |part: &str| {
        !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '/')
    };
    if name.contains('*') {
        return Err(format!("parameter name {name:?}: ROS 2 implements no wildcards in it"));
    }
    if name.split('.').all(is_part) {
        return Ok(());
    }
    Err(format!(
        "parameter name {name:?}: letters, digits, _ and / expected, parts separated by single points"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_for_every_node_or_for_the_one_before_the_colon() {
        let rule = ParameterRule::parse("scheduler.queue_len:=8").unwrap();
        assert_eq!((rule.nodes.to_string().as_str(), rule.name.as_str()), ("/**", "scheduler.queue_len"));
        assert_eq!(
            (rule.value, rule.origin.as_str()),
            (ParameterValue::Integer(8), "-p scheduler.queue_len")
        );
        let rule = ParameterRule::parse("takt:ros.system_prompt:=\"go: 1:=2\"").unwrap();
        assert_eq!((rule.nodes.to_string().as_str(), rule.name.as_str()), ("/takt", "ros.system_prompt"));
        assert_eq!(rule.value, ParameterValue::String("go: 1:=2".into()));
        let rule = ParameterRule::parse("qos_overrides./takt/tokens.publisher.depth:=5").unwrap();
        assert_eq!(rule.name, "qos_overrides./takt/tokens.publisher.depth");
    }

    #[test]
    fn what_is_no_rule_is_refused_with_what_is_expected() {
        for (rule, part) in [
            ("", "NAME:=VALUE"),
            ("a", "NAME:=VALUE"),
            ("a=1", "NAME:=VALUE"),
            ("a:=", "value of \"a\": no value"),
            (":=1", "parameter name \"\""),
            ("a..b:=1", "single points"),
            (".a:=1", "single points"),
            ("a b:=1", "letters"),
            ("*:=1", "wildcards"),
            ("1node:a:=1", "digit"),
            ("n:m:a:=1", "letters"),
            ("a:={b: 1}", "a map found"),
            ("a:=[1, x]", "one type expected"),
            ("a:=[1", "value of \"a\""),
        ] {
            let fault = ParameterRule::parse(rule).unwrap_err();
            assert!(fault.contains(part), "{rule}: {part:?} not in {fault}");
        }
        assert!(ParameterRule::parse(&format!("{}:=1", "a.".repeat(400))).is_err());
    }
}
