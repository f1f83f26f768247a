//! Replies on their way out. rcl waits in the call, up to 100 ms, until the client's reader is known: a thread of its own does that waiting.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use r2r_rcl::rmw_request_id_t;

use super::server::{Sent, Service};
use crate::ros::RosError;
use crate::ros::node::start_thread;

/// How long a reply waits for a reader that does not come, as with the built-in DDS.
const MAX_WAIT: Duration = Duration::from_secs(5);
/// Replies waiting at a time; beyond it a new one is given up.
const MAX_WAITING: usize = 1024;
/// How often the thread looks whether it is to end, and whether a reader has come.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// One reply.
pub(super) struct Reply {
    pub service: Arc<Service>,
    pub request: rmw_request_id_t,
    pub message: Vec<u8>,
    pub given_at: Instant,
}

/// Where replies are put.
pub(super) struct Outbox {
    post: Sender<Reply>,
    num_waiting: Mutex<usize>,
    flushed: Condvar,
}

impl Outbox {
    /// Hands `reply` over; never blocks.
    pub fn post(&self, reply: Reply) {
        *self.num_waiting.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        if let Err(refused) = self.post.try_send(reply) {
            tracing::warn!("a reply on {} is given up: too many wait", refused.into_inner().service.name());
            self.note_gone();
        }
    }

    fn note_gone(&self) {
        let mut num_waiting = self.num_waiting.lock().unwrap_or_else(PoisonError::into_inner);
        *num_waiting = num_waiting.saturating_sub(1);
        if *num_waiting == 0 {
            self.flushed.notify_all();
        }
    }

    /// Waits until every reply is sent or given up; `false` after `timeout`.
    pub fn wait_flushed(&self, timeout: Duration) -> bool {
        let num_waiting = self.num_waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.flushed.wait_timeout_while(num_waiting, timeout, |num_waiting| *num_waiting > 0);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

/// The thread that sends; ends when dropped, with what still waits.
pub(super) struct Postman {
    pub outbox: Arc<Outbox>,
    is_closing: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Postman {
    pub fn start() -> Result<Self, RosError> {
        let (post, posted) = crossbeam_channel::bounded(MAX_WAITING);
        let outbox = Arc::new(Outbox { post, num_waiting: Mutex::new(0), flushed: Condvar::new() });
        let is_closing = Arc::new(AtomicBool::new(false));
        let (to, closing) = (Arc::clone(&outbox), Arc::clone(&is_closing));
        let thread = Some(start_thread("takt-rcl-out", move || deliver(&posted, &to, &closing))?);
        Ok(Self { outbox, is_closing, thread })
    }
}

impl Drop for Postman {
    fn drop(&mut self) {
        self.is_closing.store(true, Ordering::Release);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that sends ROS 2 replies panicked");
        }
    }
}

/// Sends replies in the order they come; those whose client cannot hear yet are tried again behind the others.
fn deliver(posted: &Receiver<Reply>, outbox: &Outbox, is_closing: &AtomicBool) {
    let (mut early, mut looked) = (VecDeque::new(), Instant::now());
    while !is_closing.load(Ordering::Acquire) {
        match posted.recv_timeout(LOOK_AGAIN) {
            Ok(reply) => try_send(reply, &mut early, outbox),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        // However many others come meanwhile.
        if looked.elapsed() >= LOOK_AGAIN {
            looked = Instant::now();
            if let Some(reply) = early.pop_front() {
                try_send(reply, &mut early, outbox);
            }
        }
    }
}

fn try_send(reply: Reply, early: &mut VecDeque<Reply>, outbox: &Outbox) {
    match reply.service.send(reply.request, &reply.message) {
        Ok(Sent::Done) => {}
        Ok(Sent::NotYet) if reply.given_at.elapsed() < MAX_WAIT && early.len() < MAX_WAITING => {
            return early.push_back(reply);
        }
        Ok(Sent::NotYet) => {
            tracing::warn!("a reply on {} is given up: its client does not listen", reply.service.name());
        }
        Err(error) => tracing::error!(%error, "a reply is lost"),
    }
    outbox.note_gone();
}
