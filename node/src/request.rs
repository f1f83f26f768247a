//! A request's life as the rest of the node sees it: asked with a deadline, streamed, replied to exactly once.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, TrySendError};
use serde::Serialize;
use takt_eagle_spec::tree::DraftTree;
use takt_engine::{
    EngineError, TokenId,
    grammar::{Closing, ClosingPolicy, GrammarSpec},
};

use crate::{
    scheduler::class::Class,
    worker::{Admission, Desk},
};

/// Identity of a request within this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct RequestId(pub u64);

impl RequestId {
    /// One that no other request of this process has.
    #[must_use]
    pub fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// What to answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// Messages through the chat template: `(role, content)`.
    Chat(Vec<(String, String)>),
    /// Text as it is, without a chat template.
    Raw(String),
}

/// The form an answer must have.
#[derive(Debug, Clone, PartialEq)]
pub struct Form {
    /// JSON Schema, regex or choices.
    pub spec: GrammarSpec,
    /// What may stand in for what the model had no time to write.
    pub closing: ClosingPolicy,
}

/// One demand with a deadline.
#[derive(Debug)]
pub struct Request {
    /// Identity, unique in the process.
    pub id: RequestId,
    /// What to answer.
    pub prompt: Prompt,
    /// When it arrived.
    pub arrived: Instant,
    /// Absolute, on the monotonic clock; `None` for background work.
    pub deadline: Option<Instant>,
    /// What it is promised; without a deadline it is background work, whatever is said here.
    pub class: Class,
    /// Most tokens of the answer; `None` for what the lane has room for.
    pub max_tokens: Option<usize>,
    /// How tokens are chosen; `None` for the engine's defaults.
    pub sampling: Option<takt_engine::sampler::SamplingParams>,
    /// Strings that end the answer (not part of it).
    pub stop: Vec<String>,
    /// The form of the answer, whenever it ends; `None` for any text.
    pub form: Option<Form>,
    /// Where its events go; bounded. A full channel drops [`Event::Tokens`], never the reply: give it room for the reply.
    pub events: Sender<Event>,
    /// What letting it in has found out; `None` until then.
    pub admission: Option<Admission>,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The model ended the answer, or a limit the caller set did.
    Complete,
    /// The deadline came first; the text is what there was.
    TruncatedAtDeadline,
    /// The deadline came first; the text was completed by the grammar's closing.
    ClosedAtDeadline,
    /// Never started: queue full, deadline passed or not to be promised, prompt too long, a form without a closing.
    Rejected,
    /// The caller or a shutdown ended it.
    Cancelled,
    /// Something broke; the reason says what.
    Failed,
}

impl Status {
    /// The name used in JSON and in ROS messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::TruncatedAtDeadline => "truncated_at_deadline",
            Self::ClosedAtDeadline => "closed_at_deadline",
            Self::Rejected => "rejected",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        }
    }
}

/// Where the time went; all since arrival but `queue`, `prefill`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Timings {
    /// Arrival to the first section that worked on the request.
    pub queue: Duration,
    /// First section to the end of prefill.
    pub prefill: Duration,
    /// Arrival to the first token; `None` when there was none.
    pub ttft: Option<Duration>,
    /// Arrival to the reply.
    pub total: Duration,
    /// Arrival to the deadline.
    pub deadline: Option<Duration>,
}

/// The end of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// The request.
    pub id: RequestId,
    /// How it ended.
    pub status: Status,
    /// The answer, as far as it came; of the form asked for, unless it was rejected or failed.
    pub text: String,
    /// What completed the text, if something had to, and what of it is not the model's.
    pub closing: Option<Closing>,
    /// Its tokens.
    pub token_ids: Vec<TokenId>,
    /// The prompt's tokens.
    pub prompt_token_ids: Vec<TokenId>,
    /// `stop`, `length`, `deadline`, `cancelled`, `rejected`, `failed`.
    pub finish_reason: &'static str,
    /// For `rejected` and `failed`: what and what to do.
    pub reason: Option<String>,
    /// For `rejected` for want of time: the shortest time from arrival to a deadline that could have been promised.
    pub earliest_deadline: Option<Duration>,
    /// For `rejected`: whether a shorter prompt would have been let in, all else being as it was.
    pub is_prompt_too_long: bool,
    /// Whether the deadline was promised.
    pub is_promised: bool,
    /// What speculation did for it; `None` when nothing was proposed.
    pub speculation: Option<SpeculationCounts>,
    /// Where the time went.
    pub timings: Timings,
}

/// Rounds of speculation of one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpeculationCounts {
    /// Rounds in which something was verified.
    pub rounds: usize,
    /// Proposals that were verified.
    pub drafted: usize,
    /// Proposals that were accepted.
    pub accepted: usize,
}

impl SpeculationCounts {
    /// Counts a verified `tree` of which `num_kept` nodes were kept.
    pub fn add(&mut self, tree: &DraftTree, num_kept: usize) {
        self.rounds += 1;
        self.drafted += tree.num_drafted();
        self.accepted += num_kept.saturating_sub(tree.num_certain);
    }

    /// Tokens a round emitted on average, the target's own included.
    #[must_use]
    pub fn accept_len(&self) -> f64 {
        1.0 + self.accepted as f64 / self.rounds.max(1) as f64
    }
}

/// What a request's asker receives, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// New text of one scheduler section.
    Tokens {
        /// The request.
        id: RequestId,
        /// Counts a request's `Tokens` events from 0.
        index: u32,
        /// Byte offset of `text` in the answer.
        offset: usize,
        /// Whole UTF-8 characters.
        text: String,
    },
    /// The end; exactly once, last.
    Reply(Box<Reply>),
}

/// Why a request could not even be queued; the caller still holds it and answers it.
#[derive(Debug)]
pub enum SubmitError {
    /// The queue is full.
    Full(Box<Request>),
    /// The worker has stopped.
    Stopped(Box<Request>),
}

/// Hands requests to the worker; cheap to clone.
#[derive(Debug, Clone)]
pub struct RequestSender {
    queue: Sender<Request>,
    cancels: Option<Sender<RequestId>>,
    desk: Option<Arc<Desk>>,
}

impl RequestSender {
    /// Wraps the worker's bounded queue.
    #[must_use]
    pub fn new(queue: Sender<Request>) -> Self {
        Self { queue, cancels: None, desk: None }
    }

    /// Adds the way to cancel requests.
    #[must_use]
    pub fn with_cancels(self, cancels: Sender<RequestId>) -> Self {
        Self { cancels: Some(cancels), ..self }
    }

    /// Adds the desk that lets requests in, on the submitting thread.
    #[must_use]
    pub fn with_desk(self, desk: Arc<Desk>) -> Self {
        Self { desk: Some(desk), ..self }
    }

    /// Whether letting a request of this form in is a matter of microseconds; a form that is new takes milliseconds to compile.
    #[must_use]
    pub fn knows(&self, form: Option<&Form>) -> bool {
        form.is_none_or(|form| self.desk.as_ref().is_some_and(|desk| desk.knows(form)))
    }

    /// Compiles `form` ahead of the first request that asks for it.
    ///
    /// # Errors
    /// Why it would be refused.
    pub fn prepare(&self, form: &Form) -> Result<(), EngineError> {
        self.desk.as_ref().map_or(Ok(()), |desk| desk.prepare(form))
    }

    /// The device that runs the requests; empty when it is not known.
    #[must_use]
    pub fn device(&self) -> &str {
        self.desk.as_ref().map_or("", |desk| desk.device())
    }

    /// Why the worker has stopped to speculate; `None` while it does, or was never to.
    #[must_use]
    pub fn no_speculation(&self) -> Option<String> {
        self.desk.as_ref().and_then(|desk| desk.no_speculation())
    }

    /// Why the worker has no engine, which failed and is being opened again; `None` while it has one.
    #[must_use]
    pub fn no_engine(&self) -> Option<String> {
        self.desk.as_ref().and_then(|desk| desk.no_engine())
    }

    /// Whether rounds of speculation are wanted, from the next section on.
    pub fn set_speculation(&self, is_wanted: bool) {
        if let Some(desk) = &self.desk {
            desk.set_speculation(is_wanted);
        }
    }

    /// Tokens a lane holds, prompt and answer; `None` when it is not known.
    #[must_use]
    pub fn max_context(&self) -> Option<usize> {
        self.desk.as_ref().map(|desk| desk.lane_capacity())
    }

    /// Requests the worker has, and its lanes; `None` when it is not known.
    #[must_use]
    pub fn load(&self) -> Option<(usize, usize)> {
        self.desk.as_ref().map(|desk| desk.load())
    }

    /// Why no deadline is promised at present, if so.
    #[must_use]
    pub fn distrust(&self) -> Option<String> {
        self.desk.as_ref().and_then(|desk| desk.distrust())
    }

    /// Asks the worker to end a request at the next section boundary; its reply then has the status `cancelled`, or how it
    /// ended meanwhile. A request whose `events` receiver is dropped is cancelled as well.
    pub fn cancel(&self, id: RequestId) {
        if let Some(cancels) = &self.cancels {
            // Full only when hundreds are being cancelled at once: the request then runs to its end or deadline.
            let _ = cancels.try_send(id);
        }
    }

    /// Weighs `request` and queues it, without blocking. One that is refused has its reply when this returns.
    ///
    /// # Errors
    /// Gives the request back when the queue is full or the worker is gone.
    pub fn submit(&self, request: Request) -> Result<(), SubmitError> {
        let admitted = match &self.desk {
            Some(desk) => desk.admit(request),
            None => Some(request),
        };
        let Some(request) = admitted else { return Ok(()) };
        self.queue.try_send(request).map_err(|error| match error {
            TrySendError::Full(request) => SubmitError::Full(Box::new(request)),
            TrySendError::Disconnected(request) => SubmitError::Stopped(Box::new(request)),
        })
    }
}
