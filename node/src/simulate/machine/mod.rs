//! Plays a trace: arrivals, sections, replies, on a clock that only sections move.

mod assignment;
mod section;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use takt_engine::kv::LaneId;

use super::{Demand, Policy};
use crate::random::SplitMix64;
use crate::scheduler::{
    admission::Promise,
    bandwidth_server::{Bandwidth, BandwidthServer},
    class::Class,
    cost_table::CostTable,
    edf::Rank,
    job::{Job, Limits, Phase, prefill_cost},
    lanes::Lanes,
    ledger::{Ledger, NotAdmitted, SlotId},
    planner::Section,
    safety::Situation,
    waiting_room::WaitingRoom,
};

/// What the trace is played on.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Who is let in and who runs next.
    pub policy: Policy,
    /// Lanes there are.
    pub num_lanes: usize,
    /// Requests that may wait beside those that hold a lane.
    pub queue_len: usize,
    /// Bounds of a section.
    pub limits: Limits,
    /// Background work's share.
    pub bandwidth: Bandwidth,
    /// Draws what each section really takes: between its median and its 99th percentile.
    pub seed: u64,
    /// Whether answers have forms: grammars then force tokens now and then.
    pub has_forms: bool,
    /// Sections to keep for a picture.
    pub max_records: usize,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Outcome {
    /// Refused on arrival; the earliest deadline that could be promised, from its arrival.
    Rejected {
        /// `None` when the queue was full, or no deadline would do.
        earliest: Option<Duration>,
    },
    /// Replied to.
    Replied {
        /// When, from the trace's start.
        at: Duration,
        /// Tokens of the answer it got.
        num_tokens: usize,
        /// Whether that was the whole answer.
        is_complete: bool,
    },
}

/// One section that ran.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// When it began, from the trace's start.
    pub start: Duration,
    /// How long it took.
    pub took: Duration,
    /// Lane, request and tokens of the slice.
    pub slice: Option<(LaneId, usize, usize)>,
    /// Lane and request of each decode step.
    pub decodes: Vec<(LaneId, usize)>,
}

/// A trace that was played.
#[derive(Debug, Clone)]
pub struct Run {
    /// One for each request.
    pub outcomes: Vec<Outcome>,
    /// The first sections.
    pub records: Vec<Record>,
    /// Time in which sections ran.
    pub busy: Duration,
    /// Time in which background work alone ran.
    pub background: Duration,
    /// From the start to the last reply.
    pub length: Duration,
    /// Sections in all.
    pub num_sections: u64,
    /// Requests that lost their lane to a more urgent one.
    pub num_preemptions: u64,
}

/// Plays `demands`, sorted by arrival, to the end. `tick` is called now and then with how many have arrived.
#[must_use]
pub fn play(demands: &[Demand], table: &CostTable, settings: &Settings, mut tick: impl FnMut(usize)) -> Run {
    let mut machine = Machine::new(demands, table, settings);
    while machine.step() {
        if machine.run.num_sections.is_multiple_of(4096) {
            tick(machine.num_arrived);
        }
    }
    machine.run.length = machine.now.saturating_duration_since(machine.start);
    machine.run
}

#[derive(Debug, Clone, Copy)]
struct Running {
    demand: usize,
    slot: SlotId,
    rank: Rank,
    num_read: usize,
    num_written: usize,
    /// Bound of the rest of the prompt.
    mandatory: Duration,
}

struct Machine<'a> {
    demands: &'a [Demand],
    table: &'a CostTable,
    settings: &'a Settings,
    start: Instant,
    now: Instant,
    ledger: Arc<Ledger>,
    lanes: Lanes<Running>,
    queue: WaitingRoom<Running>,
    server: BandwidthServer,
    random: SplitMix64,
    num_arrived: usize,
    jobs: Vec<(Job, usize)>,
    plain_jobs: Vec<Job>,
    section: Section,
    run: Run,
}

impl<'a> Machine<'a> {
    fn new(demands: &'a [Demand], table: &'a CostTable, settings: &'a Settings) -> Self {
        let start = Instant::now();
        let num_slots = settings.num_lanes + settings.queue_len;
        let unreplied = Outcome::Rejected { earliest: None };
        Self {
            demands,
            table,
            settings,
            start,
            now: start,
            ledger: Ledger::new(num_slots, settings.bandwidth, start),
            lanes: Lanes::new(settings.num_lanes),
            queue: WaitingRoom::new(num_slots),
            server: BandwidthServer::new(settings.bandwidth),
            random: SplitMix64(settings.seed),
            num_arrived: 0,
            jobs: Vec::new(),
            plain_jobs: Vec::new(),
            section: Section::default(),
            run: Run {
                outcomes: vec![unreplied; demands.len()],
                records: Vec::new(),
                busy: Duration::ZERO,
                background: Duration::ZERO,
                length: Duration::ZERO,
                num_sections: 0,
                num_preemptions: 0,
            },
        }
    }

    /// One round; false when everything has been played.
    fn step(&mut self) -> bool {
        self.arrive(self.now);
        self.end_late_waiting(Duration::ZERO);
        self.fill_lanes();
        self.collect_jobs();
        let situation = Situation {
            now: self.now,
            limits: &self.settings.limits,
            bounds: self.table.bounds(),
            server: &self.server,
            round: None,
        };
        self.settings.policy.plan(&self.plain_jobs, &situation, self.run.num_sections, &mut self.section);
        let num_cut = self.section.cut.len();
        for i in 0..num_cut {
            self.reply(self.section.cut[i], false);
        }
        if !self.section.is_idle() {
            self.end_late_waiting(self.section.bound);
            self.run_section();
            return true;
        }
        if num_cut > 0 || self.lanes.num_used() > 0 || !self.queue.is_empty() {
            return true; // lanes have just become free
        }
        let Some(next) = self.demands.get(self.num_arrived) else { return false };
        self.now = self.now.max(self.start + next.arrival);
        true
    }

    /// Takes what arrives until `until`, each at its own time.
    fn arrive(&mut self, until: Instant) {
        while let Some(demand) = self.demands.get(self.num_arrived) {
            let arrival = self.start + demand.arrival;
            if arrival > until {
                return;
            }
            let demand_idx = self.num_arrived;
            self.num_arrived += 1;
            let rank = self.rank(demand, arrival, demand_idx);
            match self.admit(demand, arrival) {
                Ok(slot) => {
                    let mandatory = self.mandatory(demand, 0);
                    let running =
                        Running { demand: demand_idx, slot, rank, num_read: 0, num_written: 0, mandatory };
                    self.enqueue(running);
                }
                Err(earliest) => {
                    let earliest = earliest.map(|at| at.saturating_duration_since(arrival));
                    self.run.outcomes[demand_idx] = Outcome::Rejected { earliest };
                }
            }
        }
    }

    fn rank(&self, demand: &Demand, arrival: Instant, ticket: usize) -> Rank {
        let deadline = demand.allowed.and_then(|allowed| arrival.checked_add(allowed));
        Rank { deadline, ticket: ticket as u64 }
    }

    fn admit(&self, demand: &Demand, arrival: Instant) -> Result<SlotId, Option<Instant>> {
        let (limits, bounds) = (&self.settings.limits, self.table.bounds());
        let is_promised = demand.class == Class::Control && self.settings.policy.has_admission();
        let slot = match demand.allowed.filter(|_| is_promised) {
            None => self.ledger.enter(demand.class),
            Some(allowed) => {
                let mandatory = self.mandatory(demand, 0);
                let deadline = arrival + allowed;
                let reply_by = deadline.checked_sub(limits.reply_margin).unwrap_or(deadline);
                self.ledger.admit(Promise { reply_by, mandatory }, bounds.stall(), arrival)
            }
        };
        slot.map_err(|error| match error {
            NotAdmitted::TooLate { earliest } => earliest.and_then(|at| at.checked_add(limits.reply_margin)),
            NotAdmitted::Full { .. } => None,
        })
    }

    fn mandatory(&self, demand: &Demand, num_read: usize) -> Duration {
        let remaining = demand.prompt_len - num_read;
        prefill_cost(num_read, remaining, remaining, &self.settings.limits, self.table.bounds())
    }

    fn class(&self, running: &Running) -> Class {
        self.demands[running.demand].class
    }

    /// Tokens that follow the next one without being chosen: none, or up to four, as grammars force them.
    fn num_forced(&self, running: &Running) -> usize {
        let demand = &self.demands[running.demand];
        if !self.settings.has_forms || running.num_read < demand.prompt_len {
            return 0;
        }
        let forced = (running.demand * 7 + running.num_written * 3) % 5;
        forced.min(demand.answer_len.saturating_sub(running.num_written + 1))
    }

    fn job(&self, lane: Option<LaneId>, running: &Running) -> Job {
        let demand = &self.demands[running.demand];
        let remaining = demand.prompt_len - running.num_read;
        let phase =
            if remaining > 0 { Phase::Prefill { remaining, until_stop: remaining } } else { Phase::Decode };
        let rank = match demand.class {
            Class::Background => Rank { deadline: self.server.busy_until(), ..running.rank },
            _ => running.rank,
        };
        let context_len = running.num_read + running.num_written;
        Job {
            lane,
            class: demand.class,
            rank,
            phase,
            context_len,
            num_forced: self.num_forced(running),
            has_form: false,
            mandatory: running.mandatory,
        }
    }

    fn collect_jobs(&mut self) {
        let is_background = |running: &Running| self.demands[running.demand].class == Class::Background;
        let has_background = self.lanes.used().any(|(_, running)| is_background(running))
            || self.queue.iter().any(|(_, running)| is_background(running));
        self.server.set_work(has_background, self.now);
        self.ledger.publish_server(&self.server);
        let mut jobs = std::mem::take(&mut self.jobs);
        jobs.clear();
        jobs.extend(self.lanes.used().map(|(lane, running)| (self.job(Some(lane), running), running.demand)));
        jobs.extend(self.queue.iter().map(|(_, running)| (self.job(None, running), running.demand)));
        jobs.sort_unstable_by_key(|(job, _)| job.rank);
        self.plain_jobs.clear();
        self.plain_jobs.extend(jobs.iter().map(|(job, _)| *job));
        self.jobs = jobs;
    }
}
