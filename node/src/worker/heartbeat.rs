//! Whether the worker still gets anywhere: each time it begins something it says by when it will have said so again.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// When the next sign of life is due. Written by the worker, read by whoever watches over it.
#[derive(Debug)]
pub(super) struct Heartbeat {
    started: Instant,
    /// Milliseconds after `started`.
    due_ms: AtomicU64,
}

impl Heartbeat {
    /// The first sign is due within `allowed`.
    pub fn new(allowed: Duration) -> Self {
        let heart = Self { started: Instant::now(), due_ms: AtomicU64::new(0) };
        heart.beat(allowed);
        heart
    }

    /// Alive; the next sign comes within `allowed`.
    pub fn beat(&self, allowed: Duration) {
        self.beat_at(self.started.elapsed(), allowed);
    }

    /// How long the next sign has been due; `None` while there is time.
    pub fn overdue(&self) -> Option<Duration> {
        self.overdue_at(self.started.elapsed())
    }

    /// How long until the next sign is due; zero when it is.
    pub fn due_within(&self) -> Duration {
        Duration::from_millis(self.due_ms.load(Ordering::Relaxed)).saturating_sub(self.started.elapsed())
    }

    fn beat_at(&self, now: Duration, allowed: Duration) {
        let due_ms = now.saturating_add(allowed).as_millis();
        // SYNC POINT: nothing else is read because of this number, so its order among other writes does not matter.
        self.due_ms.store(u64::try_from(due_ms).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn overdue_at(&self, now: Duration) -> Option<Duration> {
        now.checked_sub(Duration::from_millis(self.due_ms.load(Ordering::Relaxed)))
            .filter(|late| !late.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_late_only_after_the_time_it_asked_for() {
        let heart = Heartbeat::new(Duration::ZERO);
        let at = Duration::from_secs;
        heart.beat_at(at(10), at(30));
        assert_eq!(heart.overdue_at(at(40)), None);
        assert_eq!(heart.overdue_at(at(43)), Some(at(3)));
        heart.beat_at(at(43), at(900));
        assert_eq!(heart.overdue_at(at(900)), None);
        heart.beat_at(at(900), Duration::MAX);
        assert_eq!(heart.overdue_at(at(1_000_000)), None);
    }
}
