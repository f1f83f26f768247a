//! How long one kind of section took: a histogram of bounded size that forgets slowly.

use std::time::Duration;

/// Buckets an octave is divided into: values are kept to within 1/16.
const PER_OCTAVE: usize = 16;
/// Values below are counted in the first bucket.
const FIRST_OCTAVE: u32 = 10; // 1 µs
/// Values beyond the last octave are counted in the last bucket.
const NUM_OCTAVES: usize = 26; // 68 s
/// Samples after which all counts are halved: the newest 500 to 1,000 sections decide.
const MAX_SAMPLES: u32 = 1024;

/// Counts of section costs in logarithmic buckets.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Box<[u16; NUM_OCTAVES * PER_OCTAVE]>,
    num_samples: u32,
    /// Largest sample since the last halving, and before it.
    max: [Duration; 2],
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: Box::new([0; NUM_OCTAVES * PER_OCTAVE]), num_samples: 0, max: [Duration::ZERO; 2] }
    }
}

impl Histogram {
    /// Counts one section. Allocates nothing.
    pub fn record(&mut self, cost: Duration) {
        if self.num_samples >= MAX_SAMPLES {
            self.halve();
        }
        if let Some(count) = self.counts.get_mut(bucket(cost)) {
            *count += 1; // at most MAX_SAMPLES, well below u16's limit
            self.num_samples += 1;
        }
        self.max[0] = self.max[0].max(cost);
    }

    /// Samples that still count.
    #[must_use]
    pub fn num_samples(&self) -> u32 {
        self.num_samples
    }

    /// The cost that `share` of the sections did not exceed, rounded up by at most 1/16 and never above the largest seen;
    /// `None` without samples.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let rank = (f64::from(self.num_samples) * share).ceil().max(1.0);
        let mut seen = 0.0;
        for (bucket, &count) in self.counts.iter().enumerate() {
            seen += f64::from(count);
            if count > 0 && seen >= rank {
                return Some(upper_edge(bucket).min(self.worst()));
            }
        }
        None
    }

    /// The largest of the newest sections; exact.
    #[must_use]
    pub fn worst(&self) -> Duration {
        self.max[0].max(self.max[1])
    }

    fn halve(&mut self) {
        self.counts.iter_mut().for_each(|count| *count /= 2);
        self.num_samples = self.counts.iter().map(|&count| u32::from(count)).sum();
        self.max = [Duration::ZERO, self.max[0]];
    }
}

fn bucket(cost: Duration) -> usize {
    let ns = u64::try_from(cost.as_nanos()).unwrap_or(u64::MAX).max(1);
    let octave = ns.ilog2();
    if octave < FIRST_OCTAVE {
        return 0;
    }
    let within = (ns >> (octave - 4)) as usize & (PER_OCTAVE - 1);
    let idx = (octave - FIRST_OCTAVE) as usize * PER_OCTAVE + within;
    idx.min(NUM_OCTAVES * PER_OCTAVE - 1)
}

fn upper_edge(bucket: usize) -> Duration {
    let (octave, within) = (bucket / PER_OCTAVE, (bucket % PER_OCTAVE) as u64);
    Duration::from_nanos((PER_OCTAVE as u64 + within + 1) << (octave + FIRST_OCTAVE as usize - 4))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_quantile_is_that_of_the_sorted_samples_rounded_up_by_a_sixteenth(
            mut costs_us in prop::collection::vec(1_u64..10_000_000, 1..300), share in 0.0_f64..=1.0,
        ) {
            let mut histogram = Histogram::default();
            for &us in &costs_us {
                histogram.record(Duration::from_micros(us));
            }
            costs_us.sort_unstable();
            let rank = ((costs_us.len() as f64 * share).ceil() as usize).clamp(1, costs_us.len());
            let exact = Duration::from_micros(costs_us[rank - 1]);
            let found = histogram.quantile(share).unwrap();
            prop_assert!(found >= exact.min(histogram.worst()), "{found:?} < {exact:?}");
            prop_assert!(found <= exact.mul_f64(1.0 + 1.0 / 16.0) + Duration::from_micros(1), "{found:?} > {exact:?}");
            prop_assert_eq!(histogram.worst(), Duration::from_micros(*costs_us.last().unwrap()));
        }
    }

    #[test]
    fn a_change_shows_after_as_many_samples_as_are_kept_and_an_old_outlier_is_forgotten() {
        let mut histogram = Histogram::default();
        histogram.record(Duration::from_secs(1));
        for _ in 0..MAX_SAMPLES {
            histogram.record(Duration::from_millis(1));
        }
        assert_eq!(histogram.worst(), Duration::from_secs(1));
        for _ in 0..2 * MAX_SAMPLES {
            histogram.record(Duration::from_millis(3));
        }
        assert!(histogram.quantile(0.5).unwrap() >= Duration::from_millis(3));
        assert!(histogram.worst() == Duration::from_millis(3), "{:?}", histogram.worst());
        assert!(histogram.num_samples() <= MAX_SAMPLES);
    }

    #[test]
    fn the_shortest_and_the_longest_durations_are_counted() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        histogram.record(Duration::ZERO);
        histogram.record(Duration::MAX);
        assert_eq!(histogram.num_samples(), 2);
        assert_eq!(histogram.worst(), Duration::MAX);
    }
}
