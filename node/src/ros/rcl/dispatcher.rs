//! The one thread that takes messages and runs callbacks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use r2r_rcl::{
    rcl_get_zero_initialized_guard_condition, rcl_guard_condition_fini,
    rcl_guard_condition_get_default_options, rcl_guard_condition_init, rcl_guard_condition_t,
    rcl_node_get_graph_guard_condition, rcl_trigger_guard_condition,
};

use super::context::Node;
use super::graph::Graph;
use super::handle::{Handle, check};
use super::name_watch::NameWatch;
use super::wait_set::{Counts, WaitSet, Waitable};
use crate::ros::RosError;
use crate::ros::node::start_thread;

/// Longest wait at a time, should a wake-up ever get lost.
const LONGEST_WAIT_NS: i64 = 1_000_000_000;
/// Wait after a failed one.
const AFTER_FAILURE: Duration = Duration::from_millis(100);
/// Messages taken from one source before the others have their turn; what is left keeps it ready.
const MAX_IN_A_ROW: usize = 32;

/// What the dispatcher takes messages from.
pub(super) trait Source: Send {
    /// What to wait for; lives as long as `self`.
    fn waitable(&self) -> Waitable;

    /// Takes one message and hands it over; `false` if there was none.
    fn take(&mut self) -> bool;
}

/// The thread; ends, and frees its sources, when dropped.
pub(super) struct Dispatcher {
    news: Sender<Box<dyn Source>>,
    wake: Arc<Guard>,
    is_closing: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Dispatcher {
    pub fn start(node: &Arc<Node>, graph: Arc<Graph>, watch: NameWatch) -> Result<Self, RosError> {
        let (news, new) = crossbeam_channel::unbounded();
        let wake = Arc::new(Guard::new(Arc::clone(node))?);
        let is_closing = Arc::new(AtomicBool::new(false));
        let dispatching = Dispatching {
            wait_set: WaitSet::new(&node.context)?,
            sources: Vec::new(),
            new,
            wake: Arc::clone(&wake),
            is_closing: Arc::clone(&is_closing),
            graph,
            watch,
            node: Arc::clone(node),
        };
        let thread = Some(start_thread("takt-rcl", move || dispatching.run())?);
        Ok(Self { news, wake, is_closing, thread })
    }

    /// Takes messages from `source` from now on.
    pub fn listen(&self, source: Box<dyn Source>) -> Result<(), RosError> {
        self.news.send(source).map_err(|_| RosError::Transport {
            what: "listening".to_owned(),
            reason: "the thread that takes messages has ended".to_owned(),
        })?;
        self.wake.trigger();
        Ok(())
    }

    /// Whether the thread has not ended by itself.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }
}

impl Drop for Dispatcher {
    fn drop(&mut self) {
        self.is_closing.store(true, Ordering::Release);
        self.wake.trigger();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that takes ROS 2 messages panicked");
        }
    }
}

/// The thread's own.
struct Dispatching {
    // Dropped first: it points to the rest.
    wait_set: WaitSet,
    sources: Vec<Box<dyn Source>>,
    new: Receiver<Box<dyn Source>>,
    wake: Arc<Guard>,
    is_closing: Arc<AtomicBool>,
    graph: Arc<Graph>,
    watch: NameWatch,
    node: Arc<Node>,
}

impl Dispatching {
    fn run(mut self) {
        let mut is_ready = Vec::new();
        while !self.is_closing.load(Ordering::Acquire) {
            self.sources.extend(self.new.try_iter());
            if let Err(error) = self.wait(&mut is_ready) {
                tracing::error!(%error, "messages cannot be waited for");
                std::thread::sleep(AFTER_FAILURE);
                continue;
            }
            self.watch.look();
            for (source, _) in self.sources.iter_mut().zip(&is_ready).filter(|(_, ready)| **ready) {
                for _ in 0..MAX_IN_A_ROW {
                    if !source.take() {
                        break;
                    }
                }
            }
        }
    }

    /// Waits until something happens; says in `is_ready` which sources have messages.
    fn wait(&mut self, is_ready: &mut Vec<bool>) -> Result<(), RosError> {
        is_ready.clear();
        let waitables: Vec<Waitable> = self.sources.iter().map(|source| source.waitable()).collect();
        self.wait_set.clear(Counts::of(waitables.iter().copied(), 2))?;
        // SAFETY: the node lives as long as `self`.
        let graph_guard = unsafe { rcl_node_get_graph_guard_condition(self.node.ptr()) };
        // SAFETY: sources are freed with `self`, after the wait set; so are both guard conditions.
        let (places, graph_place) = unsafe {
            self.wait_set.add_guard(self.wake.handle.ptr())?;
            let graph_place = self.wait_set.add_guard(graph_guard)?;
            let places: Result<Vec<usize>, RosError> =
                waitables.iter().map(|waitable| self.wait_set.add(*waitable)).collect();
            (places?, graph_place)
        };
        self.wait_set.wait(LONGEST_WAIT_NS)?;
        if self.wait_set.is_triggered(graph_place) {
            self.graph.note_change();
            self.watch.note_change();
        }
        let both = waitables.iter().zip(places);
        is_ready.extend(both.map(|(waitable, place)| self.wait_set.is_ready(*waitable, place)));
        Ok(())
    }
}

/// Wakes the thread.
struct Guard {
    handle: Handle<rcl_guard_condition_t>,
    // Freed after the condition.
    _node: Arc<Node>,
}

impl Guard {
    fn new(node: Arc<Node>) -> Result<Self, RosError> {
        // SAFETY: both take nothing and return a value.
        let (zero, options) = unsafe {
            (rcl_get_zero_initialized_guard_condition(), rcl_guard_condition_get_default_options())
        };
        let handle = Handle::new(zero);
        // SAFETY: zero, as rcl asks; the context is initialized.
        let made = unsafe { rcl_guard_condition_init(handle.ptr(), node.context.ptr(), options) };
        check(made, "making a guard condition")?;
        Ok(Self { handle, _node: node })
    }

    fn trigger(&self) {
        // SAFETY: initialized; rcl allows this beside a wait and beside itself.
        let triggered = unsafe { rcl_trigger_guard_condition(self.handle.ptr()) };
        if let Err(error) = check(triggered, "waking a thread") {
            // It looks again by itself within `LONGEST_WAIT_NS`.
            tracing::debug!(%error);
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // SAFETY: initialized; the thread that waited for it has ended, for it held a reference.
        unsafe { rcl_guard_condition_fini(self.handle.ptr()) };
    }
}
