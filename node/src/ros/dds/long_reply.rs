//! Sends Fast DDS clients the replies that RustDDS would have to cut into fragments.
//!
//! RustDDS 0.15.1 writes one byte too many before the inline QoS of a fragment, and in the mapping of Fast DDS (and Connext) a
//! reply names its request there. It cuts whatever is longer than the smallest path of the writer's readers, 1,300 bytes on an
//! ordinary network: such a reply never arrived, and `ros2 param list` got nothing.
//!
//! So a long reply goes out in one datagram of our own, in the writer's name and under the sequence number of the next sample;
//! the network cuts it, if it must. A little later that sample follows through RustDDS, short, and says that the reply was lost.
//! A reader takes the first of two samples with one number: whoever got the reply throws the short one away, and whoever lost it
//! learns that, and may ask again.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Weak};

use rustdds::rpc::SampleIdentity;
use rustdds::{DomainParticipant, GUID, Timestamp};

use super::bypass::{self, addresses};
use super::heartbeat::halves;
use super::peers::prefix_of;
use crate::ros::presence::Guid;
use crate::ros::{RosError, RosOptions};

/// Longest reply sent in one datagram; a datagram holds 65,507 bytes, of which Fast DDS takes 65,500.
pub(super) const MAX_LONG_REPLY_LEN: usize = 65_000;
/// Length of an identity of a sample: writer and sequence number.
const SAMPLE_IDENTITY_LEN: u8 = 24;

/// The way past RustDDS, for one participant.
#[derive(Debug)]
pub(super) struct LongReplies {
    socket: UdpSocket,
    /// Does not keep it alive: the way back to a client may outlive its server.
    participant: Weak<DomainParticipant>,
}

/// The sample a reply travels as.
#[derive(Debug, Clone, Copy)]
pub(super) struct LongReply<'a> {
    /// Writer and number of the sample.
    pub sample: SampleIdentity,
    /// The request's.
    pub related: SampleIdentity,
    /// Whole, with its encapsulation header.
    pub message: &'a [u8],
}

impl LongReplies {
    /// For `participant`, which joined with `options`.
    pub fn new(participant: &Arc<DomainParticipant>, options: &RosOptions) -> Result<Self, RosError> {
        let socket = bypass::socket(options, "long replies")?;
        Ok(Self { socket, participant: Arc::downgrade(participant) })
    }

    /// Sends `reply` to the participant of `client`, one of the readers of `topic`; whether it has left this machine, or reached
    /// a socket of it.
    pub fn send(&self, reply: LongReply<'_>, topic: &str, client: GUID) -> bool {
        let datagram = datagram(reply, client.to_bytes());
        let sent =
            self.addresses(topic, client).into_iter().map(|to| match self.socket.send_to(&datagram, to) {
                Ok(num_bytes) => num_bytes == datagram.len(),
                Err(error) => {
                    tracing::debug!(%error, %to, num_bytes = datagram.len(), "a long reply did not leave");
                    false
                }
            });
        // Each is tried.
        sent.fold(false, |any, one| any | one)
    }

    /// Where the participant of `client` reads `topic`.
    fn addresses(&self, topic: &str, client: GUID) -> BTreeSet<SocketAddr> {
        let Some(participant) = self.participant.upgrade() else { return BTreeSet::new() };
        addresses(&participant, |reader, its_topic| reader.prefix == client.prefix && its_topic == topic)
    }
}

/// RTPS 2.3, 8.3.7.2 and 9.4.5.3: `reply` for every reader of the writer in the participant of `client`.
fn datagram(reply: LongReply<'_>, client: Guid) -> Vec<u8> {
    let LongReply { sample, related, message } = reply;
    let writer = sample.writer_guid.to_bytes();
    let related = [&related.writer_guid.to_bytes()[..], &sequence_number(related)].concat();
    let parts: [&[u8]; 17] = [
        b"RTPS\x02\x03",
        // The vendor, as every identity of its participants starts.
        &writer[..2],
        &writer[..12],
        // INFO_DST, little endian, 12 bytes.
        &[0x0e, 0x01, 12, 0],
        &prefix_of(client),
        // INFO_TS, little endian, 8 bytes.
        &[0x09, 0x01, 8, 0],
        &halves(Timestamp::now().to_ticks()),
        // DATA, little endian, with inline QoS and data, to the end of the datagram; the inline QoS starts after 16 bytes.
        &[0x15, 0x07, 0, 0],
        &[0, 0, 16, 0],
        // Any reader.
        &[0; 4],
        &writer[12..],
        &sequence_number(sample),
        // PID_RELATED_SAMPLE_IDENTITY, and the number that Fast DDS gave it before there was one.
        &[0x83, 0, SAMPLE_IDENTITY_LEN, 0],
        &related,
        &[0x0f, 0x80, SAMPLE_IDENTITY_LEN, 0],
        &related,
        // PID_SENTINEL.
        &[1, 0, 0, 0],
    ];
    [&parts.concat(), message].concat()
}

fn sequence_number(of: SampleIdentity) -> [u8; 8] {
    halves(i64::from(of.sequence_number).cast_unsigned())
}

#[cfg(test)]
mod tests {
    use rustdds::SequenceNumber;

    use super::*;

    fn identity(byte: u8, sequence_number: i64) -> SampleIdentity {
        let sequence_number = SequenceNumber::from(sequence_number);
        SampleIdentity { writer_guid: GUID::from_bytes([byte; 16]), sequence_number }
    }

    #[test]
    fn the_datagram_is_the_writers_next_sample_and_names_its_request() {
        let reply = LongReply {
            sample: identity(0x11, 0x1_0000_0002),
            related: identity(0x22, 7),
            message: b"\0\x01\0\0answer",
        };
        let bytes = datagram(reply, [0x33; 16]);
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let twelve = |byte: &str| byte.repeat(12);
        let related = format!("{}0000000007000000", "22".repeat(16));
        let start = format!("525450530203 1111 {} 0e010c00 {} 09010800", twelve("11"), twelve("33"));
        let end = format!(
            "15070000 0000 1000 00000000 11111111 0100000002000000 83001800 {related} 0f801800 {related} 01000000 00010000 {}",
            hex(b"answer")
        );
        let (start, end) = (start.replace(' ', ""), end.replace(' ', ""));
        let hex = hex(&bytes);
        assert_eq!((&hex[..start.len()], &hex[start.len() + 16..]), (start.as_str(), end.as_str()));
        let seconds = u32::from_str_radix(&hex[start.len()..start.len() + 8], 16).unwrap().swap_bytes();
        assert!(seconds > 1_700_000_000, "{seconds} s since 1970");
    }
}
