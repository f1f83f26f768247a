//! The thread around the worker: channels, failures, shutdown.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded, select_biased};
use takt_engine::{
    EngineError,
    backend::{Backend, Capabilities},
    dir::Manifest,
    draft::{AcceptanceCheck, DraftManifest},
    kv::LaneId,
    text::{SpecialTokens, Text},
};

use takt_eagle_spec::policy::ALARMING_SHARE;
use takt_engine_builder::draft::measure_acceptance;

use super::{
    Desk, Drafting, Parts, WorkerCore, WorkerOptions,
    asker::{Asker, Outcome},
    heartbeat::Heartbeat,
    watch::Watch,
};
use crate::{
    calibrate::{DeviceKey, Effort, grid_of, measure},
    clock::{Clock, MonotonicClock},
    request::{Request, RequestId, RequestSender, Status},
    rt,
    scheduler::cost_table::{CostTable, SectionKind, SectionShape, StoredTable},
};

/// Name of the worker's thread, by which the kernel's files tell it.
pub const THREAD_NAME: &str = "takt-worker";
/// A decode step from which on asking the draft head for its record's prompt at the start would take too long.
const SLOW_STEP: Duration = Duration::from_millis(50);
/// Failures without a complete answer in between after which the worker gives up.
const MAX_FAILURES: usize = 3;
/// How often an idle worker looks whether costs are to be measured again.
const IDLE_CHECK: Duration = Duration::from_millis(250);
/// What one section, or one measurement of costs, may take before the worker counts as stuck: ten times and more what the slowest takes (a
/// slice of 64 tokens of an 8B model: about 2 s on two cores).
const SECTION_ALLOWANCE: Duration = Duration::from_secs(30);
/// What opening an engine may take: hashing, packing and warming up tens of gigabytes from a slow disk.
const OPEN_ALLOWANCE: Duration = Duration::from_secs(900);
/// What giving up an engine that failed may take: freeing its memory, and destroying a context in which a kernel may hang for ever.
const TEARDOWN_ALLOWANCE: Duration = Duration::from_secs(10);
/// Cancellations that may wait for the next section.
const MAX_CANCELS: usize = 256;

/// An engine with everything the worker needs.
pub struct Opened {
    /// What runs it.
    pub backend: Box<dyn Backend>,
    /// Its tokenizer and chat template.
    pub text: Arc<Text>,
    /// What it is.
    pub manifest: Manifest,
    /// Its draft head, where it has one and it is loaded.
    pub draft: Option<DraftManifest>,
    /// Costs of this device that were measured before and still hold.
    pub costs: Option<StoredTable>,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened").field("manifest", &self.manifest).finish_non_exhaustive()
    }
}

/// Opens the engine, on the worker's thread so that the backend's threads inherit its settings; again after a failure.
pub type Opener = Box<dyn FnMut() -> Result<Opened, EngineError> + Send>;

/// Fixed facts about a running worker.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The backend's.
    pub capabilities: Capabilities,
    /// The engine's.
    pub manifest: Manifest,
    /// Tokenizer and chat template.
    pub text: Arc<Text>,
    /// Real-time settings that were refused, with their effect.
    pub refused: Vec<String>,
    /// What a decode step of one lane usually takes.
    pub decode_step: Duration,
    /// What sections cost, as of the start.
    pub costs: Arc<CostTable>,
    /// Whether the costs were measured before, by `takt calibrate`, or just now.
    pub has_stored_costs: bool,
    /// Whether a draft head is loaded.
    pub has_draft_head: bool,
    /// What the costs hold for.
    pub device_key: DeviceKey,
    /// Where requests are let in.
    pub desk: Arc<Desk>,
}

/// A running worker. Dropping it ends it: every open request is answered `cancelled`.
#[derive(Debug)]
pub struct Worker {
    sender: RequestSender,
    facts: Facts,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
    /// Closed when the thread ends.
    ended: Receiver<()>,
    process_end: Receiver<()>,
    is_reopening: Arc<AtomicBool>,
    heart: Arc<Heartbeat>,
    _watch: Watch,
}

impl Worker {
    /// Starts the thread, opens the engine on it, warms it up and waits until it is ready.
    ///
    /// # Errors
    /// Whatever `opener` or the warm-up reports; [`EngineError::Interrupted`] when the process is about to end. The thread then goes on until
    /// `opener` returns, or dies with the process: opening writes nothing.
    pub fn spawn(opener: Opener, options: WorkerOptions) -> Result<Self, EngineError> {
        let (requests_in, requests) = bounded(options.queue_len.max(1));
        let (cancels_in, cancels) = bounded(MAX_CANCELS);
        let (stop_in, stop) = bounded(0);
        let (ready_in, ready) = bounded(1);
        let heart = Arc::new(Heartbeat::new(OPEN_ALLOWANCE));
        let is_reopening = Arc::new(AtomicBool::new(false));
        let channels = Channels {
            requests,
            cancels,
            stop,
            heart: Arc::clone(&heart),
            is_reopening: Arc::clone(&is_reopening),
        };
        let (ended_in, ended) = bounded::<()>(0);
        let (system_root, process_end) = (options.system_root.clone(), options.process_end.clone());
        let thread = std::thread::Builder::new()
            .name(THREAD_NAME.into())
            .spawn(move || {
                let _ended = ended_in;
                work(opener, &options, &channels, &ready_in);
            })
            .map_err(|error| EngineError::Backend(format!("cannot start the worker thread: {error}")))?;
        let stopped = || EngineError::Backend("the worker stopped while opening the engine".into());
        let facts = select_biased! {
            recv(ready) -> facts => facts.unwrap_or_else(|_| Err(stopped())),
            recv(process_end) -> _ => Err(EngineError::Interrupted),
        }?;
        Ok(Self {
            sender: RequestSender::new(requests_in)
                .with_cancels(cancels_in)
                .with_desk(Arc::clone(&facts.desk)),
            _watch: Watch::start(
                Arc::clone(&facts.desk),
                facts.capabilities.clone(),
                system_root,
                facts.device_key.clone(),
            ),
            facts,
            stop: Some(stop_in),
            thread: Some(thread),
            ended,
            process_end,
            is_reopening,
            heart,
        })
    }

    /// A handle that submits requests.
    #[must_use]
    pub fn sender(&self) -> RequestSender {
        self.sender.clone()
    }

    /// What it runs.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// True when the thread has ended: the engine failed and could not be opened again.
    #[must_use]
    pub fn has_stopped(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// How long the thread has been expected to say that it lives; `None` while it does. What is stuck in a section, or in giving up an
    /// engine that failed, can only be ended with the process.
    #[must_use]
    pub fn stuck_for(&self) -> Option<Duration> {
        self.heart.overdue()
    }

    /// How soon the thread says again that it lives, or counts as stuck; zero when it does.
    #[must_use]
    pub fn due_within(&self) -> Duration {
        self.heart.due_within()
    }

    /// Ends the worker and waits for it.
    pub fn shut_down(mut self) {
        self.stop_and_join();
    }

    fn stop_and_join(&mut self) {
        self.stop.take(); // SYNC POINT: the worker sees the closed channel at the next section boundary
        let Some(thread) = self.thread.take() else { return };
        let is_left = select_biased! {
            recv(self.ended) -> _ => false,
            // A section is waited for, not the minutes until an engine that failed is given up and open again.
            recv(self.process_end) -> _ => self.is_reopening.load(Ordering::SeqCst),
        };
        if !is_left {
            let _ = thread.join(); // a panic was reported where it was caught
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop_and_join();
    }
}

struct Channels {
    requests: Receiver<Request>,
    cancels: Receiver<RequestId>,
    /// Closed for shutdown; nothing is ever sent.
    stop: Receiver<()>,
    heart: Arc<Heartbeat>,
    is_reopening: Arc<AtomicBool>,
}

impl Channels {
    /// The worker is still wanted.
    fn are_open(&self) -> bool {
        matches!(self.stop.try_recv(), Err(TryRecvError::Empty))
    }

    /// Nobody wants anything.
    fn are_quiet(&self) -> bool {
        self.requests.is_empty() && self.are_open()
    }
}

/// Why serving ended.
enum End {
    ShutDown,
    Failed(String),
}

fn work(
    mut opener: Opener,
    options: &WorkerOptions,
    channels: &Channels,
    ready: &Sender<Result<Facts, EngineError>>,
) {
    let refused = rt::apply(&options.realtime);
    let mut core = match open(&mut opener, options, channels, None) {
        Ok((core, facts)) => {
            let _ = ready.send(Ok(Facts { refused, ..facts }));
            core
        }
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    let mut num_failures = 0;
    let reason = loop {
        match serve(&mut core, channels, &mut num_failures) {
            End::ShutDown => break None,
            End::Failed(reason) => {
                num_failures += 1;
                tracing::error!(reason, num_failures, "the engine failed");
                let desk = Arc::clone(core.desk());
                // SYNC POINT: said first, then looked whether the worker is still wanted; who ends it does the reverse.
                channels.is_reopening.store(true, Ordering::SeqCst);
                channels.heart.beat(TEARDOWN_ALLOWANCE);
                drop(core); // two engines at once may not fit into memory
                if num_failures >= MAX_FAILURES {
                    break Some(format!(
                        "{reason}; given up after {MAX_FAILURES} failures: restart the node"
                    ));
                }
                channels.heart.beat(OPEN_ALLOWANCE);
                if !channels.are_open() {
                    break None;
                }
                let reopened = open(&mut opener, options, channels, Some(desk));
                channels.is_reopening.store(false, Ordering::SeqCst);
                match reopened {
                    Ok((reopened, _)) => core = reopened,
                    Err(EngineError::Interrupted) => break None,
                    Err(error) => break Some(format!("{reason}; opening the engine again failed: {error}")),
                }
            }
        }
    };
    answer_unread(&channels.requests, reason.as_deref());
}

fn open(
    opener: &mut Opener,
    options: &WorkerOptions,
    channels: &Channels,
    desk: Option<Arc<Desk>>,
) -> Result<(WorkerCore, Facts), EngineError> {
    let Opened { mut backend, text, manifest, draft, costs } = opener()?;
    if options.realtime.lock_memory {
        rt::memory::settle_heap(); // what measuring allocates below is then kept for requests
    }
    text.check_vocab_size(manifest.spec.vocab_size)?;
    let clock = MonotonicClock;
    // The tokenizer compiles its patterns on first use.
    text.encode("Where are you? 42", SpecialTokens::Add)?;
    let facts = backend.capabilities().clone();
    let grid = grid_of(backend.as_ref(), options.max_prefill_slice_tokens);
    let costs = costs.filter(|costs| costs.grid == grid);
    let has_stored_costs = costs.is_some();
    // Measured in any case: it touches every page a section uses.
    let effort = if has_stored_costs { Effort::LEAST } else { options.effort };
    let effort = Effort { idle_gap: options.gpu_manners(&facts).idle_gap, ..effort };
    // Both before measuring: what changes meanwhile is noticed afterwards.
    let device_key = DeviceKey::new(&facts, &options.system_root);
    let desk = desk.map(|desk| (Arc::clone(&desk), desk.num_withdrawals()));
    let measured = measure(backend.as_mut(), &clock, &grid, effort, |_| channels.are_open())?;
    let measured = measured.ok_or(EngineError::Interrupted)?;
    let table = costs.map_or_else(|| CostTable::new(grid, &measured), |costs| costs.table());
    let decode = SectionShape { kind: SectionKind::Decode, size: 1, context_len: 1 };
    let decode_step = table.typical(decode);
    let shortest = table.bound(decode);
    if let Some(most) = options.limits(&facts).max_any_section.filter(|most| shortest > *most) {
        tracing::warn!(
            "a decode step of one lane takes up to {:.1} ms here, longer than the {:.1} ms of [gpu] max_section_ms: every lane goes alone; \
             use a smaller model, or allow longer sections",
            shortest.as_secs_f64() * 1e3,
            most.as_secs_f64() * 1e3
        );
    }
    if let Some(draft) = backend.draft_facts().filter(|draft| draft.max_positions < facts.lane_capacity) {
        let (known, all) = (draft.max_positions, facts.lane_capacity);
        tracing::warn!(
            "the draft head was trained for {known} positions, lanes hold {all}: longer texts come without speculation"
        );
    }
    let collapse = check_drafter(backend.as_mut(), options.drafting, draft.as_ref(), &manifest, decode_step)?;
    let costs = Arc::new(table.calibrated());
    let has_draft_head = backend.draft_facts().is_some();
    let parts = Parts { backend, text: Arc::clone(&text), table, draft, desk };
    let mut core = WorkerCore::new(parts, options, clock);
    if let Some(reason) = collapse {
        core.stop_drafting(&reason);
    }
    let desk = Arc::clone(core.desk());
    let facts = Facts {
        capabilities: facts,
        manifest,
        text,
        refused: Vec::new(),
        decode_step,
        costs,
        has_stored_costs,
        has_draft_head,
        device_key,
        desk,
    };
    Ok((core, facts))
}

/// Whether the head still proposes as it did when the engine was built, by the prompt on record; the reason if it does far worse. Not asked
/// where it would take seconds: there the first requests tell.
fn check_drafter(
    backend: &mut dyn Backend,
    drafting: Drafting,
    draft: Option<&DraftManifest>,
    manifest: &Manifest,
    decode_step: Duration,
) -> Result<Option<String>, EngineError> {
    let record = draft.and_then(|draft| draft.record.as_ref());
    let Some(record) = record.filter(|_| drafting == Drafting::Head && decode_step < SLOW_STEP) else {
        return Ok(None);
    };
    let AcceptanceCheck { prompt, accept_len: expected } = &record.check;
    let room = backend.capabilities().lane_capacity / 2;
    let measured = measure_acceptance(backend, std::slice::from_ref(prompt), &manifest.eos_token_ids);
    backend.truncate(LaneId(0), 0)?;
    let found = match measured {
        // Too small for the prompt, so that nothing was tried: the first requests tell.
        Ok(found) if found.num_chains == 0 || prompt.len() > room => return Ok(None),
        Ok(found) => found.accept_len(),
        Err(error) => {
            tracing::warn!("the draft head was not checked: {error}");
            return Ok(None);
        }
    };
    // As at run time: below this share of the accepted proposals on record, something is wrong.
    let has_collapsed = found - 1.0 < ALARMING_SHARE * (expected - 1.0);
    Ok(has_collapsed.then(|| {
        format!(
            "the draft head emits {found:.2} tokens a round after a prompt for which it emitted {expected:.2} when the engine was built: \
             build the engine again, or report it with the log"
        )
    }))
}

/// Runs until shutdown, or until the backend fails beyond a reset. Every request it held is answered on return.
fn serve(core: &mut WorkerCore, channels: &Channels, num_failures: &mut usize) -> End {
    loop {
        let mut had_open = 0;
        let round = catch_unwind(AssertUnwindSafe(|| {
            channels.heart.beat(SECTION_ALLOWANCE);
            let goes_on = || {
                channels.heart.beat(SECTION_ALLOWANCE);
                channels.are_quiet()
            };
            if let Err(error) = core.recalibrate_if_idle(goes_on) {
                return Some(Err(error));
            }
            if !receive(core, channels) {
                return None;
            }
            had_open = core.num_open();
            Some(core.turn())
        }));
        let reason = match round {
            Ok(None) => {
                core.end_all(Status::Cancelled, "the node is shutting down");
                return End::ShutDown;
            }
            Ok(Some(Ok(_))) => {
                if core.num_open() < had_open {
                    *num_failures = 0;
                }
                continue;
            }
            Ok(Some(Err(error))) => error.to_string(),
            Err(_) => {
                let reason = "the worker panicked: please report it with the log";
                core.end_all(Status::Failed, reason);
                return End::Failed(reason.to_owned());
            }
        };
        core.end_all(Status::Failed, &reason);
        if core.reset().is_err() {
            return End::Failed(reason);
        }
        *num_failures += 1;
        tracing::error!(reason, "a section failed; its requests were answered `failed`");
        if *num_failures >= MAX_FAILURES {
            return End::Failed(reason);
        }
    }
}

/// Takes what has arrived; waits when there is nothing else to do. False for shutdown.
fn receive(core: &mut WorkerCore, channels: &Channels) -> bool {
    if core.num_open() == 0 {
        select_biased! {
            recv(channels.stop) -> _ => return false,
            default(IDLE_CHECK) => {}
            recv(channels.requests) -> request => match request {
                Ok(request) => core.accept(request),
                Err(_) => return false, // every sender is gone
            },
        }
    }
    // Read before the requests: a cancel that is there now comes after its request, which is there as well.
    let cancels: Vec<RequestId> = channels.cancels.try_iter().collect();
    for request in channels.requests.try_iter() {
        core.accept(request);
    }
    for id in cancels {
        core.cancel(id);
    }
    channels.are_open()
}

/// Answers what was queued but never read; whoever submits later finds the channel closed.
fn answer_unread(requests: &Receiver<Request>, failure: Option<&str>) {
    let status = if failure.is_some() { Status::Failed } else { Status::Cancelled };
    for request in requests.try_iter() {
        let reason = Some(failure.unwrap_or("the node is shutting down").to_owned());
        let now = MonotonicClock.now();
        Asker::new(&request).reply(status, now, Outcome { reason, ..Outcome::default() });
    }
}
