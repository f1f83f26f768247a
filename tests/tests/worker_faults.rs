//! The worker where there is no memory for snapshots, in virtual time: what can be spared is given up, and nobody else is failed. And its thread
//! where an engine that failed does not end.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, bounded, never};
use takt_engine::{
    EngineError, Result,
    backend::{Backend, Capabilities},
    engine::Engine,
    kv::{LaneId, SnapshotId},
    spec::DecoderSpec,
    step::{LogitsWanted, StepOutput, StepPlan},
    text::Text,
};
use takt_node::{
    calibrate::Effort,
    request::{Event, Prompt, Reply, Request, RequestId, Status},
    scheduler::{class::Class, cost_table::SectionKind},
    worker::{Opened, Worker, WorkerOptions},
};
use takt_tests::worker_bench::{Bench, engine_dir, engine_options, finish};

const SYSTEM: &str = "You are a robot. Answer with one skill call as JSON. Be brief and careful with people.";
const LONG: &str = "bring the red wrench from the bench in the lab to the table at the door";

fn chat(user: &str) -> Prompt {
    Prompt::Chat(vec![("system".into(), SYSTEM.into()), ("user".into(), user.into())])
}

fn raw(text: &str) -> Prompt {
    Prompt::Raw(text.into())
}

/// Tokens computed for a chat while no lane holds its beginning.
fn num_tokens(bench: &mut Bench) -> usize {
    let others = [bench.submit(raw("a"), None, 4), bench.submit(raw("b"), None, 4)];
    bench.run_until_idle();
    let before = bench.log.num_tokens.load(Ordering::SeqCst);
    let asked = bench.submit(chat("go to the lab"), None, 4);
    bench.run_until_idle();
    for events in others.iter().chain([&asked]) {
        assert_eq!(finish(events).0.status, Status::Complete);
    }
    bench.log.num_tokens.load(Ordering::SeqCst) - before
}

#[test]
fn a_prefix_that_cannot_be_kept_fails_nobody_and_is_kept_when_there_is_memory_again() {
    let options = WorkerOptions { max_prefill_slice_tokens: 16, ..WorkerOptions::default() };
    let mut bench = Bench::new(2, &options);
    bench.log.memory_is_full.store(true, Ordering::SeqCst);
    let whole = num_tokens(&mut bench);
    assert_eq!(num_tokens(&mut bench), whole, "computed again");
    bench.log.memory_is_full.store(false, Ordering::SeqCst);
    assert_eq!(num_tokens(&mut bench), whole, "kept now");
    assert!(num_tokens(&mut bench) < whole);
}

#[test]
fn who_loses_a_lane_takes_the_memory_of_a_prefix_that_is_kept() {
    let mut bench =
        Bench::new(1, &WorkerOptions { max_prefill_slice_tokens: 16, ..WorkerOptions::default() });
    let first = bench.submit(chat("pick the red cup"), None, 4);
    bench.run_until_idle();
    assert_eq!(finish(&first).0.status, Status::Complete);
    let background = bench.submit(raw(LONG), None, 30);
    for _ in 0..8 {
        bench.core.turn().unwrap();
    }
    bench.log.memory_is_full.store(true, Ordering::SeqCst);
    let urgent = bench.control(raw("stop"), Duration::from_millis(40), 5);
    bench.run_until_idle();
    assert!(!bench.log.memory_is_full.load(Ordering::SeqCst), "the prefix gave way");
    assert_eq!(finish(&urgent).0.status, Status::Complete);
    let (reply, _) = finish(&background);
    let mut alone = Bench::new(1, &WorkerOptions::default());
    let expected = alone.submit(raw(LONG), None, 30);
    alone.run_until_idle();
    assert_eq!((reply.status, reply.token_ids), (Status::Complete, finish(&expected).0.token_ids));
}

#[test]
fn who_loses_a_lane_and_cannot_be_put_aside_is_answered_and_nobody_else_fails() {
    let mut bench = Bench::new(1, &WorkerOptions::default());
    let background = bench.submit(raw(LONG), None, 30);
    for _ in 0..8 {
        bench.core.turn().unwrap();
    }
    bench.log.memory_is_full.store(true, Ordering::SeqCst);
    let waiting = bench.submit(raw("b"), None, 8);
    let urgent = bench.control(raw("stop"), Duration::from_millis(40), 5);
    bench.run_until_idle();
    let (reply, _) = finish(&background);
    assert_eq!(reply.status, Status::Failed);
    assert!(reply.reason.unwrap().contains("the test left no memory"));
    for events in [&urgent, &waiting] {
        assert_eq!(finish(events).0.status, Status::Complete);
    }
    assert_eq!(bench.core.num_free_lanes(), 1);
}

/// A backend that can be lost, as a GPU's context is: nothing works any more, and giving it up blocks until the test has seen it.
struct Losable {
    inner: Box<dyn Backend>,
    is_lost: Arc<AtomicBool>,
    /// Sections that were asked for logits: whatever only fills a lane is none.
    num_sections: Arc<AtomicUsize>,
    /// Told when it is being given up.
    blocked: Sender<()>,
    /// Until it is.
    released: Receiver<()>,
}

impl Losable {
    fn alive(&mut self) -> Result<&mut dyn Backend> {
        if self.is_lost.load(Ordering::SeqCst) {
            return Err(EngineError::Backend("the test lost the device".into()));
        }
        Ok(self.inner.as_mut())
    }
}

impl Drop for Losable {
    fn drop(&mut self) {
        if self.is_lost.swap(false, Ordering::SeqCst) {
            self.blocked.send(()).unwrap();
            let _ = self.released.recv();
        }
    }
}

impl Backend for Losable {
    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    fn spec(&self) -> &DecoderSpec {
        self.inner.spec()
    }

    fn run_step(&mut self, plan: &StepPlan) -> Result<StepOutput<'_>> {
        let counts = plan.segments.iter().any(|segment| segment.logits != LogitsWanted::None);
        self.num_sections.fetch_add(usize::from(counts), Ordering::SeqCst);
        self.alive()?.run_step(plan)
    }

    fn capture(&mut self, layer_inputs: &[usize]) -> Result<()> {
        self.alive()?.capture(layer_inputs)
    }

    fn keep(&mut self, lane: LaneId, path: &[usize]) -> Result<()> {
        self.alive()?.keep(lane, path)
    }

    fn committed_len(&self, lane: LaneId) -> usize {
        self.inner.committed_len(lane)
    }

    fn truncate(&mut self, lane: LaneId, len: usize) -> Result<()> {
        self.alive()?.truncate(lane, len)
    }

    fn save_snapshot(&mut self, lane: LaneId, len: usize) -> Result<SnapshotId> {
        self.alive()?.save_snapshot(lane, len)
    }

    fn restore_snapshot(&mut self, lane: LaneId, snapshot: SnapshotId) -> Result<()> {
        self.alive()?.restore_snapshot(lane, snapshot)
    }

    fn drop_snapshot(&mut self, snapshot: SnapshotId) {
        self.inner.drop_snapshot(snapshot);
    }
}

/// A worker on a backend that can be lost, and the test's side of it.
struct Losing {
    is_lost: Arc<AtomicBool>,
    num_sections: Arc<AtomicUsize>,
    blocked: Receiver<()>,
    release: Sender<()>,
    /// Told when the engine is being opened again, which then waits for `open`.
    reopening: Receiver<()>,
    open: Sender<()>,
    /// Whether it then finds memory.
    has_memory: Arc<AtomicBool>,
    /// Last, so that a test that fails lets it go on before it waits for it.
    worker: Worker,
}

impl Losing {
    fn spawn(process_end: Receiver<()>) -> Self {
        let ((blocked_in, blocked), (release, released)) = (bounded(1), bounded(0));
        let ((reopening_in, reopening), (open, opened)) = (bounded(1), bounded::<()>(0));
        let is_lost = Arc::new(AtomicBool::new(false));
        let num_sections = Arc::new(AtomicUsize::new(0));
        let has_memory = Arc::new(AtomicBool::new(true));
        let memory = Arc::clone(&has_memory);
        let (lost, sections, mut num_opened) = (Arc::clone(&is_lost), Arc::clone(&num_sections), 0);
        let opener = move || {
            num_opened += 1;
            if num_opened > 1 {
                reopening_in.send(()).unwrap();
                let _ = opened.recv();
            }
            if !memory.load(Ordering::SeqCst) {
                return Err(EngineError::Capacity("the test left no memory".into()));
            }
            let engine = Engine::open(&engine_dir(), &engine_options(1))?;
            let backend = Box::new(Losable {
                inner: engine.backend,
                is_lost: Arc::clone(&lost),
                num_sections: Arc::clone(&sections),
                blocked: blocked_in.clone(),
                released: released.clone(),
            });
            let text = Arc::new(Text::open(&engine_dir())?.expect("the fixture has a tokenizer"));
            Ok(Opened { backend, text, manifest: engine.manifest, draft: engine.draft, costs: None })
        };
        let options = WorkerOptions { process_end, effort: Effort::LEAST, ..WorkerOptions::default() };
        let worker = Worker::spawn(Box::new(opener), options).unwrap();
        Self { worker, is_lost, num_sections, blocked, release, reopening, open, has_memory }
    }

    fn answer(&self) -> Reply {
        reply(&self.ask().1)
    }

    fn ask(&self) -> (RequestId, Receiver<Event>) {
        let (events, replies) = bounded(256);
        let id = RequestId::next();
        let request = Request {
            id,
            prompt: raw("pick the red cup"),
            arrived: Instant::now(),
            deadline: None,
            class: Class::Background,
            max_tokens: Some(4),
            sampling: None,
            stop: Vec::new(),
            form: None,
            events,
            admission: None,
        };
        self.worker.sender().submit(request).unwrap();
        (id, replies)
    }

    /// Loses the device in a request, which is answered before anything is given up.
    fn lose(&self) {
        self.is_lost.store(true, Ordering::SeqCst);
        let reply = self.answer();
        assert_eq!(reply.status, Status::Failed);
        assert!(reply.reason.unwrap().contains("the test lost the device"));
        self.blocked.recv().unwrap();
    }
}

#[track_caller]
fn reply(events: &Receiver<Event>) -> Reply {
    let reply = events.iter().find_map(|event| match event {
        Event::Reply(reply) => Some(*reply),
        Event::Tokens { .. } => None,
    });
    reply.expect("every request is answered")
}

#[test]
fn while_there_is_no_memory_for_an_engine_whoever_asked_is_told_and_so_is_whoever_looks() {
    let losing = Losing::spawn(never());
    let expected = losing.answer();
    let no_engine = || losing.worker.sender().no_engine();
    assert_eq!(no_engine(), None);
    losing.has_memory.store(false, Ordering::SeqCst);
    losing.lose();
    losing.release.send(()).unwrap();
    losing.reopening.recv().unwrap();
    assert!(no_engine().unwrap().contains("the test lost the device"));
    // During a try nobody is answered; who thinks better of it has that for an answer.
    let ((_, waiting), (id, cancelled)) = (losing.ask(), losing.ask());
    losing.worker.sender().cancel(id);
    losing.open.send(()).unwrap();
    let told = reply(&waiting);
    assert_eq!(told.status, Status::Rejected);
    assert!(told.reason.unwrap().contains("the test left no memory"));
    assert_eq!(reply(&cancelled).status, Status::Cancelled);
    assert!(no_engine().unwrap().contains("the test left no memory"));
    losing.reopening.recv().unwrap();
    losing.has_memory.store(true, Ordering::SeqCst);
    losing.open.send(()).unwrap();
    let again = losing.answer();
    assert_eq!((again.status, again.token_ids), (Status::Complete, expected.token_ids));
    assert_eq!(no_engine(), None);
}

#[test]
fn giving_a_lost_engine_up_has_seconds_and_opening_it_again_has_minutes() {
    let losing = Losing::spawn(never());
    let expected = losing.answer();
    assert_eq!(expected.status, Status::Complete);
    losing.lose();
    assert!(losing.worker.due_within() <= Duration::from_secs(10), "{:?}", losing.worker.due_within());
    losing.release.send(()).unwrap();
    losing.reopening.recv().unwrap();
    assert!(losing.worker.due_within() > Duration::from_secs(60), "{:?}", losing.worker.due_within());
    losing.open.send(()).unwrap();
    let again = losing.answer();
    assert_eq!((again.status, again.token_ids), (Status::Complete, expected.token_ids));
}

#[test]
fn an_engine_that_is_opened_again_is_not_measured_again() {
    let losing = Losing::spawn(never());
    let sections = || losing.num_sections.swap(0, Ordering::SeqCst);
    let grid = losing.worker.facts().costs.grid().clone();
    let num_sizes: usize = SectionKind::ALL.iter().map(|&kind| grid.sizes(kind).len()).sum();
    let measured = sections();
    assert!(measured > 2 * num_sizes, "{measured} sections for {num_sizes} sizes");
    let before = losing.answer();
    let answered = sections();
    losing.lose();
    losing.release.send(()).unwrap();
    losing.reopening.recv().unwrap();
    sections();
    losing.open.send(()).unwrap();
    let again = losing.answer();
    assert_eq!((again.status, again.token_ids), (before.status, before.token_ids));
    assert_eq!(sections() - answered, num_sizes, "each kind and size once");
}

#[test]
fn an_engine_that_does_not_end_is_not_waited_for_when_the_process_ends() {
    let (end, process_end) = bounded(0);
    let losing = Losing::spawn(process_end);
    losing.lose();
    let Losing { worker, release, .. } = losing;
    drop::<Sender<()>>(end);
    let (ended_in, ended) = bounded(1);
    let ending = thread::spawn(move || {
        worker.shut_down();
        ended_in.send(()).unwrap();
    });
    ended.recv_timeout(Duration::from_secs(60)).expect("the engine is not waited for");
    ending.join().unwrap();
    drop(release);
}
