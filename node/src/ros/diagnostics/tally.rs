//! What is counted for `/diagnostics`: every request's end.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::request::{Reply, Status};
use crate::scheduler::class::Class;

/// Times remembered for percentiles.
const NUM_RECENT: usize = 512;

/// Counts since the node's start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::ros) struct Counts {
    pub complete: u64,
    pub truncated: u64,
    pub closed: u64,
    pub rejected: u64,
    /// Of those rejected, for want of time.
    pub too_late: u64,
    pub cancelled: u64,
    pub failed: u64,
    /// Replies whose deadline was promised.
    pub promised: u64,
    /// Of those, later than promised.
    pub missed: u64,
    /// Tokens of all answers.
    pub tokens: u64,
    /// Replies by class, in the order of [`Class::ALL`].
    pub by_class: [u64; 3],
}

#[derive(Debug, Default)]
struct State {
    counts: Counts,
    /// Times of the last answers with a deadline, and the next to be replaced.
    recent: Vec<Duration>,
    at: usize,
}

/// The counter.
#[derive(Debug, Default)]
pub(in crate::ros) struct Tally(Mutex<State>);

impl Tally {
    /// Counts a reply.
    pub fn count(&self, reply: &Reply, class: Class) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = &mut state.counts;
        match reply.status {
            Status::Complete => counts.complete += 1,
            Status::TruncatedAtDeadline => counts.truncated += 1,
            Status::ClosedAtDeadline => counts.closed += 1,
            Status::Rejected => counts.rejected += 1,
            Status::Cancelled => counts.cancelled += 1,
            Status::Failed => counts.failed += 1,
        }
        counts.too_late += u64::from(reply.earliest_deadline.is_some());
        counts.tokens += u64::try_from(reply.token_ids.len()).unwrap_or(0);
        if let Some(i) = Class::ALL.iter().position(|of| *of == class) {
            counts.by_class[i] += 1;
        }
        // What its asker took back is neither kept nor missed; what broke was missed.
        let was_kept_to = !matches!(reply.status, Status::Rejected | Status::Cancelled);
        let has_failed = reply.status == Status::Failed;
        if reply.is_promised && was_kept_to {
            counts.promised += 1;
            let is_late = reply.timings.deadline.is_some_and(|deadline| reply.timings.total > deadline);
            counts.missed += u64::from(is_late || has_failed);
        }
        if was_kept_to && !has_failed && reply.timings.deadline.is_some() {
            if state.recent.len() < NUM_RECENT {
                state.recent.push(reply.timings.total);
            } else {
                let at = state.at;
                state.recent[at] = reply.timings.total;
                state.at = (at + 1) % NUM_RECENT;
            }
        }
    }

    /// Everything counted.
    pub fn counts(&self) -> Counts {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).counts.clone()
    }

    /// p50, p99 and the longest time of the last answers with a deadline; `None` before the first.
    pub fn recent(&self) -> Option<[Duration; 3]> {
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner).recent.clone();
        recent.sort_unstable();
        let last = recent.len().checked_sub(1)?;
        Some([recent[last / 2], recent[last * 99 / 100], recent[last]])
    }
}
