//! Tells a fresh CycloneDDS reader where it comes in, before the first sample that it is to have.
//!
//! A CycloneDDS reader takes what the first heartbeat of a volatile writer announces for written before its time, and drops it.
//! RustDDS 0.15.1 announces what it has been given to write, sent or not: when a fresh reader asks for a heartbeat in the
//! moment between, the heartbeat comes first, and the sample after it is acknowledged and dropped. On a busy machine that is
//! long enough to lose an answer to a robot that asks as soon as it sees the node.
//!
//! So before a sample is handed to RustDDS, a heartbeat of the samples before it goes to every reader of CycloneDDS that has
//! not been there for long. It is small and waits for nothing, and whoever has had one takes nothing from it. A reader is told
//! the same number for as long as it is fresh, that of the first time: what came after that is asked for again where it was lost,
//! and a number that grew could pass a sample which RustDDS has yet to send.
//!
//! What is left is the moment between RustDDS's match and ours, who are told of it on another thread.

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
/// Below the count of all of RustDDS's, which are answered whatever we send.
const COUNT: i32 = 0;

/// The heartbeats that one participant sends past RustDDS.
#[derive(Debug)]
pub(super) struct FirstHeartbeats {
    socket: UdpSocket,
    /// Does not keep it alive.
    participant: Weak<DomainParticipant>,
    peers: Arc<Peers>,
    /// What fresh readers were told, by writer and reader.
    told: Mutex<HashMap<(GUID, GUID), Told>>,
}

/// What a fresh reader was told at first, and is told until it is fresh no more.
#[derive(Debug)]
struct Told {
    num_written: i64,
    /// Where it listens; looked up once.
    addresses: Vec<SocketAddr>,
    at: Instant,
}

impl FirstHeartbeats {
    /// For `participant`, which joined with `options`.
    pub fn new(
        participant: &Arc<DomainParticipant>,
        peers: Arc<Peers>,
        options: &RosOptions,
    ) -> Result<Self, RosError> {
        let socket = bypass::socket(options, "first heartbeats")?;
        Ok(Self { socket, participant: Arc::downgrade(participant), peers, told: Mutex::default() })
    }

    /// Tells the fresh readers of `writer` that it has written `num_written` samples; to be called before the next is.
    pub fn send(&self, writer: GUID, num_written: i64) {
        let now = Instant::now();
        let Some(earliest) = now.checked_sub(FRESH) else { return };
        let fresh = self.peers.fresh_cyclone_readers(writer, earliest);
        if fresh.is_empty() {
            return;
        }
        let mut all = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        for reader in fresh {
            if !all.contains_key(&(writer, reader)) {
                all.retain(|_, told| told.at > earliest);
            }
            let untold = Told { num_written, addresses: Vec::new(), at: now };
            let told = all.entry((writer, reader)).or_insert(untold);
            if told.addresses.is_empty() {
                told.addresses = self.addresses(reader);
            }
            let datagram = heartbeat(writer.to_bytes(), reader.to_bytes(), told.num_written, COUNT);
            for to in &told.addresses {
                if let Err(error) = self.socket.send_to(&datagram, to) {
                    tracing::debug!(%error, %to, "what is published as a subscriber comes may be lost");
                }
            }
        }
    }

    fn addresses(&self, reader: GUID) -> Vec<SocketAddr> {
        let participant = self.participant.upgrade();
        participant
            .map(|participant| addresses(&participant, |other, _| other == reader).into_iter().collect())
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use rustdds::{DomainParticipantStatusEvent as Event, WriteOptions};

    use super::super::payload::Payload;
    use super::super::peers::CYCLONE_VENDOR;
    use super::super::renewal::{NEVER, Overlap};
    use super::super::{DdsTransport, Durability, Qos};
    use super::*;

    fn guid(vendor: [u8; 2], entity: u8) -> GUID {
        let mut bytes = [entity; 16];
        bytes[..2].copy_from_slice(&vendor);
        GUID::from_bytes(bytes)
    }

    /// Where a reader of CycloneDDS would listen.
    fn inbox() -> UdpSocket {
        let inbox = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        inbox.set_nonblocking(true).unwrap();
        inbox
    }

    fn at(inbox: &UdpSocket, num_written: i64) -> Told {
        Told { num_written, addresses: vec![inbox.local_addr().unwrap()], at: Instant::now() }
    }

    fn received(inbox: &UdpSocket) -> Option<Vec<u8>> {
        let mut datagram = [0; 100];
        inbox.recv(&mut datagram).ok().map(|len| datagram[..len].to_vec())
    }

    #[test]
    fn a_fresh_reader_of_cyclone_is_told_what_was_written_before_it_came() {
        let (inbox, peers) = (inbox(), Arc::new(Peers::default()));
        let (writer, reader, other) = (guid([0x01, 0x12], 3), guid(CYCLONE_VENDOR, 4), guid([0x01, 0x0f], 5));
        let told = HashMap::from([((writer, reader), at(&inbox, 7)), ((writer, other), at(&inbox, 7))]);
        let first = FirstHeartbeats {
            socket: UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(),
            participant: Weak::new(),
            peers: Arc::clone(&peers),
            told: Mutex::new(told),
        };
        first.send(writer, 7);
        assert_eq!(received(&inbox), None, "nobody listens");
        for remote_reader in [reader, other] {
            peers.apply(Event::RemoteReaderMatched { local_writer: writer, remote_reader });
        }
        let expected = heartbeat(writer.to_bytes(), reader.to_bytes(), 7, 0).to_vec();
        for num_written in [7, 8, 9] {
            first.send(writer, num_written);
            assert_eq!(received(&inbox).as_ref(), Some(&expected), "the first number again");
            assert_eq!(received(&inbox), None, "the others drop nothing");
        }
        first.send(guid([0x01, 0x12], 6), 7);
        assert_eq!(received(&inbox), None, "another writer's readers");
    }

    #[test]
    fn writers_tell_before_each_sample_but_those_that_keep_samples_for_late_readers_do_not() {
        // The suites use 1 to 230, the ports 231.
        let options = RosOptions { domain_id: 232, localhost_only: true, ..RosOptions::default() };
        let transport = DdsTransport::join(&options).unwrap();
        let (inbox, reader) = (inbox(), guid(CYCLONE_VENDOR, 4));
        for (durability, tells) in [(Durability::Volatile, true), (Durability::TransientLocal, false)] {
            let qos = Qos { durability, ..Qos::DEFAULT };
            let name = format!("rt/told_{tells}");
            let writer = transport.create_writer(&name, "T", qos, NEVER, Overlap::TOPIC).unwrap();
            let matched = Event::RemoteReaderMatched { local_writer: writer.guid(), remote_reader: reader };
            transport.peers.apply(matched);
            transport.first_heartbeats.told.lock().unwrap().insert((writer.guid(), reader), at(&inbox, 0));
            for _ in 0..2 {
                writer.write(Payload(vec![0, 1, 0, 0]), WriteOptions::default()).unwrap();
                let expected = heartbeat(writer.guid().to_bytes(), reader.to_bytes(), 0, 0).to_vec();
                assert_eq!(received(&inbox), tells.then_some(expected), "{durability:?}");
            }
        }
    }
}
