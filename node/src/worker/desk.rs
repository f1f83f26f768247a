//! Where requests are let in: on the thread that submits them, so that a refusal does not wait for the section that runs.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use takt_engine::{
    EngineError, TokenId,
    grammar::{Grammar, GrammarCompiler},
    sequence::{Sequence, SequenceLimits, SequenceOptions},
    text::Text,
};

use super::{
    asker::{Asker, Outcome},
    prompt::PromptEncoder,
};
use crate::{
    calibrate::measure_masks,
    clock::Clock,
    request::{Form, Request, Status},
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
        "deadline of {allowed_ms} ms passed while its form was compiled: ask again, a form is compiled once"
    )]
    CompiledTooLong { allowed_ms: u64 },
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
    TooLate {
        allowed_ms: f64,
        earliest: Option<Duration>,
        /// Whether the prompt alone takes longer.
        is_prompt_too_long: bool,
    },
    /// The prompt, the form or an option, as the engine words it.
    #[error("{0}")]
    Input(String),
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
    pub(super) sequence: Sequence,
    /// Leading prompt tokens that every request with its system prompt shares.
    pub(super) system_len: usize,
    pub(super) seat: Seat,
    /// Whether its deadline is promised.
    pub(super) is_promised: bool,
    /// Bound of what must be computed for the promise.
    pub(super) mandatory: Duration,
}

/// What the worker and the desk share.
pub struct Desk {
    text: Arc<Text>,
    encoder: Mutex<PromptEncoder>,
    /// Or why no form can be asked for.
    compiler: Result<GrammarCompiler, String>,
    ledger: Arc<Ledger>,
    /// Replaced after a calibration.
    bounds: Mutex<Bounds>,
    limits: Limits,
    num_lanes: usize,
    sequences: SequenceLimits,
    device: String,
    clock: Box<dyn Clock + Sync>,
    is_trusted: AtomicBool,
    distrust: Mutex<Distrust>,
    /// Why nothing is drafted although something could be.
    no_speculation: Mutex<Option<String>>,
    no_engine: Mutex<Option<String>>,
    /// Whether the node wants speculation at all.
    speculates: AtomicBool,
}

/// Why nothing is promised, and how often that happened.
#[derive(Debug, Default)]
struct Distrust {
    reason: Option<String>,
    num_times: u64,
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
    pub sequences: SequenceLimits,
    pub device: String,
    pub clock: Box<dyn Clock + Sync>,
}

impl Desk {
    pub(super) fn new(parts: DeskParts) -> Self {
        let DeskParts { text, sequences, .. } = parts;
        let compiler = GrammarCompiler::new(&text, sequences.vocab_size, &text.defaults().eos_token_ids);
        Self {
            encoder: Mutex::new(PromptEncoder::new(Arc::clone(&text))),
            text,
            compiler: compiler.map_err(|error| error.to_string()),
            ledger: parts.ledger,
            bounds: Mutex::new(parts.bounds),
            limits: parts.limits,
            num_lanes: parts.num_lanes,
            sequences,
            device: parts.device,
            clock: parts.clock,
            is_trusted: AtomicBool::new(true),
            distrust: Mutex::default(),
            no_speculation: Mutex::default(),
            no_engine: Mutex::default(),
            speculates: AtomicBool::new(true),
        }
    }

    /// Whether rounds of speculation are wanted, from the next section on.
    pub fn set_speculation(&self, is_wanted: bool) {
        self.speculates.store(is_wanted, Ordering::Relaxed);
    }

    /// Whether rounds of speculation are wanted.
    pub(super) fn speculates(&self) -> bool {
        self.speculates.load(Ordering::Relaxed)
    }

    /// Tokens a lane holds.
    #[must_use]
    pub fn lane_capacity(&self) -> usize {
        self.sequences.lane_capacity
    }

    /// Requests that are open, and lanes.
    #[must_use]
    pub fn load(&self) -> (usize, usize) {
        (self.ledger.num_taken(), self.num_lanes)
    }

    /// Weighs `request`: gives it back with its admission, or answers it.
    pub fn admit(&self, mut request: Request) -> Option<Request> {
        match self.weigh(&request) {
            Ok(admission) => {
                request.admission = Some(admission);
                Some(request)
            }
            Err(refusal) => {
                let (earliest_deadline, is_prompt_too_long) = match refusal {
                    Refusal::TooLate { earliest, is_prompt_too_long, .. } => (earliest, is_prompt_too_long),
                    Refusal::PromptTooLong { .. } => (None, true),
                    _ => (None, false),
                };
                let reason = Some(refusal.to_string());
                let outcome = Outcome { reason, earliest_deadline, is_prompt_too_long, ..Outcome::default() };
                Asker::new(&request).reply(Status::Rejected, self.clock.now(), outcome);
                None
            }
        }
    }

    /// The worker: costs are known anew. They are trusted unless promises were withdrawn since `num_withdrawals` was asked.
    pub(super) fn set_bounds(&self, bounds: Bounds, num_withdrawals: u64) {
        *self.bounds.lock().unwrap_or_else(PoisonError::into_inner) = bounds;
        let mut distrust = self.distrust.lock().unwrap_or_else(PoisonError::into_inner);
        if distrust.num_times == num_withdrawals {
            distrust.reason = None;
            self.is_trusted.store(true, Ordering::Release);
        }
    }

    /// The worker: its drafter was found useless.
    pub(super) fn note_no_speculation(&self, reason: String) {
        *self.no_speculation.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
    }

    /// A new worker: what was said of the one before holds no longer.
    pub(super) fn clear_no_speculation(&self) {
        *self.no_speculation.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Why the worker has stopped to speculate; `None` while it does, or was never to.
    #[must_use]
    pub fn no_speculation(&self) -> Option<String> {
        self.no_speculation.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The worker: why its engine is being opened again; `None` once it is.
    pub(super) fn note_no_engine(&self, reason: Option<String>) {
        *self.no_engine.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }

    /// Why no engine is open; `None` while one is.
    #[must_use]
    pub fn no_engine(&self) -> Option<String> {
        self.no_engine.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Nothing is promised until the next [`Self::set_bounds`].
    pub(super) fn withdraw(&self, reason: String) {
        let mut distrust = self.distrust.lock().unwrap_or_else(PoisonError::into_inner);
        distrust.reason = Some(reason);
        distrust.num_times += 1;
        self.is_trusted.store(false, Ordering::Release);
    }

    /// How often promises were withdrawn.
    pub(super) fn num_withdrawals(&self) -> u64 {
        self.distrust.lock().unwrap_or_else(PoisonError::into_inner).num_times
    }

    /// What runs the requests.
    #[must_use]
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Whether deadlines are promised at present.
    pub(super) fn is_trusted(&self) -> bool {
        self.is_trusted.load(Ordering::Acquire)
    }

    /// Why nothing is promised, if so.
    #[must_use]
    pub fn distrust(&self) -> Option<String> {
        if self.is_trusted() {
            return None;
        }
        self.distrust.lock().unwrap_or_else(PoisonError::into_inner).reason.clone()
    }

    /// Whether `form` was compiled before, so that asking for it costs microseconds.
    pub(crate) fn knows(&self, form: &Form) -> bool {
        self.compiler.as_ref().is_ok_and(|compiler| compiler.is_cached(&form.spec, form.closing))
    }

    /// What choosing tokens within a form takes; nothing when no form can be asked for.
    pub(super) fn measure_masks(&self) -> Vec<Duration> {
        let measure = |compiler| measure_masks(compiler, self.sequences.vocab_size, self.clock.as_ref());
        self.compiler.as_ref().map(measure).unwrap_or_default()
    }

    /// Compiles `form` ahead of the first request that asks for it, and keeps it.
    pub(crate) fn prepare(&self, form: &Form) -> Result<(), EngineError> {
        self.compiler()?.keep(&form.spec, form.closing)
    }

    fn compiler(&self) -> Result<&GrammarCompiler, EngineError> {
        self.compiler.as_ref().map_err(|fact| EngineError::Input(fact.clone()))
    }

    fn grammar(&self, form: &Form) -> Result<Grammar, EngineError> {
        self.compiler()?.compile(&form.spec, form.closing)
    }

    fn weigh(&self, request: &Request) -> Result<Admission, Refusal> {
        // Before the tokenizer runs: a request without time must not cost the others any.
        if let Some(allowed_ms) = self.out_of_time(request) {
            return Err(Refusal::DeadlinePassed { allowed_ms });
        }
        let refused = |error: EngineError| Refusal::Input(error.to_string());
        let grammar = request.form.as_ref().map(|form| self.grammar(form)).transpose().map_err(refused)?;
        if let Some(allowed_ms) = self.out_of_time(request) {
            return Err(Refusal::CompiledTooLong { allowed_ms });
        }
        let prompt = {
            let mut encoder = self.encoder.lock().unwrap_or_else(PoisonError::into_inner);
            encoder.encode(&request.prompt).map_err(refused)?
        };
        let (prompt_len, lane_capacity) = (prompt.tokens.len(), self.sequences.lane_capacity);
        if prompt_len == 0 {
            return Err(Refusal::EmptyPrompt);
        }
        if prompt_len >= lane_capacity {
            return Err(Refusal::PromptTooLong { prompt_len, lane_capacity });
        }
        let class = if request.deadline.is_none() { Class::Background } else { request.class };
        let is_promised = class == Class::Control && self.is_trusted();
        let bounds = self.bounds.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // A slice ends where the system prompt's snapshot is taken. What a lane or a snapshot may hold already is not counted
        // off: it may be gone when the request's turn comes.
        let until_stop = if prompt.system_len > 0 { prompt.system_len } else { prompt_len };
        let mask = if grammar.is_some() { bounds.mask() } else { Duration::ZERO };
        let mandatory = prefill_cost(0, prompt_len, until_stop, &self.limits, &bounds) + mask;
        let slot = match request.deadline.filter(|_| is_promised) {
            Some(deadline) => self.promise(mandatory, deadline, &bounds),
            None => self.ledger.enter(class),
        };
        let slot = slot.map_err(|error| self.not_admitted(error, class, request, mandatory))?;
        let seat = Seat { ledger: Arc::clone(&self.ledger), slot };
        let sequence = self.sequence(request, &prompt.tokens, grammar.as_ref()).map_err(refused)?;
        Ok(Admission { sequence, system_len: prompt.system_len, seat, is_promised, mandatory })
    }

    /// Milliseconds the request was allowed, when they have passed.
    fn out_of_time(&self, request: &Request) -> Option<u64> {
        let deadline = request.deadline.filter(|&deadline| deadline <= self.clock.now())?;
        let allowed = deadline.saturating_duration_since(request.arrived);
        Some(u64::try_from(allowed.as_millis()).unwrap_or(u64::MAX))
    }

    fn not_admitted(
        &self,
        error: NotAdmitted,
        class: Class,
        request: &Request,
        mandatory: Duration,
    ) -> Refusal {
        let left = request.deadline.map(|deadline| deadline.saturating_duration_since(self.clock.now()));
        match error {
            NotAdmitted::Full { num_slots } => Refusal::QueueFull { class: class.name(), num_slots },
            NotAdmitted::TooLate { earliest } => Refusal::TooLate {
                allowed_ms: request.deadline.map_or(0.0, |deadline| {
                    deadline.saturating_duration_since(request.arrived).as_secs_f64() * 1e3
                }),
                earliest: earliest
                    .and_then(|at| at.checked_add(self.limits.reply_margin))
                    .map(|at| at.saturating_duration_since(request.arrived)),
                is_prompt_too_long: left.is_some_and(|left| left < mandatory + self.limits.reply_margin),
            },
        }
    }

    /// The request's way from prompt to answer.
    fn sequence(
        &self,
        request: &Request,
        prompt: &[TokenId],
        grammar: Option<&Grammar>,
    ) -> Result<Sequence, EngineError> {
        let defaults = self.text.defaults();
        let options = SequenceOptions {
            max_tokens: request.max_tokens,
            // The request's number as seed: repeatable in a process, different from request to request.
            sampling: request.sampling.unwrap_or_else(|| defaults.sampling.params(request.id.0)),
            stop: request.stop.clone(),
            eos_token_ids: defaults.eos_token_ids.clone(),
        };
        let sequence = Sequence::new(prompt, &options, self.sequences, Some(self.text.stream_decoder()))?;
        match grammar {
            Some(grammar) => sequence.bound_to(grammar),
            None => Ok(sequence),
        }
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
        let slice_len = limits.slice_len(self.num_lanes, self.sequences.lane_capacity, bounds);
        let masks = bounds.mask() * u32::try_from(self.num_lanes).unwrap_or(u32::MAX);
        let section = section_cost(self.num_lanes, slice_len, self.sequences.lane_capacity, bounds) + masks;
        let unseen = section + limits.idle_gap;
        self.ledger.admit(Promise { reply_by, mandatory }, unseen + bounds.stall(), self.clock.now())
    }

    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }
}
