//! The worker's algorithm, one section at a time: accept, cut, plan, run, advance, reply.

use std::sync::Arc;

use takt_engine::{
    EngineError,
    backend::Backend,
    kv::LaneId,
    sequence::{Sequence, SequenceLimits, SequenceOptions},
    step::StepPlan,
    text::Text,
};

use super::{
    WorkerOptions,
    active::{Active, Waiting},
    asker::{Asker, Outcome},
    prompt::PromptEncoder,
};
use crate::{
    clock::Clock,
    request::{Request, RequestId, Status},
    scheduler::{
        admission::{self, Candidate, Refusal},
        edf::{EdfQueue, Rank},
        lanes::Lanes,
        pace::Pace,
        planner::{LaneState, Limits, Section, plan},
        prefix::PrefixCache,
    },
};

/// Fewest tokens a prefix must share before copying it is worth more than computing it.
const MIN_SHARED_TOKENS: usize = 8;

/// What a turn did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Ran a section, or ended requests: call again.
    Worked,
    /// Nothing to do until a request comes.
    Idle,
}

/// Owns the backend and every open request.
pub struct WorkerCore {
    backend: Box<dyn Backend>,
    encoder: PromptEncoder,
    clock: Box<dyn Clock>,
    queue: EdfQueue<Waiting>,
    lanes: Lanes<Active>,
    prefixes: PrefixCache,
    pub(super) pace: Pace,
    limits: Limits,
    num_tickets: u64,
    // Kept from section to section, so that one allocates nothing.
    section: Section,
    states: Vec<LaneState>,
    plan: StepPlan,
    ended: Vec<LaneId>,
}

impl std::fmt::Debug for WorkerCore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerCore").field("num_waiting", &self.queue.len()).finish_non_exhaustive()
    }
}

impl WorkerCore {
    /// A worker without requests.
    #[must_use]
    pub fn new(
        backend: Box<dyn Backend>,
        text: Arc<Text>,
        options: &WorkerOptions,
        clock: Box<dyn Clock>,
    ) -> Self {
        let facts = backend.capabilities();
        let (num_lanes, max_step_tokens) = (facts.num_lanes, facts.max_step_tokens);
        Self {
            encoder: PromptEncoder::new(text),
            backend,
            clock,
            queue: EdfQueue::new(options.queue_len),
            lanes: Lanes::new(num_lanes),
            prefixes: PrefixCache::new(options.prefix_snapshots),
            pace: Pace::default(),
            limits: Limits {
                max_prefill_slice_tokens: options.max_prefill_slice_tokens,
                max_step_tokens,
                reply_margin: options.reply_margin,
            },
            num_tickets: 0,
            section: Section::default(),
            states: Vec::with_capacity(num_lanes),
            plan: StepPlan::with_capacity(max_step_tokens, num_lanes),
            ended: Vec::with_capacity(num_lanes),
        }
    }

    /// Open requests: waiting and active.
    #[must_use]
    pub fn num_open(&self) -> usize {
        self.queue.len() + self.lanes.num_used()
    }

    /// Lanes nobody holds.
    #[must_use]
    pub fn num_free_lanes(&self) -> usize {
        self.lanes.num_free()
    }

    /// Lets a request in, or answers it at once.
    pub fn accept(&mut self, request: Request) {
        let asker = Asker::new(&request);
        let refuse = |asker: Asker, now, reason: String| {
            asker.reply(Status::Rejected, now, Outcome { reason: Some(reason), ..Outcome::default() });
        };
        if self.queue.is_full() && self.lanes.num_free() == 0 {
            let refusal = Refusal::QueueFull { queue_len: self.queue.len() };
            return refuse(asker, self.clock.now(), refusal.to_string());
        }
        match self.prepare(&request) {
            Ok((sequence, system_len)) => {
                self.num_tickets += 1;
                let rank = Rank { deadline: request.deadline, ticket: self.num_tickets };
                if let Err(waiting) = self.queue.push(rank, Waiting { asker, sequence, system_len }) {
                    let refusal = Refusal::QueueFull { queue_len: self.queue.len() };
                    waiting.reply(Status::Rejected, self.clock.now(), Some(refusal.to_string()));
                }
            }
            Err(reason) => refuse(asker, self.clock.now(), reason),
        }
    }

    /// Tokens, admission and sampling of a request; the reason why not.
    fn prepare(&mut self, request: &Request) -> Result<(Sequence, usize), String> {
        let facts = self.backend.capabilities();
        let limits =
            SequenceLimits { lane_capacity: facts.lane_capacity, vocab_size: self.backend.spec().vocab_size };
        let allowed = request.deadline.map(|deadline| deadline.saturating_duration_since(request.arrived));
        let mut candidate = Candidate { prompt_len: 1, deadline: request.deadline, allowed };
        // Before the tokenizer runs: a request without time must not cost the others any.
        admission::admit(&candidate, self.clock.now(), limits.lane_capacity)
            .map_err(|refusal| refusal.to_string())?;
        let prompt = self.encoder.encode(&request.prompt).map_err(|error| error.to_string())?;
        candidate.prompt_len = prompt.tokens.len();
        admission::admit(&candidate, self.clock.now(), limits.lane_capacity)
            .map_err(|refusal| refusal.to_string())?;
        let defaults = self.encoder.text().defaults();
        let options = SequenceOptions {
            max_tokens: request.max_tokens,
            // The request's number as seed: repeatable in a process, different from request to request.
            sampling: request.sampling.unwrap_or_else(|| defaults.sampling.params(request.id.0)),
            stop: request.stop.clone(),
            eos_token_ids: defaults.eos_token_ids.clone(),
        };
        let decoder = Some(self.encoder.text().stream_decoder());
        let sequence =
            Sequence::new(&prompt.tokens, &options, limits, decoder).map_err(|error| error.to_string())?;
        Ok((sequence, prompt.system_len))
    }

    /// Ends the request with what it has; unknown ones have ended already.
    pub fn cancel(&mut self, id: RequestId) {
        let now = self.clock.now();
        for waiting in self.queue.take_if(|_, waiting| waiting.asker.id() == id) {
            waiting.reply(Status::Cancelled, now, None);
        }
        let lane = self.lanes.used().find(|(_, active)| active.asker.id() == id).map(|(lane, _)| lane);
        if let Some(lane) = lane {
            self.end(lane, Status::Cancelled, None);
        }
    }

    /// Ends every open request.
    pub fn end_all(&mut self, status: Status, reason: &str) {
        let now = self.clock.now();
        for waiting in self.queue.take_if(|_, _| true) {
            waiting.reply(status, now, Some(reason.to_owned()));
        }
        let used: Vec<LaneId> = self.lanes.used().map(|(lane, _)| lane).collect();
        for lane in used {
            self.end(lane, status, Some(reason));
        }
    }

    /// Forgets all tokens of all lanes and all snapshots, after a failure.
    ///
    /// # Errors
    /// When the backend cannot even do that: it must be opened again.
    pub fn reset(&mut self) -> Result<(), EngineError> {
        self.lanes.clear_residents();
        for snapshot in self.prefixes.clear() {
            self.backend.drop_snapshot(snapshot);
        }
        (0..self.backend.capabilities().num_lanes).try_for_each(|lane| self.backend.truncate(LaneId(lane), 0))
    }

    /// One round: ends those out of time, gives free lanes away, runs one section.
    ///
    /// # Errors
    /// When the backend fails. The open requests are still open: end them with the reason, then [`Self::reset`].
    pub fn turn(&mut self) -> Result<Turn, EngineError> {
        self.end_late_waiting();
        self.fill_lanes()?;
        let now = self.clock.now();
        self.states.clear();
        self.states.extend(self.lanes.used().map(|(lane, active)| LaneState {
            lane,
            rank: active.rank,
            phase: active.phase(),
        }));
        self.states.sort_unstable_by_key(|state| state.rank);
        plan(&self.states, now, &self.pace, &self.limits, &mut self.section);
        let num_cut = self.section.cut.len();
        for i in 0..num_cut {
            self.end(self.section.cut[i], Status::TruncatedAtDeadline, None);
        }
        if self.section.is_idle() {
            return Ok(if num_cut > 0 || !self.queue.is_empty() { Turn::Worked } else { Turn::Idle });
        }
        self.run_section()?;
        Ok(Turn::Worked)
    }

    fn end_late_waiting(&mut self) {
        let (now, margin) = (self.clock.now(), self.limits.reply_margin);
        let late =
            self.queue.take_if(|rank, _| rank.deadline.is_some_and(|deadline| deadline <= now + margin));
        for waiting in late {
            waiting.reply(Status::TruncatedAtDeadline, now, None);
        }
    }

    fn fill_lanes(&mut self) -> Result<(), EngineError> {
        while self.lanes.num_free() > 0
            && let Some((rank, waiting)) = self.queue.pop()
        {
            let mut active = Active::new(waiting, rank, self.clock.now());
            let Some(choice) = self.lanes.choose(active.sequence.prompt_token_ids()) else { return Ok(()) };
            let shared_len = match self.reuse(choice.lane, choice.shared_len, &active) {
                Ok(shared_len) => shared_len,
                Err(error) => {
                    active.reply(Status::Failed, self.clock.now(), Some(error.to_string()));
                    return Err(error);
                }
            };
            active.sequence.commit(shared_len)?;
            active.snapshot_at = active.snapshot_at.filter(|at| {
                let prefix = &active.sequence.prompt_token_ids()[..*at];
                *at > shared_len
                    && *at >= MIN_SHARED_TOKENS
                    && self.prefixes.is_enabled()
                    && !self.prefixes.contains(prefix)
            });
            if let Err(active) = self.lanes.occupy(choice.lane, active) {
                active.reply(Status::Failed, self.clock.now(), Some("the lane was taken: ask again".into()));
            }
        }
        Ok(())
    }

    /// Leaves in `lane` the longest start of the prompt that the lane itself or a snapshot holds; returns its length. The last
    /// prompt token is always computed: its logits choose the first token of the answer.
    fn reuse(&mut self, lane: LaneId, resident_len: usize, active: &Active) -> Result<usize, EngineError> {
        let prompt = active.sequence.prompt_token_ids();
        let most = prompt.len().saturating_sub(1);
        let resident_len = resident_len.min(most);
        if let Some((snapshot, len)) = self.prefixes.longest(prompt)
            && len.min(most) > resident_len
            && len >= MIN_SHARED_TOKENS
        {
            self.backend.restore_snapshot(lane, snapshot)?;
            self.backend.truncate(lane, len.min(most))?;
            return Ok(len.min(most));
        }
        self.backend.truncate(lane, resident_len)?;
        Ok(resident_len)
    }

    fn run_section(&mut self) -> Result<(), EngineError> {
        self.plan.clear();
        for &lane in &self.section.decodes {
            if let Some(active) = self.lanes.holder_mut(lane) {
                active.sequence.push_to(&mut self.plan, lane, 1);
            }
        }
        let mut slice_len = 0;
        if let Some((lane, len)) = self.section.prefill
            && let Some(active) = self.lanes.holder_mut(lane)
        {
            slice_len = active.sequence.push_to(&mut self.plan, lane, len);
        }
        let started = self.clock.now();
        let output = self.backend.run_step(&self.plan)?;
        let now = self.clock.now();
        self.pace.record(self.section.decodes.len(), slice_len, now.saturating_duration_since(started));
        self.ended.clear();
        for (segment_idx, segment) in self.plan.segments.iter().enumerate() {
            let Some(active) = self.lanes.holder_mut(segment.lane) else { continue };
            active.sequence.commit(segment.tokens.len())?;
            if active.sequence.awaits_logits() {
                let logits = output
                    .last_logits(segment_idx)
                    .ok_or_else(|| EngineError::Backend(format!("no logits for lane {}", segment.lane.0)))?;
                if active.advance(logits, now)?.is_some() {
                    self.ended.push(segment.lane);
                }
            }
        }
        self.take_snapshot()?;
        self.send_text();
        Ok(())
    }

    /// Keeps the system prompt's KV when this section's slice ended exactly there.
    fn take_snapshot(&mut self) -> Result<(), EngineError> {
        let Some((lane, _)) = self.section.prefill else { return Ok(()) };
        let Some(active) = self.lanes.holder_mut(lane) else { return Ok(()) };
        let len = active.sequence.committed_len();
        if active.snapshot_at != Some(len) {
            return Ok(());
        }
        active.snapshot_at = None;
        let snapshot = self.backend.save_snapshot(lane, len)?;
        let evicted = self.prefixes.insert(&active.sequence.prompt_token_ids()[..len], snapshot);
        if let Some(evicted) = evicted {
            self.backend.drop_snapshot(evicted);
        }
        Ok(())
    }

    /// Sends every lane's new text, ends complete answers and those nobody waits for any more.
    fn send_text(&mut self) {
        for i in 0..self.plan.segments.len() {
            let lane = self.plan.segments[i].lane;
            let is_gone = self.lanes.holder_mut(lane).is_some_and(|active| !active.stream());
            if self.ended.contains(&lane) {
                self.end(lane, Status::Complete, None);
            } else if is_gone {
                self.end(lane, Status::Cancelled, Some("the asker is gone"));
            }
        }
    }

    fn end(&mut self, lane: LaneId, status: Status, reason: Option<&str>) {
        let Some(active) = self.lanes.release(lane) else { return };
        let held = self.backend.committed_len(lane);
        let sequence = &active.sequence;
        let tokens: Vec<_> =
            sequence.prompt_token_ids().iter().chain(sequence.token_ids()).copied().collect();
        self.lanes.set_resident(lane, &tokens[..held.min(tokens.len())]);
        active.reply(status, self.clock.now(), reason.map(str::to_owned));
    }
}
