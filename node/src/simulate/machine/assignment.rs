//! Who gets a lane, as the worker decides it.

use std::time::Duration;

use super::{Machine, Running};
use crate::scheduler::{
    class::Class,
    edf::Rank,
    job::Job,
    preemption::victim,
    safety::{Situation, is_pressed},
    waiting_room::{Line, background_due},
};

impl Machine<'_> {
    pub(super) fn enqueue(&mut self, running: Running) {
        // Without an order by deadlines there is one queue for all.
        let (line, rank) = if self.settings.policy.orders_by_deadline() {
            (Line::of(&self.job(None, &running)), running.rank)
        } else {
            (Line::Interactive, Rank { deadline: None, ..running.rank })
        };
        if let Err(running) = self.queue.push(line, rank, running) {
            self.finish(running, false); // every slot has a place, so this cannot be
        }
    }

    /// Ends those who wait and must reply before a section of `bound` would end.
    pub(super) fn end_late_waiting(&mut self, bound: Duration) {
        let late_at = self.now + self.settings.limits.reply_margin + bound;
        let late = self
            .queue
            .take_if(|_, running| running.rank.deadline.is_some_and(|deadline| deadline <= late_at));
        for running in late {
            self.finish(running, false);
        }
    }

    pub(super) fn fill_lanes(&mut self) {
        loop {
            let holds_background =
                self.lanes.used().any(|(_, running)| self.class(running) == Class::Background);
            let (num_lanes, num_free) = (self.settings.num_lanes, self.lanes.num_free());
            let due = background_due(&self.server, holds_background, num_lanes, num_free);
            let Some(line) = self.queue.next_line(due) else { return };
            let Some((_, running)) = self.queue.pop(line) else { return };
            if self.lanes.num_free() == 0 && !self.free_lane_for(running) {
                return self.enqueue(running);
            }
            let Some(choice) = self.lanes.choose(&[]) else { return self.enqueue(running) };
            if let Err(running) = self.lanes.occupy(choice.lane, running) {
                self.finish(running, false);
            }
        }
    }

    /// Takes a lane from somebody less urgent; whoever held it waits again, keeping what was computed.
    fn free_lane_for(&mut self, head: Running) -> bool {
        if !self.settings.policy.orders_by_deadline() {
            return false;
        }
        let waiting = self.job(None, &head);
        let mut jobs: Vec<Job> =
            self.lanes.used().map(|(lane, running)| self.job(Some(lane), running)).collect();
        let num_holders = jobs.len();
        jobs.extend(self.queue.iter().map(|(_, running)| self.job(None, running)));
        let situation = Situation {
            now: self.now,
            limits: &self.settings.limits,
            bounds: self.table.bounds(),
            server: &self.server,
            round: None,
        };
        let is_pressed = is_pressed(&waiting, &jobs, num_holders, &situation);
        let found = victim(&waiting, is_pressed, &jobs[..num_holders]);
        let Some(running) = found.and_then(|lane| self.lanes.release(lane)) else {
            return false;
        };
        self.run.num_preemptions += 1;
        self.enqueue(running);
        true
    }
}
