//! What was measured, for tables, JSON and the picture.

use std::time::Duration;

use serde::Serialize;

use super::{
    LoadReport, Settings,
    control_loop::{LoopTimes, PERIOD, TICKS_PER_QUESTION},
    door::DoorKind,
};
use crate::{demo::percentile, ros::message::EngineInfo, rt::InForce};

/// Half of the values, all but one in a hundred, and all of them stay within these; null of no values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Quantiles {
    /// Median.
    pub p50: Option<f64>,
    /// 99th percentile.
    pub p99: Option<f64>,
    /// Largest.
    pub max: Option<f64>,
}

impl Quantiles {
    /// In milliseconds.
    #[must_use]
    pub fn ms(values: &[Duration]) -> Self {
        let of = |share| (!values.is_empty()).then(|| percentile(values, share).as_secs_f64() * 1e3);
        Self { p50: of(0.5), p99: of(0.99), max: of(1.0) }
    }
}

/// Questions that are promised and answered, through one door.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RoundTripRow {
    /// Which way.
    pub door: DoorKind,
    /// `idle` or `busy`.
    pub node: &'static str,
    /// Questions sent.
    pub sent: usize,
    /// Answered, whole.
    pub complete: usize,
    /// Answered otherwise: cut, refused, failed.
    pub otherwise: usize,
    /// Never answered.
    pub lost: usize,
    /// Sent to answered.
    pub round_trip_ms: Quantiles,
    /// Arrival to reply, as the node says.
    pub in_node_ms: Quantiles,
    /// The difference.
    pub overhead_ms: Quantiles,
    /// Each of them.
    #[serde(skip)]
    pub overheads: Vec<Duration>,
}

/// Time until the client knows whether its question is let in.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DecisionRow {
    /// Which way.
    pub door: DoorKind,
    /// `idle` or `busy`.
    pub node: &'static str,
    /// `accepted` or `refused`.
    pub decision: &'static str,
    /// Questions sent.
    pub sent: usize,
    /// Decided so.
    pub decided: usize,
    /// Decided the other way.
    pub otherwise: usize,
    /// Never decided.
    pub lost: usize,
    /// Sent to known.
    pub ms: Quantiles,
    /// Each of them.
    #[serde(skip)]
    pub times: Vec<Duration>,
}

/// How steadily the control loop ran.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoopRow {
    /// `no node`, `node idle`, `node busy`.
    pub beside: String,
    /// Ticks that ran.
    pub ticks: usize,
    /// Ticks that did not, since an earlier one came too late.
    pub missed: u64,
    /// Questions asked, none of them waited for.
    pub asked: u64,
    /// Answered.
    pub answered: u64,
    /// Never answered.
    pub lost: u64,
    /// Due to begun.
    pub late_ms: Quantiles,
    /// What sending a question took of its tick.
    pub asking_ms: Quantiles,
    /// The real-time priority that the kernel refused the loop.
    pub refused: Option<String>,
    /// Each lateness.
    #[serde(skip)]
    pub late: Vec<Duration>,
}

impl LoopRow {
    /// The row of `times`.
    #[must_use]
    pub fn new(beside: &str, times: LoopTimes) -> Self {
        Self {
            beside: beside.to_owned(),
            ticks: times.late.len(),
            missed: times.num_missed,
            asked: times.num_asked,
            answered: times.num_answered,
            lost: times.num_asked - times.num_answered,
            late_ms: Quantiles::ms(&times.late),
            asking_ms: Quantiles::ms(&times.asking),
            refused: times.refused,
            late: times.late,
        }
    }
}

/// Where it was measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Machine {
    /// The processor.
    pub processor: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Kernel release.
    pub kernel: String,
    /// Whether it is a PREEMPT_RT kernel.
    pub is_preempt_rt: bool,
    /// Processes that wanted to run in the minute before.
    pub load_average: Option<f64>,
}

impl Machine {
    /// This one.
    #[must_use]
    pub fn here() -> Self {
        let text = |path| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        Self {
            processor: crate::doctor::processor(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: text("/proc/sys/kernel/osrelease"),
            is_preempt_rt: text("/sys/kernel/realtime") == "1",
            load_average: text("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()),
        }
    }
}

/// The node that was asked.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Node {
    /// Engine directory.
    pub engine: String,
    /// Arguments besides those that every bench gives it.
    pub arguments: Vec<String>,
    /// What a decode step takes.
    pub decode_step_ms: f64,
    /// How the kernel runs its worker.
    pub worker: Option<InForce>,
}

/// What was asked of the control loop.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LoopSettings {
    /// Ticks a second.
    pub rate_hz: f64,
    /// Ticks between two questions.
    pub ticks_per_question: u64,
    /// SCHED_FIFO priority; null for the ordinary policy.
    pub fifo_priority: Option<u8>,
}

/// Everything that was sent while measuring, the load's requests too; warm-up is left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Messages {
    /// Questions.
    pub sent: u64,
    /// Those that came to an end.
    pub answered: u64,
    /// Those that did not: none should.
    pub lost: u64,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Where.
    pub machine: Machine,
    /// Of what.
    pub node: Node,
    /// Beside what, in the busy half.
    pub load: LoadReport,
    /// How the control loop was to run.
    pub control_loop_settings: LoopSettings,
    /// Through each door, idle and busy.
    pub round_trips: Vec<RoundTripRow>,
    /// Until it is known whether a question is let in.
    pub decisions: Vec<DecisionRow>,
    /// Without the node, beside the idle one, beside the busy one.
    pub control_loop: Vec<LoopRow>,
    /// Questions before those that count.
    pub num_warm_up: usize,
    /// What became of all questions.
    pub messages: Messages,
}

impl Report {
    /// Without results.
    #[must_use]
    pub(super) fn new(settings: &Settings<'_>, machine: Machine, info: &EngineInfo) -> Self {
        Self {
            machine,
            node: Node {
                engine: settings.engine.display().to_string(),
                arguments: settings.node_args.to_vec(),
                decode_step_ms: info.decode_step_ms,
                worker: None,
            },
            load: LoadReport::default(),
            control_loop_settings: LoopSettings {
                rate_hz: 1.0 / PERIOD.as_secs_f64(),
                ticks_per_question: TICKS_PER_QUESTION,
                fifo_priority: settings.loop_priority,
            },
            round_trips: Vec::new(),
            decisions: Vec::new(),
            control_loop: Vec::new(),
            num_warm_up: 0,
            messages: Messages::default(),
        }
    }

    /// Sums up what was sent and what was lost.
    pub(super) fn count_messages(&mut self) {
        let trips = self.round_trips.iter().map(|row| (row.sent, row.lost));
        // An accepted goal's decision is part of its round trip.
        let refusals = self.decisions.iter().filter(|row| row.decision == "refused");
        let asked = trips.chain(refusals.map(|row| (row.sent, row.lost)));
        let asked = asked.map(|(sent, lost)| (sent as u64, lost as u64));
        let loops = self.control_loop.iter().map(|row| (row.asked, row.lost));
        let all = asked.chain(loops).chain([(self.load.sent, self.load.lost)]);
        let (sent, lost) = all.fold((0, 0), |(sent, lost), (more, gone)| (sent + more, lost + gone));
        self.messages = Messages { sent, answered: sent - lost, lost };
    }
}

/// A report with a few values in every row.
#[cfg(test)]
pub(super) fn sample() -> Report {
    let us = |all: &[u64]| all.iter().map(|us| Duration::from_micros(*us)).collect::<Vec<_>>();
    let mut report = Report {
        machine: Machine { cores: 2, ..Machine::default() },
        node: Node::default(),
        load: LoadReport {
            lanes: 4,
            open_requests: 8,
            sent: 50,
            answered: 49,
            lost: 1,
            ..LoadReport::default()
        },
        control_loop_settings: LoopSettings { rate_hz: 100.0, ticks_per_question: 10, fifo_priority: None },
        round_trips: Vec::new(),
        decisions: Vec::new(),
        control_loop: Vec::new(),
        num_warm_up: 0,
        messages: Messages::default(),
    };
    for node in ["idle", "busy"] {
        for door in DoorKind::ALL {
            let overheads = us(&[120, 150, 180, 2500]);
            report.round_trips.push(RoundTripRow {
                door,
                node,
                sent: 4,
                complete: 3,
                otherwise: 1,
                lost: 0,
                round_trip_ms: Quantiles::ms(&overheads),
                in_node_ms: Quantiles::default(),
                overhead_ms: Quantiles::ms(&overheads),
                overheads,
            });
            for decision in ["accepted", "refused"] {
                let times = us(&[300, 400]);
                let (sent, lost) = (3, usize::from(decision == "refused"));
                let ms = Quantiles::ms(&times);
                report.decisions.push(DecisionRow {
                    door,
                    node,
                    decision,
                    sent,
                    decided: 2,
                    otherwise: 0,
                    lost,
                    ms,
                    times,
                });
            }
        }
    }
    for (beside, num_asked) in [("no node", 0), ("node idle", 5), ("node busy", 5)] {
        let late = us(&[8, 60, 90, 11_000]);
        let times =
            LoopTimes { late, num_missed: 1, num_asked, num_answered: num_asked, ..LoopTimes::default() };
        report.control_loop.push(LoopRow::new(beside, times));
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_question_is_counted_once() {
        let mut report = sample();
        report.count_messages();
        // Six rows of 4, six refusals of 3, two loops of 5, the load's 50; one lost in each refusal and one of the load's.
        assert_eq!(report.messages, Messages { sent: 24 + 18 + 10 + 50, answered: 95, lost: 7 });
    }

    #[test]
    fn quantiles_of_nothing_are_null_and_not_zero() {
        assert_eq!(serde_json::to_value(Quantiles::ms(&[])).unwrap()["p50"], serde_json::Value::Null);
        let of = Quantiles::ms(&[Duration::from_micros(1500), Duration::from_micros(500)]);
        assert_eq!((of.p50, of.p99, of.max), (Some(0.5), Some(1.5), Some(1.5)));
    }
}
