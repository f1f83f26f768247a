//! Where values lie: percentiles by nearest rank, so that each is a value that was measured.

use serde::Serialize;

/// The upper part of a distribution: of what should be small.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// How many values.
    pub num: usize,
    /// Half are no larger.
    pub p50: f64,
    /// Nine of ten are no larger.
    pub p90: f64,
    /// All but one of a hundred are no larger.
    pub p99: f64,
    /// None is larger.
    pub max: f64,
}

impl Spread {
    /// Of `values`; `None` if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let sorted = sorted(values);
        Some(Self {
            num: sorted.len(),
            p50: rank(&sorted, 0.5)?,
            p90: rank(&sorted, 0.9)?,
            p99: rank(&sorted, 0.99)?,
            max: *sorted.last()?,
        })
    }
}

/// The lower part of a distribution: of what should be large.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Slack {
    /// None is smaller.
    pub min: f64,
    /// One of a hundred is no larger.
    pub p1: f64,
    /// Half are no larger.
    pub p50: f64,
}

impl Slack {
    /// Of `values`; `None` if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let sorted = sorted(values);
        Some(Self { min: *sorted.first()?, p1: rank(&sorted, 0.01)?, p50: rank(&sorted, 0.5)? })
    }
}

fn sorted(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The smallest value that so large a share of all values does not exceed.
fn rank(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (share * sorted.len() as f64).ceil() as usize; // at most the length
    sorted.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_by_nearest_rank() {
        let spread = Spread::of((1..=200).rev().map(f64::from)).unwrap();
        assert_eq!(
            (spread.num, spread.p50, spread.p90, spread.p99, spread.max),
            (200, 100.0, 180.0, 198.0, 200.0)
        );
        let slack = Slack::of((1..=200).map(f64::from)).unwrap();
        assert_eq!((slack.min, slack.p1, slack.p50), (1.0, 2.0, 100.0));
        let one = Spread::of([7.0]).unwrap();
        assert_eq!((one.p50, one.p99, one.max), (7.0, 7.0, 7.0));
        assert_eq!(Spread::of([]), None);
        assert_eq!(Slack::of([]), None);
    }
}
