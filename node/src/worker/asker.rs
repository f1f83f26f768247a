//! The asker's end of a request: tokens while there is room, and exactly one reply.

use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, TrySendError};
use takt_engine::{TokenId, grammar::Closing};

use crate::request::{Event, Reply, Request, RequestId, SpeculationCounts, Status, Timings};

/// How long the worker waits for room when an asker's channel is full of other requests' events.
const REPLY_PATIENCE: Duration = Duration::from_millis(5);

/// What a reply says beside how the request ended.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub text: String,
    pub closing: Option<Closing>,
    pub token_ids: Vec<TokenId>,
    pub prompt_token_ids: Vec<TokenId>,
    /// For a complete answer: `stop` or `length`.
    pub finish_reason: Option<&'static str>,
    pub reason: Option<String>,
    pub earliest_deadline: Option<Duration>,
    pub is_prompt_too_long: bool,
    pub is_promised: bool,
    pub speculation: Option<SpeculationCounts>,
    pub timings: Timings,
}

/// Dropping it unanswered sends a `failed` reply, so that even a panic leaves no request open.
#[derive(Debug)]
pub(super) struct Asker {
    id: RequestId,
    arrived: Instant,
    deadline: Option<Instant>,
    events: Sender<Event>,
    num_token_events: u32,
    sent_len: usize,
    is_answered: bool,
}

impl Asker {
    pub(super) fn new(request: &Request) -> Self {
        Self {
            id: request.id,
            arrived: request.arrived,
            deadline: request.deadline,
            events: request.events.clone(),
            num_token_events: 0,
            sent_len: 0,
            is_answered: false,
        }
    }

    pub(super) fn id(&self) -> RequestId {
        self.id
    }

    pub(super) fn arrived(&self) -> Instant {
        self.arrived
    }

    /// Streams what `answer` has beyond the last call. With a full channel it stays for the next call, and one place is
    /// always left for the reply. False when the asker is gone.
    pub(super) fn stream(&mut self, answer: &str) -> bool {
        let Some(text) = answer.get(self.sent_len..).filter(|text| !text.is_empty()) else { return true };
        let room =
            self.events.capacity().map_or(usize::MAX, |capacity| capacity.saturating_sub(self.events.len()));
        if room < 2 {
            return true;
        }
        let tokens = Event::Tokens {
            id: self.id,
            index: self.num_token_events,
            offset: self.sent_len,
            text: text.to_owned(),
        };
        match self.events.try_send(tokens) {
            Ok(()) => {
                self.num_token_events = self.num_token_events.saturating_add(1);
                self.sent_len = answer.len();
                true
            }
            Err(TrySendError::Full(_)) => true,
            Err(TrySendError::Disconnected(_)) => false,
        }
    }

    /// Ends the request.
    pub(super) fn reply(mut self, status: Status, now: Instant, outcome: Outcome) {
        self.is_answered = true;
        self.send(status, now, outcome);
    }

    fn send(&self, status: Status, now: Instant, outcome: Outcome) {
        let timings = Timings {
            total: now.saturating_duration_since(self.arrived),
            deadline: self.deadline.map(|deadline| deadline.saturating_duration_since(self.arrived)),
            ..outcome.timings
        };
        let finish_reason = match status {
            Status::Complete => outcome.finish_reason.unwrap_or("stop"),
            Status::TruncatedAtDeadline | Status::ClosedAtDeadline => "deadline",
            Status::Rejected => "rejected",
            Status::Cancelled => "cancelled",
            Status::Failed => "failed",
        };
        let reply = Reply {
            id: self.id,
            status,
            text: outcome.text,
            closing: outcome.closing,
            token_ids: outcome.token_ids,
            prompt_token_ids: outcome.prompt_token_ids,
            finish_reason,
            reason: outcome.reason,
            earliest_deadline: outcome.earliest_deadline,
            is_prompt_too_long: outcome.is_prompt_too_long,
            is_promised: outcome.is_promised,
            speculation: outcome.speculation,
            timings,
        };
        // An asker that is gone wants no reply; one whose shared channel is full gets a moment.
        if let Err(error) = self.events.send_timeout(Event::Reply(Box::new(reply)), REPLY_PATIENCE)
            && error.is_timeout()
        {
            tracing::warn!(request = self.id.0, "reply lost: the asker's channel stayed full");
        }
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        if !self.is_answered {
            let reason = Some("the worker stopped while the request was open; ask again".to_owned());
            self.send(Status::Failed, self.arrived, Outcome { reason, ..Outcome::default() });
        }
    }
}
