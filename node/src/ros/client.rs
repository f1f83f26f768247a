//! Asking a running node, as `takt ask` and `takt demo` do.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::answering::NOT_ACTIVE;
use super::join::join;
use super::message::{ASK, Answer, Message as _, Question};
use super::transport::{Call, PendingCall, Transport};
use super::{NodeName, RosError, RosOptions};

/// Longest wait for the reply that opens the way.
const FIRST_REPLY: Duration = Duration::from_secs(1);

/// How often a node that is not active yet is asked whether it is.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// Clients that this process has had: each is a node with a name of its own.
static NUM_CLIENTS: AtomicU32 = AtomicU32::new(0);

/// A client of one node's service.
#[derive(Debug)]
pub struct AskClient {
    call: Box<dyn Call>,
    /// The node asked.
    node: NodeName,
    _transport: Box<dyn Transport>,
}

/// An answer still to come.
#[derive(Debug)]
pub struct PendingAsk {
    call: PendingCall,
    node: String,
}

impl AskClient {
    /// Joins the domain, waits until the node of `options` is there and active, `timeout` at most, and opens the way for replies.
    /// A node that is there but not active is no error: it says so when it is asked.
    ///
    /// # Errors
    /// [`RosError::NoNode`] if it is not, [`RosError::Name`], [`RosError::Transport`].
    pub fn connect(options: &RosOptions, timeout: Duration) -> Result<Self, RosError> {
        let node = options.node()?;
        // A leading underscore hides a node from `ros2 node list`.
        let num_before = NUM_CLIENTS.fetch_add(1, Ordering::Relaxed);
        let own_name = format!("_{}_client_{}_{num_before}", options.node_name, std::process::id());
        let transport = join(&RosOptions { node_name: own_name, ..options.clone() })?;
        let call = transport.client(&options.names()?.resolve_service("~/ask")?, ASK)?;
        transport.announce()?;
        if !call.wait_for_server(timeout) {
            let (node, domain_id) = (node.to_string(), options.domain_id);
            return Err(RosError::NoNode { node, domain_id, waited: timeout });
        }
        let client = Self { call, node, _transport: transport };
        // A server holds its first reply to a new reader back until that reader is known to listen, 50 to 150 ms. An empty question,
        // which is refused before the model hears of it, takes that wait; should its reply get lost, only the wait is not saved.
        // A node that is still opening its engine says so, and is asked again.
        let started = Instant::now();
        while client.ask(&Question::default(), FIRST_REPLY).is_ok_and(|answer| answer.reason == NOT_ACTIVE)
            && started.elapsed() < timeout
        {
            std::thread::sleep(ASK_AGAIN);
        }
        Ok(client)
    }

    /// Sends `request` without waiting.
    ///
    /// # Errors
    /// [`RosError::TooManyCalls`], [`RosError::Congested`], [`RosError::Transport`], [`RosError::Message`].
    pub fn start(&self, request: &Question) -> Result<PendingAsk, RosError> {
        let message =
            request.encode().map_err(|error| RosError::Message { what: "takt_msgs/srv/Ask", error })?;
        Ok(PendingAsk { call: self.call.call(&message)?, node: self.node.to_string() })
    }

    /// Asks and waits for the reply, `timeout` at most.
    ///
    /// # Errors
    /// As [`AskClient::start`] and [`PendingAsk::wait`].
    pub fn ask(&self, request: &Question, timeout: Duration) -> Result<Answer, RosError> {
        self.start(request)?.wait(timeout)
    }
}

impl PendingAsk {
    /// Waits for the reply, `timeout` at most.
    ///
    /// # Errors
    /// [`RosError::NoReply`], [`RosError::Message`].
    pub fn wait(&self, timeout: Duration) -> Result<Answer, RosError> {
        let Some(message) = self.call.wait(timeout) else {
            return Err(RosError::NoReply { node: self.node.clone(), waited: timeout });
        };
        Answer::decode(&message).map_err(|error| RosError::Message { what: "takt_msgs/srv/Ask reply", error })
    }
}
