//! The thread around the worker: channels, failures, shutdown.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::JoinHandle,
};

use crossbeam_channel::{Receiver, Sender, bounded, select_biased};
use takt_engine::{
    EngineError,
    backend::{Backend, Capabilities},
    dir::Manifest,
    text::{SpecialTokens, Text},
};

use super::{
    WorkerCore, WorkerOptions,
    asker::{Asker, Outcome},
    warm_up::warm_up,
};
use crate::{
    clock::{Clock, MonotonicClock},
    request::{Request, RequestId, RequestSender, Status},
    rt,
};

/// Failures without a complete answer in between after which the worker gives up.
const MAX_FAILURES: usize = 3;
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
    /// Measured before the first request: a decode step of one lane.
    pub decode_step: std::time::Duration,
}

/// A running worker. Dropping it ends it: every open request is answered `cancelled`.
#[derive(Debug)]
pub struct Worker {
    sender: RequestSender,
    facts: Facts,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread, opens the engine on it, warms it up and waits until it is ready.
    ///
    /// # Errors
    /// Whatever `opener` or the warm-up reports.
    pub fn spawn(opener: Opener, options: WorkerOptions) -> Result<Self, EngineError> {
        let (requests_in, requests) = bounded(options.queue_len.max(1));
        let (cancels_in, cancels) = bounded(MAX_CANCELS);
        let (stop_in, stop) = bounded(0);
        let (ready_in, ready) = bounded(1);
        let channels = Channels { requests, cancels, stop };
        let thread = std::thread::Builder::new()
            .name("takt-worker".into())
            .spawn(move || work(opener, &options, &channels, &ready_in))
            .map_err(|error| EngineError::Backend(format!("cannot start the worker thread: {error}")))?;
        let facts = ready.recv().unwrap_or_else(|_| {
            Err(EngineError::Backend("the worker stopped while opening the engine".into()))
        })?;
        Ok(Self {
            sender: RequestSender::new(requests_in).with_cancels(cancels_in),
            facts,
            stop: Some(stop_in),
            thread: Some(thread),
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

    /// Ends the worker and waits for it.
    pub fn shut_down(mut self) {
        self.stop_and_join();
    }

    fn stop_and_join(&mut self) {
        self.stop.take(); // SYNC POINT: the worker sees the closed channel at the next section boundary
        if let Some(thread) = self.thread.take() {
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
    let mut core = match open(&mut opener, options) {
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
                if num_failures >= MAX_FAILURES {
                    break Some(format!(
                        "{reason}; given up after {MAX_FAILURES} failures: restart the node"
                    ));
                }
                drop(core); // two engines at once may not fit into memory
                match open(&mut opener, options) {
                    Ok((reopened, _)) => core = reopened,
                    Err(error) => break Some(format!("{reason}; opening the engine again failed: {error}")),
                }
            }
        }
    };
    answer_unread(&channels.requests, reason.as_deref());
}

fn open(opener: &mut Opener, options: &WorkerOptions) -> Result<(WorkerCore, Facts), EngineError> {
    let Opened { mut backend, text, manifest } = opener()?;
    text.check_vocab_size(manifest.spec.vocab_size)?;
    let clock = MonotonicClock;
    // The tokenizer compiles its patterns on first use.
    text.encode("Where are you? 42", SpecialTokens::Add)?;
    let pace = warm_up(backend.as_mut(), &clock, options.max_prefill_slice_tokens)?;
    let facts = Facts {
        capabilities: backend.capabilities().clone(),
        manifest,
        text: Arc::clone(&text),
        refused: Vec::new(),
        decode_step: pace.decode(),
    };
    let mut core = WorkerCore::new(backend, text, options, Box::new(clock));
    core.pace = pace;
    Ok((core, facts))
}

/// Runs until shutdown, or until the backend fails beyond a reset. Every request it held is answered on return.
fn serve(core: &mut WorkerCore, channels: &Channels, num_failures: &mut usize) -> End {
    loop {
        let mut had_open = 0;
        let round = catch_unwind(AssertUnwindSafe(|| {
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
            recv(channels.requests) -> request => match request {
                Ok(request) => core.accept(request),
                Err(_) => return false, // every sender is gone
            },
        }
    }
    for request in channels.requests.try_iter() {
        core.accept(request);
    }
    for id in channels.cancels.try_iter() {
        core.cancel(id);
    }
    matches!(channels.stop.try_recv(), Err(crossbeam_channel::TryRecvError::Empty))
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
