//! How long sections take, from those measured: what the planner's predictions rest on until the cost table arrives.

use std::time::Duration;

/// Weight of the newest measurement in the running means.
const NEW_WEIGHT: f64 = 0.2;

/// Running costs of a decode step and of a prefill token.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pace {
    mean_decode_s: f64,
    last_decode_s: f64,
    mean_prefill_token_s: f64,
}

impl Pace {
    /// Records a section of `num_decodes` decode steps and `slice_len` prefill tokens that took `took`.
    pub fn record(&mut self, num_decodes: usize, slice_len: usize, took: Duration) {
        let took_s = took.as_secs_f64();
        if slice_len == 0 {
            if num_decodes > 0 {
                self.last_decode_s = took_s;
                self.mean_decode_s = blend(self.mean_decode_s, took_s);
            }
            return;
        }
        let decode_s = if num_decodes > 0 { self.decode_s().min(took_s) } else { 0.0 };
        self.mean_prefill_token_s = blend(self.mean_prefill_token_s, (took_s - decode_s) / slice_len as f64);
    }

    /// Expected time of a section of decode steps: the last one's or the usual one's, whichever is longer, so that a
    /// sudden slow-down counts at once and a single quick step does not.
    #[must_use]
    pub fn decode(&self) -> Duration {
        seconds(self.decode_s())
    }

    /// Expected time of a section that also holds a prefill slice of `slice_len` tokens.
    #[must_use]
    pub fn section(&self, num_decodes: usize, slice_len: usize) -> Duration {
        let decode_s = if num_decodes > 0 { self.decode_s() } else { 0.0 };
        seconds(decode_s + self.mean_prefill_token_s * slice_len as f64)
    }

    /// Most prefill tokens that fit into `room` beside the decode steps, at most `max_len`.
    #[must_use]
    pub fn slice_within(&self, room: Duration, num_decodes: usize, max_len: usize) -> usize {
        let decode_s = if num_decodes > 0 { self.decode_s() } else { 0.0 };
        let left_s = room.as_secs_f64() - decode_s;
        if self.mean_prefill_token_s <= 0.0 {
            return if left_s >= 0.0 { max_len } else { 0 }; // nothing measured yet: nothing to promise
        }
        let fits = (left_s / self.mean_prefill_token_s).floor().clamp(0.0, max_len as f64);
        fits as usize // within [0, max_len]
    }

    fn decode_s(&self) -> f64 {
        self.mean_decode_s.max(self.last_decode_s)
    }
}

fn blend(mean: f64, new: f64) -> f64 {
    if mean == 0.0 { new } else { mean + NEW_WEIGHT * (new - mean) }
}

fn seconds(s: f64) -> Duration {
    Duration::try_from_secs_f64(s).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_slow_step_counts_at_once_and_a_quick_one_does_not() {
        let mut pace = Pace::default();
        pace.record(1, 0, 2 * MS);
        pace.record(1, 0, 10 * MS);
        assert_eq!(pace.decode(), 10 * MS);
        pace.record(1, 0, MS);
        assert!(pace.decode() > 2 * MS, "{:?}", pace.decode());
    }

    #[test]
    fn a_slice_is_charged_for_what_the_decode_steps_beside_it_do_not_take() {
        let mut pace = Pace::default();
        pace.record(2, 0, 2 * MS);
        pace.record(2, 10, 12 * MS);
        let expected = pace.section(2, 20);
        assert!(
            expected > Duration::from_micros(21_900) && expected < Duration::from_micros(22_100),
            "{expected:?}"
        );
        assert_eq!(pace.slice_within(Duration::from_micros(7_500), 2, 64), 5);
        assert_eq!(pace.slice_within(MS, 2, 64), 0);
    }
}
