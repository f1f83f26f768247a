//! What comes in: checked and handed to the worker, without ever blocking the transport's thread.
//!
//! A request whose form was asked for before goes straight to the worker. A form that is new is compiled on a thread of its own, so that it
//! delays nobody but the one who asks.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::{Sender, TrySendError, bounded};

use super::RosError;
use super::ask::{Ask, AskDefaults, refusal};
use super::message::{AskRequest, decode_string};
use super::node::start_thread;
use super::outlet::{Asker, Open, Topics};
use super::transport::Respond;
use crate::request::{Reply, RequestSender, Status, SubmitError};

/// Events of one request on their way: sections come far slower than they are published.
const EVENT_ROOM: usize = 256;
/// Requests with a new form that may wait for it to be compiled.
const MAX_NEWCOMERS: usize = 16;

/// Checks what comes in; called on the transport's thread.
#[derive(Debug)]
pub(super) struct Intake {
    defaults: AskDefaults,
    gate: Arc<Gate>,
    compiling: Mutex<Option<Compiling>>,
}

/// The thread that compiles new forms.
#[derive(Debug)]
struct Compiling {
    newcomers: Sender<Newcomer>,
    thread: JoinHandle<()>,
}

/// A request that waits for its form.
struct Newcomer {
    ask: Ask,
    asker: Asker,
    arrived: Instant,
}

impl Intake {
    pub fn start(
        requests: RequestSender,
        defaults: AskDefaults,
        topics: Arc<Topics>,
        num_open: Arc<AtomicUsize>,
        opened: Sender<Open>,
    ) -> Result<Self, RosError> {
        let (max_in_flight, is_closing) = (defaults.max_in_flight, AtomicBool::new(false));
        let num_newcomers = AtomicUsize::new(0);
        let gate =
            Arc::new(Gate { requests, max_in_flight, topics, num_open, opened, is_closing, num_newcomers });
        let (newcomers, waiting) = bounded::<Newcomer>(MAX_NEWCOMERS);
        let behind = Arc::clone(&gate);
        let thread = start_thread("takt-ros-forms", move || {
            for newcomer in waiting {
                behind.submit_newcomer(newcomer);
            }
        })?;
        Ok(Self { defaults, gate, compiling: Mutex::new(Some(Compiling { newcomers, thread })) })
    }

    /// A sentence on `~/ask`.
    pub fn hear(&self, message: &[u8]) {
        let sentence = decode_string(message).map_err(|error| format!("not a std_msgs/String: {error}"));
        let prompt = sentence.as_deref().unwrap_or_default().to_owned();
        self.admit(sentence.and_then(|sentence| self.defaults.sentence(sentence)), Asker::Topic { prompt });
    }

    /// A request to the service.
    pub fn take(&self, message: &[u8], respond: Box<dyn Respond>) {
        let request =
            AskRequest::decode(message).map_err(|error| format!("not a takt_msgs/srv/Ask request: {error}"));
        self.admit(request.and_then(|request| self.defaults.complete(request)), Asker::Service(respond));
    }

    fn admit(&self, ask: Result<Ask, String>, asker: Asker) {
        let arrived = Instant::now();
        match ask {
            Ok(ask) if self.gate.requests.knows(ask.form.as_ref()) => self.gate.submit(ask, asker, arrived),
            Ok(ask) => self.compile_first(Newcomer { ask, asker, arrived }),
            Err(reason) => self.gate.refuse(asker, &refusal(Status::Rejected, reason, arrived, None)),
        }
    }

    fn compile_first(&self, newcomer: Newcomer) {
        let compiling = self.compiling.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Compiling { newcomers, .. }) = &*compiling else {
            return self.gate.submit(newcomer.ask, newcomer.asker, newcomer.arrived); // refuses: the node ends
        };
        // A deadline does not wait for other forms, which may take longer than it.
        let num_ahead = self.gate.num_newcomers.fetch_add(1, Ordering::AcqRel);
        let most = if newcomer.ask.deadline.is_some() { 1 } else { MAX_NEWCOMERS };
        let sent = match num_ahead < most {
            true => newcomers.try_send(newcomer).map_err(TrySendError::into_inner),
            false => Err(newcomer),
        };
        if let Err(Newcomer { ask, asker, arrived }) = sent {
            self.gate.num_newcomers.fetch_sub(1, Ordering::AcqRel);
            let reason = format!(
                "its form is new and {num_ahead} others are being compiled: ask again later; forms that were asked for before do \
                 not wait"
            );
            self.gate.refuse(asker, &refusal(Status::Rejected, reason, arrived, ask.deadline));
        }
    }

    /// Refuses new requests from now on; open ones go on.
    pub fn stop_accepting(&self) {
        self.gate.is_closing.store(true, Ordering::Release);
    }

    /// Refuses what waits for its form as well, and ends the thread.
    pub fn close(&self) {
        self.stop_accepting();
        let compiling = self.compiling.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Compiling { newcomers, thread }) = compiling {
            drop(newcomers);
            if thread.join().is_err() {
                tracing::error!("the thread that compiles forms panicked");
            }
        }
    }
}

/// The way to the worker.
#[derive(Debug)]
struct Gate {
    requests: RequestSender,
    max_in_flight: usize,
    topics: Arc<Topics>,
    num_open: Arc<AtomicUsize>,
    opened: Sender<Open>,
    is_closing: AtomicBool,
    /// Requests whose form waits to be compiled, or is.
    num_newcomers: AtomicUsize,
}

impl Gate {
    /// On the thread that compiles: whatever goes wrong there ends with the request.
    fn submit_newcomer(&self, newcomer: Newcomer) {
        let Newcomer { ask, asker, arrived } = newcomer;
        if catch_unwind(AssertUnwindSafe(|| self.submit(ask, asker, arrived))).is_err() {
            tracing::error!("compiling a form panicked: please report it with the form");
        }
        self.num_newcomers.fetch_sub(1, Ordering::AcqRel);
    }

    fn submit(&self, ask: Ask, asker: Asker, arrived: Instant) {
        let deadline = ask.deadline;
        let refuse = |asker, status, reason: String| {
            self.refuse(asker, &refusal(status, reason, arrived, deadline));
        };
        if self.is_closing.load(Ordering::Acquire) {
            return refuse(asker, Status::Rejected, "the node is shutting down".to_owned());
        }
        let max = self.max_in_flight;
        let count = |num_open| (num_open < max).then_some(num_open + 1);
        if self.num_open.fetch_update(Ordering::AcqRel, Ordering::Acquire, count).is_err() {
            let reason = format!("{max} requests are being answered, the limit: ask again later");
            return refuse(asker, Status::Rejected, reason);
        }
        let (sender, events) = bounded(EVENT_ROOM);
        let (asker, status, reason) = match self.requests.submit(ask.into_request(arrived, sender)) {
            // Room for every request the count admits, so this fails only when the outlet is gone.
            Ok(()) => match self.opened.try_send(Open::new(asker, events, arrived, deadline)) {
                Ok(()) => return,
                Err(error) => (error.into_inner().asker, Status::Cancelled, "the node is shutting down"),
            },
            Err(SubmitError::Full(_)) => {
                (asker, Status::Rejected, "the worker's queue is full: ask again later")
            }
            Err(SubmitError::Stopped(_)) if self.is_closing.load(Ordering::Acquire) => {
                (asker, Status::Cancelled, "the node is shutting down")
            }
            Err(SubmitError::Stopped(_)) => {
                (asker, Status::Failed, "the worker has stopped: see the node's log")
            }
        };
        self.num_open.fetch_sub(1, Ordering::AcqRel);
        refuse(asker, status, reason.to_owned());
    }

    fn refuse(&self, asker: Asker, reply: &Reply) {
        tracing::debug!(status = reply.status.name(), reason = reply.reason, "a request is refused");
        self.topics.finish(asker, reply);
    }
}
