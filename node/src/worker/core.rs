//! The worker's algorithm, one section at a time: accept, cut, plan, run, advance, reply.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

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
    active::{Active, Parked, Queued, Standing, Waiting},
    asker::{Asker, Outcome},
    desk::{Admission, Desk, DeskParts},
};
use crate::{
    calibrate::{Effort, measure},
    clock::Clock,
    request::{Request, RequestId, Status},
    scheduler::{
        bandwidth_server::BandwidthServer,
        class::Class,
        cost_table::{CostTable, Grid, SectionKind, SectionShape},
        edf::Rank,
        job::{Job, Limits, Phase, prefill_cost, section_cost},
        lanes::Lanes,
        ledger::Ledger,
        planner::{Section, plan},
        preemption::victim,
        prefix::PrefixCache,
        safety::{Situation, is_pressed},
        waiting_room::{Line, WaitingRoom},
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

/// What a worker is made of.
pub struct Parts {
    /// What runs the sections.
    pub backend: Box<dyn Backend>,
    /// Its tokenizer and chat template.
    pub text: Arc<Text>,
    /// What sections cost.
    pub table: CostTable,
    /// The desk of the worker this one takes the place of; `None` for a new one.
    pub desk: Option<Arc<Desk>>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("text", &self.text).finish_non_exhaustive()
    }
}

/// Owns the backend and every open request.
pub struct WorkerCore {
    backend: Box<dyn Backend>,
    text: Arc<Text>,
    clock: Box<dyn Clock>,
    desk: Arc<Desk>,
    queue: WaitingRoom<Queued>,
    lanes: Lanes<Active>,
    prefixes: PrefixCache,
    table: CostTable,
    server: BandwidthServer,
    limits: Limits,
    num_tickets: u64,
    // Kept from section to section, so that one allocates nothing.
    section: Section,
    jobs: Vec<Job>,
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
    pub fn new(parts: Parts, options: &WorkerOptions, clock: impl Clock + Sync + Clone + 'static) -> Self {
        let Parts { backend, text, table, desk } = parts;
        let facts = backend.capabilities();
        let (num_lanes, max_step_tokens) = (facts.num_lanes, facts.max_step_tokens);
        let limits = options.limits(max_step_tokens);
        let num_slots = options.queue_len + num_lanes;
        let desk = match desk {
            Some(desk) => {
                desk.set_bounds(table.bounds().clone());
                desk
            }
            None => Arc::new(Desk::new(DeskParts {
                text: Arc::clone(&text),
                ledger: Ledger::new(num_slots, options.background, clock.now()),
                bounds: table.bounds().clone(),
                limits,
                num_lanes,
                lane_capacity: facts.lane_capacity,
                clock: Box::new(clock.clone()),
            })),
        };
        Self {
            text,
            backend,
            clock: Box::new(clock),
            desk,
            queue: WaitingRoom::new(num_slots),
            lanes: Lanes::new(num_lanes),
            prefixes: PrefixCache::new(options.prefix_snapshots),
            table,
            server: BandwidthServer::new(options.background),
            limits,
            num_tickets: 0,
            section: Section::default(),
            jobs: Vec::with_capacity(num_slots),
            plan: StepPlan::with_capacity(max_step_tokens, num_lanes),
            ended: Vec::with_capacity(num_lanes),
        }
    }

    /// Where requests are let in.
    #[must_use]
    pub fn desk(&self) -> &Arc<Desk> {
        &self.desk
    }

    /// What sections cost.
    #[must_use]
    pub fn costs(&self) -> &CostTable {
        &self.table
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

    /// Takes a request in; one that did not come through the desk is weighed first.
    pub fn accept(&mut self, request: Request) {
        let admitted = if request.admission.is_some() { Some(request) } else { self.desk.admit(request) };
        let Some(mut request) = admitted else { return };
        let Some(admission) = request.admission.take() else { return };
        let asker = Asker::new(&request);
        let refuse = |asker: Asker, now, reason: String| {
            asker.reply(Status::Rejected, now, Outcome { reason: Some(reason), ..Outcome::default() });
        };
        let Admission { prompt, seat, is_promised, mandatory } = admission;
        let class = match (request.deadline, is_promised) {
            (None, _) => Class::Background,
            (Some(_), true) => Class::Control,
            (Some(_), false) => Class::Interactive,
        };
        let standing = Standing { seat, is_promised, class, mandatory };
        match self.sequence(&request, &prompt.tokens) {
            Ok(sequence) => {
                self.num_tickets += 1;
                let rank = Rank { deadline: request.deadline, ticket: self.num_tickets };
                let waiting = Waiting { asker, standing, sequence, system_len: prompt.system_len };
                let queued = Queued::Fresh(Box::new(waiting));
                if let Err(queued) = self.queue.push(Line::of(&queued.job(rank)), rank, queued) {
                    // Every seat has a place in the queue, so this cannot be; yet nobody goes without a reply.
                    queued.reply(
                        Status::Rejected,
                        self.clock.now(),
                        Some("the queue is full: ask again later".into()),
                    );
                }
            }
            Err(error) => {
                drop(standing);
                refuse(asker, self.clock.now(), error.to_string());
            }
        }
    }

    fn sequence(&self, request: &Request, prompt: &[u32]) -> Result<Sequence, EngineError> {
        let facts = self.backend.capabilities();
        let limits =
            SequenceLimits { lane_capacity: facts.lane_capacity, vocab_size: self.backend.spec().vocab_size };
        let defaults = self.text.defaults();
        let options = SequenceOptions {
            max_tokens: request.max_tokens,
            // The request's number as seed: repeatable in a process, different from request to request.
            sampling: request.sampling.unwrap_or_else(|| defaults.sampling.params(request.id.0)),
            stop: request.stop.clone(),
            eos_token_ids: defaults.eos_token_ids.clone(),
        };
        Sequence::new(prompt, &options, limits, Some(self.text.stream_decoder()))
    }

    /// Ends the request with what it has; unknown ones have ended already.
    pub fn cancel(&mut self, id: RequestId) {
        self.end_queued(Status::Cancelled, None, |_, queued| queued.asker().id() == id);
        let lane = self.lanes.used().find(|(_, active)| active.asker.id() == id).map(|(lane, _)| lane);
        if let Some(lane) = lane {
            self.end(lane, Status::Cancelled, None);
        }
    }

    /// Ends every open request.
    pub fn end_all(&mut self, status: Status, reason: &str) {
        self.end_queued(status, Some(reason), |_, _| true);
        let used: Vec<LaneId> = self.lanes.used().map(|(lane, _)| lane).collect();
        for lane in used {
            self.end(lane, status, Some(reason));
        }
    }

    fn end_queued(
        &mut self,
        status: Status,
        reason: Option<&str>,
        leaves: impl FnMut(Rank, &Queued) -> bool,
    ) {
        let now = self.clock.now();
        for queued in self.queue.take_if(leaves) {
            if let Some(snapshot) = queued.reply(status, now, reason.map(str::to_owned)) {
                self.backend.drop_snapshot(snapshot);
            }
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

    /// Measures costs again when they no longer hold and nothing is open. `go_on` is asked between sections.
    ///
    /// # Errors
    /// When the backend fails.
    pub fn recalibrate_if_idle(&mut self, mut go_on: impl FnMut() -> bool) -> Result<(), EngineError> {
        if self.table.no_promise().is_none() || self.num_open() > 0 {
            return Ok(());
        }
        self.lanes.clear_residents();
        let grid: Grid = self.table.grid().clone();
        let measured =
            measure(self.backend.as_mut(), self.clock.as_ref(), &grid, Effort::BRIEF, |_| go_on())?;
        if let Some(costs) = measured {
            self.table = CostTable::new(grid, &costs);
            self.desk.set_bounds(self.table.bounds().clone());
            tracing::info!("costs were measured again: deadlines are promised again");
        }
        Ok(())
    }

    /// One round: ends those out of time, gives free lanes away, runs one section.
    ///
    /// # Errors
    /// When the backend fails. The open requests are still open: end them with the reason, then [`Self::reset`].
    pub fn turn(&mut self) -> Result<Turn, EngineError> {
        self.end_late_waiting(Duration::ZERO);
        self.fill_lanes()?;
        let now = self.clock.now();
        self.collect_jobs(now);
        let situation =
            Situation { now, limits: &self.limits, bounds: self.table.bounds(), server: &self.server };
        plan(&self.jobs, &situation, &mut self.section);
        let num_cut = self.section.cut.len();
        for i in 0..num_cut {
            self.end(self.section.cut[i], Status::TruncatedAtDeadline, None);
        }
        if self.section.is_idle() {
            return Ok(if num_cut > 0 || !self.queue.is_empty() { Turn::Worked } else { Turn::Idle });
        }
        self.end_late_waiting(self.section.bound);
        self.run_section(now)?;
        Ok(Turn::Worked)
    }

    /// Ends those who wait and must reply before a section of `bound` would end.
    fn end_late_waiting(&mut self, bound: Duration) {
        let late_at = self.clock.now() + self.limits.reply_margin + bound;
        self.end_queued(Status::TruncatedAtDeadline, None, |rank, _| {
            rank.deadline.is_some_and(|deadline| deadline <= late_at)
        });
    }

    fn collect_jobs(&mut self, now: Instant) {
        let is_background = |class: Class| class == Class::Background;
        let has_background = self.lanes.used().any(|(_, active)| is_background(active.standing.class))
            || self.queue.iter().any(|(_, queued)| is_background(queued.class()));
        self.server.set_work(has_background, now);
        self.desk.ledger().publish_server(&self.server);
        let deadline = self.server.busy_until();
        let under_server = |job: Job| match job.class {
            Class::Background => Job { rank: Rank { deadline, ..job.rank }, ..job },
            _ => job,
        };
        self.jobs.clear();
        self.jobs.extend(self.lanes.used().map(|(lane, active)| under_server(active.job(Some(lane)))));
        self.jobs.extend(self.queue.iter().map(|(rank, queued)| under_server(queued.job(rank))));
        self.jobs.sort_unstable_by_key(|job| job.rank);
    }

    fn fill_lanes(&mut self) -> Result<(), EngineError> {
        loop {
            let holds_background =
                self.lanes.used().any(|(_, active)| active.standing.class == Class::Background);
            let num_lanes = self.backend.capabilities().num_lanes;
            let can_spare = !holds_background && num_lanes > 1 && self.lanes.num_free() > 0;
            let due = self.server.busy_until().filter(|_| can_spare);
            let Some(line) = self.queue.next_line(due) else { return Ok(()) };
            let Some((rank, queued)) = self.queue.pop(line) else { return Ok(()) };
            if self.lanes.num_free() == 0 && !self.free_lane_for(&queued.job(rank))? {
                if let Err(queued) = self.queue.push(line, rank, queued) {
                    queued.reply(Status::Failed, self.clock.now(), Some("no room to wait: ask again".into()));
                }
                return Ok(());
            }
            match queued {
                Queued::Fresh(waiting) => self.start(rank, *waiting)?,
                Queued::Parked(parked) => self.resume(*parked)?,
            }
        }
    }

    /// Takes a lane from somebody less urgent than `waiting`; false when there is nobody.
    fn free_lane_for(&mut self, waiting: &Job) -> Result<bool, EngineError> {
        self.jobs.clear();
        self.jobs.extend(self.lanes.used().map(|(lane, active)| active.job(Some(lane))));
        let num_holders = self.jobs.len();
        self.jobs.extend(self.queue.iter().map(|(rank, queued)| queued.job(rank)));
        let now = self.clock.now();
        let situation =
            Situation { now, limits: &self.limits, bounds: self.table.bounds(), server: &self.server };
        let is_pressed = is_pressed(waiting, &self.jobs, num_holders, &situation);
        let Some(lane) = victim(waiting, is_pressed, &self.jobs[..num_holders]) else { return Ok(false) };
        self.park(lane)?;
        Ok(self.lanes.num_free() > 0)
    }

    /// Gives a free lane to a request that begins.
    fn start(&mut self, rank: Rank, waiting: Waiting) -> Result<(), EngineError> {
        let mut active = Active::new(waiting, rank, self.clock.now());
        let Some(choice) = self.lanes.choose(active.sequence.prompt_token_ids()) else {
            active.reply(Status::Failed, self.clock.now(), Some("no lane was free: ask again".into()));
            return Ok(());
        };
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
        self.occupy(choice.lane, active);
        Ok(())
    }

    /// Takes the lane of somebody less urgent, whose KV is kept until its turn comes again.
    fn park(&mut self, lane: LaneId) -> Result<(), EngineError> {
        let Some(active) = self.lanes.release(lane) else { return Ok(()) };
        let held = self.backend.committed_len(lane);
        let snapshot = match held {
            0 => None,
            held => match self.backend.save_snapshot(lane, held) {
                Ok(snapshot) => Some(snapshot),
                Err(error) => {
                    active.reply(Status::Failed, self.clock.now(), Some(error.to_string()));
                    return Err(error);
                }
            },
        };
        let (line, rank) = (Line::of(&active.job(None)), active.rank);
        let parked = Queued::Parked(Box::new(Parked { active, snapshot }));
        if let Err(queued) = self.queue.push(line, rank, parked)
            && let Some(snapshot) =
                queued.reply(Status::Failed, self.clock.now(), Some("no room to wait: ask again".into()))
        {
            self.backend.drop_snapshot(snapshot);
        }
        Ok(())
    }

    fn resume(&mut self, parked: Parked) -> Result<(), EngineError> {
        let Parked { active, snapshot } = parked;
        let Some(choice) = self.lanes.choose(&[]) else {
            active.reply(Status::Failed, self.clock.now(), Some("no lane was free: ask again".into()));
            return Ok(());
        };
        let restored = match snapshot {
            None => self.backend.truncate(choice.lane, 0),
            Some(snapshot) => {
                let restored = self.backend.restore_snapshot(choice.lane, snapshot);
                self.backend.drop_snapshot(snapshot);
                restored
            }
        };
        if let Err(error) = restored {
            active.reply(Status::Failed, self.clock.now(), Some(error.to_string()));
            return Err(error);
        }
        self.occupy(choice.lane, active);
        Ok(())
    }

    fn occupy(&mut self, lane: LaneId, active: Active) {
        if let Err(active) = self.lanes.occupy(lane, active) {
            active.reply(Status::Failed, self.clock.now(), Some("the lane was taken: ask again".into()));
        }
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

    fn run_section(&mut self, started: Instant) -> Result<(), EngineError> {
        self.plan.clear();
        let mut context_len = 0;
        for &lane in &self.section.decodes {
            if let Some(active) = self.lanes.holder_mut(lane) {
                active.sequence.push_to(&mut self.plan, lane, 1);
                context_len = context_len.max(active.sequence.committed_len() + 1);
            }
        }
        let mut slice_len = 0;
        if let Some((lane, len)) = self.section.prefill
            && let Some(active) = self.lanes.holder_mut(lane)
        {
            slice_len = active.sequence.push_to(&mut self.plan, lane, len);
            context_len = context_len.max(active.sequence.committed_len() + slice_len);
        }
        let num_decodes = self.section.decodes.len();
        let bound = section_cost(num_decodes, slice_len, context_len, self.table.bounds());
        // In this order: read in between, the slice counts twice rather than not at all.
        self.desk.ledger().begin_section(started.checked_add(bound).unwrap_or(started));
        self.note_progress(slice_len);
        let output = self.backend.run_step(&self.plan)?;
        let now = self.clock.now();
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
        let took = self.clock.now().saturating_duration_since(started);
        self.desk.ledger().end_section();
        self.learn(num_decodes, slice_len, context_len, took);
        Ok(())
    }

    /// Learns what the section cost, charges background work for its part, and says so when nothing can be promised any more.
    fn learn(&mut self, num_decodes: usize, slice_len: usize, context_len: usize, took: Duration) {
        let shape = |kind, size| SectionShape { kind, size, context_len };
        match (num_decodes, slice_len) {
            (0, 0) => {}
            (num, 0) => self.table.record(shape(SectionKind::Decode, num), took),
            (0, len) => self.table.record(shape(SectionKind::Prefill, len), took),
            (num, len) => {
                // Together they cost at most what they cost apart; the decode step's part is known well.
                let decode = self.table.typical(shape(SectionKind::Decode, num));
                self.table.record(shape(SectionKind::Prefill, len), took.saturating_sub(decode));
            }
        }
        let num_all = num_decodes + slice_len;
        let is_background = |lane: LaneId| {
            self.jobs.iter().any(|job| job.lane == Some(lane) && job.class == Class::Background)
        };
        let decodes = self.section.decodes.iter().filter(|&&lane| is_background(lane)).count();
        let slice = self.section.prefill.filter(|(lane, _)| is_background(*lane)).map_or(0, |_| slice_len);
        if decodes + slice > 0 {
            self.server.charge(took.mul_f64((decodes + slice) as f64 / num_all as f64));
        }
        if let Some(reason) = self.table.no_promise()
            && self.desk.distrust().is_none()
        {
            tracing::warn!("no deadline is promised: {reason}");
            self.desk.withdraw(reason.to_string());
        }
    }

    /// Tells the ledger what the promise of the request that reads `slice_len` tokens will need after this section, whose time the
    /// ledger counts already.
    fn note_progress(&mut self, slice_len: usize) {
        let Some((lane, _)) = self.section.prefill else { return };
        let (limits, bounds) = (&self.limits, self.table.bounds());
        if let Some(active) = self.lanes.holder_mut(lane)
            && active.standing.is_promised
            && let Job { phase: Phase::Prefill { remaining, until_stop }, context_len, .. } = active.job(None)
        {
            let until_stop = if until_stop > slice_len { until_stop - slice_len } else { usize::MAX };
            let (context_len, remaining) = (context_len + slice_len, remaining.saturating_sub(slice_len));
            active.standing.mandatory = prefill_cost(context_len, remaining, until_stop, limits, bounds);
            active.standing.seat.progress(active.standing.mandatory);
        }
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
