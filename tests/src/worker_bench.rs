//! A worker on the real CPU backend and a fixture model, in virtual time.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
    time::Duration,
};

use crossbeam_channel::{Receiver, bounded};
use takt_engine::{
    backend::{Backend, Capabilities},
    draft::DraftManifest,
    engine::{Engine, EngineOptions},
    quant::WeightKind,
    sampler::SamplingParams,
    text::Text,
};
use takt_engine_builder::{BuildOptions, build};
use takt_node::{
    calibrate::{Effort, grid_of, measure},
    clock::{Clock, VirtualClock},
    request::{Event, Form, Prompt, Reply, Request, RequestId},
    scheduler::{class::Class, cost_table::CostTable},
    worker::{Parts, Turn, WorkerCore, WorkerOptions},
};

use crate::{
    lister::Lister,
    virtual_backend::{StepLog, VirtualBackend},
};

/// Cost of a step.
pub const STEP: Duration = Duration::from_millis(2);
const TOKEN: Duration = Duration::from_micros(100);
const LEVEL: Duration = Duration::from_micros(200);

/// The fixture as an engine, built once for all tests of a process.
static ENGINE: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/hf/tiny-llama");
    let options = BuildOptions::new(WeightKind::Bf16);
    build(&source, &folder.path().join("engine"), &options, &mut |_| {}).unwrap();
    folder
});

/// The fixture's engine directory.
#[must_use]
pub fn engine_dir() -> PathBuf {
    ENGINE.path().join("engine")
}

/// How the fixture is opened: lanes of 128 tokens.
#[must_use]
pub fn engine_options(num_lanes: usize) -> EngineOptions {
    EngineOptions {
        threads: Some(1),
        num_lanes,
        lane_capacity: Some(128),
        max_step_tokens: 32,
        ..EngineOptions::default()
    }
}

/// What a test asks.
#[derive(Debug, Clone)]
pub struct Demand {
    /// What to answer.
    pub prompt: Prompt,
    /// What it is promised.
    pub class: Class,
    /// Time from arrival to the deadline.
    pub allowed: Option<Duration>,
    /// Most tokens of the answer.
    pub max_tokens: usize,
    /// Its form.
    pub form: Option<Form>,
    /// How its tokens are chosen; the engine's defaults without.
    pub sampling: Option<SamplingParams>,
    /// Texts that end it.
    pub stop: Vec<String>,
    /// Events that may wait to be read.
    pub room: usize,
}

impl Demand {
    /// A text without a chat template; interactive, without a deadline.
    #[must_use]
    pub fn raw(text: &str) -> Self {
        Self {
            prompt: Prompt::Raw(text.into()),
            class: Class::Interactive,
            allowed: None,
            max_tokens: 256,
            form: None,
            sampling: None,
            stop: Vec::new(),
            room: 256,
        }
    }

    /// With a deadline that is to be promised.
    #[must_use]
    pub fn promised(self, allowed: Duration) -> Self {
        Self { class: Class::Control, allowed: Some(allowed), ..self }
    }
}

/// A worker that a test drives section by section.
#[derive(Debug)]
pub struct Bench {
    /// The worker.
    pub core: WorkerCore,
    /// Its clock.
    pub clock: VirtualClock,
    /// What ran.
    pub log: StepLog,
}

impl Bench {
    /// A calibrated worker.
    #[must_use]
    pub fn new(num_lanes: usize, worker: &WorkerOptions) -> Self {
        Self::of(&engine_dir(), &engine_options(num_lanes), worker)
    }

    /// A calibrated worker of another engine.
    #[must_use]
    pub fn of(dir: &Path, options: &EngineOptions, worker: &WorkerOptions) -> Self {
        Self::with("cpu", dir, options, worker, None)
    }

    /// [`Self::of`] a backend whose rows `lister` hands out.
    #[must_use]
    pub fn with_rows(
        dir: &Path,
        options: &EngineOptions,
        worker: &WorkerOptions,
        lister: Option<Lister>,
    ) -> Self {
        Self::with("cpu", dir, options, worker, lister)
    }

    /// A calibrated worker whose backend says that it is `backend`.
    #[must_use]
    pub fn on(backend: &'static str, dir: &Path, options: &EngineOptions, worker: &WorkerOptions) -> Self {
        Self::with(backend, dir, options, worker, None)
    }

    fn with(
        backend: &'static str,
        dir: &Path,
        options: &EngineOptions,
        worker: &WorkerOptions,
        lister: Option<Lister>,
    ) -> Self {
        let engine = Engine::open(dir, options).unwrap();
        let text = Text::open(dir).unwrap().unwrap();
        let clock = VirtualClock::default();
        let facts = Capabilities { backend, ..engine.backend.capabilities().clone() };
        let mut measured = in_virtual_time(engine.backend, &clock, &StepLog::default());
        let table = cost_table(&mut measured, worker, &clock);
        let log = StepLog::default();
        let backend = VirtualBackend { facts, lister, ..in_virtual_time(measured.inner, &clock, &log) };
        let parts = Parts {
            backend: Box::new(backend),
            text: Arc::new(text),
            table,
            draft: engine.draft,
            desk: None,
        };
        Self { core: WorkerCore::new(parts, worker, clock.clone()), clock, log }
    }

    /// A worker over any backend, with the head and the text of its engine, and its costs in the virtual time of `clock`.
    #[must_use]
    pub fn over(
        inner: Box<dyn Backend>,
        (draft, text): (Option<DraftManifest>, Text),
        worker: &WorkerOptions,
        table: CostTable,
        clock: VirtualClock,
    ) -> Self {
        let log = StepLog::default();
        let backend = Box::new(in_virtual_time(inner, &clock, &log));
        let parts = Parts { backend, text: Arc::new(text), table, draft, desk: None };
        Self { core: WorkerCore::new(parts, worker, clock.clone()), clock, log }
    }

    /// Asks.
    pub fn ask(&mut self, demand: Demand) -> (RequestId, Receiver<Event>) {
        let Demand { prompt, class, allowed, max_tokens, form, sampling, stop, room } = demand;
        let (events, receiver) = bounded(room);
        let (id, arrived) = (RequestId::next(), self.clock.now());
        self.core.accept(Request {
            id,
            prompt,
            arrived,
            deadline: allowed.map(|allowed| arrived + allowed),
            class,
            max_tokens: Some(max_tokens),
            sampling,
            stop,
            form,
            events,
            admission: None,
        });
        (id, receiver)
    }

    /// Asks for an interactive answer, or with no deadline for a background one.
    pub fn submit(
        &mut self,
        prompt: Prompt,
        allowed: Option<Duration>,
        max_tokens: usize,
    ) -> Receiver<Event> {
        self.ask(Demand { prompt, allowed, max_tokens, ..Demand::raw("") }).1
    }

    /// Asks as a control loop.
    pub fn control(&mut self, prompt: Prompt, allowed: Duration, max_tokens: usize) -> Receiver<Event> {
        self.ask(Demand { prompt, max_tokens, ..Demand::raw("").promised(allowed) }).1
    }

    /// Until every request is answered.
    pub fn run_until_idle(&mut self) {
        while self.core.turn().unwrap() == Turn::Worked {}
        assert_eq!(self.core.num_open(), 0);
    }
}

fn in_virtual_time(inner: Box<dyn Backend>, clock: &VirtualClock, log: &StepLog) -> VirtualBackend {
    VirtualBackend {
        facts: inner.capabilities().clone(),
        inner,
        clock: clock.clone(),
        step: STEP,
        token: TOKEN,
        level: LEVEL,
        log: log.clone(),
        lister: None,
    }
}

/// What sections of `backend` cost in virtual time: the same for every backend of its sizes.
#[must_use]
pub fn virtual_costs(
    backend: Box<dyn Backend>,
    worker: &WorkerOptions,
    clock: &VirtualClock,
) -> (Box<dyn Backend>, CostTable) {
    let mut backend = in_virtual_time(backend, clock, &StepLog::default());
    let table = cost_table(&mut backend, worker, clock);
    (backend.inner, table)
}

fn cost_table(backend: &mut VirtualBackend, worker: &WorkerOptions, clock: &VirtualClock) -> CostTable {
    let grid = grid_of(backend, worker.max_prefill_slice_tokens);
    let costs = measure(backend, clock, &grid, Effort::BRIEF, |_| true).unwrap().unwrap();
    CostTable::new(grid, &costs)
}

/// The one reply, with the streamed text before it.
#[must_use]
pub fn finish(events: &Receiver<Event>) -> (Reply, String) {
    let (mut streamed, mut replies) = (String::new(), Vec::new());
    for event in events.try_iter() {
        match event {
            Event::Tokens { text, offset, .. } => {
                assert!(replies.is_empty(), "tokens after the reply");
                assert_eq!(offset, streamed.len());
                streamed += &text;
            }
            Event::Reply(reply) => replies.push(*reply),
        }
    }
    assert_eq!(replies.len(), 1, "exactly one reply");
    (replies.remove(0), streamed)
}
