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

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded, select_biased};
use takt_engine::EngineError;

use super::{
    WorkerCore, WorkerOptions,
    asker::{Asker, Outcome},
    heartbeat::Heartbeat,
    opening::{Facts, Leftover, Opener, open},
    reopening::reopen,
    watch::Watch,
};
use crate::{
    clock::{Clock, MonotonicClock},
    request::{Request, RequestId, RequestSender, Status},
    rt,
};

/// Name of the worker's thread, by which the kernel's files tell it.
pub const THREAD_NAME: &str = "takt-worker";
/// Failures without a complete answer in between after which the worker gives up.
const MAX_FAILURES: usize = 3;
/// How often an idle worker looks whether costs are to be measured again.
const IDLE_CHECK: Duration = Duration::from_millis(250);
/// What one section, or one measurement of costs, may take before the worker counts as stuck: ten times and more what the slowest takes (a
/// slice of 64 tokens of an 8B model: about 2 s on two cores).
const SECTION_ALLOWANCE: Duration = Duration::from_secs(30);
/// What opening an engine may take: hashing, packing and warming up tens of gigabytes from a slow disk.
pub(super) const OPEN_ALLOWANCE: Duration = Duration::from_secs(900);
/// What giving up an engine that failed may take: freeing its memory, and destroying a context in which a kernel may hang for ever.
const TEARDOWN_ALLOWANCE: Duration = Duration::from_secs(10);
/// How often who ends the worker looks whether an engine is being given up.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Cancellations that may wait for the next section.
const MAX_CANCELS: usize = 256;

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
            recv(self.process_end) -> _ => self.is_left_to_itself(),
        };
        if !is_left {
            let _ = thread.join(); // a panic was reported where it was caught
        }
    }
}

impl Worker {
    /// A section is waited for, not the minutes until an engine that failed is given up and open again; the section may be the one that fails.
    fn is_left_to_itself(&self) -> bool {
        while !self.is_reopening.load(Ordering::SeqCst) {
            if self.ended.recv_timeout(LOOK_AGAIN) != Err(RecvTimeoutError::Timeout) {
                return false;
            }
        }
        true
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop_and_join();
    }
}

pub(super) struct Channels {
    pub requests: Receiver<Request>,
    pub cancels: Receiver<RequestId>,
    /// Closed for shutdown; nothing is ever sent.
    pub stop: Receiver<()>,
    heart: Arc<Heartbeat>,
    is_reopening: Arc<AtomicBool>,
}

impl Channels {
    /// The worker lives; the next sign comes within `allowed`.
    pub(super) fn beat(&self, allowed: Duration) {
        self.heart.beat(allowed);
    }

    /// The worker is still wanted.
    pub(super) fn are_open(&self) -> bool {
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
    let (clock, started) = (MonotonicClock, MonotonicClock.now());
    let (mut core, mut device_key) = match open(&mut opener, options, || channels.are_open(), None) {
        Ok((core, facts)) => {
            let device_key = facts.device_key.clone();
            let _ = ready.send(Ok(Facts { refused, ..facts }));
            (core, device_key)
        }
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    let (opening, mut num_failures) = (clock.now().saturating_duration_since(started), 0);
    let reason = loop {
        match serve(&mut core, channels, &mut num_failures) {
            End::ShutDown => break None,
            End::Failed(reason) => {
                let failed = clock.now();
                num_failures += 1;
                tracing::error!(reason, num_failures, "the engine failed");
                let last = (num_failures >= MAX_FAILURES)
                    .then(|| format!("{reason}; given up after {MAX_FAILURES} failures: restart the node"));
                if let Some(reason) = &last {
                    answer_unread(&channels.requests, Some(reason)); // they need not wait for the teardown
                }
                let leftover = Leftover::of(&core, device_key);
                // SYNC POINT: said first, then looked whether the worker is still wanted; who ends it does the reverse.
                channels.is_reopening.store(true, Ordering::SeqCst);
                channels.beat(TEARDOWN_ALLOWANCE);
                drop(core); // two engines at once may not fit into memory
                if last.is_some() {
                    break last;
                }
                if !channels.are_open() {
                    break None;
                }
                let reopened = reopen(&mut opener, options, channels, &leftover, &reason);
                channels.is_reopening.store(false, Ordering::SeqCst);
                match reopened {
                    Ok((reopened, facts)) => {
                        (core, device_key) = (reopened, facts.device_key);
                        tracing::info!(
                            "the engine is open again {:.2} s after it failed; opening took {:.2} s at the start",
                            clock.now().saturating_duration_since(failed).as_secs_f64(),
                            opening.as_secs_f64()
                        );
                    }
                    Err(EngineError::Interrupted) => break None,
                    Err(error) => break Some(format!("{reason}; opening the engine again failed: {error}")),
                }
            }
        }
    };
    answer_unread(&channels.requests, reason.as_deref());
}

/// Runs until shutdown, or until the backend fails beyond a reset. Every request it held is answered on return.
fn serve(core: &mut WorkerCore, channels: &Channels, num_failures: &mut usize) -> End {
    loop {
        let mut had_open = 0;
        let round = catch_unwind(AssertUnwindSafe(|| {
            channels.beat(SECTION_ALLOWANCE);
            let goes_on = || {
                channels.beat(SECTION_ALLOWANCE);
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
        answer(&request, status, Some(failure.unwrap_or("the node is shutting down")));
    }
}

/// Answers a request that nothing was done for.
pub(super) fn answer(request: &Request, status: Status, reason: Option<&str>) {
    let outcome = Outcome { reason: reason.map(str::to_owned), ..Outcome::default() };
    Asker::new(request).reply(status, MonotonicClock.now(), outcome);
}
