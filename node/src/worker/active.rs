//! Requests the worker has let in: those that wait for a lane, those that hold one, and those that lost it for a while.

use std::time::{Duration, Instant};

use takt_engine::{
    grammar::Steering,
    kv::{LaneId, SnapshotId},
    rows::LogitsRow,
    sequence::{Finish, Sequence},
};

use super::{
    asker::{Asker, Outcome},
    desk::Seat,
};
use crate::{
    request::{SpeculationCounts, Status, Timings},
    scheduler::{
        class::Class,
        cost_table::Bounds,
        edf::Rank,
        job::{Job, Limits, Phase, mandatory_after},
    },
};

/// Ends the text of `sequence` for a request that ends as `status`; returns how it ended for one whose answer has a form.
fn close(sequence: &mut Sequence, status: Status) -> Status {
    match status {
        // What broke is not made to look whole.
        Status::Rejected | Status::Failed => {
            sequence.finish_now();
            status
        }
        Status::TruncatedAtDeadline if sequence.is_bound() => {
            sequence.close();
            Status::ClosedAtDeadline
        }
        _ => {
            sequence.close();
            status
        }
    }
}

/// What a request is promised, with its place among the open ones.
#[derive(Debug)]
pub(super) struct Standing {
    pub seat: Seat,
    pub is_promised: bool,
    /// What the planner takes it for: control only with a promise.
    pub class: Class,
    /// Bound of what must still be computed for the promise.
    pub mandatory: Duration,
}

/// Waits for a lane.
#[derive(Debug)]
pub(super) struct Waiting {
    pub asker: Asker,
    pub standing: Standing,
    pub sequence: Sequence,
    /// Leading prompt tokens worth a snapshot; 0 for none.
    pub system_len: usize,
}

impl Waiting {
    /// Ends the request without having worked on it; in the form asked for, if one was.
    pub fn reply(mut self, status: Status, now: Instant, reason: Option<String>) {
        let status = close(&mut self.sequence, status);
        if self.sequence.is_bound() {
            self.asker.stream(self.sequence.text());
        }
        let timings =
            Timings { queue: now.saturating_duration_since(self.asker.arrived()), ..Timings::default() };
        let prompt_token_ids = self.sequence.prompt_token_ids().to_vec();
        let is_promised = self.standing.is_promised;
        // Before the reply: whoever hears it may ask again at once.
        drop(self.standing);
        self.asker.reply(
            status,
            now,
            Outcome {
                text: self.sequence.text().to_owned(),
                closing: self.sequence.closing().cloned(),
                prompt_token_ids,
                reason,
                timings,
                is_promised,
                ..Outcome::default()
            },
        );
    }

    /// As the planner sees it.
    pub fn job(&self, rank: Rank) -> Job {
        let remaining = self.sequence.prompt_token_ids().len();
        let until_stop = if self.system_len > 0 { self.system_len } else { remaining };
        let phase = Phase::Prefill { remaining, until_stop };
        let Standing { class, mandatory, .. } = self.standing;
        Job {
            lane: None,
            class,
            rank,
            phase,
            context_len: 0,
            num_forced: 0,
            has_form: self.sequence.is_bound(),
            mandatory,
        }
    }
}

/// Lost its lane to somebody more urgent; its KV is kept.
#[derive(Debug)]
pub(super) struct Parked {
    pub active: Active,
    pub snapshot: Option<SnapshotId>,
}

/// In the queue.
#[derive(Debug)]
pub(super) enum Queued {
    Fresh(Box<Waiting>),
    Parked(Box<Parked>),
}

impl Queued {
    pub fn asker(&self) -> &Asker {
        match self {
            Self::Fresh(waiting) => &waiting.asker,
            Self::Parked(parked) => &parked.active.asker,
        }
    }

    pub fn class(&self) -> Class {
        match self {
            Self::Fresh(waiting) => waiting.standing.class,
            Self::Parked(parked) => parked.active.standing.class,
        }
    }

    pub fn job(&self, rank: Rank) -> Job {
        match self {
            Self::Fresh(waiting) => waiting.job(rank),
            Self::Parked(parked) => Job { rank, ..parked.active.job(None) },
        }
    }

    /// Ends the request; returns a snapshot nobody needs any more.
    pub fn reply(self, status: Status, now: Instant, reason: Option<String>) -> Option<SnapshotId> {
        match self {
            Self::Fresh(waiting) => {
                waiting.reply(status, now, reason);
                None
            }
            Self::Parked(parked) => {
                parked.active.reply(status, now, reason);
                parked.snapshot
            }
        }
    }
}

/// Holds a lane.
#[derive(Debug)]
pub(super) struct Active {
    pub asker: Asker,
    pub standing: Standing,
    pub rank: Rank,
    pub sequence: Sequence,
    /// Prompt length at which a snapshot is to be taken, until it has been.
    pub snapshot_at: Option<usize>,
    /// What speculation did for it.
    pub speculation: SpeculationCounts,
    started: Instant,
    first_token: Option<Instant>,
}

impl Active {
    pub fn new(waiting: Waiting, rank: Rank, now: Instant) -> Self {
        let Waiting { asker, standing, sequence, system_len } = waiting;
        let snapshot_at = Some(system_len).filter(|len| *len > 0);
        Self {
            asker,
            standing,
            rank,
            sequence,
            snapshot_at,
            speculation: SpeculationCounts::default(),
            started: now,
            first_token: None,
        }
    }

    /// As the planner sees it.
    pub fn job(&self, lane: Option<LaneId>) -> Job {
        Job {
            lane,
            class: self.standing.class,
            rank: self.rank,
            phase: self.phase(),
            context_len: self.sequence.committed_len(),
            num_forced: self.num_forced(),
            has_form: self.sequence.is_bound(),
            mandatory: self.standing.mandatory,
        }
    }

    /// Notes what is owed to it after `slice_len` more prompt tokens, if its deadline is promised.
    pub fn owe_after(&mut self, slice_len: usize, limits: &Limits, bounds: &Bounds) {
        if self.standing.is_promised {
            self.standing.mandatory = mandatory_after(&self.job(None), slice_len, limits, bounds);
            self.standing.seat.progress(self.standing.mandatory);
        }
    }

    /// Tokens that follow the next one without being chosen.
    fn num_forced(&self) -> usize {
        if self.sequence.is_prefilling() { 0 } else { self.sequence.pending().len().saturating_sub(1) }
    }

    fn phase(&self) -> Phase {
        if !self.sequence.is_prefilling() {
            return Phase::Decode;
        }
        let remaining = self.sequence.pending().len();
        let until_stop =
            self.snapshot_at.map_or(remaining, |at| at.saturating_sub(self.sequence.committed_len()).max(1));
        Phase::Prefill { remaining, until_stop }
    }

    /// Says how much is left to the model, which has `slack` after this step and spends `step` on a token.
    pub fn steer(&mut self, slack: Duration, step: Duration) {
        if !self.sequence.is_bound() {
            return;
        }
        let num_tokens = u32::try_from(self.sequence.closing_len()).unwrap_or(u32::MAX);
        let to_close = step.saturating_mul(num_tokens);
        self.sequence.steer(if slack < to_close {
            Steering::Shorten
        } else if slack < to_close.saturating_mul(2) {
            Steering::Hold
        } else {
            Steering::Free
        });
    }

    /// Chooses the next token by `row`; says whether the answer is complete.
    pub fn advance(&mut self, row: LogitsRow<'_>, now: Instant) -> takt_engine::Result<Option<Finish>> {
        let finish = self.sequence.advance_by(row)?.finish;
        self.first_token.get_or_insert(now);
        Ok(finish)
    }

    /// Sends text that is new; false when the asker is gone.
    pub fn stream(&mut self) -> bool {
        self.asker.stream(self.sequence.text())
    }

    /// Ends the request with what there is; in the form asked for, if one was.
    pub fn reply(mut self, status: Status, now: Instant, reason: Option<String>) {
        let status = close(&mut self.sequence, status);
        self.stream();
        let arrived = self.asker.arrived();
        let timings = Timings {
            queue: self.started.saturating_duration_since(arrived),
            prefill: self.first_token.unwrap_or(now).saturating_duration_since(self.started),
            ttft: self.first_token.map(|at| at.saturating_duration_since(arrived)),
            ..Timings::default()
        };
        let outcome = Outcome {
            text: self.sequence.text().to_owned(),
            closing: self.sequence.closing().cloned(),
            token_ids: self.sequence.token_ids().to_vec(),
            prompt_token_ids: self.sequence.prompt_token_ids().to_vec(),
            finish_reason: self.sequence.finish().map(Finish::reason),
            reason,
            is_promised: self.standing.is_promised,
            speculation: Some(self.speculation).filter(|counts| counts.rounds > 0),
            timings,
            ..Outcome::default()
        };
        // Before the reply: whoever hears it may ask again at once.
        drop(self.standing);
        self.asker.reply(status, now, outcome);
    }
}
