//! One section: run it, advance its sequences, learn what it cost.

use std::time::{Duration, Instant};

use takt_engine::{EngineError, kv::LaneId};

use super::WorkerCore;
use crate::{
    request::Status,
    scheduler::{
        class::Class,
        cost_table::{SectionKind, SectionShape},
        job::section_cost,
    },
};

impl WorkerCore {
    pub(super) fn run_section(&mut self, started: Instant) -> Result<(), EngineError> {
        self.plan.clear();
        let (mut context_len, mut num_decoded) = (0, 0);
        let mut num_forced = self.section.num_forced;
        for &lane in &self.section.decodes {
            if let Some(active) = self.lanes.holder_mut(lane) {
                let num_tokens = active.sequence.push_to(&mut self.plan, lane, 1 + num_forced);
                num_forced -= num_tokens.saturating_sub(1);
                num_decoded += num_tokens;
                context_len = context_len.max(active.sequence.committed_len() + num_tokens);
            }
        }
        let mut slice_len = 0;
        if let Some((lane, len)) = self.section.prefill
            && let Some(active) = self.lanes.holder_mut(lane)
        {
            slice_len = active.sequence.push_to(&mut self.plan, lane, len);
            context_len = context_len.max(active.sequence.committed_len() + slice_len);
        }
        let masks = self.table.bounds().mask() * u32::try_from(self.num_forms()).unwrap_or(u32::MAX);
        let bound = section_cost(num_decoded, slice_len, context_len, self.table.bounds()) + masks;
        // In this order: read in between, the slice counts twice rather than not at all.
        self.desk.ledger().begin_section(started.checked_add(bound).unwrap_or(started));
        if let Some((lane, _)) = self.section.prefill
            && let Some(active) = self.lanes.holder_mut(lane)
        {
            active.owe_after(slice_len, &self.limits, self.table.bounds());
        }
        self.steer(num_decoded);
        let output = self.backend.run_step(&self.plan)?;
        let now = self.clock.now();
        self.ended.clear();
        let mut choosing = Duration::ZERO;
        for (segment_idx, segment) in self.plan.segments.iter().enumerate() {
            let Some(active) = self.lanes.holder_mut(segment.lane) else { continue };
            active.sequence.commit(segment.tokens.len())?;
            if active.sequence.awaits_logits() {
                let logits = output
                    .last_logits(segment_idx)
                    .ok_or_else(|| EngineError::Backend(format!("no logits for lane {}", segment.lane.0)))?;
                let (has_form, chosen_from) = (active.sequence.is_bound(), self.clock.now());
                if active.advance(logits, now)?.is_some() {
                    self.ended.push(segment.lane);
                }
                if has_form {
                    let took = self.clock.now().saturating_duration_since(chosen_from);
                    self.table.record_mask(took);
                    choosing += took;
                }
            }
        }
        self.take_snapshot()?;
        self.send_text();
        let took = self.clock.now().saturating_duration_since(started);
        self.desk.ledger().end_section();
        self.learn(num_decoded, slice_len, context_len, took.saturating_sub(choosing));
        Ok(())
    }

    /// Lanes of the section whose next token is chosen within a form.
    fn num_forms(&self) -> usize {
        let has_form =
            |lane: LaneId| self.lanes.used().any(|(held, active)| held == lane && active.sequence.is_bound());
        self.plan.segments.iter().filter(|segment| has_form(segment.lane)).count()
    }

    /// Leads answers that have a form towards their end as their time runs out: from twice the time on that their closing's bytes would take
    /// as tokens nothing new begins, and from once on only what shortens the closing is allowed.
    fn steer(&mut self, num_decoded: usize) {
        let now = self.clock.now();
        for &lane in &self.section.decodes {
            let Some(active) = self.lanes.holder_mut(lane) else { continue };
            let Some(reply_by) = active.job(None).reply_by(&self.limits) else { continue };
            let shape = SectionShape {
                kind: SectionKind::Decode,
                size: num_decoded,
                context_len: active.sequence.committed_len() + 1,
            };
            let step = self.table.typical(shape);
            active.steer(reply_by.saturating_duration_since(now + step), step);
        }
    }

    /// Learns what the section cost, charges background work for its part, and says so when nothing can be promised any more.
    fn learn(&mut self, num_decoded: usize, slice_len: usize, context_len: usize, took: Duration) {
        let shape = |kind, size| SectionShape { kind, size, context_len };
        match (num_decoded, slice_len) {
            (0, 0) => {}
            // Forced tokens of one lane cost less than as many lanes: they teach nothing about those.
            (num, 0) if num > self.plan.segments.len() => {}
            (num, 0) => self.table.record(shape(SectionKind::Decode, num), took),
            (0, len) => self.table.record(shape(SectionKind::Prefill, len), took),
            (num, len) => {
                // Together they cost at most what they cost apart; the decode step's part is known well.
                let decode = self.table.typical(shape(SectionKind::Decode, num));
                self.table.record(shape(SectionKind::Prefill, len), took.saturating_sub(decode));
            }
        }
        let is_background = |lane: LaneId| {
            self.jobs.iter().any(|job| job.lane == Some(lane) && job.class == Class::Background)
        };
        let segments = self.plan.segments.iter();
        let num_background: usize =
            segments.filter(|segment| is_background(segment.lane)).map(|segment| segment.tokens.len()).sum();
        if num_background > 0 {
            self.server.charge(took.mul_f64(num_background as f64 / self.plan.tokens.len() as f64));
        }
        if let Some(reason) = self.table.no_promise()
            && self.desk.is_trusted()
        {
            tracing::warn!("no deadline is promised: {reason}");
            self.desk.withdraw(reason.to_string());
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
}
