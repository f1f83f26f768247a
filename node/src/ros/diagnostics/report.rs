//! What each part says of itself.

use std::path::PathBuf;
use std::sync::Arc;

use super::hardware::Hardware;
use super::tally::{Counts, Tally};
use crate::ros::answering::{Gate, OpenCounts};
use crate::ros::clock::RosClock;
use crate::ros::lifecycle::{Lifecycle, State};
use crate::ros::message::{Byte, DiagnosticStatus, KeyValue, Level, Time, millis};
use crate::ros::slot::{EngineSlot, Ready};
use crate::scheduler::class::Class;

/// Where the figures come from.
pub(in crate::ros) struct Source {
    /// The node's full name.
    pub node: String,
    pub clock: RosClock,
    pub engine: EngineSlot,
    pub lifecycle: Arc<Lifecycle>,
    pub open_counts: Arc<OpenCounts>,
    pub gate: Arc<Gate>,
    pub tally: Arc<Tally>,
    /// Where the kernel's files are; `/` outside tests.
    pub system_root: PathBuf,
    /// What was counted at the last report, to tell what is new.
    pub last: Counts,
}

/// One part: how well, in words, figures.
type Part = (Level, String, Vec<(&'static str, String)>);

impl Source {
    /// Now, in ROS time.
    pub fn now(&self) -> Time {
        self.clock.now()
    }

    /// The lifecycle state.
    pub fn state(&self) -> State {
        self.lifecycle.state()
    }

    /// All parts.
    pub fn report(&mut self) -> Vec<DiagnosticStatus> {
        let ready = self.engine.get();
        let counts = self.tally.counts();
        let mut parts = vec![
            ("lifecycle", self.lifecycle()),
            ("deadlines", self.deadlines(ready.as_ref(), &counts)),
            ("queue", self.queue(ready.as_ref(), &counts)),
        ];
        if let Some(ready) = &ready {
            parts.push(("costs", costs(ready)));
            parts.push(("engine", engine(ready)));
            parts.push(("speculation", self.speculation(ready)));
        }
        let refused = ready.as_ref().map(|ready| ready.refused.as_slice()).unwrap_or_default();
        parts.push(("hardware", hardware(&Hardware::read(&self.system_root), refused)));
        self.last = counts;
        let device = ready.map(|ready| ready.info.device).unwrap_or_default();
        let node = self.node.trim_start_matches('/');
        let status = |(part, (level, message, values)): (&str, Part)| DiagnosticStatus {
            level: Byte(level as u8),
            name: format!("{node}: {part}"),
            message,
            hardware_id: device.clone(),
            values: values.into_iter().map(|(key, value)| KeyValue { key: key.to_owned(), value }).collect(),
        };
        parts.into_iter().map(status).collect()
    }

    fn lifecycle(&self) -> Part {
        let state = self.state();
        let level = match state {
            State::Active => Level::Ok,
            State::ErrorProcessing => Level::Error,
            _ => Level::Warn,
        };
        let message = match state {
            State::Active => "active: requests are answered".to_owned(),
            other => format!("{}: requests are refused", other.label()),
        };
        (level, message, vec![("state", state.label().to_owned())])
    }

    fn deadlines(&self, ready: Option<&Ready>, counts: &Counts) -> Part {
        let distrust = match ready {
            Some(ready) => ready.requests.no_engine().or_else(|| ready.requests.distrust()),
            None => Some("no engine is open".to_owned()),
        };
        let (level, message) = promises(distrust.as_deref(), counts.missed - self.last.missed);
        let kept = counts.promised - counts.missed;
        let share = if counts.promised > 0 { kept as f64 / counts.promised as f64 * 100.0 } else { 100.0 };
        let mut values = vec![
            ("promised", counts.promised.to_string()),
            ("promised and missed", counts.missed.to_string()),
            ("promised and kept (%)", format!("{share:.3}")),
            ("rejected for want of time", counts.too_late.to_string()),
            ("truncated at the deadline", counts.truncated.to_string()),
            ("closed at the deadline", counts.closed.to_string()),
        ];
        if let Some(times) = self.tally.recent() {
            let names = ["answer p50 (ms)", "answer p99 (ms)", "answer max (ms)"];
            values.extend(names.into_iter().zip(times.map(|time| format!("{:.2}", millis(time)))));
        }
        (level, message, values)
    }

    fn queue(&self, ready: Option<&Ready>, counts: &Counts) -> Part {
        let (num_open, max_open) = (self.open_counts.total(), self.gate.defaults().max_in_flight);
        let num_lanes = ready.and_then(|ready| ready.requests.load()).map_or(0, |(_, num_lanes)| num_lanes);
        let is_full = num_open >= max_open;
        let message = format!("{num_open} of at most {max_open} requests are open");
        let mut values = vec![
            ("open requests", num_open.to_string()),
            ("open requests, limit", max_open.to_string()),
            ("lanes", num_lanes.to_string()),
            ("lanes in use", num_open.min(num_lanes).to_string()),
            ("waiting for a lane", num_open.saturating_sub(num_lanes).to_string()),
        ];
        let names = ["open control requests", "open interactive requests", "open background requests"];
        values.extend(names.into_iter().zip(Class::ALL.map(|class| self.open_counts.num(class).to_string())));
        for (name, count) in [
            ("complete", counts.complete),
            ("rejected", counts.rejected),
            ("cancelled", counts.cancelled),
            ("failed", counts.failed),
            ("tokens", counts.tokens),
        ] {
            values.push((name, count.to_string()));
        }
        (if is_full { Level::Warn } else { Level::Ok }, message, values)
    }

    fn speculation(&self, ready: &Ready) -> Part {
        let drafter = ready.info.drafter.clone();
        let values = vec![("drafter", drafter.clone())];
        if let Some(reason) = ready.requests.no_speculation() {
            return (Level::Warn, format!("speculation is off: {reason}"), values);
        }
        let is_wanted = self.gate.defaults().speculate;
        let message = match drafter.as_str() {
            "" | "off" => "there is no drafter",
            _ if !is_wanted => "switched off by the parameter engine.speculate",
            _ => "in use where it pays",
        };
        (Level::Ok, message.to_owned(), values)
    }
}

/// How far deadlines are promised, and whether the last second kept the promises.
fn promises(distrust: Option<&str>, newly_missed: u64) -> (Level, String) {
    let (level, message) = match distrust {
        Some(reason) => (Level::Warn, format!("no deadline is promised: {reason}")),
        None => (Level::Ok, "deadlines are promised".to_owned()),
    };
    if newly_missed == 0 {
        return (level, message);
    }
    // Above all: what made sections slow enough to miss one often ends the promises in the same moment.
    (Level::Error, format!("{newly_missed} promised deadlines were missed in the last second; {message}"))
}

fn costs(ready: &Ready) -> Part {
    let distrust = ready.requests.distrust();
    let has_stored = ready.info.has_stored_costs;
    let (level, message) = match (&distrust, has_stored) {
        (Some(reason), _) => (Level::Warn, format!("the cost table does not hold: {reason}")),
        (None, true) => (Level::Ok, "this device's calibrated cost table".to_owned()),
        (None, false) => {
            (Level::Ok, "measured briefly at the start: `takt calibrate` makes promises exact".to_owned())
        }
    };
    let values = vec![
        ("calibrated", has_stored.to_string()),
        ("decode step (ms)", format!("{:.3}", ready.info.decode_step_ms)),
    ];
    (level, message, values)
}

fn engine(ready: &Ready) -> Part {
    let info = &ready.info;
    let (level, message) = match ready.requests.no_engine() {
        Some(reason) => (Level::Error, format!("it failed and is being opened again: {reason}")),
        None => (Level::Ok, format!("{} {} on {}", info.architecture, info.weights, info.backend)),
    };
    let mib = |bytes: u64| (bytes >> 20).to_string();
    let values = vec![
        ("directory", info.engine_dir.clone()),
        ("architecture", info.architecture.clone()),
        ("weights", info.weights.clone()),
        ("weights (MiB)", mib(info.weight_bytes)),
        ("KV cache", info.kv_cache.clone()),
        ("KV cache (MiB)", mib(info.kv_cache_bytes)),
        ("backend", info.backend.clone()),
        ("kernels", info.kernels.clone()),
        ("lanes", info.num_lanes.to_string()),
        ("context (tokens)", info.max_context.to_string()),
        ("takt", env!("CARGO_PKG_VERSION").to_owned()),
    ];
    (level, message, values)
}

/// Temperatures, clocks, memory, and how the worker runs.
fn hardware(hardware: &Hardware, refused: &[String]) -> Part {
    let (mut level, mut message) = match hardware.too_hot() {
        Some((zone, celsius)) => {
            (Level::Warn, format!("{zone} has {celsius:.0} °C: the board is about to slow down"))
        }
        None if hardware.temperatures.is_empty() => (Level::Ok, "no temperatures are told".to_owned()),
        None => (Level::Ok, "temperatures are fine".to_owned()),
    };
    let mut values = Vec::new();
    let hottest = hardware.temperatures.iter().max_by(|a, b| a.1.total_cmp(&b.1));
    if let Some((zone, celsius)) = hottest {
        values.push(("hottest zone", zone.clone()));
        values.push(("hottest zone (°C)", format!("{celsius:.1}")));
    }
    for (name, figure) in [
        ("CPU clock (MHz)", hardware.cpu_mhz),
        ("GPU clock (MHz)", hardware.gpu_mhz),
        ("memory of this process (MiB)", hardware.resident_mib),
        ("memory available (MiB)", hardware.available_mib),
    ] {
        values.extend(figure.map(|figure| (name, figure.to_string())));
    }
    if let Some(worker) = &hardware.worker {
        values.push(("worker's scheduling", worker.policy.clone()));
        values.push(("worker's cores", worker.cores.clone()));
        values.push(("locked memory (MiB)", (worker.locked_kib >> 10).to_string()));
    }
    if !refused.is_empty() {
        level = level.max(Level::Warn);
        message += &format!("; {} real-time settings were refused", refused.len());
        values.push(("refused by the kernel", refused.join("; ")));
    }
    (level, message, values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::InForce;

    #[test]
    fn a_missed_promise_is_an_error_even_when_nothing_is_promised_any_more() {
        assert_eq!(promises(None, 0), (Level::Ok, "deadlines are promised".to_owned()));
        assert!(promises(Some("sections are slow"), 0).0 == Level::Warn);
        let (level, message) = promises(Some("sections are slow"), 2);
        assert!(
            level == Level::Error && message.contains("2 promised") && message.contains("sections are slow")
        );
    }

    #[test]
    fn real_time_settings_in_force_and_refused_are_told() {
        let worker =
            InForce { policy: "SCHED_FIFO 40".into(), cores: "4-7".into(), locked_kib: 2048, page_faults: 0 };
        let found = Hardware { worker: Some(worker), ..Hardware::default() };
        let (level, message, values) = hardware(&found, &[]);
        assert!(level == Level::Ok && !message.contains("refused"));
        let told = |name, value: &str| values.contains(&(name, value.to_owned()));
        assert!(told("worker's scheduling", "SCHED_FIFO 40") && told("worker's cores", "4-7"));
        assert!(told("locked memory (MiB)", "2"));
        let refusals = ["cores [9]: EINVAL".to_owned(), "lock_memory: EPERM".to_owned()];
        let (level, message, values) = hardware(&found, &refusals);
        assert!(level == Level::Warn && message.contains("2 real-time settings were refused"));
        assert_eq!(values.last().unwrap().1, "cores [9]: EINVAL; lock_memory: EPERM");
    }
}
