//! The worker's algorithm, one section at a time: accept, cut, plan, run, advance, reply.

mod assignment;
mod section;
mod speculation;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use takt_eagle_spec::policy::Policy;
use takt_engine::{
    EngineError, backend::Backend, draft::DraftManifest, kv::LaneId, sequence::SequenceLimits,
    step::StepPlan, text::Text,
};

use super::{
    WorkerOptions,
    active::{Active, Queued, Standing, Waiting},
    asker::Asker,
    desk::{Admission, Desk, DeskParts},
};
use crate::{
    calibrate::{Effort, measure},
    clock::Clock,
    request::{Request, RequestId, Status},
    scheduler::{
        bandwidth_server::BandwidthServer,
        class::Class,
        cost_table::{CostTable, Grid},
        cut::is_out_of_time,
        edf::Rank,
        job::{Job, Limits},
        lanes::Lanes,
        ledger::Ledger,
        planner::{Section, plan},
        prefix::PrefixCache,
        safety::Situation,
        waiting_room::{Line, WaitingRoom},
    },
};

pub use speculation::Drafting;
use speculation::Speculation;

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
    /// The draft head the backend has, as its engine describes it.
    pub draft: Option<DraftManifest>,
    /// The desk of the worker this one takes the place of, and how often it had withdrawn promises before costs were measured; `None` for a
    /// new one.
    pub desk: Option<(Arc<Desk>, u64)>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("text", &self.text).finish_non_exhaustive()
    }
}

/// Owns the backend and every open request.
pub struct WorkerCore {
    backend: Box<dyn Backend>,
    clock: Box<dyn Clock>,
    desk: Arc<Desk>,
    queue: WaitingRoom<Queued>,
    lanes: Lanes<Active>,
    prefixes: PrefixCache,
    has_told_of_short_memory: bool,
    table: CostTable,
    server: BandwidthServer,
    limits: Limits,
    /// How long it sleeps after each section; what promises count for that is in the limits.
    idle_gap: Duration,
    speculation: Speculation,
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
        let Parts { mut backend, text, table, draft, desk } = parts;
        let facts = backend.capabilities();
        let (num_lanes, max_step_tokens) = (facts.num_lanes, facts.max_step_tokens);
        let limits = options.limits(facts);
        let idle_gap = options.gpu_manners(facts).idle_gap;
        let num_slots = options.queue_len + num_lanes;
        let desk = match desk {
            Some((desk, num_withdrawals)) => {
                desk.set_bounds(table.bounds().clone(), num_withdrawals);
                desk.clear_no_speculation();
                desk
            }
            None => Arc::new(Desk::new(DeskParts {
                text,
                ledger: Ledger::new(num_slots, options.background, clock.now()),
                bounds: table.bounds().clone(),
                limits,
                num_lanes,
                sequences: SequenceLimits::of(backend.as_ref()),
                device: facts.device.clone(),
                clock: Box::new(clock.clone()),
            })),
        };
        let has_head = backend.draft_facts().is_some();
        let speculation = Speculation::new(options.drafting, draft.as_ref(), has_head, num_lanes);
        (0..num_lanes).for_each(|lane| backend.follow(LaneId(lane), speculation.follows()));
        let mut table = table;
        learn_masks(&mut table, &desk);
        Self {
            backend,
            clock: Box::new(clock),
            desk,
            queue: WaitingRoom::new(num_slots),
            lanes: Lanes::new(num_lanes),
            prefixes: PrefixCache::new(options.prefix_snapshots),
            has_told_of_short_memory: false,
            table,
            server: BandwidthServer::new(options.background),
            limits,
            idle_gap,
            speculation,
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

    /// What speculation has learnt: acceptance, counts, speed-up.
    #[must_use]
    pub fn speculation(&self) -> &Policy {
        self.speculation.policy()
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
        let Admission { sequence, system_len, seat, is_promised, mandatory } = admission;
        let class = match (request.deadline, is_promised) {
            (None, _) => Class::Background,
            (Some(_), true) => Class::Control,
            (Some(_), false) => Class::Interactive,
        };
        let standing = Standing { seat, is_promised, class, mandatory };
        self.num_tickets += 1;
        let rank = Rank { deadline: request.deadline, ticket: self.num_tickets };
        let waiting = Waiting { asker: Asker::new(&request), standing, sequence, system_len };
        let queued = Queued::Fresh(Box::new(waiting));
        if let Err(queued) = self.queue.push(Line::of(&queued.job(rank)), rank, queued) {
            // Every seat has a place in the queue, so this cannot be; yet nobody goes without a reply.
            let reason = Some("the queue is full: ask again later".into());
            queued.reply(Status::Rejected, self.clock.now(), reason);
        }
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
        if self.desk.is_trusted() || self.num_open() > 0 {
            return Ok(());
        }
        let num_withdrawals = self.desk.num_withdrawals();
        self.lanes.clear_residents();
        let grid: Grid = self.table.grid().clone();
        let effort = Effort { idle_gap: self.idle_gap, ..Effort::BRIEF };
        let measured = measure(self.backend.as_mut(), self.clock.as_ref(), &grid, effort, |_| go_on())?;
        if let Some(costs) = measured {
            self.table = CostTable::new(grid, &costs);
            learn_masks(&mut self.table, &self.desk);
            self.desk.set_bounds(self.table.bounds().clone(), num_withdrawals);
            tracing::info!("costs were measured again");
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
        let facts = self.backend.capabilities();
        let wish = self.speculation.wish(facts.max_logits_rows.min(facts.max_step_tokens));
        let round = wish.filter(|_| self.desk.speculates());
        let situation =
            Situation { now, limits: &self.limits, bounds: self.table.bounds(), server: &self.server, round };
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
        self.leave_gap();
        Ok(Turn::Worked)
    }

    /// Leaves the device to others for a while, asleep. Whoever's time runs out meanwhile is answered before.
    fn leave_gap(&mut self) {
        if self.idle_gap.is_zero() {
            return;
        }
        let now = self.clock.now();
        let ready = now.checked_add(self.limits.idle_gap).unwrap_or(now);
        // Who asks now waits for the end of it, as for that of a section.
        self.desk.ledger().begin_section(ready);
        self.end_late_waiting(self.limits.idle_gap);
        self.ended.clear();
        let Self { lanes, limits, table, ended, .. } = self;
        let late = lanes
            .used()
            .filter(|(lane, active)| is_out_of_time(&active.job(Some(*lane)), ready, limits, table.bounds()));
        ended.extend(late.map(|(lane, _)| lane));
        for i in 0..self.ended.len() {
            self.end(self.ended[i], Status::TruncatedAtDeadline, None);
        }
        self.clock.sleep(self.idle_gap);
        self.desk.ledger().end_section();
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

/// Until sections with forms have run, their masks cost what those of a common form do.
fn learn_masks(table: &mut CostTable, desk: &Desk) {
    desk.measure_masks().into_iter().for_each(|took| table.record_mask(took));
}
