//! What a played trace comes to.

use std::time::Duration;

use serde::Serialize;

use super::{Demand, Outcome, Run};
use crate::scheduler::class::Class;

/// Counts of one class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct ClassReport {
    /// Requests that came.
    pub num_requests: u64,
    /// Refused on arrival.
    pub num_rejected: u64,
    /// Let in, but without an answer at the deadline: late, or cut before the first token.
    pub num_missed: u64,
    /// Answered in time (background work: at all).
    pub num_answered: u64,
    /// Of those, with the whole answer.
    pub num_complete: u64,
    /// Tokens of all answers that were in time.
    pub num_tokens: u64,
}

/// A run in figures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Requests with a promised deadline.
    pub control: ClassReport,
    /// Requests with a deadline that is not promised.
    pub interactive: ClassReport,
    /// Requests without one.
    pub background: ClassReport,
    /// Seconds the trace took.
    pub length_s: f64,
    /// Share of the time in which sections ran.
    pub utilisation: f64,
    /// Answers in time to requests with a deadline, a second.
    pub goodput: f64,
    /// Sections that ran.
    pub num_sections: u64,
    /// Requests that lost their lane to a more urgent one.
    pub num_preemptions: u64,
    /// Latest reply to an admitted request with a deadline, after that deadline, in milliseconds.
    pub max_late_ms: f64,
}

impl Report {
    /// The figures of `run`, which played `demands`.
    #[must_use]
    pub fn of(demands: &[Demand], run: &Run) -> Self {
        let mut classes = [ClassReport::default(); 3];
        let mut max_late = Duration::ZERO;
        for (demand, outcome) in demands.iter().zip(&run.outcomes) {
            let report = &mut classes[demand.class as usize];
            report.num_requests += 1;
            let Outcome::Replied { at, num_tokens, is_complete } = *outcome else {
                report.num_rejected += 1;
                continue;
            };
            let late =
                demand.allowed.map_or(Duration::ZERO, |allowed| at.saturating_sub(demand.arrival + allowed));
            max_late = max_late.max(late);
            if num_tokens == 0 || !late.is_zero() {
                report.num_missed += 1;
            } else {
                report.num_answered += 1;
                report.num_complete += u64::from(is_complete);
                report.num_tokens += num_tokens as u64;
            }
        }
        let length_s = run.length.as_secs_f64();
        let per_second = |value: f64| if length_s > 0.0 { value / length_s } else { 0.0 };
        let [control, interactive, background] = classes;
        Self {
            control,
            interactive,
            background,
            length_s,
            utilisation: per_second(run.busy.as_secs_f64()),
            goodput: per_second((control.num_answered + interactive.num_answered) as f64),
            num_sections: run.num_sections,
            num_preemptions: run.num_preemptions,
            max_late_ms: max_late.as_secs_f64() * 1e3,
        }
    }

    /// The classes with their figures.
    #[must_use]
    pub fn classes(&self) -> [(Class, ClassReport); 3] {
        [
            (Class::Control, self.control),
            (Class::Interactive, self.interactive),
            (Class::Background, self.background),
        ]
    }
}
