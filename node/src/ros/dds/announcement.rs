//! What this participant tells others of its node, for `ros2 node list` and `ros2 node info`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustdds::GUID;
use rustdds::no_key::DataWriter;

use super::client::write_error;
use super::payload::{AsIs, Payload};
use super::renewal::RenewedWriter;
use super::server::Server;
use crate::ros::options::GidLen;
use crate::ros::presence::{self, Guid, NodeEntities, ParticipantEntities};
use crate::ros::{NodeName, RosError};

/// The node's endpoints, and the topic that tells them.
pub(super) struct Announcement {
    pub presence: DataWriter<Payload, AsIs>,
    pub participant: Guid,
    pub node: NodeName,
    pub gid_len: GidLen,
    /// Whether the node is up, as opposed to claiming its name.
    pub announced: Arc<AtomicBool>,
    pub endpoints: Mutex<Endpoints>,
}

/// What `ros2 node info` shows of this node.
#[derive(Default)]
pub(super) struct Endpoints {
    pub readers: Vec<GUID>,
    pub writers: Vec<Arc<RenewedWriter>>,
    pub servers: Vec<Arc<Server>>,
}

impl Announcement {
    pub fn endpoints(&self) -> MutexGuard<'_, Endpoints> {
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the name alone.
    pub fn claim(&self) -> Result<(), RosError> {
        self.send(NodeEntities::claim(&self.node))
    }

    /// Tells the node with all its endpoints.
    pub fn tell(&self) -> Result<(), RosError> {
        let mut node = NodeEntities::claim(&self.node);
        // Held until it is sent: the list that is told last is the latest.
        let endpoints = self.endpoints();
        node.readers = endpoints.readers.iter().map(|guid| guid.to_bytes()).collect();
        node.writers = endpoints.writers.iter().map(|writer| writer.guid().to_bytes()).collect();
        self.announced.store(true, Ordering::Release);
        self.send(node)
    }

    /// Tells it again, where it was told.
    pub fn repeat(&self) {
        if self.announced.load(Ordering::Acquire)
            && let Err(error) = self.tell()
        {
            tracing::warn!("`ros2 node info` may show a writer that is gone: {error}");
        }
    }

    fn send(&self, node: NodeEntities) -> Result<(), RosError> {
        let entities = ParticipantEntities { participant: self.participant, nodes: vec![node] };
        let message = entities
            .encode(self.gid_len)
            .map_err(|error| RosError::Message { what: presence::TOPIC, error })?;
        let sent = self.presence.write(Payload(message), None);
        sent.map_err(|error| write_error(presence::TOPIC, &error))
    }
}
