//! Who gets a lane: from the waiting room, if need be by taking one from somebody less urgent.

use takt_engine::{
    EngineError,
    kv::{LaneId, SnapshotId},
};

use super::{MIN_SHARED_TOKENS, WorkerCore};
use crate::{
    request::Status,
    scheduler::{
        class::Class,
        edf::Rank,
        job::Job,
        preemption::victim,
        safety::{Situation, is_pressed},
        waiting_room::{Line, background_due},
    },
    worker::active::{Active, Parked, Queued, Waiting},
};

impl WorkerCore {
    pub(super) fn fill_lanes(&mut self) -> Result<(), EngineError> {
        loop {
            let holds_background =
                self.lanes.used().any(|(_, active)| active.standing.class == Class::Background);
            let (num_lanes, num_free) = (self.backend.capabilities().num_lanes, self.lanes.num_free());
            let due = background_due(&self.server, holds_background, num_lanes, num_free);
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
        let situation = Situation {
            now,
            limits: &self.limits,
            bounds: self.table.bounds(),
            server: &self.server,
            round: None,
        };
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
        // What the lane or a snapshot holds already is off the promise.
        active.owe_after(0, &self.limits, self.table.bounds());
        self.occupy(choice.lane, active);
        Ok(())
    }

    /// Takes the lane of somebody less urgent, whose KV is kept until its turn comes again.
    fn park(&mut self, lane: LaneId) -> Result<(), EngineError> {
        let Some(active) = self.lanes.release(lane) else { return Ok(()) };
        let held = self.backend.committed_len(lane);
        let snapshot = match held {
            0 => None,
            held => match self.set_aside(lane, held) {
                Ok(snapshot) => Some(snapshot),
                Err(error) => {
                    let is_capacity = error.is_capacity();
                    active.reply(Status::Failed, self.clock.now(), Some(error.to_string()));
                    // Nobody else wants for anything: the lane is free.
                    return if is_capacity { Ok(()) } else { Err(error) };
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

    /// Copies the tokens `[0, len)` of `lane` aside. Where there is no memory for them, prefixes that are kept in case they are asked for again
    /// give way.
    fn set_aside(&mut self, lane: LaneId, len: usize) -> Result<SnapshotId, EngineError> {
        loop {
            match self.backend.save_snapshot(lane, len) {
                Err(error) if error.is_capacity() => match self.prefixes.take_oldest() {
                    Some(prefix) => self.backend.drop_snapshot(prefix),
                    None => return Err(error),
                },
                done => return done,
            }
        }
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
        self.backend.follow(lane, self.speculation.follows());
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
}
