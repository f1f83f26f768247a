//! Traces: one request a line of JSON, or drawn at random.
//!
//! ```json
//! {"arrival_ms": 12.5, "class": "control", "deadline_ms": 100, "prompt_len": 60, "answer_len": 20}
//! ```

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::scheduler::class::Class;

use crate::random::SplitMix64;

/// Most requests of one trace.
const MAX_DEMANDS: usize = 10_000_000;
/// Longest prompt or answer of a trace, in tokens.
const MAX_LEN: usize = 1 << 20;

/// One request of a trace.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Demand {
    /// When it comes, from the trace's start.
    pub arrival: Duration,
    /// What it is promised.
    pub class: Class,
    /// Time from its arrival to its deadline; `None` for background work.
    pub allowed: Option<Duration>,
    /// Tokens of its prompt.
    pub prompt_len: usize,
    /// Tokens of its complete answer.
    pub answer_len: usize,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    arrival_ms: f64,
    class: Option<Class>,
    deadline_ms: Option<f64>,
    prompt_len: usize,
    answer_len: usize,
}

/// A line that is no request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "line {line}: {fact}; expected e.g. {{\"arrival_ms\": 12.5, \"class\": \"control\", \"deadline_ms\": 100, \
     \"prompt_len\": 60, \"answer_len\": 20}}"
)]
pub struct TraceError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong.
    pub fact: String,
}

/// Reads a trace; empty lines are skipped, the order of arrivals does not matter.
///
/// # Errors
/// The first line that is no request.
pub fn parse(text: &str) -> Result<Vec<Demand>, TraceError> {
    let mut demands = Vec::new();
    for (idx, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let fail = |fact: String| TraceError { line: idx + 1, fact };
        if demands.len() >= MAX_DEMANDS {
            return Err(fail(format!("more than {MAX_DEMANDS} requests")));
        }
        let parsed: Line = serde_json::from_str(line).map_err(|error| fail(error.to_string()))?;
        demands.push(demand(&parsed).map_err(fail)?);
    }
    demands.sort_by_key(|demand| demand.arrival);
    Ok(demands)
}

fn demand(line: &Line) -> Result<Demand, String> {
    let ms = |name: &str, ms: f64| {
        let valid = ms.is_finite() && (0.0..=1e12).contains(&ms);
        if valid {
            Ok(Duration::from_secs_f64(ms / 1e3))
        } else {
            Err(format!("{name} is {ms}, expected 0 to 1e12"))
        }
    };
    let class =
        line.class.unwrap_or(if line.deadline_ms.is_some() { Class::Control } else { Class::Background });
    let allowed = line.deadline_ms.map(|value| ms("deadline_ms", value)).transpose()?;
    match (class, allowed) {
        (Class::Background, Some(_)) => return Err("background work has no deadline_ms".into()),
        (Class::Control | Class::Interactive, None) => {
            return Err(format!("{} needs deadline_ms", class.name()));
        }
        _ => {}
    }
    for (name, len) in [("prompt_len", line.prompt_len), ("answer_len", line.answer_len)] {
        if !(1..=MAX_LEN).contains(&len) {
            return Err(format!("{name} is {len}, expected 1 to {MAX_LEN}"));
        }
    }
    Ok(Demand {
        arrival: ms("arrival_ms", line.arrival_ms)?,
        class,
        allowed,
        prompt_len: line.prompt_len,
        answer_len: line.answer_len,
    })
}

/// Writes a trace in the form [`parse`] reads.
#[must_use]
pub fn to_text(demands: &[Demand]) -> String {
    let line = |demand: &Demand| {
        let line = Line {
            arrival_ms: demand.arrival.as_secs_f64() * 1e3,
            class: Some(demand.class),
            deadline_ms: demand.allowed.map(|allowed| allowed.as_secs_f64() * 1e3),
            prompt_len: demand.prompt_len,
            answer_len: demand.answer_len,
        };
        serde_json::to_string(&line).unwrap_or_default() + "\n"
    };
    demands.iter().map(line).collect()
}

/// How requests of a random trace come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrivals {
    /// Independently of each other.
    Poisson,
    /// In bursts of ten at once on average.
    Bursty,
}

impl FromStr for Arrivals {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "poisson" => Ok(Self::Poisson),
            "bursty" => Ok(Self::Bursty),
            _ => Err(format!("{name:?}, expected poisson or bursty")),
        }
    }
}

impl fmt::Display for Arrivals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Poisson => "poisson",
            Self::Bursty => "bursty",
        })
    }
}

/// Requests a burst has on average.
const BURST_LEN: f64 = 10.0;

/// `num` requests, `rate` a second: 70 % control (deadlines of 50 to 300 ms), 20 % interactive (0.5 to 3 s), 10 % background; prompts of
/// 20 to 120 tokens, answers of 5 to 60. The same seed gives the same trace.
#[must_use]
pub fn random(num: usize, rate: f64, arrivals: Arrivals, seed: u64) -> Vec<Demand> {
    let mut random = SplitMix64(seed);
    let mut now_s = 0.0;
    let mut demands = Vec::with_capacity(num);
    while demands.len() < num {
        let starts_burst = arrivals == Arrivals::Poisson || random.unit() < 1.0 / BURST_LEN;
        if starts_burst {
            let gap = if arrivals == Arrivals::Poisson { 1.0 } else { BURST_LEN } / rate;
            now_s += -gap * (1.0 - random.unit()).ln();
        }
        let (class, allowed_ms) = match random.unit() {
            kind if kind < 0.7 => (Class::Control, Some(random.between(50, 300))),
            kind if kind < 0.9 => (Class::Interactive, Some(random.between(500, 3000))),
            _ => (Class::Background, None),
        };
        demands.push(Demand {
            arrival: Duration::from_secs_f64(now_s),
            class,
            allowed: allowed_ms.map(Duration::from_millis),
            prompt_len: usize::try_from(random.between(20, 120)).unwrap_or(20),
            answer_len: usize::try_from(random.between(5, 60)).unwrap_or(5),
        });
    }
    demands
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_trace_is_read_back() {
        let demands = random(200, 50.0, Arrivals::Bursty, 3);
        let read = parse(&to_text(&demands)).unwrap();
        assert_eq!(read.len(), demands.len());
        for (read, written) in read.iter().zip(&demands) {
            assert!(read.arrival.abs_diff(written.arrival) < Duration::from_nanos(2));
            assert_eq!(
                (read.class, read.allowed, read.prompt_len),
                (written.class, written.allowed, written.prompt_len)
            );
        }
    }

    #[test]
    fn a_line_that_is_no_request_is_named_with_what_is_wrong() {
        let reason = |line: &str| parse(&format!("\n{line}\n")).unwrap_err().to_string();
        let ok = "\"prompt_len\": 5, \"answer_len\": 5";
        assert!(reason("{").starts_with("line 2: "));
        assert!(reason(&format!("{{\"arrival_ms\": -1, {ok}}}")).contains("arrival_ms is -1"));
        assert!(
            reason(&format!("{{\"arrival_ms\": 1, \"class\": \"control\", {ok}}}"))
                .contains("control needs deadline_ms")
        );
        assert!(
            reason(&format!("{{\"arrival_ms\": 1, \"deadline_ms\": 1e300, {ok}}}"))
                .contains("deadline_ms is")
        );
        assert!(
            reason("{\"arrival_ms\": 1, \"prompt_len\": 0, \"answer_len\": 5}").contains("prompt_len is 0")
        );
        assert!(reason(&format!("{{\"arrival_ms\": 1, \"colour\": 2, {ok}}}")).contains("colour"));
    }

    #[test]
    fn random_traces_have_the_rate_that_was_asked_for() {
        for arrivals in [Arrivals::Poisson, Arrivals::Bursty] {
            let demands = random(50_000, 40.0, arrivals, 1);
            let rate = demands.len() as f64 / demands.last().unwrap().arrival.as_secs_f64();
            assert!((rate / 40.0 - 1.0).abs() < 0.05, "{arrivals}: {rate}");
            assert_eq!(demands, random(50_000, 40.0, arrivals, 1));
        }
    }
}
