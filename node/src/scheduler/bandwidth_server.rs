//! A constant-bandwidth server for work without deadlines: it gets a share of the time, and no more of it than that counts
//! against the deadlines of others (Abeni and Buttazzo, "Integrating multimedia applications in hard real-time systems", 1998).
//!
//! Background sections run under the server's deadline. What they take is charged to its budget; a budget that is used up is
//! filled again at once, and the deadline moves one period back. So background work runs whenever nobody else wants the
//! device, and under load falls behind everybody whose deadline is nearer than its own.

use std::time::{Duration, Instant};

/// The share: `budget` in every `period`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bandwidth {
    /// Time for background sections in a period; zero leaves them only what the others do not use.
    pub budget: Duration,
    /// The period; longer than zero.
    pub period: Duration,
}

impl Default for Bandwidth {
    fn default() -> Self {
        Self { budget: Duration::from_millis(5), period: Duration::from_millis(100) }
    }
}

/// The server's state.
#[derive(Debug, Clone, Copy)]
pub struct BandwidthServer {
    bandwidth: Bandwidth,
    left: Duration,
    deadline: Option<Instant>,
    has_work: bool,
}

impl BandwidthServer {
    /// A server without work.
    #[must_use]
    pub fn new(bandwidth: Bandwidth) -> Self {
        Self { bandwidth, left: bandwidth.budget, deadline: None, has_work: false }
    }

    /// Says whether there is background work; new work after a pause may start a new period.
    pub fn set_work(&mut self, has_work: bool, now: Instant) {
        if has_work && !self.has_work && !self.keeps_deadline(now) {
            self.deadline = now.checked_add(self.bandwidth.period);
            self.left = self.bandwidth.budget;
        }
        self.has_work = has_work;
    }

    /// The deadline background work runs under; `None` (behind everybody) without a budget.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline.filter(|_| !self.bandwidth.budget.is_zero())
    }

    /// The server as another thread sees it.
    #[must_use]
    pub fn as_published(
        bandwidth: Bandwidth,
        left: Duration,
        deadline: Option<Instant>,
        has_work: bool,
    ) -> Self {
        Self { bandwidth, left, deadline, has_work }
    }

    /// Whether there is background work.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.has_work
    }

    /// Its deadline while it has work.
    #[must_use]
    pub fn busy_until(&self) -> Option<Instant> {
        self.deadline().filter(|_| self.has_work)
    }

    /// What is left of its budget.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.left
    }

    /// Takes `cost` off the budget.
    pub fn charge(&mut self, cost: Duration) {
        if self.bandwidth.budget.is_zero() {
            return;
        }
        let mut cost = cost;
        while cost >= self.left {
            cost -= self.left;
            self.left = self.bandwidth.budget;
            self.deadline = self.deadline.and_then(|deadline| deadline.checked_add(self.bandwidth.period));
        }
        self.left -= cost;
    }

    /// Most time the server may claim in `[now, until]` ahead of somebody whose deadline is `until`, with the work it has or with
    /// work that comes: its share of that time, more when it is behind with its budget, less when it is ahead. Grows slower than
    /// `until`, and falls by what the server takes, so that a promise that counted on it stays possible.
    #[must_use]
    pub fn demand_until(&self, until: Instant, now: Instant) -> Duration {
        let share = self.share_of(until.saturating_duration_since(now));
        let Some(deadline) = self.deadline else { return share };
        let due = self.share_of(deadline.saturating_duration_since(now));
        if self.left <= due {
            share.saturating_sub(due - self.left)
        } else if self.has_work {
            share + (self.left - due)
        } else {
            share // too much is left to keep the deadline: work that comes starts a new period
        }
    }

    /// `budget / period` of `time`, rounded up.
    fn share_of(&self, time: Duration) -> Duration {
        let period = self.bandwidth.period.as_nanos().max(1);
        let ns = (time.as_nanos() * self.bandwidth.budget.as_nanos()).div_ceil(period);
        Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
    }

    /// Whether the rest of the budget may still be used under the old deadline without exceeding the share.
    fn keeps_deadline(&self, now: Instant) -> bool {
        let Some(deadline) = self.deadline else { return false };
        let room = deadline.saturating_duration_since(now);
        // left / room < budget / period
        self.left.as_nanos() * self.bandwidth.period.as_nanos()
            < self.bandwidth.budget.as_nanos() * room.as_nanos()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const BANDWIDTH: Bandwidth =
        Bandwidth { budget: Duration::from_millis(5), period: Duration::from_millis(50) };

    #[test]
    fn a_budget_used_up_moves_the_deadline_one_period_back() {
        let now = Instant::now();
        let mut server = BandwidthServer::new(BANDWIDTH);
        server.set_work(true, now);
        assert_eq!(server.deadline(), Some(now + 50 * MS));
        server.charge(4 * MS);
        assert_eq!(server.deadline(), Some(now + 50 * MS));
        server.charge(8 * MS); // 12 of 5 a period
        assert_eq!(server.deadline(), Some(now + 150 * MS));
        // 12 ms have been taken; under deadlines up to 150 ms there are 3 more.
        assert_eq!(server.demand_until(now + 150 * MS, now + 12 * MS), 3 * MS);
        assert_eq!(server.demand_until(now + 250 * MS, now + 12 * MS), 13 * MS);
        let later = now + 140 * MS;
        assert_eq!(
            server.demand_until(now + 150 * MS, later),
            MS + 2 * MS,
            "3 ms in the last 10: 2 are behind"
        );
    }

    #[test]
    fn work_after_a_long_pause_starts_a_new_period_and_after_a_short_one_does_not() {
        let now = Instant::now();
        let mut server = BandwidthServer::new(BANDWIDTH);
        server.set_work(true, now);
        server.charge(4 * MS);
        server.set_work(false, now + 4 * MS);
        server.set_work(true, now + 5 * MS);
        assert_eq!(server.deadline(), Some(now + 50 * MS), "1 ms in 45 is less than the share");
        server.set_work(false, now + 6 * MS);
        server.set_work(true, now + 49 * MS);
        assert_eq!(server.deadline(), Some(now + 99 * MS), "1 ms in 1 would be more than the share");
    }

    #[test]
    fn without_a_budget_background_work_has_no_deadline_and_claims_nothing() {
        let now = Instant::now();
        let mut server = BandwidthServer::new(Bandwidth { budget: Duration::ZERO, period: 50 * MS });
        server.set_work(true, now);
        server.charge(10 * MS);
        assert_eq!((server.deadline(), server.demand_until(now + 1000 * MS, now)), (None, Duration::ZERO));
    }

    proptest! {
        /// Whatever the pattern of work, sections run under deadlines up to `t` take at most the share of `[start, t]`.
        #[test]
        fn what_runs_under_deadlines_up_to_t_never_exceeds_the_share(
            steps in prop::collection::vec((0_u32..80, 1_u32..7), 1..80), horizon_ms in 1_u32..1500,
        ) {
            let start = Instant::now();
            let horizon = start + horizon_ms * MS;
            let mut server = BandwidthServer::new(BANDWIDTH);
            let (mut now, mut under_horizon) = (start, Duration::ZERO);
            let promised = server.demand_until(horizon, start);
            for (pause_ms, cost_ms) in steps {
                if pause_ms > 0 {
                    server.set_work(false, now);
                    now += pause_ms * MS;
                }
                server.set_work(true, now);
                // In pieces of 0.1 ms, so that each piece has one deadline.
                for _ in 0..cost_ms * 10 {
                    if server.deadline().unwrap() <= horizon {
                        under_horizon += MS / 10;
                    }
                    server.charge(MS / 10);
                    now += MS / 10;
                }
            }
            let share = BANDWIDTH.budget.as_secs_f64() / BANDWIDTH.period.as_secs_f64();
            let most = share * horizon.saturating_duration_since(start).as_secs_f64();
            prop_assert!(under_horizon.as_secs_f64() <= most + 1e-9, "{under_horizon:?} of {most}");
            prop_assert!(under_horizon + server.demand_until(horizon, now) <= promised + MS / 1000 * 2);
        }
    }
}
