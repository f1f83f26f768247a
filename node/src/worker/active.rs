//! Requests the worker has let in: those that wait for a lane, and those that hold one.

use std::time::Instant;

use takt_engine::sequence::{Finish, Sequence};

use super::asker::{Asker, Outcome};
use crate::{
    request::{Status, Timings},
    scheduler::{edf::Rank, planner::Phase},
};

/// Waits for a lane.
#[derive(Debug)]
pub(super) struct Waiting {
    pub asker: Asker,
    pub sequence: Sequence,
    /// Leading prompt tokens worth a snapshot; 0 for none.
    pub system_len: usize,
}

impl Waiting {
    /// Ends the request without having worked on it.
    pub fn reply(self, status: Status, now: Instant, reason: Option<String>) {
        let timings =
            Timings { queue: now.saturating_duration_since(self.asker.arrived()), ..Timings::default() };
        let prompt_token_ids = self.sequence.prompt_token_ids().to_vec();
        self.asker.reply(status, now, Outcome { prompt_token_ids, reason, timings, ..Outcome::default() });
    }
}

/// Holds a lane.
#[derive(Debug)]
pub(super) struct Active {
    pub asker: Asker,
    pub rank: Rank,
    pub sequence: Sequence,
    /// Prompt length at which a snapshot is to be taken, until it has been.
    pub snapshot_at: Option<usize>,
    started: Instant,
    first_token: Option<Instant>,
}

impl Active {
    pub fn new(waiting: Waiting, rank: Rank, now: Instant) -> Self {
        let Waiting { asker, sequence, system_len } = waiting;
        let snapshot_at = Some(system_len).filter(|len| *len > 0);
        Self { asker, rank, sequence, snapshot_at, started: now, first_token: None }
    }

    /// What it needs next.
    pub fn phase(&self) -> Phase {
        if !self.sequence.is_prefilling() {
            return Phase::Decode;
        }
        let remaining = self.sequence.pending().len();
        let until_stop =
            self.snapshot_at.map_or(remaining, |at| at.saturating_sub(self.sequence.committed_len()).max(1));
        Phase::Prefill { remaining, until_stop }
    }

    /// Chooses the next token by `logits`; says whether the answer is complete.
    pub fn advance(&mut self, logits: &[f32], now: Instant) -> takt_engine::Result<Option<Finish>> {
        let finish = self.sequence.advance(logits)?.finish;
        self.first_token.get_or_insert(now);
        Ok(finish)
    }

    /// Sends text that is new; false when the asker is gone.
    pub fn stream(&mut self) -> bool {
        self.asker.stream(self.sequence.text())
    }

    /// Ends the request with what there is.
    pub fn reply(mut self, status: Status, now: Instant, reason: Option<String>) {
        self.sequence.finish_now();
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
            token_ids: self.sequence.token_ids().to_vec(),
            prompt_token_ids: self.sequence.prompt_token_ids().to_vec(),
            finish_reason: self.sequence.finish().map(Finish::reason),
            reason,
            timings,
        };
        self.asker.reply(status, now, outcome);
    }
}
