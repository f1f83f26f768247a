//! A service client in the Enhanced mapping, for this crate's own commands talking to this crate's own node.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::Sender;
use rustdds::dds::result::WriteError;
use rustdds::rpc::SampleIdentity;
use rustdds::{GUID, RTPSEntity, SequenceNumber, WriteOptionsBuilder};

use super::Writer;
use super::dispatcher::Sample;
use super::payload::Payload;
use super::peers::Peers;
use crate::ros::RosError;
use crate::ros::transport::{Call, PendingCall};

/// Calls in flight at a time.
const MAX_CALLS: usize = 1024;
/// Longest request that names its reply reader. RustDDS 0.15.1 writes one byte too many before the inline QoS of a sample
/// that does not fit one datagram (1,452 bytes on Ethernet), so longer ones go without and the server goes by the participant.
const MAX_NAMED_LEN: usize = 1200;

/// Calls waiting for their reply, by the request's sequence number.
pub(super) type Calls = Arc<Mutex<HashMap<SequenceNumber, Sender<Vec<u8>>>>>;

pub(super) struct Client {
    pub service: String,
    pub writer: Writer,
    /// Its own reply reader, which tells the server where replies go.
    pub reader: GUID,
    pub calls: Calls,
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
        let identity = SampleIdentity { writer_guid: self.reader, sequence_number: SequenceNumber::UNKNOWN };
        let named = (message.len() <= MAX_NAMED_LEN).then_some(identity);
        let options = WriteOptionsBuilder::new().related_sample_identity_opt(named).build();
        let (fill, reply) = crossbeam_channel::bounded(1);
        // Held over the write: the reply may arrive before the sequence number is entered.
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        if calls.len() >= MAX_CALLS {
            return Err(RosError::TooManyCalls { in_flight: MAX_CALLS });
        }
        let sent = self.writer.write_with_options(Payload(message.to_vec()), options);
        let sequence_number = sent.map_err(|error| write_error(&self.service, &error))?.sequence_number;
        calls.insert(sequence_number, fill);
        let entry = Entry { calls: Arc::clone(&self.calls), sequence_number };
        Ok(PendingCall { reply, _entry: Box::new(entry) })
    }
}

/// Forgets the call when its asker no longer waits.
struct Entry {
    calls: Calls,
    sequence_number: SequenceNumber,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.sequence_number);
    }
}

/// Gives a reply to the call it belongs to, named by the client's `own` reader or writer; replies to others' calls come
/// here too.
pub(super) fn receive(calls: &Calls, own: [GUID; 2], sample: Sample) {
    let Some(related) = sample.related.filter(|related| own.contains(&related.writer_guid)) else { return };
    let call = calls.lock().unwrap_or_else(PoisonError::into_inner).remove(&related.sequence_number);
    if let Some(call) = call {
        // An asker that left has dropped the other end.
        let _ = call.try_send(sample.message);
    }
}

/// RustDDS's error in this crate's words.
pub(super) fn write_error(topic: &str, error: &WriteError<Payload>) -> RosError {
    match error {
        WriteError::WouldBlock { .. } => RosError::Congested { topic: topic.to_owned() },
        other => RosError::Transport { what: format!("sending on {topic}"), reason: other.to_string() },
    }
}
