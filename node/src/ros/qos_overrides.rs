//! `qos_overrides./full/topic.publisher.depth` and its like: parameters that change the quality of service of a topic, named
//! and valued as rclcpp does. They are fixed once the node has started.
//!
//! What this node's transport cannot do (keep all, deadlines, lifespans, liveliness) is refused, unless the value is the default.

use std::fmt;

use super::{
    ParameterValue,
    names::check_absolute_name,
    transport::{Durability, Qos, Reliability},
};

/// What the names of all these parameters start with.
pub const PREFIX: &str = "qos_overrides.";

/// `RMW_DURATION_INFINITE` in nanoseconds, which means the same as not set.
const INFINITE_NS: i64 = i64::MAX;

/// Which end of a topic an override is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `publisher`.
    Publisher,
    /// `subscription`.
    Subscription,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Publisher => "publisher",
            Self::Subscription => "subscription",
        })
    }
}

/// One parameter, understood.
#[derive(Debug, Clone, PartialEq)]
pub struct QosOverride {
    /// Absolute name of the topic, remapped.
    pub topic: String,
    /// Which end.
    pub role: Role,
    /// The `ID` of `publisher_ID`; empty without one.
    pub id: String,
    /// The parameter's whole name.
    pub name: String,
    /// Its value.
    pub value: ParameterValue,
    /// Where it was said.
    pub origin: String,
    change: Change,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Reliability(Reliability),
    Durability(Durability),
    Depth(u16),
    /// The value is what holds anyway.
    None,
}

/// All overrides of a node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct QosOverrides {
    entries: Vec<QosOverride>,
}

impl QosOverrides {
    /// Adds the parameter `name`, which starts with [`PREFIX`]; it replaces one of the same name.
    ///
    /// # Errors
    /// What was found and what is expected, without the origin.
    pub fn set(&mut self, name: &str, value: &ParameterValue, origin: &str) -> Result<(), String> {
        let (topic, role, id, policy) = split(name)?;
        let change = change(policy, role, value).map_err(|fact| format!("`{name}`: {fact}"))?;
        self.entries.retain(|entry| entry.name != name);
        self.entries.push(QosOverride {
            topic: topic.to_owned(),
            role,
            id: id.to_owned(),
            name: name.to_owned(),
            value: value.clone(),
            origin: origin.to_owned(),
            change,
        });
        Ok(())
    }

    /// `qos` as overridden for one end of `topic`, an absolute name after remapping.
    #[must_use]
    pub fn apply(&self, topic: &str, role: Role, qos: Qos) -> Qos {
        self.apply_with_id(topic, role, "", qos)
    }

    /// The same for an end that has an `id` among several on one topic.
    #[must_use]
    pub fn apply_with_id(&self, topic: &str, role: Role, id: &str, mut qos: Qos) -> Qos {
        for entry in &self.entries {
            if entry.topic == topic && entry.role == role && entry.id == id {
                match entry.change {
                    Change::Reliability(reliability) => qos.reliability = reliability,
                    Change::Durability(durability) => qos.durability = durability,
                    Change::Depth(depth) => qos.depth = depth,
                    Change::None => {}
                }
            }
        }
        qos
    }

    /// All of them, in the order they were set.
    pub fn iter(&self) -> impl Iterator<Item = &QosOverride> {
        self.entries.iter()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Topic, role, id and policy of `qos_overrides.TOPIC.ROLE[_ID].POLICY`.
fn split(name: &str) -> Result<(&str, Role, &str, &str), String> {
    let form = || format!("`{name}`: qos_overrides./TOPIC.publisher.POLICY or .subscription.POLICY expected");
    let rest = name.strip_prefix(PREFIX).ok_or_else(form)?;
    // Neither topics nor policies have points; ids may.
    let (topic, rest) = rest.split_once('.').ok_or_else(form)?;
    let (end, policy) = rest.rsplit_once('.').ok_or_else(form)?;
    check_absolute_name("topic name", topic).map_err(|error| format!("`{name}`: {error}"))?;
    for role in [Role::Publisher, Role::Subscription] {
        match end.strip_prefix(&role.to_string()) {
            Some("") => return Ok((topic, role, "", policy)),
            Some(id) if id.len() > 1 && id.starts_with('_') => return Ok((topic, role, &id[1..], policy)),
            _ => {}
        }
    }
    Err(form())
}

fn change(policy: &str, role: Role, value: &ParameterValue) -> Result<Change, String> {
    let expected = |what: &str| Err(format!("{value} ({}) found, {what} expected", value.type_name()));
    let word = match value {
        ParameterValue::String(word) => word.as_str(),
        _ => "",
    };
    Ok(match (policy, word, value) {
        // The system's default is what the node asks for without an override.
        ("reliability" | "durability" | "history" | "liveliness", "system_default", _)
        | ("history", "keep_last", _)
        | ("liveliness", "automatic", _)
        | ("deadline" | "liveliness_lease_duration", _, ParameterValue::Integer(0 | INFINITE_NS))
        | ("avoid_ros_namespace_conventions", _, ParameterValue::Bool(false)) => Change::None,
        ("lifespan", _, ParameterValue::Integer(0 | INFINITE_NS)) if role == Role::Publisher => Change::None,

        ("reliability", "reliable", _) => Change::Reliability(Reliability::Reliable),
        ("reliability", "best_effort", _) => Change::Reliability(Reliability::BestEffort),
        ("reliability", ..) => return expected("reliable, best_effort or system_default"),

        ("durability", "volatile", _) => Change::Durability(Durability::Volatile),
        ("durability", "transient_local", _) => Change::Durability(Durability::TransientLocal),
        ("durability", ..) => return expected("volatile, transient_local or system_default"),

        ("depth", _, ParameterValue::Integer(depth)) => match u16::try_from(*depth) {
            Ok(depth) if depth > 0 => Change::Depth(depth),
            _ => return expected("1 to 65535"),
        },
        ("depth", ..) => return expected("a whole number from 1 to 65535"),

        ("history", "keep_all", _) => {
            return Err(
                "keep_all has no bound on memory, which this node needs: keep_last and a depth".into()
            );
        }
        ("history", ..) => return expected("keep_last or system_default"),

        ("lifespan", ..) if role == Role::Subscription => {
            return Err("a lifespan is a publisher's, not a subscription's".into());
        }
        ("deadline" | "lifespan" | "liveliness_lease_duration", ..) => {
            return expected(
                "0 or 9223372036854775807 (none): this node sends when there is something to say, so only that",
            );
        }
        ("liveliness", ..) => {
            return expected(
                "automatic or system_default: the node as a whole is alive or not, so only that",
            );
        }
        ("avoid_ros_namespace_conventions", ..) => {
            return expected("false: the built-in DDS always uses ROS names, so only that");
        }
        _ => {
            return Err(format!(
                "{policy:?} is no policy; reliability, durability, history and depth are, and deadline, lifespan, liveliness, \
                 liveliness_lease_duration and avoid_ros_namespace_conventions with their defaults"
            ));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(word: &str) -> ParameterValue {
        ParameterValue::String(word.to_owned())
    }

    #[test]
    fn overrides_change_only_their_topic_and_their_end_of_it() {
        let mut overrides = QosOverrides::default();
        for (name, value) in [
            ("qos_overrides./takt/tokens.publisher.reliability", text("best_effort")),
            ("qos_overrides./takt/tokens.publisher.depth", ParameterValue::Integer(65_535)),
            ("qos_overrides./takt/tokens.publisher.depth", ParameterValue::Integer(5)),
            ("qos_overrides./takt/tokens.publisher.history", text("keep_last")),
            ("qos_overrides./takt/tokens.publisher.durability", text("transient_local")),
            ("qos_overrides./takt/ask.subscription_chat.v2.depth", ParameterValue::Integer(1)),
        ] {
            overrides.set(name, &value, "-p").unwrap();
        }
        let base = Qos::STREAM;
        let changed = overrides.apply("/takt/tokens", Role::Publisher, base);
        assert_eq!(
            changed,
            Qos { reliability: Reliability::BestEffort, durability: Durability::TransientLocal, depth: 5 }
        );
        assert_eq!(overrides.apply("/takt/tokens", Role::Subscription, base), base);
        assert_eq!(overrides.apply("/takt/answer", Role::Publisher, base), base);
        assert_eq!(overrides.apply("/takt/ask", Role::Subscription, base), base);
        assert_eq!(overrides.apply_with_id("/takt/ask", Role::Subscription, "chat.v2", base).depth, 1);
        assert_eq!(overrides.iter().count(), 5);
    }

    #[test]
    fn defaults_of_what_cannot_be_overridden_are_accepted_and_change_nothing() {
        let mut overrides = QosOverrides::default();
        let none = ParameterValue::Integer(i64::MAX);
        for (policy, value) in [
            ("deadline", &none),
            ("lifespan", &ParameterValue::Integer(0)),
            ("liveliness", &text("automatic")),
            ("liveliness_lease_duration", &none),
            ("avoid_ros_namespace_conventions", &ParameterValue::Bool(false)),
            ("reliability", &text("system_default")),
            ("durability", &text("system_default")),
            ("history", &text("system_default")),
        ] {
            overrides.set(&format!("qos_overrides./a.publisher.{policy}"), value, "").unwrap();
        }
        assert_eq!(overrides.apply("/a", Role::Publisher, Qos::DEFAULT), Qos::DEFAULT);
    }

    #[test]
    fn everything_else_is_refused_with_what_is_expected() {
        let number = ParameterValue::Integer;
        for (rest, value, part) in [
            ("/a.publisher.reliability", text("sometimes"), "reliable, best_effort or system_default"),
            ("/a.publisher.reliability", number(1), "1 (integer) found"),
            ("/a.publisher.durability", text("persistent"), "volatile, transient_local"),
            ("/a.publisher.history", text("keep_all"), "no bound on memory"),
            ("/a.publisher.depth", number(0), "1 to 65535"),
            ("/a.publisher.depth", number(65_536), "1 to 65535"),
            ("/a.publisher.depth", number(-1), "1 to 65535"),
            ("/a.publisher.depth", text("10"), "\"10\" (string) found, a whole number"),
            ("/a.publisher.deadline", number(5), "only that"),
            ("/a.subscription.lifespan", number(0), "publisher's"),
            ("/a.publisher.liveliness", text("manual_by_topic"), "automatic"),
            ("/a.publisher.avoid_ros_namespace_conventions", ParameterValue::Bool(true), "false"),
            ("/a.publisher.dept", number(5), "\"dept\" is no policy"),
            ("/a.publishers.depth", number(5), "qos_overrides./TOPIC.publisher.POLICY"),
            ("/a.publisher_.depth", number(5), "qos_overrides./TOPIC.publisher.POLICY"),
            ("/a.depth", number(5), "qos_overrides./TOPIC.publisher.POLICY"),
            ("/a", number(5), "qos_overrides./TOPIC.publisher.POLICY"),
            ("a.publisher.depth", number(5), "must start with /"),
            ("~/a.publisher.depth", number(5), "must start with /"),
            (".publisher.depth", number(5), "must not be empty"),
        ] {
            let fault = QosOverrides::default().set(&format!("{PREFIX}{rest}"), &value, "").unwrap_err();
            assert!(fault.contains(part), "{rest}: {part:?} not in {fault}");
            assert!(fault.contains(rest), "{fault}");
        }
    }
}
