//! Asks Fast DDS writers for their first message, which they may have sent before this participant knew them.
//!
//! A Fast DDS process that already knows the node matches a new writer of its own at once, and may write before RustDDS has
//! heard of that writer: the message is dropped, and so is the heartbeat that announced it. RustDDS then acknowledges nothing
//! from sequence number 1 on, to be sent a new heartbeat; Fast DDS sends one at once only for base 0, and otherwise after its
//! heartbeat period of 3 s. So a service client that calls as soon as it sees the service waited 3 s for its first reply, and
//! a process that publishes one message and ends was never heard.
//!
//! RustDDS cannot be told to ask for message 1, but it asks for what a heartbeat says is there. So this participant sends
//! itself the heartbeat that got lost: in the writer's name, of message 1 alone. RustDDS answers it to the writer, counting its
//! acknowledgements as ever, and Fast DDS sends the message again within milliseconds.
//!
//! Nothing else can come of it. Message 1 is the only one that may be asked for unseen: a writer that has sent nothing has an
//! empty history and ignores the request (and a request beyond its next number altogether), and one that is past message 1
//! ignores it as acknowledged; but asking for a message that is *about* to be written makes Fast DDS declare it irrelevant.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use rustdds::{DomainParticipant, DomainParticipantStatusEvent as Event, GUID};

use super::heartbeat::{HEARTBEAT_LEN, heartbeat};
use super::peers::prefix_of;
use super::ports::user_traffic_port;
use crate::ros::{RosError, RosOptions};

/// First bytes of every identity of an eProsima Fast DDS participant.
const EPROSIMA_VENDOR: [u8; 2] = [0x01, 0x0f];
/// Between the match and the heartbeat: lets the true one come first if it is on its way.
const DELAY: Duration = Duration::from_millis(10);
/// How long two participants need to tell each other their endpoints; earlier, the true heartbeat may still come.
const INTRODUCTION: Duration = Duration::from_millis(200);
/// Count of its heartbeats: the lowest that RustDDS takes.
const COUNT: i32 = 1;
/// Where multicast would go: names the network interface, nothing is sent there.
const DISCOVERY_GROUP: (Ipv4Addr, u16) = (Ipv4Addr::new(239, 255, 0, 1), 7400);

/// Heartbeats to be sent to this participant itself.
#[derive(Debug)]
pub(super) struct FirstMessages {
    /// Sends from and to the participant's own address.
    socket: UdpSocket,
    waiting: Vec<(Instant, [u8; HEARTBEAT_LEN])>,
    /// When this participant's readers began to listen.
    readers: HashMap<GUID, Instant>,
    /// When other participants were discovered.
    participants: HashMap<[u8; 12], Instant>,
}

impl FirstMessages {
    /// For `participant`, which joined with `options`.
    pub fn new(participant: &DomainParticipant, options: &RosOptions) -> Result<Self, RosError> {
        let connect = || -> io::Result<UdpSocket> {
            let address = own_address(options);
            let socket = UdpSocket::bind((address, 0))?;
            // The dispatcher never waits for it.
            socket.set_nonblocking(true)?;
            let port = user_traffic_port(participant.domain_id(), participant.participant_id())?;
            socket.connect(SocketAddr::new(address, port))?;
            Ok(socket)
        };
        connect().map(Self::with_socket).map_err(|error| RosError::Transport {
            what: "opening a socket to this participant".to_owned(),
            reason: error.to_string(),
        })
    }

    fn with_socket(socket: UdpSocket) -> Self {
        let (readers, participants) = (HashMap::new(), HashMap::new());
        Self { socket, waiting: Vec::new(), readers, participants }
    }

    /// Takes note of a reader of this participant.
    pub fn note_reader(&mut self, reader: GUID, now: Instant) {
        self.readers.insert(reader, now);
    }

    /// Takes note of what happened to other participants.
    pub fn note(&mut self, event: &Event, now: Instant) {
        match event {
            Event::ParticipantDiscovered { dpd } => {
                self.participants.insert(prefix_of(dpd.guid.to_bytes()), now);
            }
            Event::ParticipantLost { id, .. } => {
                self.participants.retain(|prefix, _| prefix.as_slice() != id.as_ref());
            }
            Event::RemoteWriterMatched { local_reader, remote_writer }
                if is_fast_dds_writer(*remote_writer) =>
            {
                let datagram = heartbeat(remote_writer.to_bytes(), local_reader.to_bytes(), 1, COUNT);
                self.waiting.push((self.due(*local_reader, *remote_writer, now), datagram));
            }
            _ => {}
        }
    }

    /// When a heartbeat does no harm any more. RustDDS takes no heartbeat twice, and the first true one of a writer has the same
    /// count as ours; if it is still to come, as it is when the writer does not know the reader yet, it says more than ours.
    fn due(&self, reader: GUID, writer: GUID, now: Instant) -> Instant {
        let reader_since = self.readers.get(&reader).copied().unwrap_or(now);
        let participant_since = self.participants.get(&prefix_of(writer.to_bytes())).copied().unwrap_or(now);
        (now + DELAY).max(reader_since.max(participant_since) + INTRODUCTION)
    }

    /// Sends what is due at `now`; when the next is.
    pub fn flush(&mut self, now: Instant) -> Option<Instant> {
        for (_, datagram) in self.waiting.extract_if(.., |(due, _)| *due <= now) {
            if let Err(error) = self.socket.send(&datagram) {
                tracing::debug!(%error, "the first message of a Fast DDS peer may take 3 s");
            }
        }
        self.waiting.iter().map(|(due, _)| *due).min()
    }
}

fn is_fast_dds_writer(guid: GUID) -> bool {
    guid.prefix.as_ref().starts_with(&EPROSIMA_VENDOR) && guid.entity_id.entity_kind.is_user_defined()
}

/// The address to send from and to. RustDDS remembers where a peer's datagrams come from, and takes one that came from
/// 127.0.0.1 for a process of this machine for ever: so a network's own address, where there is a network.
fn own_address(options: &RosOptions) -> IpAddr {
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    if options.localhost_only {
        return loopback;
    }
    let of_network = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(DISCOVERY_GROUP)?;
        socket.local_addr()
    };
    of_network().map_or(loopback, |address| address.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guid(vendor: [u8; 2], entity: [u8; 4]) -> GUID {
        let mut bytes = [0xaa; 16];
        bytes[..2].copy_from_slice(&vendor);
        bytes[12..].copy_from_slice(&entity);
        GUID::from_bytes(bytes)
    }

    #[test]
    fn only_the_user_writers_of_fast_dds_are_asked() {
        assert!(is_fast_dds_writer(guid(EPROSIMA_VENDOR, [0, 0, 2, 0x03])));
        assert!(is_fast_dds_writer(guid(EPROSIMA_VENDOR, [0, 0, 2, 0x02])));
        assert!(!is_fast_dds_writer(guid(EPROSIMA_VENDOR, [0, 0, 3, 0xc2])), "of discovery");
        assert!(!is_fast_dds_writer(guid([0x01, 0x10], [0, 0, 2, 0x03])), "CycloneDDS");
    }

    fn to(inbox: &UdpSocket) -> FirstMessages {
        inbox.set_nonblocking(true).unwrap();
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.connect(inbox.local_addr().unwrap()).unwrap();
        FirstMessages::with_socket(socket)
    }

    fn reader() -> GUID {
        guid([0x01, 0x12], [0, 0, 8, 0x04])
    }

    fn matched(vendor: [u8; 2]) -> Event {
        Event::RemoteWriterMatched { local_reader: reader(), remote_writer: guid(vendor, [0, 0, 2, 0x03]) }
    }

    #[test]
    fn a_writer_of_a_participant_long_known_is_asked_once_and_soon() {
        let inbox = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (mut first, now) = (to(&inbox), Instant::now());
        first.note_reader(reader(), now);
        first.participants.insert(prefix_of(guid(EPROSIMA_VENDOR, [0; 4]).to_bytes()), now);
        let later = now + INTRODUCTION;
        first.note(&matched([0x01, 0x10]), later);
        assert_eq!(first.flush(later + DELAY), None);
        first.note(&matched(EPROSIMA_VENDOR), later);
        let mut datagram = [0; 100];
        assert_eq!(first.flush(later), Some(later + DELAY));
        assert!(inbox.recv(&mut datagram).is_err());
        assert_eq!(first.flush(later + DELAY), None);
        assert_eq!(inbox.recv(&mut datagram).unwrap(), HEARTBEAT_LEN);
        assert!(inbox.recv(&mut datagram).is_err());
    }

    #[test]
    fn a_writer_that_may_not_know_the_reader_yet_is_given_time() {
        let inbox = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (mut first, now) = (to(&inbox), Instant::now());
        first.participants.insert(prefix_of(guid(EPROSIMA_VENDOR, [0; 4]).to_bytes()), now);
        let young = now + Duration::from_secs(1);
        first.note_reader(reader(), young);
        first.note(&matched(EPROSIMA_VENDOR), young);
        assert_eq!(first.flush(young), Some(young + INTRODUCTION));
        first.participants.clear();
        let unknown = young + INTRODUCTION;
        first.note(&matched(EPROSIMA_VENDOR), unknown);
        assert_eq!(first.flush(unknown), Some(unknown + INTRODUCTION));
    }
}
