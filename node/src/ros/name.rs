//! ROS 2 names, and what rmw makes of them on the wire.

use std::fmt;

use super::RosError;

/// A node's namespace and name, valid by ROS 2's rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeName {
    /// `/` or `/a/b`: absolute, without a trailing slash.
    namespace: String,
    name: String,
}

impl NodeName {
    /// Checks and joins the parts; `namespace` may be empty, `/`, `robot1` or `/robot1`.
    ///
    /// # Errors
    /// [`RosError::Name`] with the rule that is broken.
    pub fn new(namespace: &str, name: &str) -> Result<Self, RosError> {
        check_token("node name", name)?;
        let inner = namespace.strip_prefix('/').unwrap_or(namespace);
        if inner.is_empty() {
            return Ok(Self { namespace: "/".to_owned(), name: name.to_owned() });
        }
        for token in inner.split('/') {
            check_token("namespace", token).map_err(|error| match error {
                RosError::Name { what, rule, .. } => {
                    RosError::Name { what, name: namespace.to_owned(), rule }
                }
                other => other,
            })?;
        }
        if inner.len() > MAX_NAME_BYTES {
            return Err(RosError::Name { what: "namespace", name: namespace.to_owned(), rule: TOO_LONG });
        }
        Ok(Self { namespace: format!("/{inner}"), name: name.to_owned() })
    }

    /// The namespace, `/` at least.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The name alone.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `~/suffix` resolved: `/takt/ask` for `ask` of the node `/takt`.
    #[must_use]
    pub fn private(&self, suffix: &str) -> String {
        format!("{self}/{suffix}")
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            "/" => write!(f, "/{}", self.name),
            namespace => write!(f, "{namespace}/{}", self.name),
        }
    }
}

const MAX_NAME_BYTES: usize = 255;
const TOO_LONG: &str = "at most 255 characters";

/// One token of a name: letters, digits and underscores, not starting with a digit.
fn check_token(what: &'static str, token: &str) -> Result<(), RosError> {
    let rule = if token.is_empty() {
        "must not be empty"
    } else if token.len() > MAX_NAME_BYTES {
        TOO_LONG
    } else if token.starts_with(|c: char| c.is_ascii_digit()) {
        "must not start with a digit"
    } else if !token.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        "only letters, digits and underscores"
    } else {
        return Ok(());
    };
    Err(RosError::Name { what, name: token.to_owned(), rule })
}

/// DDS topic of a ROS topic: `/takt/ask` → `rt/takt/ask`.
#[must_use]
pub fn topic(ros_name: &str) -> String {
    format!("rt{ros_name}")
}

/// DDS topic of a service's requests: `/takt/ask` → `rq/takt/askRequest`.
#[must_use]
pub fn request_topic(service: &str) -> String {
    format!("rq{service}Request")
}

/// DDS topic of a service's replies: `/takt/ask` → `rr/takt/askReply`.
#[must_use]
pub fn reply_topic(service: &str) -> String {
    format!("rr{service}Reply")
}

/// A ROS interface type, or one of those that a service or an action is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TypeName {
    /// ROS package.
    pub package: &'static str,
    /// Which folder of the package it is in.
    pub kind: Kind,
    /// Name of the file without its ending; for a part of it with the part, as `Generate_FeedbackMessage`.
    pub name: &'static str,
}

/// Kinds of interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Topics.
    Msg,
    /// Services.
    Srv,
    /// Actions.
    Action,
}

impl Kind {
    /// The folder's name.
    #[must_use]
    pub fn folder(self) -> &'static str {
        match self {
            Self::Msg => "msg",
            Self::Srv => "srv",
            Self::Action => "action",
        }
    }
}

impl TypeName {
    /// A message's type.
    #[must_use]
    pub const fn msg(package: &'static str, name: &'static str) -> Self {
        Self { package, kind: Kind::Msg, name }
    }

    /// A service's type.
    #[must_use]
    pub const fn srv(package: &'static str, name: &'static str) -> Self {
        Self { package, kind: Kind::Srv, name }
    }

    /// DDS type of a message: `std_msgs::msg::dds_::String_`.
    #[must_use]
    pub fn message(self) -> String {
        self.dds("")
    }

    /// DDS type of a service's request: `takt_msgs::srv::dds_::Ask_Request_`.
    #[must_use]
    pub fn request(self) -> String {
        self.dds("Request_")
    }

    /// DDS type of a service's reply: `takt_msgs::srv::dds_::Ask_Response_`.
    #[must_use]
    pub fn response(self) -> String {
        self.dds("Response_")
    }

    fn dds(self, part: &str) -> String {
        format!("{}::{}::dds_::{}_{part}", self.package, self.kind.folder(), self.name)
    }
}

impl fmt::Display for TypeName {
    /// `std_msgs/msg/String`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.package, self.kind.folder(), self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_name_resolves_its_private_names() {
        for (namespace, full) in
            [("", "/takt"), ("/", "/takt"), ("robot1", "/robot1/takt"), ("/a/b", "/a/b/takt")]
        {
            let node = NodeName::new(namespace, "takt").unwrap();
            assert_eq!(node.to_string(), full);
            assert_eq!(node.private("ask"), format!("{full}/ask"));
        }
        assert_eq!(NodeName::new("", "takt").unwrap().namespace(), "/");
    }

    #[test]
    fn names_that_ros_refuses_are_refused_with_the_rule() {
        for (namespace, name) in [
            ("", ""),
            ("", "1takt"),
            ("", "ta-kt"),
            ("", "a/b"),
            ("/a//b", "takt"),
            ("/a/", "takt"),
            ("/ä", "takt"),
        ] {
            let error = NodeName::new(namespace, name).unwrap_err();
            assert!(matches!(error, RosError::Name { .. }), "{namespace:?} {name:?}: {error}");
        }
        assert!(NodeName::new("", &"x".repeat(256)).is_err());
    }

    #[test]
    fn wire_names_are_rmws() {
        let ask = TypeName::srv("takt_msgs", "Ask");
        assert_eq!(topic("/takt/ask"), "rt/takt/ask");
        assert_eq!(request_topic("/takt/ask"), "rq/takt/askRequest");
        assert_eq!(reply_topic("/takt/ask"), "rr/takt/askReply");
        assert_eq!(ask.request(), "takt_msgs::srv::dds_::Ask_Request_");
        assert_eq!(ask.response(), "takt_msgs::srv::dds_::Ask_Response_");
        assert_eq!(TypeName::msg("std_msgs", "String").message(), "std_msgs::msg::dds_::String_");
    }
}
