//! What comes in: checked and handed to the worker, without ever blocking the transport's thread.
//!
//! A request whose form was asked for before goes straight to the worker. A form that is new is compiled on a thread of its own, so that it
//! delays nobody but the one who asks.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::{Sender, TrySendError, bounded};

use super::ask::{Ask, AskDefaults, name_of, refusal};
use super::outlet::Open;
use super::session::Sessions;
use super::topics::{Asker, Topics, answer_probe};
use crate::request::{Reply, RequestId, RequestSender, Status, SubmitError};
use crate::ros::RosError;
use crate::ros::action::SendGoal;
use crate::ros::cdr::CdrError;
use crate::ros::message::{About, Message as _, Question, Time, decode_string};
use crate::ros::node::start_thread;
use crate::ros::transport::Respond;
use crate::scheduler::class::Class;

/// Events of one request on their way: sections come far slower than they are published.
const EVENT_ROOM: usize = 256;
/// Requests with a new form that may wait for it to be compiled.
const MAX_NEWCOMERS: usize = 16;

/// Requests being answered, by class.
#[derive(Debug, Default)]
pub(in crate::ros) struct OpenCounts([AtomicUsize; 3]);

impl OpenCounts {
    fn of(&self, class: Class) -> &AtomicUsize {
        match class {
            Class::Control => &self.0[0],
            Class::Interactive => &self.0[1],
            Class::Background => &self.0[2],
        }
    }

    /// All of them.
    pub fn total(&self) -> usize {
        self.0.iter().map(|count| count.load(Ordering::Acquire)).sum()
    }

    /// Those of one class.
    pub fn num(&self, class: Class) -> usize {
        self.of(class).load(Ordering::Acquire)
    }

    /// Counts one more, unless there are too many: then what the limit is.
    fn enter(&self, class: Class, defaults: &AskDefaults) -> Result<(), String> {
        let max = defaults.max_in_flight;
        if self.total() >= max {
            return Err(format!("{max} requests are being answered, the limit: ask again later"));
        }
        let max = Class::ALL
            .iter()
            .zip(defaults.max_of_class)
            .find(|(of, _)| **of == class)
            .map_or(max, |(_, max)| max);
        let count = |num_open| (num_open < max).then_some(num_open + 1);
        match self.of(class).fetch_update(Ordering::AcqRel, Ordering::Acquire, count) {
            Ok(_) => Ok(()),
            Err(_) => Err(format!(
                "{max} {} requests are being answered, the limit of this class: ask again later",
                class.name()
            )),
        }
    }

    /// One of them is answered.
    pub fn leave(&self, class: Class) {
        self.of(class).fetch_sub(1, Ordering::AcqRel);
    }
}

/// Whether requests are let through, and to whom.
#[derive(Debug, Clone)]
pub(in crate::ros) enum Door {
    /// To the worker.
    Open(RequestSender),
    /// To nobody, for this reason.
    Shut(String),
}

/// Checks what comes in; called on the transport's thread.
#[derive(Debug)]
pub(in crate::ros) struct Intake {
    gate: Arc<Gate>,
    compiling: Mutex<Option<Compiling>>,
}

/// The thread that compiles new forms.
#[derive(Debug)]
struct Compiling {
    newcomers: Sender<Newcomer>,
    thread: JoinHandle<()>,
}

/// A request on its way to the worker.
struct Newcomer {
    ask: Ask,
    asker: Asker,
    about: About,
    arrived: Instant,
}

impl Intake {
    pub fn start(gate: Arc<Gate>) -> Result<Self, RosError> {
        let (newcomers, waiting) = bounded::<Newcomer>(MAX_NEWCOMERS);
        let behind = Arc::clone(&gate);
        let thread = start_thread("takt-ros-forms", move || {
            for newcomer in waiting {
                behind.submit_newcomer(newcomer);
            }
        })?;
        Ok(Self { gate, compiling: Mutex::new(Some(Compiling { newcomers, thread })) })
    }

    /// A sentence on `~/ask`.
    pub fn hear(&self, message: &[u8]) {
        let sentence = decode_string(message).map_err(|error| format!("not a std_msgs/String: {error}"));
        let prompt = sentence.as_deref().unwrap_or_default().to_owned();
        let defaults = self.gate.defaults();
        let class = if defaults.deadline.is_some() { defaults.class } else { Class::Background };
        let ask = sentence.and_then(|sentence| defaults.sentence(sentence));
        self.admit(ask, Asker::Sentence(prompt), (None, class));
    }

    /// A question on `~/prompt`.
    pub fn read(&self, message: &[u8]) {
        self.ask(Question::decode(message), Asker::Prompt, "takt_msgs/msg/Prompt");
    }

    /// A request to the service.
    pub fn take(&self, message: &[u8], respond: Box<dyn Respond>) {
        let question = Question::decode(message);
        if question.as_ref().is_ok_and(|question| *question == Question::default()) {
            let reason = match self.gate.door() {
                Door::Open(_) => "the question is empty".to_owned(),
                Door::Shut(reason) => reason,
            };
            return answer_probe(respond, reason);
        }
        self.ask(question, Asker::Service(respond), "takt_msgs/srv/Ask request");
    }

    /// A goal of the action.
    pub fn pursue(&self, message: &[u8], respond: Box<dyn Respond>) {
        match self.gate.topics.goals.receive(message, respond) {
            SendGoal::New(goal, question) => self.ask(Ok(*question), Asker::Goal(goal), "goal"),
            SendGoal::Refused { request_id, reason } => {
                let name = name_of(&Question { request_id, ..Question::default() });
                // Its client knows; everybody else learns it as of a prompt.
                self.admit(Err(reason), Asker::Prompt, (name, self.gate.defaults().class));
            }
        }
    }

    fn ask(&self, question: Result<Question, CdrError>, asker: Asker, what: &str) {
        let defaults = self.gate.defaults();
        let said = match &question {
            Ok(question) => (name_of(question), defaults.class_of(question)),
            Err(_) => (None, defaults.class),
        };
        let question = question.map_err(|error| format!("not a {what}: {error}"));
        self.admit(question.and_then(|question| defaults.complete(question)), asker, said);
    }

    /// `said`: what its asker calls it, and its class, should it be refused.
    fn admit(&self, ask: Result<Ask, String>, asker: Asker, said: (Option<String>, Class)) {
        let arrived = Instant::now();
        let arrival = self.gate.topics.clock.now();
        // First of all whether anything is let through: that is what its asker has to know.
        let ask = match self.gate.door() {
            Door::Open(_) => ask,
            Door::Shut(reason) => Err(reason),
        };
        let mut ask = match ask {
            Ok(ask) => ask,
            Err(reason) => {
                let about = self.gate.about(said.0, arrival, said.1);
                return self.gate.refuse(asker, &about, &refusal(Status::Rejected, reason, arrived, None));
            }
        };
        let about = self.gate.about(ask.request_id.take(), arrival, ask.class);
        if let Some(session) = &ask.session {
            let room = self.gate.defaults().max_prompt_bytes / 2;
            let said = self.gate.sessions.recall(session, room);
            ask.recall(said);
        }
        let newcomer = Newcomer { ask, asker, about, arrived };
        match self.gate.door() {
            Door::Open(requests) if !requests.knows(newcomer.ask.form.as_ref()) => {
                self.compile_first(newcomer)
            }
            _ => self.gate.submit(newcomer),
        }
    }

    fn compile_first(&self, newcomer: Newcomer) {
        let compiling = self.compiling.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Compiling { newcomers, .. }) = &*compiling else {
            return self.gate.submit(newcomer); // refuses: the node ends
        };
        // A deadline does not wait for other forms, which may take longer than it.
        let num_ahead = self.gate.num_newcomers.fetch_add(1, Ordering::AcqRel);
        let most = if newcomer.ask.deadline.is_some() { 1 } else { MAX_NEWCOMERS };
        let sent = match num_ahead < most {
            true => newcomers.try_send(newcomer).map_err(TrySendError::into_inner),
            false => Err(newcomer),
        };
        if let Err(Newcomer { ask, asker, about, arrived }) = sent {
            self.gate.num_newcomers.fetch_sub(1, Ordering::AcqRel);
            let reason = format!(
                "its form is new and {num_ahead} others are being compiled: ask again later; forms that were asked for before do \
                 not wait"
            );
            self.gate.refuse(asker, &about, &refusal(Status::Rejected, reason, arrived, ask.deadline));
        }
    }

    /// Refuses what waits for its form as well, and ends the thread.
    pub fn close(&self) {
        self.gate.shut("the node is shutting down");
        let compiling = self.compiling.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Compiling { newcomers, thread }) = compiling {
            drop(newcomers);
            if thread.join().is_err() {
                tracing::error!("the thread that compiles forms panicked");
            }
        }
    }
}

/// A place among the requests whose forms are compiled, left when dropped.
struct Place<'a>(&'a AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The way to the worker.
#[derive(Debug)]
pub(in crate::ros) struct Gate {
    door: RwLock<Door>,
    defaults: RwLock<Arc<AskDefaults>>,
    topics: Arc<Topics>,
    sessions: Arc<Sessions>,
    open_counts: Arc<OpenCounts>,
    opened: Sender<Open>,
    /// Requests whose form waits to be compiled, or is.
    num_newcomers: AtomicUsize,
    /// Tells this process's requests from those of one before, in recordings.
    run: u32,
}

impl Gate {
    /// Shut at first.
    pub fn new(
        defaults: AskDefaults,
        topics: Arc<Topics>,
        open_counts: Arc<OpenCounts>,
        opened: Sender<Open>,
    ) -> Self {
        Self {
            door: RwLock::new(Door::Shut(NOT_ACTIVE.to_owned())),
            defaults: RwLock::new(Arc::new(defaults)),
            topics,
            sessions: Arc::default(),
            open_counts,
            opened,
            num_newcomers: AtomicUsize::new(0),
            run: run_number(),
        }
    }

    /// What was said before.
    pub fn sessions(&self) -> Arc<Sessions> {
        Arc::clone(&self.sessions)
    }

    /// Lets requests through to `requests` from now on.
    pub fn open(&self, requests: RequestSender) {
        *self.door.write().unwrap_or_else(PoisonError::into_inner) = Door::Open(requests.clone());
        requests.set_speculation(self.defaults().speculate);
    }

    /// Refuses new requests from now on; open ones go on.
    pub fn shut(&self, reason: &str) {
        *self.door.write().unwrap_or_else(PoisonError::into_inner) = Door::Shut(reason.to_owned());
    }

    /// The node is inactive: refuses until it is [opened](Self::open).
    pub fn rest(&self) {
        self.shut(NOT_ACTIVE);
    }

    /// What holds for the next requests.
    pub fn set_defaults(&self, defaults: AskDefaults) {
        let speculate = defaults.speculate;
        *self.defaults.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(defaults);
        if let Door::Open(requests) = self.door() {
            requests.set_speculation(speculate);
        }
    }

    pub fn defaults(&self) -> Arc<AskDefaults> {
        Arc::clone(&self.defaults.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn door(&self) -> Door {
        self.door.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn about(&self, request_id: Option<String>, arrival: Time, class: Class) -> About {
        let own = || format!("{:08x}-{}", self.run, RequestId::next().0);
        About { request_id: request_id.unwrap_or_else(own), arrival, class }
    }

    /// On the thread that compiles.
    fn submit_newcomer(&self, newcomer: Newcomer) {
        self.submit_leaving(newcomer, Some(Place(&self.num_newcomers)));
    }

    fn submit(&self, newcomer: Newcomer) {
        self.submit_leaving(newcomer, None);
    }

    /// `place` is left before the asker can hear anything: it may ask for its next form at once.
    fn submit_leaving(&self, newcomer: Newcomer, place: Option<Place<'_>>) {
        let Newcomer { ask, asker, about, arrived } = newcomer;
        let deadline = ask.deadline;
        let refuse = |asker, status, reason: String| {
            self.refuse(asker, &about, &refusal(status, reason, arrived, deadline));
        };
        // Counted before the door is looked at: who shuts it and then waits until none is open, waits for this one, too.
        if let Err(reason) = self.open_counts.enter(ask.class, &self.defaults()) {
            drop(place);
            return refuse(asker, Status::Rejected, reason);
        }
        let requests = match self.door() {
            Door::Open(requests) => requests,
            Door::Shut(reason) => {
                self.open_counts.leave(about.class);
                drop(place);
                return refuse(asker, Status::Rejected, reason);
            }
        };
        let (sender, events) = bounded(EVENT_ROOM);
        let id = RequestId::next();
        let session = ask.session.clone().map(|session| (session, ask.question().to_owned()));
        // Whatever goes wrong there ends with the request.
        let request = ask.into_request(id, arrived, sender);
        let submitted = catch_unwind(AssertUnwindSafe(|| requests.submit(request)));
        drop(place);
        let (status, reason) = match submitted {
            Err(_) => {
                tracing::error!("letting a request in panicked: please report it with the request");
                (Status::Failed, "letting the request in panicked: see the node's log")
            }
            Ok(Ok(())) => {
                if let Asker::Goal(goal) = &asker {
                    // One that is refused has its reply by now: the outlet refuses the goal with it.
                    self.topics.goals.submitted(*goal, id, &requests, events.is_empty());
                }
                let mut open = Open::new(asker, about, requests, events, (id, arrived, deadline));
                open.session = session;
                // Fails only when the outlet is gone.
                if let Err(error) = self.opened.send(open) {
                    let Open { asker, about, .. } = error.0;
                    self.open_counts.leave(about.class);
                    let reply =
                        refusal(Status::Cancelled, "the node is shutting down".to_owned(), arrived, deadline);
                    self.refuse(asker, &about, &reply);
                }
                return;
            }
            Ok(Err(SubmitError::Full(_))) => {
                (Status::Rejected, "the worker's queue is full: ask again later")
            }
            Ok(Err(SubmitError::Stopped(_))) if matches!(self.door(), Door::Shut(_)) => {
                (Status::Cancelled, "the node is shutting down")
            }
            Ok(Err(SubmitError::Stopped(_))) => {
                (Status::Failed, "the worker has stopped: see the node's log")
            }
        };
        self.open_counts.leave(about.class);
        refuse(asker, status, reason.to_owned());
    }

    fn refuse(&self, asker: Asker, about: &About, reply: &Reply) {
        tracing::debug!(status = reply.status.name(), reason = reply.reason, "a request is refused");
        self.topics.finish(asker, about, reply);
    }
}

/// Why a node refuses that is not active.
pub(in crate::ros) const NOT_ACTIVE: &str = "the node is not active: bring it up, as with `ros2 lifecycle set NODE activate` \
                                             (from the state unconfigured, `configure` first)";

/// A number that another run of the node hardly has.
fn run_number() -> u32 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    // The low half of a well mixed word.
    crate::random::SplitMix64(since.as_nanos() as u64 ^ u64::from(std::process::id())).next_u64() as u32
}
