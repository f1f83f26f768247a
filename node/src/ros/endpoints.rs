//! The node's own topics: names, types and qualities of service, all of which may be changed from outside.
//!
//! Remapping (`-r ~/ask:=/question`) changes the name, a parameter as `qos_overrides./takt/stream.publisher.depth` the quality.

use super::message::{Message as _, PROMPT as PROMPT_TYPE, REPLY as REPLY_TYPE, STRING, Token};
use super::names::Names;
use super::qos_overrides::{QosOverride, QosOverrides, Role};
use super::transport::{OnMessage, Publish, Qos, Subscription, Transport};
use super::{RosError, TypeName};

/// One topic.
#[derive(Debug, Clone, Copy)]
pub struct Topic {
    /// Before remapping.
    pub name: &'static str,
    /// Type of its messages.
    pub ty: TypeName,
    /// Unless it is overridden.
    pub qos: Qos,
}

const fn topic(name: &'static str, ty: TypeName, qos: Qos) -> Topic {
    Topic { name, ty, qos }
}

/// Sentences in.
pub const ASK: Topic = topic("~/ask", STRING, Qos::BURST);
/// Questions in.
pub const PROMPT: Topic = topic("~/prompt", PROMPT_TYPE, Qos::BURST);
/// Answers to sentences, as they grow.
pub const TOKENS: Topic = topic("~/tokens", STRING, Qos::STREAM);
/// Answers to sentences.
pub const ANSWER: Topic = topic("~/answer", STRING, Qos::DEFAULT);
/// How sentences ended.
pub const STATUS: Topic = topic("~/status", STRING, Qos::DEFAULT);
/// Answers, as they grow.
pub const STREAM: Topic = topic("~/stream", Token::TYPE, Qos::STREAM);
/// Answers, a sentence at a time.
pub const SENTENCE: Topic = topic("~/sentence", Token::TYPE, Qos { depth: 100, ..Qos::DEFAULT });
/// How requests ended. A burst is answered in a burst.
pub const REPLY: Topic = topic("~/reply", REPLY_TYPE, Qos::BURST);
/// The action, before remapping.
const GENERATE: &str = "~/generate";
/// News of goals; below the action's name.
pub const FEEDBACK: Topic =
    topic("~/generate/_action/feedback", super::message::FeedbackMessage::TYPE, Qos::STREAM);

/// Everything published, then everything listened to.
const PUBLISHED: [Topic; 7] = [TOKENS, ANSWER, STATUS, STREAM, SENTENCE, REPLY, FEEDBACK];
const HEARD: [Topic; 2] = [ASK, PROMPT];

/// Resolves names and qualities.
#[derive(Debug, Clone)]
pub struct Endpoints {
    /// What names become.
    pub names: Names,
    overrides: QosOverrides,
}

impl Endpoints {
    /// With what the command line and parameters said.
    #[must_use]
    pub fn new(names: Names, overrides: QosOverrides) -> Self {
        Self { names, overrides }
    }

    /// The action's name, `~/generate` unless it is remapped.
    ///
    /// # Errors
    /// [`RosError::Name`].
    pub fn action(&self) -> Result<String, RosError> {
        self.names.resolve_topic(GENERATE)
    }

    /// The topic's name on the network.
    fn resolve(&self, topic: Topic) -> Result<String, RosError> {
        match topic.name.strip_prefix(GENERATE) {
            Some(part) => Ok(self.action()? + part),
            None => self.names.resolve_topic(topic.name),
        }
    }

    /// Starts publishing on `topic`.
    ///
    /// # Errors
    /// [`RosError::Name`], [`RosError::Transport`].
    pub fn publisher(&self, transport: &dyn Transport, topic: Topic) -> Result<Box<dyn Publish>, RosError> {
        let name = self.resolve(topic)?;
        let qos = self.overrides.apply(&name, Role::Publisher, topic.qos);
        transport.publisher(&name, topic.ty, qos)
    }

    /// Listens to `topic`.
    ///
    /// # Errors
    /// As [`Self::publisher`].
    pub fn subscribe(
        &self,
        transport: &dyn Transport,
        topic: Topic,
        on_message: OnMessage,
    ) -> Result<Box<dyn Subscription>, RosError> {
        let name = self.resolve(topic)?;
        let qos = self.overrides.apply(&name, Role::Subscription, topic.qos);
        transport.subscribe(&name, topic.ty, qos, on_message)
    }

    /// Overrides of topics that the node does not have, with what it has: to be logged once.
    #[must_use]
    pub fn strangers(&self) -> Vec<String> {
        let names = |topics: &[Topic]| -> Vec<String> {
            topics.iter().filter_map(|topic| self.resolve(*topic).ok()).collect()
        };
        let (published, heard) = (names(&PUBLISHED), names(&HEARD));
        let stranger = |said: &QosOverride| {
            let known = if said.role == Role::Publisher { &published } else { &heard };
            let QosOverride { name, origin, role, .. } = said;
            (!known.contains(&said.topic)).then(|| {
                format!("{origin}: {name} is ignored: there is a {role} of {} only", known.join(", "))
            })
        };
        self.overrides.iter().filter_map(stranger).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ros::transport::{Durability, Reliability};
    use crate::ros::{NodeName, ParameterValue, Remap};

    fn endpoints(remaps: Vec<Remap>, overrides: &[(&str, ParameterValue)]) -> Endpoints {
        let mut qos = QosOverrides::default();
        for (name, value) in overrides {
            qos.set(name, value, "-p").unwrap();
        }
        Endpoints::new(Names::new(NodeName::new("/arm", "takt").unwrap(), remaps), qos)
    }

    #[test]
    fn overrides_of_topics_that_are_not_there_are_told() {
        let depth = ParameterValue::Integer(7);
        let known = ("qos_overrides./arm/takt/stream.publisher.depth", depth.clone());
        let unknown = ("qos_overrides./arm/takt/strem.publisher.depth", depth.clone());
        let wrong_way = ("qos_overrides./arm/takt/stream.subscription.depth", depth);
        let strangers = endpoints(Vec::new(), &[known, unknown, wrong_way]).strangers();
        assert_eq!(strangers.len(), 2, "{strangers:?}");
        assert!(strangers[0].contains("/arm/takt/tokens") || strangers[1].contains("/arm/takt/tokens"));
    }

    #[test]
    fn the_documentation_lists_every_topic_with_its_quality_of_service() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/ros2.md");
        let text = std::fs::read_to_string(path).unwrap();
        for (topics, direction) in [(&PUBLISHED[..], ""), (&HEARD[..], " (in)")] {
            for Topic { name, ty, qos } in topics {
                assert_eq!((qos.reliability, qos.durability), (Reliability::Reliable, Durability::Volatile));
                let row = format!("| `{name}`{direction} | `{ty}` | reliable | volatile | {} |", qos.depth);
                assert!(text.contains(&row), "{row}");
            }
        }
    }

    #[test]
    fn the_parts_of_an_action_move_with_it() {
        let node = endpoints(Vec::new(), &[]);
        assert_eq!(node.resolve(FEEDBACK).unwrap(), "/arm/takt/generate/_action/feedback");
    }
}
