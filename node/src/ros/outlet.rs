//! What goes out: a thread that follows every open request's events and publishes tokens, answers and replies.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Select};
use serde_json::{Value, json};

use super::RosError;
use super::ask::refusal;
use super::cdr::CdrError;
use super::message::{AskReply, encode_string, millis};
use super::transport::{Publish, Respond};
use crate::request::{Event, Reply, Status};

/// The topics the node publishes.
#[derive(Debug)]
pub(super) struct Topics {
    pub tokens: Box<dyn Publish>,
    pub answer: Box<dyn Publish>,
    pub status: Box<dyn Publish>,
}

/// Who waits for a reply.
pub(super) enum Asker {
    /// A sentence on `~/ask`, kept so that `~/status` can name it.
    Topic { prompt: String },
    /// A service client.
    Service(Box<dyn Respond>),
}

/// A request the worker has.
pub(super) struct Open {
    pub asker: Asker,
    pub arrived: Instant,
    pub deadline: Option<Duration>,
    events: Receiver<Event>,
    /// Bytes of the answer already on `~/tokens`.
    num_streamed: usize,
}

impl Open {
    pub fn new(asker: Asker, events: Receiver<Event>, arrived: Instant, deadline: Option<Duration>) -> Self {
        Self { asker, arrived, deadline, events, num_streamed: 0 }
    }

    fn refusal(&self, status: Status, reason: &str) -> Reply {
        refusal(status, reason.to_owned(), self.arrived, self.deadline)
    }
}

impl Topics {
    /// Gives `asker` the reply, on its topics or as the service's answer.
    pub fn finish(&self, asker: Asker, reply: &Reply) {
        match asker {
            Asker::Topic { prompt } => {
                if matches!(
                    reply.status,
                    Status::Complete | Status::TruncatedAtDeadline | Status::ClosedAtDeadline
                ) {
                    publish(&*self.answer, &reply.text);
                }
                publish(&*self.status, &status_json(&prompt, reply).to_string());
            }
            Asker::Service(respond) => match encode_reply(reply, respond.max_len()) {
                Ok(message) => respond.respond(&message),
                Err(error) => tracing::error!(%error, "a reply cannot be encoded"),
            },
        }
    }

    /// Puts `text`, which starts at byte `offset` of the answer, on `~/tokens`.
    fn stream(&self, open: &mut Open, offset: usize, text: &str) {
        // After a gap (a dropped event) the rest is held back until the reply brings the whole text.
        if matches!(open.asker, Asker::Topic { .. }) && offset == open.num_streamed && !text.is_empty() {
            publish(&*self.tokens, text);
            open.num_streamed += text.len();
        }
    }
}

/// `reply` as a service's answer; in its place, if it has more than `max_len` bytes, that it does not reach the client.
fn encode_reply(reply: &Reply, max_len: usize) -> Result<Vec<u8>, CdrError> {
    let mut answer = AskReply::from(reply);
    let message = answer.encode()?;
    if message.len() <= max_len {
        return Ok(message);
    }
    let num_bytes = message.len();
    answer.status = Status::Failed.name().to_owned();
    answer.text = String::new();
    (answer.defaulted_fields, answer.cut_fields) = (Vec::new(), Vec::new());
    answer.reason = format!(
        "the reply has {num_bytes} bytes, and {max_len} reach a client of this DDS vendor: ask for fewer tokens, use the \
         topic ~/ask, or call from RMW_IMPLEMENTATION=rmw_cyclonedds_cpp"
    );
    answer.encode()
}

fn publish(topic: &dyn Publish, text: &str) {
    let sent = encode_string(text)
        .map_err(|error: CdrError| RosError::Message { what: "std_msgs/String", error })
        .and_then(|message| topic.publish(&message));
    if let Err(error) = sent {
        tracing::warn!("{error}");
    }
}

/// What `~/status` says of one sentence.
fn status_json(prompt: &str, reply: &Reply) -> Value {
    let timings = &reply.timings;
    json!({
        "id": reply.id.0,
        "ask": prompt,
        "status": reply.status.name(),
        "finish_reason": reply.finish_reason,
        "reason": reply.reason,
        "earliest_deadline_ms": reply.earliest_deadline.map(millis),
        "is_promised": reply.is_promised,
        "answer": reply.text,
        "defaulted_fields": reply.closing.as_ref().map_or(&[][..], |closing| &closing.defaulted_fields),
        "cut_fields": reply.closing.as_ref().map_or(&[][..], |closing| &closing.cut_fields),
        "num_prompt_tokens": reply.prompt_token_ids.len(),
        "num_tokens": reply.token_ids.len(),
        "timings_ms": {
            "queue": millis(timings.queue),
            "prefill": millis(timings.prefill),
            "ttft": timings.ttft.map(millis),
            "total": millis(timings.total),
            "deadline": timings.deadline.map(millis),
        },
    })
}

/// The thread's state.
pub(super) struct Outlet {
    topics: Arc<Topics>,
    num_open: Arc<AtomicUsize>,
    newly_open: Receiver<Open>,
    /// Disconnected when the node ends.
    stopped: Receiver<()>,
    open: Vec<Open>,
}

/// What the thread woke up for.
enum News {
    Opened(Open),
    Of(usize, Option<Event>),
    Stop,
}

impl Outlet {
    pub fn new(
        topics: Arc<Topics>,
        num_open: Arc<AtomicUsize>,
        newly_open: Receiver<Open>,
        stopped: Receiver<()>,
    ) -> Self {
        Self { topics, num_open, newly_open, stopped, open: Vec::new() }
    }

    /// Follows the open requests until the node ends, then refuses those that are left.
    pub fn run(mut self) {
        loop {
            match self.wait() {
                News::Opened(open) => self.open.push(open),
                News::Of(i, Some(Event::Tokens { offset, text, .. })) => {
                    self.topics.stream(&mut self.open[i], offset, &text);
                }
                News::Of(i, Some(Event::Reply(reply))) => self.finish(i, *reply),
                News::Of(i, None) => {
                    let reply = self.open[i]
                        .refusal(Status::Failed, "the worker gave the request up without a reply");
                    self.finish(i, reply);
                }
                News::Stop => break,
            }
        }
        self.open.extend(self.newly_open.try_iter());
        while let Some(last) = self.open.len().checked_sub(1) {
            // A reply that is there already is better than a refusal.
            let arrived = self.open[last].events.try_iter().find_map(|event| match event {
                Event::Reply(reply) => Some(*reply),
                Event::Tokens { .. } => None,
            });
            let reply = arrived
                .unwrap_or_else(|| self.open[last].refusal(Status::Cancelled, "the node is shutting down"));
            self.finish(last, reply);
        }
    }

    fn wait(&self) -> News {
        let mut select = Select::new();
        select.recv(&self.stopped);
        select.recv(&self.newly_open);
        for open in &self.open {
            select.recv(&open.events);
        }
        let ready = select.select();
        match ready.index() {
            0 => {
                // Only ever disconnected.
                let _ = ready.recv(&self.stopped);
                News::Stop
            }
            1 => ready.recv(&self.newly_open).map_or(News::Stop, News::Opened),
            i => News::Of(i - 2, ready.recv(&self.open[i - 2].events).ok()),
        }
    }

    fn finish(&mut self, i: usize, reply: Reply) {
        let mut open = self.open.swap_remove(i);
        if let Some(rest) = reply.text.get(open.num_streamed..) {
            let offset = open.num_streamed;
            self.topics.stream(&mut open, offset, rest);
        }
        self.topics.finish(open.asker, &reply);
        self.num_open.fetch_sub(1, Ordering::AcqRel);
    }
}
