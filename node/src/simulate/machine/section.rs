//! One section: how long it takes, who it charges, whom it advances.

use std::time::Duration;

use takt_engine::kv::LaneId;

use super::{Machine, Outcome, Record, Running};
use crate::scheduler::{
    class::Class,
    cost_table::{SectionKind, SectionShape},
    cut::is_out_of_time,
    job::section_cost,
};

impl Machine<'_> {
    pub(super) fn run_section(&mut self) {
        let context = |machine: &Self, lane: LaneId| {
            let job = machine.plain_jobs.iter().find(|job| job.lane == Some(lane));
            job.map_or(0, |job| job.context_len)
        };
        let slice_len = self.section.prefill.map_or(0, |(_, len)| len);
        let num_decodes = self.section.decodes.len() + self.section.num_forced;
        let num_forced = self.section.num_forced;
        let decoding =
            self.section.decodes.iter().map(|&lane| context(self, lane) + 1 + num_forced).max().unwrap_or(0);
        let reading = self.section.prefill.map_or(0, |(lane, len)| context(self, lane) + len);
        let context_len = decoding.max(reading);
        let bound = section_cost(num_decodes, slice_len, context_len, self.table.bounds());
        let took = self.draw(num_decodes, slice_len, context_len).min(bound);
        let idle_gap = self.settings.limits.idle_gap;
        self.ledger.begin_section(self.now + bound + idle_gap);
        self.note_progress();
        self.arrive(self.now + took);
        self.ledger.end_section();
        self.record(took);
        let decoded = self.decoded();
        self.charge(took + idle_gap, &decoded);
        self.now += took;
        self.run.busy += took;
        self.run.num_sections += 1;
        if let Some((lane, len)) = self.section.prefill {
            self.advance(lane, len, 0);
        }
        for (lane, num_tokens) in decoded {
            self.advance(lane, 0, num_tokens - 1);
        }
        self.leave_gap();
    }

    /// As the worker does: whoever's time runs out before the next section is answered first.
    fn leave_gap(&mut self) {
        let idle_gap = self.settings.limits.idle_gap;
        if idle_gap.is_zero() {
            return;
        }
        let ready = self.now + idle_gap;
        self.ledger.begin_section(ready);
        self.end_late_waiting(idle_gap);
        let (limits, bounds) = (&self.settings.limits, self.table.bounds());
        let late: Vec<LaneId> = self
            .lanes
            .used()
            .filter(|(lane, running)| is_out_of_time(&self.job(Some(*lane), running), ready, limits, bounds))
            .map(|(lane, _)| lane)
            .collect();
        for lane in late {
            self.reply(lane, false);
        }
        self.arrive(ready);
        self.ledger.end_section();
        self.now = ready;
    }

    /// What is left of the slice's promise after the section, whose time the ledger counts already.
    fn note_progress(&self) {
        let Some((lane, len)) = self.section.prefill else { return };
        if let Some((_, running)) = self.lanes.used().find(|(held, _)| *held == lane) {
            let demand = &self.demands[running.demand];
            self.ledger.progress(running.slot, self.mandatory(demand, running.num_read + len));
        }
    }

    /// What a section really takes: mostly its median, now and then its 99th percentile.
    fn draw(&mut self, num_decodes: usize, slice_len: usize, context_len: usize) -> Duration {
        let is_slow = self.random.unit() < 0.05;
        let cost = |kind, size| {
            let shape = SectionShape { kind, size, context_len };
            if size == 0 {
                Duration::ZERO
            } else if is_slow {
                self.table.bound(shape)
            } else {
                self.table.typical(shape)
            }
        };
        cost(SectionKind::Decode, num_decodes) + cost(SectionKind::Prefill, slice_len)
    }

    fn record(&mut self, took: Duration) {
        if self.run.records.len() >= self.settings.max_records {
            return;
        }
        let demand = |lane: LaneId| {
            let held = self.lanes.used().find(|(held, _)| *held == lane);
            held.map_or(usize::MAX, |(_, running)| running.demand)
        };
        self.run.records.push(Record {
            start: self.now.saturating_duration_since(self.start),
            took,
            slice: self.section.prefill.map(|(lane, len)| (lane, demand(lane), len)),
            decodes: self.section.decodes.iter().map(|&lane| (lane, demand(lane))).collect(),
        });
    }

    /// The section's decoding lanes with the tokens each advances by, forced ones included.
    fn decoded(&self) -> Vec<(LaneId, usize)> {
        let mut left = self.section.num_forced;
        let tokens_of = |&lane: &LaneId| {
            let held = self.lanes.used().find(|(held, _)| *held == lane);
            let along = held.map_or(0, |(_, running)| self.num_forced(running)).min(left);
            left -= along;
            (lane, 1 + along)
        };
        self.section.decodes.iter().map(tokens_of).collect()
    }

    /// Charges background work for its part of the section's tokens.
    fn charge(&mut self, took: Duration, decoded: &[(LaneId, usize)]) {
        let class =
            |lane: LaneId| self.plain_jobs.iter().find(|job| job.lane == Some(lane)).map(|job| job.class);
        let tokens = || decoded.iter().copied().chain(self.section.prefill);
        let own: usize =
            tokens().filter(|(lane, _)| class(*lane) == Some(Class::Background)).map(|(_, len)| len).sum();
        let all: usize = tokens().map(|(_, len)| len).sum();
        if own > 0 {
            self.server.charge(took.mul_f64(own as f64 / all as f64));
        }
        if own == all {
            self.run.background += took;
        }
    }

    /// Notes that `lane` has read `num_read` more tokens (0: that it has written one, and `num_forced` along with it); replies when its
    /// answer is whole.
    fn advance(&mut self, lane: LaneId, num_read: usize, num_forced: usize) {
        let Some(&held) = self.lanes.holder_mut(lane).map(|running| &*running) else { return };
        let demand = &self.demands[held.demand];
        let mut running = Running { num_read: held.num_read + num_read, ..held };
        if running.num_read == demand.prompt_len {
            running.num_written += 1 + num_forced; // the prompt's end gives the first token
        }
        if num_read > 0 {
            running.mandatory = self.mandatory(demand, running.num_read);
        }
        if let Some(held) = self.lanes.holder_mut(lane) {
            *held = running;
        }
        if running.num_written >= demand.answer_len {
            self.reply(lane, true);
        }
    }

    pub(super) fn reply(&mut self, lane: LaneId, is_complete: bool) {
        if let Some(running) = self.lanes.release(lane) {
            self.finish(running, is_complete);
        }
    }

    pub(super) fn finish(&mut self, running: Running, is_complete: bool) {
        self.ledger.release(running.slot);
        let at = self.now.saturating_duration_since(self.start);
        self.run.outcomes[running.demand] =
            Outcome::Replied { at, num_tokens: running.num_written, is_complete };
    }
}
