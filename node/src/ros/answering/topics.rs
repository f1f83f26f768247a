//! Where answers go: the topics, the service's client, or the goal's.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::request::{Reply, Status};
use crate::ros::RosError;
use crate::ros::action::Goals;
use crate::ros::cdr::CdrError;
use crate::ros::clock::RosClock;
use crate::ros::diagnostics::Tally;
use crate::ros::message::{ASK, About, Answer, Message as _, Token, Uuid, encode_string, millis};
use crate::ros::service::send;
use crate::ros::transport::{Publish, Respond};

/// The topics the node publishes, and its action's clients.
#[derive(Debug)]
pub(in crate::ros) struct Topics {
    /// The answer as it grows, as plain text.
    pub tokens: Box<dyn Publish>,
    /// The answer, as plain text.
    pub answer: Box<dyn Publish>,
    /// How a sentence ended, as JSON.
    pub status: Box<dyn Publish>,
    /// [`Token`]s: one a section.
    pub stream: Box<dyn Publish>,
    /// [`Token`]s: one a sentence.
    pub sentence: Box<dyn Publish>,
    /// [`Answer`]s: one a request, whichever way it came.
    pub reply: Box<dyn Publish>,
    /// The action's goals.
    pub goals: Arc<Goals>,
    /// What is counted for `/diagnostics`.
    pub tally: Arc<Tally>,
    /// What messages are stamped with.
    pub clock: RosClock,
}

/// Who waits for an answer.
pub(in crate::ros) enum Asker {
    /// A sentence on `~/ask`, kept so that `~/status` can name it.
    Sentence(String),
    /// A message on `~/prompt`.
    Prompt,
    /// A service client.
    Service(Box<dyn Respond>),
    /// A goal of the action.
    Goal(Uuid),
}

impl Asker {
    /// Whether it wants the answer while it grows.
    pub fn listens(&self) -> bool {
        !matches!(self, Self::Service(_))
    }
}

impl Topics {
    /// Tells `asker`, and everybody on `~/reply`, how its request ended.
    pub fn finish(&self, asker: Asker, about: &About, reply: &Reply) {
        let answer = Answer::new(reply, about, self.clock.now());
        self.tally.count(reply, about.class);
        publish(&*self.reply, "takt_msgs/Reply", answer.encode());
        match asker {
            Asker::Sentence(prompt) => {
                if is_answer(reply.status) {
                    publish(&*self.answer, "std_msgs/String", encode_string(&reply.text));
                }
                let status = status_json(&prompt, about, reply).to_string();
                publish(&*self.status, "std_msgs/String", encode_string(&status));
            }
            Asker::Prompt => {}
            Asker::Service(respond) => send(respond, ASK, &answer, Some(&answer.clone().not_heard())),
            Asker::Goal(goal) => self.goals.finish(goal, reply.status, answer),
        }
    }

    /// Puts a part of an answer on `~/stream`.
    pub fn stream(&self, token: &Token) {
        publish(&*self.stream, "takt_msgs/Token", token.encode());
    }

    /// Puts a sentence of an answer on `~/sentence`.
    pub fn sentence(&self, token: &Token) {
        publish(&*self.sentence, "takt_msgs/Token", token.encode());
    }

    /// Puts a part of a sentence's answer on `~/tokens`.
    pub fn text(&self, text: &str) {
        publish(&*self.tokens, "std_msgs/String", encode_string(text));
    }
}

/// Answers the empty question by which our own clients open the way for replies: a request of nobody's, told to nobody else.
pub(super) fn answer_probe(respond: Box<dyn Respond>, reason: String) {
    let answer = Answer { status: Status::Rejected.name().to_owned(), reason, ..Answer::default() };
    send(respond, ASK, &answer, None);
}

/// Whether the model said something, as opposed to a refusal.
pub(super) fn is_answer(status: Status) -> bool {
    matches!(status, Status::Complete | Status::TruncatedAtDeadline | Status::ClosedAtDeadline)
}

fn publish(topic: &dyn Publish, what: &'static str, message: Result<Vec<u8>, CdrError>) {
    let sent = message
        .map_err(|error| RosError::Message { what, error })
        .and_then(|message| topic.publish(&message));
    if let Err(error) = sent {
        tracing::warn!("{error}");
    }
}

/// What `~/status` says of one sentence.
fn status_json(prompt: &str, about: &About, reply: &Reply) -> Value {
    let closing = reply.closing.clone().unwrap_or_default();
    json!({
        "ask": prompt,
        "request_id": about.request_id,
        "answer": reply.text,
        "status": reply.status.name(),
        "reason": reply.reason,
        "earliest_deadline_ms": reply.earliest_deadline.map(millis),
        "is_promised": reply.is_promised,
        "finish_reason": reply.finish_reason,
        "defaulted_fields": closing.defaulted_fields,
        "cut_fields": closing.cut_fields,
        "num_prompt_tokens": reply.prompt_token_ids.len(),
        "num_tokens": reply.token_ids.len(),
        "timings_ms": {
            "queue": millis(reply.timings.queue),
            "prefill": millis(reply.timings.prefill),
            "ttft": reply.timings.ttft.map(millis),
            "total": millis(reply.timings.total),
            "deadline": reply.timings.deadline.map(millis),
        },
    })
}
