//! Where values are on the paper, and which of them get a tick.

/// A linear axis.
#[derive(Debug, Clone, Copy)]
pub struct Axis {
    /// Value at `from`.
    pub start: f64,
    /// Value at `to`.
    pub end: f64,
    /// Place on the paper.
    pub from: f64,
    /// As of `from`.
    pub to: f64,
}

/// Seconds between ticks, and no more than this many ticks.
const STEPS_S: [f64; 20] = [
    0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0,
    7200.0, 21600.0, 86400.0,
];
const MAX_TICKS: f64 = 13.0;
/// From here on seconds are told as minutes.
const LONG_S: f64 = 600.0;

impl Axis {
    /// Where `value` is on the paper.
    pub fn place(self, value: f64) -> f64 {
        self.from + (value - self.start) / (self.end - self.start) * (self.to - self.from)
    }

    /// Ticks of an axis of seconds, with their labels.
    pub fn times(self) -> Vec<(f64, String)> {
        let length = self.end - self.start;
        let step = STEPS_S.into_iter().find(|step| length / step <= MAX_TICKS);
        let step = step.unwrap_or((length / MAX_TICKS / 86400.0).ceil() * 86400.0);
        let first = (self.start / step).ceil();
        let num = ((self.end / step).floor() - first) as usize; // at most MAX_TICKS
        (0..=num)
            .map(|idx| (first + idx as f64) * step)
            .map(|at| (at, if self.end >= LONG_S { minutes(at) } else { format!("{} s", trimmed(at)) }))
            .collect()
    }
}

/// Two decimals at most.
fn trimmed(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// `12.5 s`, `14:03 min`, `2:14:03 h`.
pub fn clock(seconds: f64) -> String {
    if seconds < LONG_S {
        return format!("{} s", (seconds * 10.0).round() / 10.0);
    }
    format!("{} {}", minutes(seconds), if seconds < 3600.0 { "min" } else { "h" })
}

/// `0:30`, `14:03`, `2:14:03`.
fn minutes(seconds: f64) -> String {
    let whole = seconds.round() as u64; // not negative
    let (hours, minutes, seconds) = (whole / 3600, whole / 60 % 60, whole % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_few_and_round_whatever_the_length() {
        for end in [0.05, 1.0, 59.9, 61.0, 3000.0, 40_000.0, 1e7] {
            let axis = Axis { start: 0.0, end, from: 0.0, to: 100.0 };
            let ticks = axis.times();
            assert!((2..=14).contains(&ticks.len()), "{end}: {ticks:?}");
        }
        let axis = Axis { start: 2.5, end: 9.9, from: 0.0, to: 100.0 };
        let labels: Vec<String> = axis.times().into_iter().map(|(_, label)| label).collect();
        assert_eq!(labels, ["3 s", "4 s", "5 s", "6 s", "7 s", "8 s", "9 s"]);
        assert_eq!(
            (clock(12.54), clock(843.0), clock(8043.0)),
            ("12.5 s".into(), "14:03 min".into(), "2:14:03 h".into())
        );
    }
}
