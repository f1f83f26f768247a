//! The faults one after another, and what has to hold after each.

use std::{
    mem,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use takt_engine::{
    backend::cuda::{CudaOptions, kernels, usable_device},
    dir::EngineDir,
    kv::KvKind,
    memory::available_bytes,
};
use takt_kernels_cu::{
    driver::{
        DriverError,
        context::{Context, Share},
        device::{self, Device},
    },
    launch::faults::Fault,
    source::FAULTS,
};
use takt_node::{
    request::{Event, Reply, Status},
    worker::Worker,
};

use super::{
    front::Front,
    record::{GRACE_S, Record, Row},
};
use crate::{
    emulator::{device::is_required, driver},
    models::{image, kernel_places, open, options},
    shipped::build_demo,
    worker::{ask, reply, try_ask, worker_with},
};

/// The graph from the fault's arming on that it comes before: not of the first section, between which and the second the worker takes the other
/// request; and within both answers.
const NTH_GRAPH: u64 = 6;
/// More threads than a block may have, anywhere.
const TOO_MANY_THREADS: u32 = 2048;
/// Bytes that may be missing on a GPU of its own memory: the driver keeps some of what it was given back, and others may use the device. What a lost
/// engine leaves behind is missing again after each.
const TOLERANCE_BYTES: u64 = 64 << 20;
/// Where memory is the system's: its other processes come and go.
const SHARED_TOLERANCE_BYTES: u64 = 256 << 20;
/// How long memory is waited for that is given back late.
const SETTLING: Duration = Duration::from_secs(5);
/// How long an answer is waited for: a driver that waits for a kernel that hangs takes less.
const LIMIT: Duration = Duration::from_secs(120);

/// How much of it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Every kind of fault; three times over on a GPU.
    Everything,
    /// One fault, with all that there is to opening again.
    OneFault,
}

impl Extent {
    fn kinds(self) -> impl Iterator<Item = Kind> {
        let (kinds, num_rounds): (&[Kind], usize) = match self {
            Self::Everything => (&Kind::ALL, if is_required() { 3 } else { 1 }),
            Self::OneFault => (&[Kind::TrapAndNoMemory], 1),
        };
        kinds.iter().copied().cycle().take(kinds.len() * num_rounds)
    }
}

/// What is made to go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    RefusedLaunch,
    Trap,
    WildWrite,
    Hang,
    /// A trap, and no memory for the first try to open again.
    TrapAndNoMemory,
}

impl Kind {
    const ALL: [Self; 5] =
        [Self::RefusedLaunch, Self::Trap, Self::WildWrite, Self::Hang, Self::TrapAndNoMemory];

    fn name(self) -> &'static str {
        match self {
            Self::RefusedLaunch => "a launch that is refused",
            Self::Trap => "a trap",
            Self::WildWrite => "a write where nothing lies",
            Self::Hang => "a kernel that hangs",
            Self::TrapAndNoMemory => "a trap, then no memory at first",
        }
    }

    /// What open requests have to be told.
    fn words(self) -> &'static str {
        match self {
            Self::RefusedLaunch => "cuGraphLaunch failed",
            Self::Trap | Self::TrapAndNoMemory => "the device failed in",
            Self::WildWrite => "ILLEGAL_ADDRESS",
            Self::Hang => "did not finish within",
        }
    }

    /// What is waited for before memory is looked for again.
    fn pause(self) -> Duration {
        Duration::from_millis(if self == Self::TrapAndNoMemory { 250 } else { 0 })
    }
}

struct Check<'a> {
    front: &'a Front,
    device: Device,
    is_emulated: bool,
    /// The fault kernels.
    image: Vec<u8>,
    record: Record,
}

/// Runs all of it on the driver behind `front`; `emulated` is asked only if that is the emulated one.
pub fn run(front: &Front, emulated: &driver::Device, extent: Extent) -> Record {
    let device = device::probe().unwrap().remove(0);
    let is_emulated = front.is_of_emulated_device();
    let tolerance_bytes = match (is_emulated, device.is_integrated) {
        (true, _) => 0,
        (false, true) => SHARED_TOLERANCE_BYTES,
        (false, false) => TOLERANCE_BYTES,
    };
    let record = Record { device: device.key(), is_emulated, tolerance_bytes, ..Record::default() };
    let mut check = Check { front, device, is_emulated, image: fault_image(), record };
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("engine");
    build_demo(&dir);

    let before = check.free_bytes().unwrap();
    check.openings(&dir);
    check.note_missing(before, "after openings without memory");
    check.faults(&dir, extent);
    check.note_missing(before, "after everything");
    if is_emulated {
        let left = emulated.report();
        for name in ["contexts", "green_contexts", "device_allocations", "host_allocations"] {
            check.expect(left.value(name) == 0, || format!("{} {name} are left", left.value(name)));
        }
    }
    check.record
}

/// Like a small engine's; on a GPU with lanes that would be missed.
fn cuda_options() -> CudaOptions {
    let (num_lanes, lane_capacity) = if is_required() { (4, 1024) } else { (1, 64) };
    CudaOptions {
        num_lanes,
        lane_capacity,
        max_step_tokens: 8,
        max_logits_rows: 8,
        step_limit: Duration::from_secs(3),
        ..options(KvKind::Bf16)
    }
}

fn fault_image() -> Vec<u8> {
    if !is_required() {
        return image().to_vec();
    }
    let (device, target) = usable_device().unwrap();
    let found = kernels(FAULTS, &device, target, None, &kernel_places()).unwrap();
    found.images()[0].bytes().to_vec()
}

impl Check<'_> {
    /// Every call of an opening that takes memory finds none, each in an opening of its own.
    fn openings(&mut self, dir: &Path) {
        let engine = EngineDir::open(dir).unwrap();
        let options = CudaOptions { num_lanes: 2, ..cuda_options() };
        let open_once = || open(&engine.manifest().spec, &engine, &options).map(drop);
        let before = self.front.counts().memory;
        open_once().unwrap();
        let num_calls = self.front.counts().memory - before;
        self.expect(num_calls > 0, || "an opening takes no memory".to_owned());
        let start = Instant::now();
        for n in 1..=num_calls {
            self.front.fail_memory(n);
            let opened = open_once();
            let is_told = opened.as_ref().is_err_and(takt_engine::EngineError::is_capacity);
            self.expect(is_told, || {
                format!("no memory at call {n} of {num_calls} of an opening: {opened:?}")
            });
        }
        self.front.fail_memory(0);
        self.record.openings_s = start.elapsed().as_secs_f64();
        self.record.num_openings = num_calls;
        let again = open_once();
        self.expect(again.is_ok(), || format!("an opening after those without memory: {again:?}"));
    }

    /// One kind of fault after another while a worker has requests open, and again, so that what is lost with each adds up.
    fn faults(&mut self, dir: &Path, extent: Extent) {
        let start = Instant::now();
        let worker = worker_with(dir.to_owned(), cuda_options());
        self.record.load_s = start.elapsed().as_secs_f64();
        let (start, expected) = (Instant::now(), reply(&ask(&worker)));
        self.record.answer_s = start.elapsed().as_secs_f64();
        assert_eq!(expected.status, Status::Complete, "{expected:?}");
        let free = self.free_bytes().unwrap();
        for kind in extent.kinds() {
            let mut row = self.row(kind);
            let goes_on = self.fault(kind, &worker, &expected, &mut row);
            row.failures.extend(goes_on.clone().err());
            if goes_on.is_ok() {
                let (missing_bytes, failure) = self.missing_bytes(free);
                row.missing_bytes = missing_bytes;
                row.failures.extend(failure);
            }
            self.record.rows.push(row);
            if goes_on.is_err() {
                self.record.others.push("no fault was tried after this: there is no worker".into());
                // It may hang in what it does, and is not waited for.
                return mem::forget(worker);
            }
        }
        worker.shut_down();
    }

    fn row(&self, kind: Kind) -> Row {
        Row {
            fault: kind.name(),
            told: String::new(),
            again_s: 0.0,
            allowed_s: self.record.load_s + GRACE_S + self.record.answer_s + kind.pause().as_secs_f64(),
            missing_bytes: 0,
            failures: Vec::new(),
        }
    }

    /// Two requests are open when it happens; the next is asked when both are answered. The error says why there is no worker any more.
    fn fault(&self, kind: Kind, worker: &Worker, expected: &Reply, row: &mut Row) -> Result<(), String> {
        // Both are there before the first graph is launched, and with the worker before the one that is behind the fault.
        let open = self.front.while_held(|| {
            let open = [try_ask(worker), try_ask(worker)];
            self.arm(kind);
            open
        });
        for events in open {
            let reply = answer(events)?;
            row.told = reply.reason.unwrap_or_default();
            if reply.status != Status::Failed || !row.told.contains(kind.words()) {
                row.failures.push(format!(
                    "an open request was answered {:?} with {:?}, expected failed with {:?}",
                    reply.status,
                    row.told,
                    kind.words()
                ));
            }
        }
        let failed = Instant::now();
        let mut was_without_memory = false;
        let again = loop {
            let again = answer(try_ask(worker))?;
            let reason = again.reason.as_deref().unwrap_or_default();
            was_without_memory |= reason.contains("no memory to open the engine again");
            if again.status != Status::Rejected || failed.elapsed() > LIMIT {
                break again;
            }
            thread::sleep(Duration::from_millis(20));
        };
        row.again_s = failed.elapsed().as_secs_f64();
        if was_without_memory != (kind == Kind::TrapAndNoMemory) {
            row.failures.push(format!(
                "that there was no memory to open the engine again was said: {was_without_memory}"
            ));
        }
        if (again.status, &again.token_ids) != (expected.status, &expected.token_ids) {
            row.failures.push(format!(
                "the next answer is {:?} {:?} ({:?}), expected {:?}",
                again.status, again.token_ids, again.reason, expected.token_ids
            ));
        }
        Ok(())
    }

    fn arm(&self, kind: Kind) {
        let spin_ns = if self.is_emulated { 5_000_000_000 } else { 30_000_000_000 };
        let (fault, num_threads) = match kind {
            Kind::RefusedLaunch => (Fault::Spin { ns: 0 }, TOO_MANY_THREADS),
            Kind::Trap | Kind::TrapAndNoMemory => (Fault::Trap, 1),
            Kind::WildWrite => (Fault::WildWrite, 1),
            Kind::Hang => (Fault::Spin { ns: spin_ns }, 1),
        };
        if kind == Kind::TrapAndNoMemory {
            self.front.fail_memory(1);
        }
        self.front.fault(NTH_GRAPH, &self.image, &fault.launch().unwrap(), num_threads);
    }

    /// Bytes that an engine could have. In a context of its own, which is there for no longer and takes the same every time.
    fn free_bytes(&self) -> Result<u64, DriverError> {
        let (context, _) = Context::open(&self.device, Share::None)?;
        let of_driver = context.memory_bytes()?.0 as u64;
        let of_system = self.device.is_integrated.then(available_bytes).flatten();
        Ok(of_system.filter(|_| !self.is_emulated).unwrap_or(of_driver))
    }

    /// Bytes missing of the `free` ones there were, once what is given back late had its time, and what is wrong with that.
    fn missing_bytes(&self, free: u64) -> (i64, Option<String>) {
        let (start, tolerance) = (Instant::now(), self.record.tolerance_bytes.cast_signed());
        loop {
            let missing = match self.free_bytes() {
                Ok(now) => free.cast_signed() - now.cast_signed(),
                Err(error) => return (0, Some(format!("free memory cannot be asked for: {error}"))),
            };
            if missing <= tolerance {
                return (missing, None);
            }
            if self.is_emulated || start.elapsed() > SETTLING {
                let told = format!("{missing} bytes of memory are missing, expected at most {tolerance}");
                return (missing, Some(told));
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn note_missing(&mut self, free: u64, when: &str) {
        let (_, failure) = self.missing_bytes(free);
        self.record.others.extend(failure.map(|failure| format!("{when}: {failure}")));
    }

    fn expect(&mut self, holds: bool, failure: impl FnOnce() -> String) {
        if !holds {
            self.record.others.push(failure());
        }
    }
}

/// The answer to who asked, if there is one at all.
fn answer(events: Option<Receiver<Event>>) -> Result<Reply, String> {
    let events = events.ok_or("the worker has ended")?;
    let until = Instant::now() + LIMIT;
    loop {
        match events.recv_deadline(until) {
            Ok(Event::Reply(reply)) => return Ok(*reply),
            Ok(Event::Tokens { .. }) => {}
            Err(RecvTimeoutError::Timeout) => return Err(format!("no answer within {} s", LIMIT.as_secs())),
            Err(RecvTimeoutError::Disconnected) => return Err("a request was dropped unanswered".into()),
        }
    }
}
