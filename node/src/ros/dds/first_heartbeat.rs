//! Tells a fresh CycloneDDS reader where it comes in, before the first sample that it is to have.
//!
//! A CycloneDDS reader takes what the first heartbeat of a volatile writer announces for written before its time, and drops it.
//! RustDDS 0.15.1 announces what it has been given to write, sent or not: when a fresh reader asks for a heartbeat in the
//! moment between, the heartbeat comes first, and the sample after it is acknowledged and dropped. On a busy machine that is
//! long enough to lose an answer to a robot that asks as soon as it sees the node.
//!
//! So before a sample is handed to RustDDS, a heartbeat of the samples before it goes to every reader of CycloneDDS that has
//! not been there for long. It is small, waits for nothing, and says what is true at any time; whoever has had one already takes
//! nothing from it, and its count keeps it from being answered.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustdds::{DomainParticipant, GUID};

use super::bypass::{self, addresses};
use super::heartbeat::heartbeat;
use super::peers::Peers;
use crate::ros::{RosError, RosOptions};

/// How long a reader is fresh. It asks for a heartbeat 10 ms after it has heard of the writer, which may have to be told again.
const FRESH: Duration = Duration::from_secs(5);
/// Below the count of all of RustDDS's: CycloneDDS answers none that is not above the last.
const COUNT: i32 = 0;
/// Readers whose addresses are remembered.
const MAX_READERS: usize = 256;

/// The heartbeats that one participant sends past RustDDS.
#[derive(Debug)]
pub(super) struct FirstHeartbeats {
    socket: UdpSocket,
    /// Does not keep it alive.
    participant: Weak<DomainParticipant>,
    peers: Arc<Peers>,
    /// Where fresh readers listen; looked up once each.
    addresses: Mutex<HashMap<GUID, Vec<SocketAddr>>>,
}

impl FirstHeartbeats {
    /// For `participant`, which joined with `options`.
    pub fn new(
        participant: &Arc<DomainParticipant>,
        peers: Arc<Peers>,
        options: &RosOptions,
    ) -> Result<Self, RosError> {
        let socket = bypass::socket(options, "first heartbeats")?;
        Ok(Self { socket, participant: Arc::downgrade(participant), peers, addresses: Mutex::default() })
    }

    /// Tells the fresh readers of `writer` that it has written `num_written` samples; to be called before the next is.
    pub fn send(&self, writer: GUID, num_written: i64) {
        let Some(earliest) = Instant::now().checked_sub(FRESH) else { return };
        for reader in self.peers.fresh_cyclone_readers(writer, earliest) {
            let datagram = heartbeat(writer.to_bytes(), reader.to_bytes(), num_written, COUNT);
            for to in self.addresses(reader) {
                if let Err(error) = self.socket.send_to(&datagram, to) {
                    tracing::debug!(%error, %to, "what is published as a subscriber comes may be lost");
                }
            }
        }
    }

    fn addresses(&self, reader: GUID) -> Vec<SocketAddr> {
        let mut known = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(addresses) = known.get(&reader) {
            return addresses.clone();
        }
        let Some(participant) = self.participant.upgrade() else { return Vec::new() };
        let found: Vec<SocketAddr> =
            addresses(&participant, |other, _| other == reader).into_iter().collect();
        if !found.is_empty() {
            if known.len() >= MAX_READERS {
                known.clear();
            }
            known.insert(reader, found.clone());
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use rustdds::DomainParticipantStatusEvent as Event;

    use super::super::peers::CYCLONE_VENDOR;
    use super::*;

    fn guid(vendor: [u8; 2], entity: u8) -> GUID {
        let mut bytes = [entity; 16];
        bytes[..2].copy_from_slice(&vendor);
        GUID::from_bytes(bytes)
    }

    #[test]
    fn a_fresh_reader_of_cyclone_is_told_what_was_written_before_the_next_sample() {
        let inbox = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        inbox.set_nonblocking(true).unwrap();
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (writer, reader, other) = (guid([0x01, 0x12], 3), guid(CYCLONE_VENDOR, 4), guid([0x01, 0x0f], 5));
        let listens = vec![inbox.local_addr().unwrap()];
        let addresses = Mutex::new(HashMap::from([(reader, listens.clone()), (other, listens)]));
        let peers = Arc::new(Peers::default());
        let first =
            FirstHeartbeats { socket, participant: Weak::new(), peers: Arc::clone(&peers), addresses };
        let mut datagram = [0; 100];

        first.send(writer, 7);
        assert!(inbox.recv(&mut datagram).is_err(), "nobody listens");
        for remote_reader in [reader, other] {
            peers.apply(Event::RemoteReaderMatched { local_writer: writer, remote_reader });
        }
        first.send(writer, 7);
        let len = inbox.recv(&mut datagram).unwrap();
        assert_eq!(datagram[..len], heartbeat(writer.to_bytes(), reader.to_bytes(), 7, 0));
        assert!(inbox.recv(&mut datagram).is_err(), "the others drop nothing");
        first.send(guid([0x01, 0x12], 6), 7);
        assert!(inbox.recv(&mut datagram).is_err(), "another writer's readers");
    }
}
