//! Where requests are let in: on the thread that submits them, so that a refusal does not wait for the section that runs.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use takt_engine::text::Text;

use super::{
    asker::{Asker, Outcome},
    prompt::{EncodedPrompt, PromptEncoder},
};
use crate::{
    clock::Clock,
    request::{Request, Status},
    scheduler::{
        admission::Promise,
        class::Class,
        cost_table::Bounds,
        job::{Limits, prefill_cost, section_cost},
        ledger::{Ledger, NotAdmitted, SlotId},
    },
};

/// Why a request is refused; the text says what to do.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("deadline of {allowed_ms} ms has passed on arrival: give the request time to run")]
    DeadlinePassed { allowed_ms: u64 },
    #[error(
        "prompt of {prompt_len} tokens does not fit a lane of {lane_capacity} (one token must be left for the answer): \
         shorten it, or raise `max_context`"
    )]
    PromptTooLong { prompt_len: usize, lane_capacity: usize },
    #[error("the prompt is empty: there is nothing to answer")]
    EmptyPrompt,
    #[error(
        "{class} requests may take {num_slots} places and all are taken: ask again later, or raise `queue_len`"
    )]
    QueueFull { class: &'static str, num_slots: usize },
    #[error("a deadline of {allowed_ms:.1} ms cannot be promised: {}", earliest_text(*earliest))]
    TooLate { allowed_ms: f64, earliest: Option<Duration> },
    #[error("{0}")]
    Prompt(String),
}

fn earliest_text(earliest: Option<Duration>) -> String {
    match earliest {
        Some(earliest) => {
            format!(
                "the earliest is {:.1} ms from arrival (mandatory work of earlier promises included)",
                earliest.as_secs_f64() * 1e3
            )
        }
        None => "none can be: background work may claim all the time".to_owned(),
    }
}

/// A place among the open requests; given back when dropped.
#[derive(Debug)]
pub struct Seat {
    ledger: Arc<Ledger>,
    slot: SlotId,
}

impl Seat {
    pub(super) fn progress(&self, mandatory: Duration) {
        self.ledger.progress(self.slot, mandatory);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.ledger.release(self.slot);
    }
}

/// What letting a request in has found out.
#[derive(Debug)]
pub struct Admission {
    pub(super) prompt: EncodedPrompt,
    pub(super) seat: Seat,
    /// Whether its deadline is promised.
    pub(super) is_promised: bool,
    /// Bound of what must be computed for the promise.
    pub(super) mandatory: Duration,
}

/// What the worker and the desk share.
pub struct Desk {
    encoder: Mutex<PromptEncoder>,
    ledger: Arc<Ledger>,
    /// Replaced after a calibration.
    bounds: Mutex<Bounds>,
    limits: Limits,
    num_lanes: usize,
    lane_capacity: usize,
    clock: Box<dyn Clock + Sync>,
    is_trusted: AtomicBool,
    distrust: Mutex<Option<String>>,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").field("num_open", &self.ledger.num_taken()).finish_non_exhaustive()
    }
}

/// What a desk is made of.
pub(super) struct DeskParts {
    pub text: Arc<Text>,
    pub ledger: Arc<Ledger>,
    pub bounds: Bounds,
    pub limits: Limits,
    pub num_lanes: usize,
    pub lane_capacity: usize,
    pub clock: Box<dyn Clock + Sync>,
}

impl Desk {
    pub(super) fn new(parts: DeskParts) -> Self {
        Self {
            encoder: Mutex::new(PromptEncoder::new(parts.text)),
            ledger: parts.ledger,
            bounds: Mutex::new(parts.bounds),
            limits: parts.limits,
            num_lanes: parts.num_lanes,
            lane_capacity: parts.lane_capacity,
            clock: parts.clock,
            is_trusted: AtomicBool::new(true),
            distrust: Mutex::new(None),
        }
    }

    /// Weighs `request`: gives it back with its admission, or answers it.
    pub fn admit(&self, mut request: Request) -> Option<Request> {
        match self.weigh(&request) {
            Ok(admission) => {
                request.admission = Some(admission);
                Some(request)
            }
            Err(refusal) => {
                let earliest_deadline = match refusal {
                    Refusal::TooLate { earliest, .. } => earliest,
                    _ => None,
                };
                let outcome =
                    Outcome { reason: Some(refusal.to_string()), earliest_deadline, ..Outcome::default() };
                Asker::new(&request).reply(Status::Rejected, self.clock.now(), outcome);
                None
            }
        }
    }

    /// The worker: costs are known anew.
    pub(super) fn set_bounds(&self, bounds: Bounds) {
        *self.bounds.lock().unwrap_or_else(PoisonError::into_inner) = bounds;
        *self.distrust.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.is_trusted.store(true, Ordering::Release);
    }

    /// The worker: nothing is promised until the next [`Self::set_bounds`].
    pub(super) fn withdraw(&self, reason: String) {
        *self.distrust.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
        self.is_trusted.store(false, Ordering::Release);
    }

    /// Why nothing is promised, if so.
    #[must_use]
    pub fn distrust(&self) -> Option<String> {
        if self.is_trusted.load(Ordering::Acquire) {
            return None;
        }
        self.distrust.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn weigh(&self, request: &Request) -> Result<Admission, Refusal> {
        let now = self.clock.now();
        let allowed = request.deadline.map(|deadline| deadline.saturating_duration_since(request.arrived));
        if request.deadline.is_some_and(|deadline| deadline <= now) {
            // Before the tokenizer runs: a request without time must not cost the others any.
            let allowed_ms = u64::try_from(allowed.unwrap_or_default().as_millis()).unwrap_or(u64::MAX);
            return Err(Refusal::DeadlinePassed { allowed_ms });
        }
        let prompt = {
            let mut encoder = self.encoder.lock().unwrap_or_else(PoisonError::into_inner);
            encoder.encode(&request.prompt).map_err(|error| Refusal::Prompt(error.to_string()))?
        };
        let prompt_len = prompt.tokens.len();
        if prompt_len == 0 {
            return Err(Refusal::EmptyPrompt);
        }
        if prompt_len >= self.lane_capacity {
            return Err(Refusal::PromptTooLong { prompt_len, lane_capacity: self.lane_capacity });
        }
        let class = if request.deadline.is_none() { Class::Background } else { request.class };
        let is_promised = class == Class::Control && self.is_trusted.load(Ordering::Acquire);
        let bounds = self.bounds.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // A slice ends where the system prompt's snapshot is taken. What a lane or a snapshot may hold already is not counted
        // off: it may be gone when the request's turn comes.
        let until_stop = if prompt.system_len > 0 { prompt.system_len } else { prompt_len };
        let mandatory = prefill_cost(0, prompt_len, until_stop, &self.limits, &bounds);
        let slot = match request.deadline.filter(|_| is_promised) {
            Some(deadline) => self.promise(mandatory, deadline, &bounds),
            None => self.ledger.enter(class),
        };
        let slot = slot.map_err(|error| match error {
            NotAdmitted::Full { num_slots } => Refusal::QueueFull { class: class.name(), num_slots },
            NotAdmitted::TooLate { earliest } => Refusal::TooLate {
                allowed_ms: allowed.unwrap_or_default().as_secs_f64() * 1e3,
                earliest: earliest
                    .and_then(|at| at.checked_add(self.limits.reply_margin))
                    .map(|at| at.saturating_duration_since(request.arrived)),
            },
        })?;
        Ok(Admission {
            prompt,
            seat: Seat { ledger: Arc::clone(&self.ledger), slot },
            is_promised,
            mandatory,
        })
    }

    fn promise(
        &self,
        mandatory: Duration,
        deadline: Instant,
        bounds: &Bounds,
    ) -> Result<SlotId, NotAdmitted> {
        let limits = &self.limits;
        let reply_by = deadline.checked_sub(limits.reply_margin).unwrap_or(deadline);
        // A section may begin before the worker sees the request: the longest there is.
        let slice_len = limits.slice_len(self.num_lanes, self.lane_capacity, bounds);
        let unseen = section_cost(self.num_lanes, slice_len, self.lane_capacity, bounds);
        self.ledger.admit(Promise { reply_by, mandatory }, unseen + bounds.stall(), self.clock.now())
    }

    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }
}
