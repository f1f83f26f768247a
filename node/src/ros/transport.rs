//! The seam between the node and a ROS 2 implementation: whole CDR messages (with their 4-byte header) at the border, ROS
//! names and types above it, nothing of a backend's types.
//!
//! Everything made from a transport lives as long as the transport. Callbacks run on the transport's own thread, one
//! at a time, and must not block: they hand over and return.

use std::time::Duration;

use super::{NodeName, RosError, TypeName};

/// Quality of service of a topic; history is always keep-last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Qos {
    /// Whether lost messages are sent again.
    pub reliability: Reliability,
    /// Whether late subscribers get the last messages.
    pub durability: Durability,
    /// Messages kept.
    pub depth: u16,
}

/// DDS RELIABILITY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reliability {
    /// Lost messages are sent again.
    Reliable,
    /// Lost messages stay lost.
    BestEffort,
}

/// DDS DURABILITY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Late subscribers get only what is sent from then on.
    Volatile,
    /// Late subscribers get the last messages.
    TransientLocal,
}

impl Qos {
    /// ROS 2's default: reliable, volatile, keep last 10.
    pub const DEFAULT: Self =
        Self { reliability: Reliability::Reliable, durability: Durability::Volatile, depth: 10 };
    /// Streams of tokens: a subscriber may stall for a second or two without losing any.
    pub const STREAM: Self = Self { depth: 1000, ..Self::DEFAULT };
    /// Requests in, by topic or service. Of a burst, what finds no room in the reader's history is gone without a word: each is to be answered or
    /// refused instead. And replies out: what a slow subscriber has not acknowledged when its place is taken is gone too.
    pub const BURST: Self = Self { depth: 1000, ..Self::DEFAULT };
}

/// Receives a topic's messages.
pub type OnMessage = Box<dyn FnMut(&[u8]) + Send>;

/// Receives a service's requests, each with its way back.
pub type OnRequest = Box<dyn FnMut(&[u8], Box<dyn Respond>) + Send>;

/// A ROS 2 implementation, joined to one domain as one node.
pub trait Transport: Send + Sync + std::fmt::Debug {
    /// The node's name.
    fn node(&self) -> &NodeName;

    /// Claims the node's name: listens for `window` whether somebody has it. To be called before any endpoint is made.
    ///
    /// # Errors
    /// [`RosError::NameTaken`], [`RosError::Transport`].
    fn claim_name(&self, window: Duration) -> Result<(), RosError>;

    /// Starts publishing on `topic`, an absolute ROS name.
    ///
    /// # Errors
    /// [`RosError::Transport`].
    fn publisher(&self, topic: &str, message: TypeName, qos: Qos) -> Result<Box<dyn Publish>, RosError>;

    /// Calls `on_message` for every message on `topic`.
    ///
    /// # Errors
    /// [`RosError::Transport`].
    fn subscribe(
        &self,
        topic: &str,
        message: TypeName,
        qos: Qos,
        on_message: OnMessage,
    ) -> Result<Box<dyn Subscription>, RosError>;

    /// Calls `on_request` for every request to `service`. `blank` is any whole reply: a transport may send it once to nobody,
    /// which clients pass over as they do replies to others.
    ///
    /// # Errors
    /// [`RosError::Transport`].
    fn serve(&self, service: &str, ty: TypeName, blank: &[u8], on_request: OnRequest)
    -> Result<(), RosError>;

    /// Makes a client of `service`.
    ///
    /// # Errors
    /// [`RosError::Transport`].
    fn client(&self, service: &str, ty: TypeName) -> Result<Box<dyn Call>, RosError>;

    /// Tells the network the node and all its endpoints, for `ros2 node list` and `ros2 node info`. To be called once they
    /// are made.
    ///
    /// # Errors
    /// [`RosError::Transport`].
    fn announce(&self) -> Result<(), RosError>;

    /// Waits until everything sent is acknowledged; `false` after `timeout`.
    fn wait_delivered(&self, timeout: Duration) -> bool;

    /// Whether what is said to the node is heard. If a thread that hears has ended, nothing brings it back.
    fn is_listening(&self) -> bool;
}

/// Sends on one topic, from any thread.
pub trait Publish: Send + Sync + std::fmt::Debug {
    /// Sends one message; waits a few milliseconds at most.
    ///
    /// # Errors
    /// [`RosError::Congested`] if subscribers do not keep up, [`RosError::Transport`].
    fn publish(&self, message: &[u8]) -> Result<(), RosError>;

    /// Waits until somebody subscribes; `false` after `timeout`.
    fn wait_for_subscriber(&self, timeout: Duration) -> bool;
}

/// A topic being listened to.
pub trait Subscription: Send + Sync + std::fmt::Debug {
    /// Waits until somebody publishes; `false` after `timeout`.
    fn wait_for_publisher(&self, timeout: Duration) -> bool;
}

/// The way back to one request's sender.
pub trait Respond: Send {
    /// Sends the reply, now or as soon as the sender can hear it; never blocks. A sender that left gets nothing. Where a long
    /// `message` can get lost for good, or cannot be sent, the sender gets `instead` in that case; without one, the service's
    /// blank reply.
    fn respond(self: Box<Self>, message: &[u8], instead: Option<&[u8]>);
}

/// A client of one service.
pub trait Call: Send + Sync + std::fmt::Debug {
    /// Waits until a server is there and both ways are open; `false` after `timeout`.
    fn wait_for_server(&self, timeout: Duration) -> bool;

    /// Sends a request without waiting.
    ///
    /// # Errors
    /// [`RosError::TooManyCalls`], [`RosError::Congested`], [`RosError::Transport`].
    fn call(&self, message: &[u8]) -> Result<PendingCall, RosError>;
}

/// A reply still to come; dropping it forgets the call.
pub struct PendingCall {
    /// Filled at most once.
    pub(super) reply: crossbeam_channel::Receiver<Vec<u8>>,
    /// Forgets the call in the client's table when dropped.
    pub(super) _entry: Box<dyn Send + Sync>,
}

impl std::fmt::Debug for PendingCall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PendingCall").finish_non_exhaustive()
    }
}

impl PendingCall {
    /// Waits for the reply; `None` after `timeout`.
    #[must_use]
    pub fn wait(&self, timeout: Duration) -> Option<Vec<u8>> {
        self.reply.recv_timeout(timeout).ok()
    }
}
