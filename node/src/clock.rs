//! Where the time comes from: the monotonic clock in service, a simulated one in tests.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// A monotonic clock.
pub trait Clock: Send {
    /// The current instant.
    fn now(&self) -> Instant;

    /// Lets `length` pass asleep.
    fn sleep(&self, length: Duration);
}

/// The system's monotonic clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct MonotonicClock;

impl Clock for MonotonicClock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn sleep(&self, length: Duration) {
        std::thread::sleep(length);
    }
}

/// A clock that stands still until it is moved; clones share the time.
#[derive(Debug, Clone)]
pub struct VirtualClock {
    start: Instant,
    elapsed_ns: Arc<AtomicU64>,
}

impl Default for VirtualClock {
    fn default() -> Self {
        Self { start: Instant::now(), elapsed_ns: Arc::default() }
    }
}

impl VirtualClock {
    /// Moves the time forward; more than 584 years is not representable and stops there.
    pub fn advance(&self, by: Duration) {
        let ns = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        self.elapsed_ns.fetch_add(ns, Ordering::SeqCst);
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Instant {
        self.start + Duration::from_nanos(self.elapsed_ns.load(Ordering::SeqCst))
    }

    fn sleep(&self, length: Duration) {
        self.advance(length);
    }
}
