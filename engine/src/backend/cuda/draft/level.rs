//! One level of drafting: what it is about goes to the device, one or two graphs run, the likeliest tokens come back.

use std::time::{Duration, Instant};

use super::{CudaDraft, Host, follow::hidden_row, input::LevelRow, shape::LevelShape};
use crate::{
    Result,
    backend::cuda::captures,
    draft::{DraftOutput, DraftPlan},
    kv::LaneId,
};

impl CudaDraft {
    /// Drafts one level; `committed_len` says what a lane of the target holds.
    ///
    /// # Errors
    /// As [`crate::backend::Backend::draft`]; [`crate::EngineError::Backend`] when the device fails: the plan's lanes are cold then.
    pub fn draft(
        &mut self,
        plan: &DraftPlan,
        committed_len: impl Fn(LaneId) -> usize,
        host: &mut Host<'_>,
    ) -> Result<DraftOutput<'_>> {
        self.book.check(plan, committed_len)?;
        let num_proposals = plan.top_k.min(self.spec.draft_vocab_size);
        let shape = LevelShape::of(plan, num_proposals, self.options.num_lanes);
        self.capture_level(shape, host)?;
        self.read_for_roots(plan, host)?;
        self.lay_out(plan, shape);
        if let Err(error) = self.run_level(shape, host) {
            plan.rows.iter().for_each(|row| self.book.go_cold(row.lane));
            return Err(error);
        }
        Ok(self.proposals(plan, shape, num_proposals))
    }

    /// Runs what was laid out, and waits for it.
    fn run_level(&mut self, shape: LevelShape, host: &Host<'_>) -> Result<()> {
        let start = Instant::now();
        host.stream.context().make_current()?;
        let reading = match self.reading.take() {
            Some(shape) => self.reads.start(host.stream, shape)?,
            None => Duration::ZERO,
        };
        let own = self.levels.start(host.stream, shape);
        let all = reading + own.as_ref().map_or(Duration::ZERO, |own| *own);
        // What is in front of it runs all the same.
        let found = captures::wait(host.stream, all, self.options.step_limit)?;
        own?;
        self.levels.learn(shape, reading, found, start.elapsed());
        Ok(())
    }

    /// What waits in lanes that get a root: its token follows the last row.
    fn read_for_roots(&mut self, plan: &DraftPlan, host: &mut Host<'_>) -> Result<()> {
        let roots = plan.rows.iter().filter(|row| row.parent.is_none());
        let num_due = roots.clone().map(|row| self.book.num_waiting(row.lane)).sum();
        self.begin_reading(num_due, host)?;
        for row in roots {
            self.book.begin_root(row.lane, row.token);
            let num_rows = self.book.num_waiting(row.lane);
            self.push_reads(row.lane, num_rows, |lane_rows, idx| lane_rows.slot(row.lane, idx));
        }
        Ok(())
    }

    fn lay_out(&mut self, plan: &DraftPlan, shape: LevelShape) {
        self.level_input.clear(shape);
        let (mut num_runs, mut run_start) = (0, 0);
        for (idx, row) in plan.rows.iter().enumerate() {
            let place = self.book.place(row.lane, row.parent);
            let root = self.book.num_read(row.lane) - 1;
            let level_row = LevelRow {
                token: row.token,
                lane: row.lane.0,
                position: place.position,
                row: place.row,
                from: hidden_row(row.lane, row.parent),
                to: hidden_row(row.lane, Some(place.number)),
            };
            let below_root = self.book.rows_below_root(row.lane, place.number);
            self.level_input.put_row(idx, level_row, std::iter::once(root).chain(below_root));
            self.level_input.put_lane(row.lane.0, root);
            if plan.rows.get(idx + 1).is_none_or(|next| next.lane != row.lane) {
                self.level_input.put_run(num_runs, row.lane.0, run_start..idx + 1);
                (num_runs, run_start) = (num_runs + 1, idx + 1);
            }
        }
    }

    /// What came back, as the target's tokens with their log-probabilities.
    fn proposals(&mut self, plan: &DraftPlan, shape: LevelShape, num_proposals: usize) -> DraftOutput<'_> {
        let (words, floats) = (self.output.bytes(), self.output.floats());
        let word = |at: usize| {
            let bytes = words.get(at * size_of::<i32>()..).and_then(<[u8]>::first_chunk);
            bytes.map_or(-1, |bytes| i32::from_ne_bytes(*bytes))
        };
        let num_listed = shape.num_rows * shape.k;
        for row in 0..plan.rows.len() {
            let log_sum_exp = floats[2 * num_listed + row];
            for rank in 0..num_proposals {
                let (from, to) = (row * shape.k + rank, row * num_proposals + rank);
                let target = usize::try_from(word(from)).ok().and_then(|token| self.model.targets.get(token));
                let log_prob = floats[num_listed + from] - log_sum_exp;
                // Where numbers are not finite nothing is likely, and nothing worse comes of it.
                let is_one = target.is_some() && log_prob.is_finite();
                self.tokens[to] = target.copied().unwrap_or(self.model.targets[0]);
                self.log_probs[to] = if is_one { log_prob } else { f32::NEG_INFINITY };
            }
        }
        let num_all = plan.rows.len() * num_proposals;
        let logits = self.logits.as_ref().filter(|_| plan.wants_logits).map(|logits| logits.floats());
        DraftOutput {
            num_proposals,
            tokens: &self.tokens[..num_all],
            log_probs: &self.log_probs[..num_all],
            logits: logits.map_or(&[], |all| &all[..plan.rows.len() * self.spec.draft_vocab_size]),
        }
    }
}
