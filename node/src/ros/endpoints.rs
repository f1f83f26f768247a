//! The node's own topics: names, types and qualities of service, all of which may be changed from outside.
//!
//! Remapping (`-r ~/ask:=/question`) changes the name, a parameter as `qos_overrides./takt/stream.publisher.depth` the quality.

use super::message::{Message as _, PROMPT as PROMPT_TYPE, REPLY as REPLY_TYPE, STRING, Token};
use super::names::Names;
use super::transport::{OnMessage, Publish, Qos, Subscription, Transport};
use super::{NodeName, RosError, TypeName};

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
pub const ASK: Topic = topic("~/ask", STRING, Qos::DEFAULT);
/// Questions in.
pub const PROMPT: Topic = topic("~/prompt", PROMPT_TYPE, Qos::DEFAULT);
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
pub const REPLY: Topic = topic("~/reply", REPLY_TYPE, Qos { depth: 100, ..Qos::DEFAULT });
/// News of goals; below the action's name.
pub const FEEDBACK: Topic =
    topic("~/generate/_action/feedback", super::message::FeedbackMessage::TYPE, Qos::STREAM);

/// Resolves names and qualities.
#[derive(Debug, Clone)]
pub struct Endpoints {
    /// What names become.
    pub names: Names,
}

impl Endpoints {
    /// As built in.
    #[must_use]
    pub fn new(node: NodeName) -> Self {
        Self { names: Names::new(node) }
    }

    /// Starts publishing on `topic`.
    ///
    /// # Errors
    /// [`RosError::Name`], [`RosError::Option`], [`RosError::Transport`].
    pub fn publisher(&self, transport: &dyn Transport, topic: Topic) -> Result<Box<dyn Publish>, RosError> {
        let name = self.names.resolve_topic(topic.name)?;
        transport.publisher(&name, topic.ty, topic.qos)
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
        let name = self.names.resolve_topic(topic.name)?;
        transport.subscribe(&name, topic.ty, topic.qos, on_message)
    }
}
