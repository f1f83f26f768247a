//! Waiting for others to come.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Endpoints are matched shortly before or after the graph's change is told, and not every middleware tells of it again.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Told by the dispatcher that somebody came or left.
#[derive(Default)]
pub(super) struct Graph {
    num_changes: Mutex<u64>,
    changed: Condvar,
}

impl Graph {
    /// Wakes whoever waits.
    pub fn note_change(&self) {
        let mut num_changes = self.num_changes.lock().unwrap_or_else(PoisonError::into_inner);
        *num_changes = num_changes.wrapping_add(1);
        self.changed.notify_all();
    }

    /// Waits until `holds`; `false` after `timeout`.
    pub fn wait_for(&self, timeout: Duration, holds: impl Fn() -> bool) -> bool {
        let started = Instant::now();
        loop {
            if holds() {
                return true;
            }
            let left = timeout.saturating_sub(started.elapsed());
            if left.is_zero() {
                return false;
            }
            let num_changes = self.num_changes.lock().unwrap_or_else(PoisonError::into_inner);
            drop(self.changed.wait_timeout(num_changes, left.min(LOOK_AGAIN)));
        }
    }
}
