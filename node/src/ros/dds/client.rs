//! A service client for this crate's own commands talking to this crate's own node.
//!
//! Its calls are told apart by a header in the payload (see [`OWN_HEADER`]), as CycloneDDS's are: a server of another kind
//! would not understand it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::Sender;
use rustdds::dds::result::WriteError;
use rustdds::{GUID, WriteOptions};

use super::payload::Payload;
use super::peers::Peers;
use super::renewal::RenewedWriter;
use super::server::{HEADER_LEN, OWN_HEADER};
use crate::ros::RosError;
use crate::ros::transport::{Call, PendingCall};

/// Calls in flight at a time.
const MAX_CALLS: usize = 1024;

/// Calls waiting for their reply, by their header.
#[derive(Debug)]
pub(super) struct Calls {
    waiting: Mutex<HashMap<[u8; HEADER_LEN], Sender<Vec<u8>>>>,
    /// Tells this client's calls from those of others, who see each other's replies.
    client: [u8; 4],
    next: AtomicU32,
}

impl Calls {
    pub fn new(participant: GUID) -> Self {
        // Distinguishes the clients of one participant, whose prefix is random.
        static NEXT_CLIENT: AtomicU32 = AtomicU32::new(0);
        let prefix: &[u8] = participant.prefix.as_ref();
        let mut client = NEXT_CLIENT.fetch_add(1, Ordering::Relaxed).to_le_bytes();
        client.iter_mut().zip(prefix.iter().rev()).for_each(|(byte, random)| *byte ^= random);
        Self { waiting: Mutex::default(), client, next: AtomicU32::new(0) }
    }

    fn header(&self) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        header[..8].copy_from_slice(&OWN_HEADER);
        header[8..12].copy_from_slice(&self.client);
        header[12..].copy_from_slice(&self.next.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        header
    }

    /// Gives a reply to the call it belongs to; replies to others' calls come here too.
    pub fn receive(&self, message: &[u8]) {
        let Some((encapsulation, body)) = message.split_at_checked(4) else { return };
        let Some((header, body)) = body.split_first_chunk::<HEADER_LEN>() else { return };
        let call = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(header);
        if let Some(call) = call {
            // An asker that left has dropped the other end.
            let _ = call.try_send([encapsulation, body].concat());
        }
    }
}

pub(super) struct Client {
    pub service: String,
    pub writer: Arc<RenewedWriter>,
    /// Reader of its replies.
    pub reader: GUID,
    pub calls: Arc<Calls>,
    pub peers: Arc<Peers>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("service", &self.service).finish_non_exhaustive()
    }
}

impl Call for Client {
    fn wait_for_server(&self, timeout: Duration) -> bool {
        let writer = self.writer.guid();
        self.peers.wait_for(timeout, |state| state.has_server(writer, self.reader))
    }

    fn call(&self, message: &[u8]) -> Result<PendingCall, RosError> {
        let header = self.calls.header();
        let (fill, reply) = crossbeam_channel::bounded(1);
        {
            let mut waiting = self.calls.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.len() >= MAX_CALLS {
                return Err(RosError::TooManyCalls { in_flight: MAX_CALLS });
            }
            waiting.insert(header, fill);
        }
        // Made before the write, so that a call that is not sent is forgotten too.
        let entry = Entry { calls: Arc::clone(&self.calls), header };
        let (encapsulation, body) = message.split_at(message.len().min(4));
        let request = Payload([encapsulation, &header, body].concat());
        self.writer
            .write(request, WriteOptions::default())
            .map_err(|error| write_error(&self.service, &error))?;
        Ok(PendingCall { reply, _entry: Box::new(entry) })
    }
}

/// Forgets the call when its asker no longer waits.
struct Entry {
    calls: Arc<Calls>,
    header: [u8; HEADER_LEN],
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.calls.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.header);
    }
}

/// RustDDS's error in this crate's words.
pub(super) fn write_error(topic: &str, error: &WriteError<Payload>) -> RosError {
    match error {
        WriteError::WouldBlock { .. } => RosError::Congested { topic: topic.to_owned() },
        other => RosError::Transport { what: format!("sending on {topic}"), reason: other.to_string() },
    }
}
