//! `takt bench --ros`: what asking over ROS 2 costs, and what the node costs a control loop on the same machine.
//!
//! The node is `takt serve` in a process of its own, on loopback and in a domain of its own; the clients are in this process, over the
//! transport that ships. What of a round trip is not the node's own time, by the reply's `total_ms`, is overhead: encoding, the network's
//! stack, threads being woken, decoding. Everything is measured twice: with the node idle, and with background requests on all its lanes.

pub mod control_loop;
pub mod door;
mod load;
pub mod plot;
pub mod report;

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use self::{
    door::{Door, DoorKind, PATIENCE, Trip},
    load::Load,
    report::{DecisionRow, LoopRow, Machine, Node, Quantiles, Report, RoundTripRow},
};
use super::busy_threads::BusyThreads;
use crate::{
    demo::{DemoError, NodeProcess},
    request::Status,
    ros::{
        AskClient, Question, RosDuration, RosError, RosOptions, TypeName,
        dds::DdsTransport,
        message::{ENGINE_INFO, EngineInfo, EngineInfoRequest, Message as _},
        transport::Transport as _,
    },
    rt::InForce,
    worker::THREAD_NAME,
};

pub use load::LoadReport;

/// Questions before those that count: the first reply to a new reader is held back until that reader is known to listen.
const MAX_WARM_UP: usize = 20;
/// Warm-up questions that must be answered one after another.
const WARM: usize = 5;
/// A deadline that is always promised.
const EASY_DEADLINE: Duration = Duration::from_secs(5);
/// A deadline that never is: refused on arrival.
const IMPOSSIBLE_DEADLINE: Duration = Duration::from_micros(1);
/// Tokens of an answer: what an action for a robot has.
const MAX_TOKENS: u32 = 16;
/// Longest pause between two questions, so that they do not fall into step with anything.
const MAX_PAUSE: Duration = Duration::from_millis(4);
/// Background requests on a lane: one runs, one waits, so that no lane is ever free.
const OPEN_PER_LANE: usize = 2;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Round trips through each door, idle and busy.
    pub num_round_trips: usize,
    /// Refusals through each door, idle and busy.
    pub num_refusals: usize,
    /// How long the control loop runs, each time.
    pub loop_length: Duration,
}

impl Effort {
    /// A minute and a half on two cores.
    pub const NORMAL: Self =
        Self { num_round_trips: 400, num_refusals: 300, loop_length: Duration::from_secs(10) };
    /// A few seconds.
    pub const FAST: Self =
        Self { num_round_trips: 10, num_refusals: 5, loop_length: Duration::from_millis(300) };
}

/// What is measured, and beside what.
#[derive(Debug)]
pub struct Settings<'a> {
    /// Engine directory.
    pub engine: &'a Path,
    /// Further arguments of `takt serve`.
    pub node_args: &'a [String],
    /// The node's network.
    pub ros: &'a RosOptions,
    /// How much.
    pub effort: Effort,
    /// Threads that compute beside the node in the busy half.
    pub num_busy_threads: usize,
    /// SCHED_FIFO priority of the control loop; `None` for the ordinary policy.
    pub loop_priority: Option<u8>,
}

/// Measures all of it; `tick` is told what is being measured and the share done. What `cancelled` cuts short is no result.
///
/// # Errors
/// [`DemoError::Node`] if the node does not start, [`DemoError::Ros`].
pub fn measure(
    settings: &Settings<'_>,
    cancelled: &AtomicBool,
    mut tick: impl FnMut(&str, f64),
) -> Result<Report, DemoError> {
    let machine = Machine::here();
    tick("control loop without a node", 0.0);
    let alone = control_loop::run(settings.effort.loop_length, settings.loop_priority, None, cancelled)?;
    let mut control_loop = vec![LoopRow::new("no node", alone)];
    let node = NodeProcess::start(settings.engine, settings.ros, settings.node_args, |_| {
        tick("the node opens its engine", 0.0);
        !cancelled.load(Ordering::Relaxed)
    })?;
    let info = engine_info(settings.ros)?;
    let mut report = Report::new(settings, machine, &info);
    let mut halves = Halves { settings, cancelled, tick: &mut tick, num_done: 0 };
    halves.run(false, &mut report, &mut control_loop)?;
    let num_lanes = usize::try_from(info.num_lanes).unwrap_or(1);
    let busy = BusyThreads::start(settings.num_busy_threads);
    let load = Load::start(settings.ros, num_lanes * OPEN_PER_LANE, &question(EASY_DEADLINE))?;
    halves.run(true, &mut report, &mut control_loop)?;
    report.load = LoadReport { lanes: num_lanes, busy_threads: settings.num_busy_threads, ..load.finish() };
    drop(busy);
    let process = Path::new("/proc").join(node.id().to_string());
    report.node = Node { worker: InForce::read(&process, THREAD_NAME), ..report.node };
    report.control_loop = control_loop;
    report.count_messages();
    Ok(report)
}

/// The part that is measured with the node idle, and again with the node busy.
struct Halves<'a, 'b> {
    settings: &'a Settings<'b>,
    cancelled: &'a AtomicBool,
    tick: &'a mut dyn FnMut(&str, f64),
    num_done: u32,
}

impl Halves<'_, '_> {
    fn run(
        &mut self,
        is_busy: bool,
        report: &mut Report,
        control_loop: &mut Vec<LoopRow>,
    ) -> Result<(), DemoError> {
        let state = if is_busy { "busy" } else { "idle" };
        let Effort { num_round_trips, num_refusals, loop_length } = self.settings.effort;
        for kind in DoorKind::ALL {
            self.tell(&format!("{}, node {state}", kind.name()));
            let mut door = kind.open(self.settings.ros)?;
            report.num_warm_up += warm_up(&mut *door)?;
            let asked = self.ask(&mut *door, EASY_DEADLINE, num_round_trips)?;
            report.round_trips.push(RoundTripRow::new(kind, state, &asked));
            if kind == DoorKind::Action {
                report.decisions.push(DecisionRow::accepted(kind, state, &asked));
            }
            let refused = self.ask(&mut *door, IMPOSSIBLE_DEADLINE, num_refusals)?;
            report.decisions.push(DecisionRow::refused(kind, state, &refused));
        }
        self.tell(&format!("control loop, node {state}"));
        let client = AskClient::connect(self.settings.ros, PATIENCE)?;
        let asking = (&client, &question(EASY_DEADLINE));
        let priority = self.settings.loop_priority;
        let times = control_loop::run(loop_length, priority, Some(asking), self.cancelled)?;
        control_loop.push(LoopRow::new(&format!("node {state}"), times));
        Ok(())
    }

    fn tell(&mut self, what: &str) {
        const NUM_PARTS: u32 = 8; // three doors and a loop, twice
        (self.tick)(what, f64::from(self.num_done) / f64::from(NUM_PARTS));
        self.num_done += 1;
    }

    /// Asks one question after another.
    fn ask(&self, door: &mut dyn Door, deadline: Duration, num: usize) -> Result<Asked, RosError> {
        let question = question(deadline);
        let mut asked = Asked { num_sent: 0, trips: Vec::with_capacity(num) };
        for i in 0..num {
            if self.cancelled.load(Ordering::Relaxed) {
                break;
            }
            // Multiples of the golden ratio cover the pause evenly, whatever their number.
            std::thread::sleep(MAX_PAUSE.mul_f64((i as f64 * 0.618_033_988_75).fract()));
            asked.num_sent += 1;
            asked.trips.extend(door.ask(&question)?);
        }
        Ok(asked)
    }
}

/// Questions sent one after another, and those that came to an end.
struct Asked {
    num_sent: usize,
    trips: Vec<Trip>,
}

impl Asked {
    fn num_lost(&self) -> usize {
        self.num_sent - self.trips.len()
    }

    fn num_of(&self, status: Status) -> usize {
        self.trips.iter().filter(|trip| trip.status == status.name()).count()
    }
}

/// How many questions it took until replies came one after another.
fn warm_up(door: &mut dyn Door) -> Result<usize, RosError> {
    let question = question(EASY_DEADLINE);
    let mut num_answered = 0;
    for num_sent in 0..MAX_WARM_UP {
        if num_answered == WARM {
            return Ok(num_sent);
        }
        num_answered = if door.ask(&question)?.is_some() { num_answered + 1 } else { 0 };
    }
    Ok(MAX_WARM_UP)
}

/// A robot's situation, so that the prompt has the length it has in practice.
fn question(deadline: Duration) -> Question {
    Question {
        prompt: "Please bring the blue wrench to the lab.".into(),
        system: "Battery: 84%. At: hallway. Gripper: empty. Sees: blue wrench, green hammer. Places: lab, workshop, table, hallway. \
                 People: near."
            .into(),
        deadline: RosDuration::from_std(deadline),
        max_tokens: MAX_TOKENS,
        ..Question::default()
    }
}

fn engine_info(ros: &RosOptions) -> Result<EngineInfo, RosError> {
    let failed = |error| RosError::Message { what: "takt_msgs/srv/EngineInfo", error };
    let node_name = format!("_takt_bench_info_{}", std::process::id());
    let transport = DdsTransport::join(&RosOptions { node_name, ..ros.clone() })?;
    let service: TypeName = ENGINE_INFO;
    let call = transport.client(&ros.names()?.resolve_service("~/engine_info")?, service)?;
    transport.announce()?;
    let node = ros.node()?.to_string();
    if !call.wait_for_server(PATIENCE) {
        return Err(RosError::NoNode { node, domain_id: ros.domain_id, waited: PATIENCE });
    }
    let pending = call.call(&EngineInfoRequest {}.encode().map_err(failed)?)?;
    let message = pending.wait(PATIENCE).ok_or(RosError::NoReply { node, waited: PATIENCE })?;
    EngineInfo::decode(&message).map_err(failed)
}

impl RoundTripRow {
    fn new(kind: DoorKind, state: &'static str, asked: &Asked) -> Self {
        let overheads: Vec<Duration> = asked.trips.iter().filter_map(Trip::overhead).collect();
        let in_node: Vec<Duration> = asked.trips.iter().filter_map(|trip| trip.in_node).collect();
        let whole: Vec<Duration> = asked.trips.iter().map(|trip| trip.round_trip).collect();
        Self {
            door: kind,
            node: state,
            sent: asked.num_sent,
            complete: asked.num_of(Status::Complete),
            otherwise: asked.trips.len() - asked.num_of(Status::Complete),
            lost: asked.num_lost(),
            round_trip_ms: Quantiles::ms(&whole),
            in_node_ms: Quantiles::ms(&in_node),
            overhead_ms: Quantiles::ms(&overheads),
            overheads,
        }
    }
}

impl DecisionRow {
    /// Goal sent to goal accepted.
    fn accepted(kind: DoorKind, state: &'static str, asked: &Asked) -> Self {
        let times: Vec<Duration> = asked.trips.iter().filter_map(|trip| trip.decided).collect();
        let num_accepted = asked.trips.len() - asked.num_of(Status::Rejected);
        Self::new(kind, state, "accepted", asked, num_accepted, times)
    }

    /// Question sent to refusal known.
    fn refused(kind: DoorKind, state: &'static str, asked: &Asked) -> Self {
        let times = asked.trips.iter().map(|trip| trip.round_trip).collect();
        Self::new(kind, state, "refused", asked, asked.num_of(Status::Rejected), times)
    }

    fn new(
        door: DoorKind,
        node: &'static str,
        decision: &'static str,
        asked: &Asked,
        decided: usize,
        times: Vec<Duration>,
    ) -> Self {
        let (sent, lost) = (asked.num_sent, asked.num_lost());
        let otherwise = asked.trips.len() - decided;
        Self { door, node, decision, sent, decided, otherwise, lost, ms: Quantiles::ms(&times), times }
    }
}
