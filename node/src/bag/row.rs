//! What is kept of a message: some hundred bytes a request, so that a recording of hours fits the memory of a laptop.

use crate::{
    request::Status,
    ros::message::{Answer, Question},
    scheduler::class::Class,
};

const STATUSES: [Status; 6] = [
    Status::Complete,
    Status::TruncatedAtDeadline,
    Status::ClosedAtDeadline,
    Status::Rejected,
    Status::Cancelled,
    Status::Failed,
];

/// When a message was logged and published, in nanoseconds of the recorder's and of the sender's clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// When the recorder received it.
    pub log_ns: u64,
    /// When the sender sent it; many recorders repeat the time of logging.
    pub publish_ns: u64,
}

/// A reply.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplyRow {
    /// The message's times.
    pub times: Times,
    /// The node's own stamps of arrival and reply: with the name they tell a message recorded twice.
    pub stamps: (i64, i64),
    /// The request's name.
    pub request_id: Box<str>,
    /// How it ended.
    pub status: Status,
    /// What it was promised.
    pub class: Class,
    /// Whether its deadline was promised.
    pub is_promised: bool,
    /// Arrival to the reply.
    pub total_ms: f64,
    /// Arrival to the first token, if there was one.
    pub ttft_ms: Option<f64>,
    /// Arrival to the first work.
    pub queue_ms: f64,
    /// First work to the end of the prompt.
    pub prefill_ms: f64,
    /// Arrival to the deadline, if there was one.
    pub deadline_ms: Option<f64>,
    /// What could have been promised, if it was refused for want of time.
    pub earliest_deadline_ms: Option<f64>,
    /// Tokens of the answer.
    pub num_tokens: u32,
    /// Rounds, proposals and accepted proposals of speculation.
    pub speculation: [u32; 3],
    /// Whether values stand in for what the model did not write.
    pub is_defaulted: bool,
    /// Whether values were cut.
    pub is_cut: bool,
}

/// A prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptRow {
    /// The message's times.
    pub times: Times,
    /// The asker's name for the request; empty: the node made one that only the reply has.
    pub request_id: Box<str>,
}

impl PromptRow {
    /// What is kept of `question`.
    pub fn new(question: Question, times: Times) -> Self {
        Self { times, request_id: question.request_id.into() }
    }
}

impl ReplyRow {
    /// What is kept of `answer`.
    ///
    /// # Errors
    /// What cannot be true of a reply: its bytes are damaged.
    pub fn new(answer: Answer, times: Times) -> Result<Self, String> {
        let known = |what: &str, name: &str| format!("{what} {name:?} is none of ours");
        let status = STATUSES.into_iter().find(|status| status.name() == answer.status);
        let class = Class::ALL.into_iter().find(|class| class.name() == answer.priority_class);
        let required = |name: &str, ms: f64| {
            if ms.is_finite() && ms >= 0.0 { Ok(ms) } else { Err(format!("{name} is {ms}")) }
        };
        let optional = |name: &str, ms: f64| {
            if ms.is_nan() { Ok(None) } else { required(name, ms).map(Some) }
        };
        Ok(Self {
            times,
            stamps: (answer.arrival.as_nanos(), answer.stamp.as_nanos()),
            status: status.ok_or_else(|| known("status", &answer.status))?,
            class: class.ok_or_else(|| known("priority_class", &answer.priority_class))?,
            is_promised: answer.is_promised,
            total_ms: required("total_ms", answer.total_ms)?,
            ttft_ms: optional("ttft_ms", answer.ttft_ms)?,
            queue_ms: required("queue_ms", answer.queue_ms)?,
            prefill_ms: required("prefill_ms", answer.prefill_ms)?,
            deadline_ms: optional("deadline_ms", answer.deadline_ms)?,
            earliest_deadline_ms: optional("earliest_deadline_ms", answer.earliest_deadline_ms)?,
            num_tokens: answer.num_tokens,
            speculation: [answer.num_speculation_rounds, answer.num_drafted, answer.num_accepted],
            is_defaulted: !answer.defaulted_fields.is_empty(),
            is_cut: !answer.cut_fields.is_empty(),
            request_id: answer.request_id.into(),
        })
    }

    /// Whether there is an answer, whole or cut.
    pub fn is_answered(&self) -> bool {
        matches!(self.status, Status::Complete | Status::TruncatedAtDeadline | Status::ClosedAtDeadline)
    }

    /// Deadline minus reply: negative if the reply was late. `None` without a deadline, and for what was refused.
    pub fn slack_ms(&self) -> Option<f64> {
        (self.status != Status::Rejected).then(|| Some(self.deadline_ms? - self.total_ms)).flatten()
    }

    /// Whether the reply came after its deadline.
    pub fn is_late(&self) -> bool {
        self.slack_ms().is_some_and(|slack| slack < 0.0)
    }
}
