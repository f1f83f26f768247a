//! How much speculation may lose, so that a run is never much slower than a plain one, however wrong every estimate is.

use std::time::Duration;

/// Share of plain decoding's time that may be lost.
const SHARE: f64 = 0.015;

/// Share of plain decoding's time that probes may take.
const PROBE_SHARE: f64 = 0.01;

/// Plain steps that may be lost at once: what a start and a change for the worse cost. Below 1 % of a run of 1,500 steps.
const MAX_STEPS: f64 = 12.0;

/// A purse: every token fills it by [`SHARE`] of the time it takes to decode plainly, lost time empties it, won time fills it, up to
/// [`MAX_STEPS`]. So over any stretch of a run, not only over all of it, at most that much is lost, and one round.
#[derive(Debug, Clone)]
pub(super) struct Allowance {
    left_ms: f64,
    /// Of the round in progress: a plain step.
    step_ms: f64,
    is_started: bool,
    /// Plain time since the last probe.
    since_probe_ms: f64,
    /// A probe that won is followed by another at once.
    is_promising: bool,
    /// All rounds, and what plain decoding would have taken for their tokens.
    pub rounds: Duration,
    pub plain_equivalent: Duration,
}

impl Allowance {
    pub fn new() -> Self {
        Self {
            left_ms: 0.0,
            step_ms: 0.0,
            is_started: false,
            since_probe_ms: 0.0,
            is_promising: false,
            rounds: Duration::ZERO,
            plain_equivalent: Duration::ZERO,
        }
    }

    /// Notes what a plain step takes now.
    pub fn begin_round(&mut self, step_ms: f64) {
        self.step_ms = step_ms;
        if !self.is_started {
            self.is_started = true;
            self.left_ms = MAX_STEPS * step_ms;
        }
    }

    /// Whether a round may be risked.
    pub fn is_positive(&self) -> bool {
        self.left_ms > 0.0
    }

    /// Whether a probe may be risked that loses `loss_ms` if nothing is accepted.
    pub fn covers_probe(&self, loss_ms: f64) -> bool {
        let is_due = self.is_promising || self.since_probe_ms * PROBE_SHARE >= loss_ms;
        is_due && self.left_ms >= loss_ms
    }

    /// A probe that was tried and was faster than plain decoding, or not.
    pub fn record_probe(&mut self, has_won: bool) {
        self.is_promising = has_won;
        self.since_probe_ms = 0.0;
    }

    pub fn record_round(&mut self, took: Duration, plain_equivalent: Duration) {
        self.rounds += took;
        self.plain_equivalent += plain_equivalent;
        let (took_ms, plain_ms) = (ms(took), ms(plain_equivalent));
        self.add((1.0 + SHARE) * plain_ms - took_ms);
    }

    pub fn record_plain(&mut self, took: Duration) {
        self.since_probe_ms += ms(took);
        self.add(SHARE * ms(took));
    }

    fn add(&mut self, won_ms: f64) {
        self.left_ms = (self.left_ms + won_ms).min(MAX_STEPS * self.step_ms);
    }
}

/// Milliseconds, for arithmetic.
pub(super) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(10);

    fn started() -> Allowance {
        let mut allowance = Allowance::new();
        assert!(!allowance.is_positive());
        allowance.begin_round(10.0);
        allowance
    }

    #[test]
    fn losses_end_when_the_purse_is_empty_and_plain_steps_fill_it_again() {
        let mut allowance = started();
        let mut num_rounds = 0;
        while allowance.is_positive() {
            allowance.record_round(2 * STEP, STEP);
            num_rounds += 1;
        }
        assert_eq!(num_rounds, 13, "twelve steps lost, and a little earned");
        let (mut lost, mut total) = (0, 0);
        for _ in 0..10_000 {
            allowance.begin_round(10.0);
            if allowance.is_positive() {
                allowance.record_round(2 * STEP, STEP);
                lost += 1;
            } else {
                allowance.record_plain(STEP);
            }
            total += 1;
        }
        assert!((140..=152).contains(&lost), "{lost} of {total}");
    }

    #[test]
    fn gains_are_not_hoarded_beyond_what_a_change_for_the_worse_may_cost() {
        let mut allowance = started();
        (0..1000).for_each(|_| allowance.record_round(STEP, 3 * STEP));
        let num_rounds = (0..100).take_while(|_| {
            allowance.record_round(2 * STEP, STEP);
            allowance.is_positive()
        });
        assert_eq!(num_rounds.count(), 12);
        assert_eq!((allowance.rounds, allowance.plain_equivalent), (1026 * STEP, 3013 * STEP));
    }

    #[test]
    fn probes_are_rare_unless_they_win() {
        let mut allowance = started();
        assert!(!allowance.covers_probe(2.0), "nothing decoded plainly yet");
        (0..20).for_each(|_| allowance.record_plain(STEP));
        assert!(allowance.covers_probe(2.0) && !allowance.covers_probe(2.1));
        allowance.record_probe(false);
        assert!(!allowance.covers_probe(2.0));
        allowance.record_probe(true);
        assert!(allowance.covers_probe(2.0) && !allowance.covers_probe(121.0));
    }
}
