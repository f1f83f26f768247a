//! From the names a node's code uses to those on the network: expansion, then remapping.
//!
//! As rcl does it: a name is expanded to an absolute one, both sides of a rule are too, and the first rule whose left side
//! is the name gives its right side. What comes out is not remapped again.

use super::{NodeName, RosError};

/// Longest absolute name rmw accepts: what DDS allows less the prefix it adds.
const MAX_NAME_LEN: usize = 247;

/// What a remapping rule is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// `from:=to`.
    TopicsAndServices,
    /// `rostopic://from:=to`.
    Topics,
    /// `rosservice://from:=to`.
    Services,
}

impl Scheme {
    fn covers(self, kind: Kind) -> bool {
        match self {
            Self::TopicsAndServices => true,
            Self::Topics => kind == Kind::Topic,
            Self::Services => kind == Kind::Service,
        }
    }
}

/// A rule that gives topics or services another name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remap {
    /// The only node it is for; `None` for all.
    pub node: Option<String>,
    /// What it is for.
    pub scheme: Scheme,
    /// The name replaced: absolute, relative or private (`~/x`).
    pub from: String,
    /// What replaces it, likewise.
    pub to: String,
}

/// The names of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    node: NodeName,
    remaps: Vec<Remap>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Topic,
    Service,
}

impl Kind {
    fn what(self) -> &'static str {
        match self {
            Self::Topic => "topic name",
            Self::Service => "service name",
        }
    }
}

impl Names {
    /// Names of `node`, by `remaps` in the order they were given.
    #[must_use]
    pub fn new(node: NodeName, remaps: Vec<Remap>) -> Self {
        Self { node, remaps }
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// The absolute name of a topic: `/ns/ask` for `ask`, `/ns/node/ask` for `~/ask`, unless a rule says otherwise.
    ///
    /// # Errors
    /// [`RosError::Name`] with the rule of ROS 2's that the name, or what it became, breaks.
    pub fn resolve_topic(&self, name: &str) -> Result<String, RosError> {
        self.resolve(name, Kind::Topic)
    }

    /// The absolute name of a service, likewise.
    ///
    /// # Errors
    /// [`RosError::Name`] with the rule of ROS 2's that the name, or what it became, breaks.
    pub fn resolve_service(&self, name: &str) -> Result<String, RosError> {
        self.resolve(name, Kind::Service)
    }

    fn resolve(&self, name: &str, kind: Kind) -> Result<String, RosError> {
        let expanded = self.expand(name, kind.what())?;
        for rule in &self.remaps {
            let is_ours = rule.node.as_deref().is_none_or(|node| node == self.node.name());
            // A left side that expands to no name at all matches none.
            if is_ours
                && rule.scheme.covers(kind)
                && self.expand(&rule.from, kind.what()).is_ok_and(|from| from == expanded)
            {
                return self.expand(&rule.to, kind.what());
            }
        }
        Ok(expanded)
    }

    /// `name` as an absolute one, checked.
    fn expand(&self, name: &str, what: &'static str) -> Result<String, RosError> {
        let broken = |rule| RosError::Name { what, name: name.to_owned(), rule };
        let rest = match name.strip_prefix('~') {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("{}{rest}", self.node),
            Some(_) => return Err(broken("~ must be followed by /, as in ~/ask")),
            None => name.to_owned(),
        };
        let plain = self.substitute(&rest).map_err(broken)?;
        let absolute = match self.node.namespace() {
            _ if plain.starts_with('/') || plain.is_empty() => plain,
            "/" => format!("/{plain}"),
            namespace => format!("{namespace}/{plain}"),
        };
        check_absolute_name(what, &absolute)?;
        Ok(absolute)
    }

    /// `{node}`, `{ns}` and `{namespace}` replaced, in one pass.
    fn substitute(&self, name: &str) -> Result<String, &'static str> {
        let (mut done, mut rest) = (String::new(), name);
        while let Some((before, after)) = rest.split_once('{') {
            let (key, after) = after.split_once('}').ok_or("{ without }")?;
            done += before;
            done += match key {
                "node" => self.node.name(),
                "ns" | "namespace" => self.node.namespace(),
                _ => return Err("between { and } only node, ns and namespace are known"),
            };
            rest = after;
        }
        Ok(done + rest)
    }
}

/// Checks an absolute topic or service name.
///
/// # Errors
/// [`RosError::Name`] with the rule it breaks; `what` says what it names.
pub fn check_absolute_name(what: &'static str, name: &str) -> Result<(), RosError> {
    check_absolute(name).map_err(|rule| RosError::Name { what, name: name.to_owned(), rule })
}

fn check_absolute(name: &str) -> Result<(), &'static str> {
    let Some(tokens) = name.strip_prefix('/') else {
        return Err(if name.is_empty() { "must not be empty" } else { "must start with /" });
    };
    if name.len() > MAX_NAME_LEN {
        return Err("at most 247 characters, namespace and all");
    }
    if name.ends_with('/') {
        return Err("must not end with /");
    }
    for token in tokens.split('/') {
        if token.is_empty() {
            return Err("must not have two / in a row");
        }
        if token.starts_with(|c: char| c.is_ascii_digit()) {
            return Err("no part may start with a digit");
        }
        if token.contains('~') {
            return Err("~ may only stand at the beginning");
        }
        if !token.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err("only letters, digits, underscores and /");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(namespace: &str, node: &str, rules: &[(&str, &str)]) -> Names {
        let remaps = rules.iter().map(|(from, to)| Remap {
            node: None,
            scheme: Scheme::TopicsAndServices,
            from: (*from).to_owned(),
            to: (*to).to_owned(),
        });
        Names::new(NodeName::new(namespace, node).unwrap(), remaps.collect())
    }

    #[test]
    fn names_expand_as_in_the_design_article_on_topic_names() {
        for (name, in_root, in_my_ns) in [
            ("ping", "/ping", "/my_ns/ping"),
            ("/ping", "/ping", "/ping"),
            ("~", "/my_node", "/my_ns/my_node"),
            ("~/ping", "/my_node/ping", "/my_ns/my_node/ping"),
            ("{node}/ping", "/my_node/ping", "/my_ns/my_node/ping"),
            ("foo/_bar", "/foo/_bar", "/my_ns/foo/_bar"),
            ("foo_/bar", "/foo_/bar", "/my_ns/foo_/bar"),
        ] {
            assert_eq!(names("/", "my_node", &[]).resolve_topic(name).unwrap(), in_root);
            assert_eq!(names("/my_ns", "my_node", &[]).resolve_service(name).unwrap(), in_my_ns);
        }
        let ns = names("/my_ns", "my_node", &[]);
        assert_eq!(ns.resolve_topic("{ns}/{node}_x").unwrap(), "/my_ns/my_node_x");
    }

    #[test]
    fn names_that_the_design_article_calls_invalid_are_refused_with_the_rule() {
        for (name, rule) in [
            ("123abc", "digit"),
            ("123", "digit"),
            ("foo bar", "only letters"),
            (" ", "only letters"),
            ("foo//bar", "two /"),
            ("/~", "beginning"),
            ("~foo", "followed by /"),
            ("foo~", "beginning"),
            ("foo~/bar", "beginning"),
            ("foo/~bar", "beginning"),
            ("foo/~/bar", "beginning"),
            ("foo/", "end with /"),
            ("", "empty"),
            ("{sub/foo", "without }"),
            ("/foo}", "only letters"),
            ("{}/foo", "only node"),
            ("{unknown}/foo", "only node"),
            ("grüße", "only letters"),
        ] {
            let error = names("/", "n", &[]).resolve_topic(name).unwrap_err();
            assert!(matches!(error, RosError::Name { what: "topic name", .. }), "{error}");
            assert!(error.to_string().contains(rule), "{name:?}: {error}");
        }
        let long = "x".repeat(300);
        assert!(names("/", "n", &[]).resolve_service(&long).is_err());
        assert!(names("/", "n", &[("a", &long)]).resolve_service("a").is_err());
    }

    #[test]
    fn use_cases_of_the_design_article_on_remapping_hold() {
        // Exact FQN replacement.
        let exact = names("/", "n", &[("/ns/bar", "/ns/foo")]);
        assert_eq!(exact.resolve_topic("/ns/bar").unwrap(), "/ns/foo");
        assert_eq!(exact.resolve_topic("/ns/barista").unwrap(), "/ns/barista");
        // Exact relative name replacement.
        let relative = names("/ns", "n", &[("bar", "foo")]);
        assert_eq!(relative.resolve_topic("bar").unwrap(), "/ns/foo");
        assert_eq!(relative.resolve_topic("/ns/bar").unwrap(), "/ns/foo");
        assert_eq!(relative.resolve_topic("/bar").unwrap(), "/bar");
        // Change the default namespace, and the node name.
        assert_eq!(names("/foo", "n", &[]).resolve_topic("bar").unwrap(), "/foo/bar");
        assert_eq!(
            names("/ns", "left_camera_driver", &[]).resolve_topic("~/camera_info").unwrap(),
            "/ns/left_camera_driver/camera_info"
        );
        // Private names on both sides.
        let private = names("/ns", "n", &[("~/foo", "foo"), ("baz", "~/baz")]);
        assert_eq!(private.resolve_topic("~/foo").unwrap(), "/ns/foo");
        assert_eq!(private.resolve_service("baz").unwrap(), "/ns/n/baz");
        assert_eq!(
            names("/", "n", &[("/foo/bar", "fiz/buzz")]).resolve_topic("foo/bar").unwrap(),
            "/fiz/buzz"
        );
    }

    #[test]
    fn topics_and_services_of_one_name_are_remapped_apart() {
        let mut map = names("/", "n", &[("/map", "/map_stream")]);
        map.remaps[0].scheme = Scheme::Topics;
        assert_eq!(map.resolve_topic("/map").unwrap(), "/map_stream");
        assert_eq!(map.resolve_service("/map").unwrap(), "/map");
        map.remaps[0].scheme = Scheme::Services;
        assert_eq!(map.resolve_topic("/map").unwrap(), "/map");
        assert_eq!(map.resolve_service("/map").unwrap(), "/map_stream");
    }

    #[test]
    fn the_first_rule_that_matches_wins_and_its_result_is_not_remapped_again() {
        let names = names("/", "n", &[("a", "b"), ("a", "c"), ("b", "d")]);
        assert_eq!(names.resolve_topic("a").unwrap(), "/b");
        assert_eq!(names.resolve_topic("b").unwrap(), "/d");
    }

    #[test]
    fn a_rule_for_another_node_does_not_match() {
        let mut names = names("/ns", "n", &[("a", "b"), ("a", "c")]);
        names.remaps[0].node = Some("other".to_owned());
        names.remaps[1].node = Some("n".to_owned());
        assert_eq!(names.resolve_topic("a").unwrap(), "/ns/c");
    }
}
