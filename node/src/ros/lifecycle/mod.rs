//! The node's lifecycle: unconfigured → inactive (the engine is open, its costs are known) → active (requests are answered) → …
//!
//! Transitions run one at a time on a thread of their own, because opening an engine takes seconds; everything else keeps answering.

mod service;
mod state;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded};

pub use state::{Change, State, Transition};

use super::RosError;
use super::clock::RosClock;
use super::message::{ChangeStateRequest, ChangeStateResponse, Message as _, TransitionEvent};
use super::node::start_thread;
use super::transport::{Publish, Respond};

pub(super) use service::offer;

/// Changes that may wait for the one that runs.
const MAX_WAITING: usize = 16;

/// What the transitions do.
pub(super) trait Managed: Send {
    /// Carries `change` out.
    ///
    /// # Errors
    /// Why it failed; the node is then where it was before.
    fn carry_out(&mut self, change: Change) -> Result<(), String>;
}

/// Who waits for a change.
enum Asker {
    Service(Box<dyn Respond>),
    Thread(Sender<Result<(), String>>),
}

struct Asked {
    request: ChangeStateRequest,
    asker: Asker,
}

/// The state, and the way to change it.
pub(super) struct Lifecycle {
    state: Arc<AtomicU8>,
    /// Changes that wait are refused from then on.
    is_ending: Arc<AtomicBool>,
    asked: Mutex<Option<Sender<Asked>>>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl std::fmt::Debug for Lifecycle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lifecycle").field("state", &self.state()).finish_non_exhaustive()
    }
}

fn read(state: &AtomicU8) -> State {
    let id = state.load(Ordering::Acquire);
    // Only states are ever stored.
    State::ALL.into_iter().find(|state| *state as u8 == id).unwrap_or(State::ErrorProcessing)
}

impl Lifecycle {
    /// An unconfigured node; tells every change on `events`.
    pub fn start(
        managed: Box<dyn Managed>,
        events: Box<dyn Publish>,
        clock: RosClock,
    ) -> Result<Self, RosError> {
        let state = Arc::new(AtomicU8::new(State::Unconfigured as u8));
        let (asked, waiting) = bounded(MAX_WAITING);
        let is_ending = Arc::new(AtomicBool::new(false));
        let ending = Arc::clone(&is_ending);
        let machine = Machine { managed, events, clock, state: Arc::clone(&state), is_ending };
        let thread = start_thread("takt-ros-life", move || machine.run(&waiting))?;
        Ok(Self {
            state,
            is_ending: ending,
            asked: Mutex::new(Some(asked)),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// The present state.
    pub fn state(&self) -> State {
        read(&self.state)
    }

    /// A client's request; answered when the change is through.
    pub fn change_for(&self, request: ChangeStateRequest, respond: Box<dyn Respond>) {
        let asker = Asker::Service(respond);
        if let Err(asked) = self.send(Asked { request, asker }) {
            asked.asker.answer(Err("too many transitions wait, or the node ends".to_owned()));
        }
    }

    /// Carries `change` out and waits for it.
    ///
    /// # Errors
    /// Why it failed, or why it is not possible now.
    pub fn change(&self, change: Change) -> Result<(), String> {
        let label = match change {
            Change::Configure => "configure",
            Change::CleanUp => "cleanup",
            Change::Activate => "activate",
            Change::Deactivate => "deactivate",
            Change::ShutDown => "shutdown",
        };
        let mut request = ChangeStateRequest::default();
        request.transition.label = label.to_owned();
        let (done, outcome) = bounded(1);
        let ended = || Err("the node ends".to_owned());
        match self.send(Asked { request, asker: Asker::Thread(done) }) {
            Ok(()) => outcome.recv().unwrap_or_else(|_| ended()),
            Err(_) => ended(),
        }
    }

    fn send(&self, asked: Asked) -> Result<(), Asked> {
        match &*self.asked.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(sender) => sender.try_send(asked).map_err(crossbeam_channel::TrySendError::into_inner),
            None => Err(asked),
        }
    }

    /// Ends the thread after the change that runs; what it manages is dropped.
    pub fn close(&self) {
        self.is_ending.store(true, Ordering::Release);
        drop(self.asked.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that changes the node's state panicked");
        }
    }
}

impl Asker {
    fn answer(self, outcome: Result<(), String>) {
        match self {
            Self::Service(respond) => {
                if let Err(reason) = &outcome {
                    tracing::warn!("a lifecycle transition did not happen: {reason}");
                }
                match (ChangeStateResponse { success: outcome.is_ok() }).encode() {
                    Ok(message) => respond.respond(&message, None),
                    Err(error) => tracing::error!(%error, "a reply cannot be encoded"),
                }
            }
            // An asker that left does not wait.
            Self::Thread(done) => drop(done.try_send(outcome)),
        }
    }
}

struct Machine {
    managed: Box<dyn Managed>,
    events: Box<dyn Publish>,
    clock: RosClock,
    state: Arc<AtomicU8>,
    is_ending: Arc<AtomicBool>,
}

impl Machine {
    fn run(mut self, waiting: &Receiver<Asked>) {
        for Asked { request, asker } in waiting {
            if self.is_ending.load(Ordering::Acquire) {
                asker.answer(Err("the node ends".to_owned()));
                continue;
            }
            let outcome = match Transition::asked(&request.transition, read(&self.state)) {
                Ok((change, transition)) => self.carry_out(change, transition),
                Err(reason) => Err(reason),
            };
            asker.answer(outcome);
        }
    }

    fn carry_out(&mut self, change: Change, transition: Transition) -> Result<(), String> {
        self.enter(transition);
        let carried_out = catch_unwind(AssertUnwindSafe(|| self.managed.carry_out(change)));
        let outcome =
            carried_out.unwrap_or_else(|_| Err("it panicked: please report it with the log".to_owned()));
        if let Err(reason) = &outcome {
            tracing::error!("{}: {reason}", transition.label);
        }
        // Every state that works has both.
        if let Some(end) = Transition::outcome(transition.goal, outcome.is_ok()) {
            self.enter(end);
        }
        outcome
    }

    fn enter(&self, transition: Transition) {
        self.state.store(transition.goal as u8, Ordering::Release);
        let event = TransitionEvent {
            timestamp: u64::try_from(self.clock.now().as_nanos()).unwrap_or(0),
            transition: transition.message(),
            start_state: transition.start.message(),
            goal_state: transition.goal.message(),
        };
        tracing::info!("{} → {}", transition.start.label(), transition.goal.label());
        let sent = event
            .encode()
            .map_err(|error| RosError::Message { what: "lifecycle_msgs/TransitionEvent", error })
            .and_then(|message| self.events.publish(&message));
        if let Err(error) = sent {
            tracing::warn!("{error}");
        }
    }
}
