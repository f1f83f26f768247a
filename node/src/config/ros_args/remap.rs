//! `-r RULE`: `__node:=NAME`, `__ns:=/NAMESPACE`, `[rostopic://|rosservice://]FROM:=TO`, each with an optional `NODE:` before it.
//!
//! Wildcards and back-references stand in the design of ROS 2, but rcl implements neither and refuses both; so do we.

use crate::ros::{
    NodeName, Remap,
    names::{Names, Scheme},
};

/// A rule that gives a node another name or namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRule {
    /// The name of the only node it is for; `None` for all.
    pub node: Option<String>,
    /// The new name or namespace.
    pub to: String,
}

/// What follows `-r`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// `__node:=…` or `__name:=…`.
    NodeName(NodeRule),
    /// `__ns:=…`.
    Namespace(NodeRule),
    /// A topic's or service's.
    Name(Remap),
}

/// Reads a rule.
///
/// # Errors
/// What was found and what is expected.
pub fn parse(rule: &str) -> Result<Rule, String> {
    let (left, to) = rule.split_once(":=").ok_or("no := found, FROM:=TO expected")?;
    let (node, left) = match left.split_once(':') {
        Some((_, rest)) if rest.starts_with("//") => (None, left),
        Some((node, rest)) => (Some(checked_node(node)?), rest),
        None => (None, left),
    };
    match left {
        "__node" | "__name" => Ok(Rule::NodeName(NodeRule { node, to: checked_node(to)? })),
        "__ns" => Ok(Rule::Namespace(NodeRule { node, to: namespace(to)? })),
        _ => name_rule(node, left, to).map(Rule::Name),
    }
}

fn name_rule(node: Option<String>, left: &str, to: &str) -> Result<Remap, String> {
    let (scheme, from) = if let Some(from) = left.strip_prefix("rostopic://") {
        (Scheme::Topics, from)
    } else if let Some(from) = left.strip_prefix("rosservice://") {
        (Scheme::Services, from)
    } else if let Some((scheme, _)) = left.split_once("://") {
        return Err(format!("{scheme}:// found, rostopic:// or rosservice:// expected"));
    } else {
        (Scheme::TopicsAndServices, left)
    };
    for (side, name) in [("left of :=", from), ("right of :=", to)] {
        checked_name(name).map_err(|fact| format!("{side}: {fact}"))?;
    }
    Ok(Remap { node, scheme, from: from.to_owned(), to: to.to_owned() })
}

fn checked_node(name: &str) -> Result<String, String> {
    NodeName::new("/", name).map_err(|error| error.to_string())?;
    Ok(name.to_owned())
}

fn namespace(text: &str) -> Result<String, String> {
    if !text.starts_with('/') {
        return Err(format!("namespace {text:?}: must start with /, as in /robot1"));
    }
    NodeName::new(text, "node").map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

/// Checks one side of a rule on topics and services.
fn checked_name(name: &str) -> Result<(), String> {
    if name.contains('*') {
        return Err(format!(
            "{name:?} has a wildcard, which ROS 2 does not implement: one rule for each name"
        ));
    }
    if name.contains('\\') {
        return Err(format!(
            "{name:?} has a back-reference, which ROS 2 does not implement: write the name out"
        ));
    }
    if name.contains("://") {
        return Err(format!("{name:?}: rostopic:// and rosservice:// may only stand left of :="));
    }
    if name.contains(['{', '}']) {
        return Err(format!("{name:?}: substitutions may not stand in a rule"));
    }
    match name {
        "__log_level" => return Err("__log_level is a form of old: --log-level LEVEL".to_owned()),
        "__params" => return Err("__params is a form of old: --params-file FILE".to_owned()),
        "~" => return Err("~ alone is no name, ~/NAME expected".to_owned()),
        _ if name.starts_with("__") => {
            return Err(format!(
                "{name:?} found, __node, __name, __ns or the name of a topic or service expected"
            ));
        }
        _ => {}
    }
    // What the name becomes depends on the node; whether it can become one at all does not.
    let any = NodeName::new("/", "n").map_err(|error| error.to_string())?;
    Names::new(any, Vec::new()).resolve_topic(name).map_err(|error| error.to_string())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name_of(rule: &str) -> (Option<String>, Scheme, String, String) {
        match parse(rule).unwrap() {
            Rule::Name(Remap { node, scheme, from, to }) => (node, scheme, from, to),
            other => panic!("{rule}: {other:?}"),
        }
    }

    #[test]
    fn every_form_of_a_rule_is_read() {
        use Scheme::{Services, Topics, TopicsAndServices};
        for (rule, node, scheme, from, to) in [
            ("from:=to", None, TopicsAndServices, "from", "to"),
            ("foo:=/bar", None, TopicsAndServices, "foo", "/bar"),
            ("/foo/bar:=fiz/buzz", None, TopicsAndServices, "/foo/bar", "fiz/buzz"),
            ("~/x:=~/y", None, TopicsAndServices, "~/x", "~/y"),
            ("nodename:~/foo:=foo", Some("nodename"), TopicsAndServices, "~/foo", "foo"),
            ("nodename:from:=to", Some("nodename"), TopicsAndServices, "from", "to"),
            ("rostopic://from:=to", None, Topics, "from", "to"),
            ("rostopic:///from:=/to", None, Topics, "/from", "/to"),
            ("rosservice://~/ask:=/question", None, Services, "~/ask", "/question"),
            ("left:rosservice:///a:=b", Some("left"), Services, "/a", "b"),
            ("left:rostopic://a:=b", Some("left"), Topics, "a", "b"),
        ] {
            let expected = (node.map(str::to_owned), scheme, from.to_owned(), to.to_owned());
            assert_eq!(name_of(rule), expected, "{rule}");
        }
    }

    #[test]
    fn the_node_itself_is_renamed() {
        let rule =
            |node: Option<&str>, to: &str| NodeRule { node: node.map(str::to_owned), to: to.to_owned() };
        assert_eq!(parse("__node:=left").unwrap(), Rule::NodeName(rule(None, "left")));
        assert_eq!(parse("__name:=left").unwrap(), Rule::NodeName(rule(None, "left")));
        assert_eq!(parse("takt:__node:=left").unwrap(), Rule::NodeName(rule(Some("takt"), "left")));
        assert_eq!(parse("__ns:=/a/b").unwrap(), Rule::Namespace(rule(None, "/a/b")));
        assert_eq!(parse("__ns:=/").unwrap(), Rule::Namespace(rule(None, "/")));
        assert_eq!(parse("takt:__ns:=/a").unwrap(), Rule::Namespace(rule(Some("takt"), "/a")));
    }

    #[test]
    fn what_ros_does_not_understand_either_is_refused_with_what_is_expected() {
        for (rule, part) in [
            ("", "FROM:=TO"),
            ("__node", "FROM:=TO"),
            ("a=b", "FROM:=TO"),
            (":=b", "must not be empty"),
            ("a:=", "must not be empty"),
            ("a:=b:=c", "only letters"),
            ("__node:=", "must not be empty"),
            ("__node:=a/b", "only letters"),
            ("__ns:=a", "must start with /"),
            ("__ns:=", "must start with /"),
            ("__ns:=/a//b", "must not be empty"),
            ("1a:b:=c", "digit"),
            (":b:=c", "must not be empty"),
            ("*/b:=c", "wildcard"),
            ("**/b:=c", "wildcard"),
            ("b:=\\1/c", "back-reference"),
            ("rosaction://a:=b", "rostopic:// or rosservice://"),
            ("a:=rostopic://b", "left of :="),
            ("{node}/a:=b", "substitutions"),
            ("~:=a", "~/NAME"),
            ("a:=b/", "must not end"),
            ("rostopic://__node:=a", "__node, __name, __ns"),
            ("__log_level:=debug", "--log-level"),
            ("__params:=f.yaml", "--params-file"),
            ("__nod:=a", "__node, __name, __ns"),
        ] {
            let fault = parse(rule).unwrap_err();
            assert!(fault.contains(part), "{rule}: {part:?} not in {fault}");
        }
    }
}
