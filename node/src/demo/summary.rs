//! What the demo measured.

use std::time::Duration;

use super::{control::Answer, robot::Action, situation::Situation};

/// One question and what became of it.
#[derive(Debug, Clone)]
pub struct Exchange {
    /// Position in the script.
    pub situation_idx: usize,
    /// `complete`, `truncated_at_deadline`, …; `lost` when no reply came.
    pub status: String,
    /// The answer, or the reason why there is none.
    pub text: String,
    /// What the robot makes of it.
    pub action: Action,
    /// Whether the answer is JSON.
    pub is_json: bool,
    /// Whether it is the right one.
    pub is_expected: bool,
    /// Asked to answered, as the robot sees it.
    pub round_trip: Duration,
    /// Time allowed.
    pub deadline: Duration,
    /// Asked to first token, in the node.
    pub ttft_ms: Option<f64>,
    /// Tokens of the answer.
    pub num_tokens: u32,
}

impl Exchange {
    /// Judges `answer` to `situation`.
    #[must_use]
    pub fn new(situation: &Situation, answer: Answer) -> Self {
        let (status, text, ttft_ms, num_tokens) = match answer.reply {
            Ok(reply) => {
                let ttft_ms = Some(reply.ttft_ms).filter(|ms| ms.is_finite());
                let text = if reply.text.is_empty() { reply.reason } else { reply.text };
                (reply.status, text, ttft_ms, reply.num_tokens)
            }
            Err(error) => ("lost".into(), error.to_string(), None, 0),
        };
        Self {
            situation_idx: answer.situation_idx,
            action: Action::from_answer(&text),
            is_json: serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok(),
            is_expected: situation.is_answered_by(&text),
            round_trip: answer.round_trip,
            deadline: situation.deadline(),
            status,
            text,
            ttft_ms,
            num_tokens,
        }
    }

    /// Whether the robot had the reply by its deadline.
    #[must_use]
    pub fn is_in_time(&self) -> bool {
        self.status != "lost" && self.round_trip <= self.deadline
    }
}

/// How steadily the control loop ran.
#[derive(Debug, Clone, Default)]
pub struct LoopTimes {
    /// Ticks run.
    pub num_ticks: u32,
    /// Ticks that ran while an answer was awaited.
    pub ticks_while_waiting: u32,
    lateness: Vec<Duration>,
    longest_work: Duration,
}

impl LoopTimes {
    /// Notes how late a tick began.
    pub fn note_tick(&mut self, late: Duration) {
        self.num_ticks += 1;
        self.lateness.push(late);
    }

    /// Notes how long a tick's work took.
    pub fn note_work(&mut self, took: Duration) {
        self.longest_work = self.longest_work.max(took);
    }

    /// Longest work of a tick.
    #[must_use]
    pub fn longest_work(&self) -> Duration {
        self.longest_work
    }

    /// Lateness that `share` (0 to 1) of the ticks stay within.
    #[must_use]
    pub fn jitter(&self, share: f64) -> Duration {
        percentile(&self.lateness, share)
    }
}

/// All of it.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// Every question that was answered or lost.
    pub exchanges: Vec<Exchange>,
    /// The control loop.
    pub times: LoopTimes,
}

impl Summary {
    /// Questions for which `holds` is true.
    #[must_use]
    pub fn count(&self, holds: impl Fn(&Exchange) -> bool) -> usize {
        self.exchanges.iter().filter(|exchange| holds(exchange)).count()
    }

    /// Round trip that `share` (0 to 1) of the answers stay within.
    #[must_use]
    pub fn latency(&self, share: f64) -> Duration {
        let round_trips: Vec<Duration> = self.exchanges.iter().map(|exchange| exchange.round_trip).collect();
        percentile(&round_trips, share)
    }
}

/// Nearest-rank percentile; zero for no values.
#[must_use]
pub fn percentile(values: &[Duration], share: f64) -> Duration {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let rank = (share.clamp(0.0, 1.0) * sorted.len() as f64).ceil() as usize; // within [0, len]
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let ms = Duration::from_millis;
        let values: Vec<Duration> = (1..=100).rev().map(ms).collect();
        assert_eq!(percentile(&values, 0.5), ms(50));
        assert_eq!(percentile(&values, 0.99), ms(99));
        assert_eq!(percentile(&values, 1.0), ms(100));
        assert_eq!(percentile(&values, 0.0), ms(1));
        assert_eq!(percentile(&[], 0.5), Duration::ZERO);
    }
}
