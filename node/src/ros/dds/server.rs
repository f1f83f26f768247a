//! A service server that speaks both vendors' mappings at once and never loses a fresh client's reply.
//!
//! Requests of rmw_cyclonedds carry a 16-byte header in the payload, which the reply repeats; so do those of this crate's
//! own client, whose header starts with [`OWN_HEADER`]. Requests of everybody else (Fast DDS, Connext) carry an identity in
//! the sample's inline QoS, to which the reply relates.
//!
//! A client's first request can arrive before its reply reader is matched; a reply sent then is lost for good. So a reply
//! waits until the client's reader is matched, and longer: a CycloneDDS reader throws away what comes before the writer's
//! first heartbeat. The sign that the heartbeat has arrived is that the reader acknowledges what was sent before it was
//! there, which is why a server starts by sending a blank reply to nobody. Other clients do not wait meanwhile.
//!
//! Replies that name their request in the inline QoS go out by [`super::long_reply`] when they are long.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustdds::mio1::Waker;
use rustdds::rpc::SampleIdentity;
use rustdds::{GUID, SequenceNumber, WriteOptionsBuilder};

use super::inbox::Sample;
use super::long_reply::{LongReplies, LongReply, MAX_LONG_REPLY_LEN};
use super::payload::Payload;
use super::peers::{ClientIdentity, Peers, is_cyclone};
use super::renewal::{Look, Overlap, RenewedWriter};
use crate::ros::name::reply_topic;
use crate::ros::transport::{OnRequest, Respond};

/// Shortest time between the match and the first reply; alone it loses 1 of 100 first replies on a busy machine.
const SETTLE: Duration = Duration::from_millis(5);
/// Longest time between the match and the first reply, for when somebody else's reader does not acknowledge.
const MAX_SETTLE: Duration = Duration::from_millis(250);
/// How often acknowledgements are looked at meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// How long a reply waits for a reader that cannot be told from its neighbours, where one of them listens.
const MAX_GUESS: Duration = Duration::from_millis(500);
/// How long a reply waits for a reader that does not come. Two processes that start at the same time may hear of each other's
/// endpoints only when they are told again: Fast DDS does that once a second.
const MAX_WAIT: Duration = Duration::from_secs(5);
/// How long the sample that says so follows a long reply. Datagrams of two sockets may overtake each other, and a long one is
/// there with its last fragment only.
const LOST_AFTER: Duration = Duration::from_millis(40);
/// Replies waiting at a time; beyond it the oldest is given up. Two bursts as long as a reader's history, all refused at once.
const MAX_WAITING: usize = 2048;
/// Bytes before the body: the encapsulation header.
const ENCAPSULATION_LEN: usize = 4;
/// rmw_cyclonedds: `uint64 client`, `int64 sequence`.
pub(super) const HEADER_LEN: usize = 16;
/// How long two reply writers stand side by side; a client that is just coming is waited for with each reply. Fast DDS clients that just look for the service do not see it meanwhile.
pub(super) const OVERLAP: Overlap =
    Overlap { min: SETTLE, arrival: Duration::ZERO, settled: Some(MAX_SETTLE), max: Duration::from_secs(1) };
/// First half of the header that this crate's client puts before its requests, whatever the service. As the length of a
/// string it would be 1.9 GB, so no request without a header starts like this.
pub(super) const OWN_HEADER: [u8; 8] = *b"takt-cli";
/// Longest reply that RustDDS sends in one datagram whatever the network, with its inline QoS: IPv6's smallest has 1,280 bytes.
const MAX_INLINE_REPLY_LEN: usize = 1100;

/// The sending side of one service.
pub(super) struct Server {
    service: String,
    /// A whole reply that says nothing.
    blank: Payload,
    writer: Arc<RenewedWriter>,
    sent: Mutex<Sent>,
    long_replies: Arc<LongReplies>,
    peers: Arc<Peers>,
    waker: Arc<Waker>,
    waiting: Mutex<Vec<Waiting>>,
    /// Told when `waiting` has become empty.
    flushed: Condvar,
}

/// What the writer has sent. Its samples are numbered from 1 on.
#[derive(Debug, Default)]
struct Sent {
    num_samples: i64,
    /// The next sample, if a long reply went out under its number.
    owed: Option<Owed>,
}

/// What says that a long reply was lost.
#[derive(Debug)]
struct Owed {
    message: Payload,
    related: SampleIdentity,
    due: Instant,
}

struct Reply {
    message: Payload,
    /// For a client that may lose the message.
    instead: Option<Payload>,
}

/// A reply whose client cannot hear it yet.
struct Waiting {
    reply: Reply,
    to: Return,
}

/// Where a reply goes.
#[derive(Debug, Clone)]
struct Return {
    client: ClientIdentity,
    arrived: Instant,
    mapping: Mapping,
}

/// How a reply names its request.
#[derive(Debug, Clone)]
enum Mapping {
    /// Header in the payload, repeated as it came.
    Header([u8; HEADER_LEN]),
    /// Identity in the inline QoS.
    Enhanced(SampleIdentity),
}

type WriteError = rustdds::dds::result::WriteError<Payload>;

/// When a reply can be sent.
enum Due {
    At(Instant),
    Never,
}

impl Server {
    pub fn new(
        service: &str,
        blank: &[u8],
        writer: Arc<RenewedWriter>,
        peers: Arc<Peers>,
        waker: Arc<Waker>,
        long_replies: Arc<LongReplies>,
    ) -> Self {
        let (service, blank) = (service.to_owned(), Payload(blank.to_vec()));
        let (sent, waiting, flushed) = (Mutex::default(), Mutex::default(), Condvar::new());
        Self { service, blank, writer, sent, long_replies, peers, waker, waiting, flushed }
    }

    /// Sends a blank reply with a header that no client has: what a fresh client's reader acknowledges when it is ready.
    pub fn send_to_nobody(&self) {
        let blank = map(&self.blank.0, &Mapping::Header([0; HEADER_LEN]));
        if let Err(error) = self.write(&mut self.lock_sent(), blank, None) {
            tracing::warn!(service = %self.service, "the first reply to a new client may be lost: {error}");
        }
    }

    /// Hands one request to `on_request`, without its mapping's header.
    pub fn receive(self: &Arc<Self>, sample: Sample, on_request: &mut OnRequest) {
        let Some((mapping, message)) = unmap(&sample) else {
            tracing::warn!(service = %self.service, num_bytes = sample.message.len(), "request too short for its header; dropped");
            return;
        };
        let reply_reader = sample
            .related
            .map(|related| related.writer_guid)
            .filter(|guid| *guid != GUID::GUID_UNKNOWN && guid.entity_id.entity_kind.is_reader());
        let client = ClientIdentity { request_writer: sample.writer, reply_reader };
        let to = Return { client, arrived: Instant::now(), mapping };
        tracing::trace!(service = %self.service, client = ?sample.writer, sequence = ?sample.sequence_number, "request");
        on_request(&message, Box::new(Responder { server: Arc::clone(self), to }));
    }

    fn send_or_wait(&self, reply: Reply, to: Return) {
        let now = Instant::now();
        match self.due(&to, now) {
            Due::At(due) if due <= now => self.send(reply, &to),
            Due::At(_) => self.keep(Waiting { reply, to }),
            Due::Never => self.drop_reply(&to),
        }
    }

    fn keep(&self, waiting: Waiting) {
        let mut all = self.lock_waiting();
        if all.len() >= MAX_WAITING {
            let oldest = all.remove(0);
            tracing::warn!(service = %self.service, client = ?oldest.to.client.request_writer, "too many replies wait for their clients; the oldest is given up");
        }
        all.push(waiting);
        drop(all);
        self.wake();
    }

    /// Has [`Self::flush`] called.
    fn wake(&self) {
        if let Err(error) = self.waker.wake() {
            tracing::error!(%error, "cannot wake the ROS 2 dispatcher");
        }
    }

    fn lock_waiting(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what is due at `now`; when the next is.
    pub fn flush(&self, now: Instant) -> Option<Instant> {
        let mut next_due = self.flush_owed(now);
        let mut all = self.lock_waiting();
        for waiting in std::mem::take(&mut *all) {
            match self.due(&waiting.to, now) {
                Due::At(due) if due <= now => self.send(waiting.reply, &waiting.to),
                Due::At(due) => {
                    next_due = Some(next_due.map_or(due, |next| next.min(due)));
                    all.push(waiting);
                }
                Due::Never => self.drop_reply(&waiting.to),
            }
        }
        if all.is_empty() {
            self.flushed.notify_all();
        }
        next_due
    }

    /// Waits until no reply waits for its client any more; `false` after `timeout`.
    pub fn wait_flushed(&self, timeout: Duration) -> bool {
        let waited = self.flushed.wait_timeout_while(self.lock_waiting(), timeout, |all| !all.is_empty());
        let is_flushed = !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out();
        let due = self.lock_sent().owed.as_ref().map(|owed| owed.due);
        if let Some(due) = due {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            self.flush_owed(due);
        }
        is_flushed
    }

    /// Sends what says that a long reply was lost, if it is time; when it will be.
    fn flush_owed(&self, now: Instant) -> Option<Instant> {
        let mut sent = self.lock_sent();
        let due = sent.owed.as_ref()?.due;
        if now < due {
            return Some(due);
        }
        self.settle(&mut sent).is_err().then(|| now + LOST_AFTER)
    }

    /// Takes the next step towards a fresh writer, if it is time; whether it has taken over, and when to look again otherwise.
    pub fn renew(&self, now: Instant) -> Look {
        let look = self.writer.look(now);
        if look != Look::Ready {
            return look;
        }
        // While nothing is held back under a number of the old one, or for a reader that may know the old one only.
        let waiting = self.lock_waiting();
        let mut sent = self.lock_sent();
        let is_quiet = waiting.is_empty() && sent.owed.is_none();
        let Some(num_samples) = is_quiet.then(|| self.writer.switch(now)).flatten() else {
            return Look::again_after(now);
        };
        *sent = Sent { num_samples, owed: None };
        Look::Renewed
    }

    fn due(&self, to: &Return, now: Instant) -> Due {
        let give_up = to.arrived + MAX_WAIT;
        match self.peers.client_matched_at(self.writer.guid(), &to.client) {
            Some(since) => Due::At(self.settled(&to.mapping, since, now)),
            None if self.peers.participant_matched(self.writer.guid(), &to.client) => {
                let is_told = to.client.reply_reader.is_some();
                Due::At(if is_told { give_up } else { to.arrived + MAX_GUESS })
            }
            None if now < give_up => Due::At(give_up),
            None => Due::Never,
        }
    }

    /// When a reader matched `since` then can be written to; no later than `now` if it can already.
    fn settled(&self, mapping: &Mapping, since: Instant, now: Instant) -> Instant {
        let (earliest, latest) = (since + SETTLE, since + MAX_SETTLE);
        if now < earliest {
            return earliest;
        }
        // Fast DDS acknowledges nothing before the first reply, and throws nothing away either.
        if matches!(mapping, Mapping::Enhanced(_)) {
            return now;
        }
        let heard = now >= latest || self.writer.wait_acknowledged(Duration::ZERO);
        if heard { now } else { (now + LOOK_AGAIN).min(latest) }
    }

    fn send(&self, reply: Reply, to: &Return) {
        tracing::trace!(service = %self.service, client = ?to.client.request_writer, waited = ?to.arrived.elapsed(), "reply");
        let sent = match &to.mapping {
            Mapping::Header(_) => self.write(&mut self.lock_sent(), reply.message, None),
            Mapping::Enhanced(related) if reply.message.0.len() <= MAX_INLINE_REPLY_LEN => {
                self.write(&mut self.lock_sent(), reply.message, Some(*related))
            }
            Mapping::Enhanced(related) => self.send_long(reply, *related, to),
        };
        if let Err(error) = sent {
            tracing::warn!(service = %self.service, "a reply was not sent: {error}");
        }
    }

    /// Sends a reply past RustDDS, and owes what says that it was lost under the same number.
    fn send_long(&self, reply: Reply, related: SampleIdentity, to: &Return) -> Result<(), WriteError> {
        let Reply { message: Payload(message), instead } = reply;
        let mut sent = self.lock_sent();
        self.settle(&mut sent)?;
        let instead = instead.filter(|instead| instead.0.len() <= MAX_INLINE_REPLY_LEN);
        let instead = instead.unwrap_or_else(|| self.blank.clone());
        let num_bytes = message.len();
        if num_bytes > MAX_LONG_REPLY_LEN {
            tracing::warn!(service = %self.service, num_bytes, "a reply is too long for a client of its DDS vendor");
            return self.write_next(&mut sent, instead, Some(related));
        }
        let sequence_number = SequenceNumber::from(sent.num_samples + 1);
        let sample = SampleIdentity { writer_guid: self.writer.guid(), sequence_number };
        let reply = LongReply { sample, related, message: &message };
        if !self.long_replies.send(reply, &reply_topic(&self.service), to.client.request_writer) {
            return self.write_next(&mut sent, instead, Some(related));
        }
        sent.owed = Some(Owed { message: instead, related, due: Instant::now() + LOST_AFTER });
        drop(sent);
        self.wake();
        Ok(())
    }

    /// Writes the sample that is owed. It stays so if it cannot be written: its number is taken.
    fn settle(&self, sent: &mut Sent) -> Result<(), WriteError> {
        let Some(Owed { message, related, .. }) = &sent.owed else { return Ok(()) };
        let (message, related) = (message.clone(), *related);
        self.write_next(sent, message, Some(related))
    }

    fn write(
        &self,
        sent: &mut Sent,
        message: Payload,
        related: Option<SampleIdentity>,
    ) -> Result<(), WriteError> {
        self.settle(sent)?;
        self.write_next(sent, message, related)
    }

    fn write_next(
        &self,
        sent: &mut Sent,
        message: Payload,
        related: Option<SampleIdentity>,
    ) -> Result<(), WriteError> {
        let options = WriteOptionsBuilder::new().related_sample_identity_opt(related).build();
        let sample = self.writer.write(message, options)?;
        *sent = Sent { num_samples: sample.sequence_number.into(), owed: None };
        Ok(())
    }

    fn lock_sent(&self) -> MutexGuard<'_, Sent> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drop_reply(&self, to: &Return) {
        tracing::debug!(service = %self.service, client = ?to.client.request_writer, "the client left before its reply");
    }
}

/// A request's mapping, and its message without it.
fn unmap(sample: &Sample) -> Option<(Mapping, Vec<u8>)> {
    let (encapsulation, body) = sample.message.split_first_chunk::<ENCAPSULATION_LEN>()?;
    if !has_header(sample.writer, body) {
        let client =
            sample.related.map(|related| related.writer_guid).filter(|guid| *guid != GUID::GUID_UNKNOWN);
        let identity = SampleIdentity {
            writer_guid: client.unwrap_or(sample.writer),
            sequence_number: sample.sequence_number,
        };
        return Some((Mapping::Enhanced(identity), sample.message.clone()));
    }
    let (header, body) = body.split_first_chunk::<HEADER_LEN>()?;
    let mut header = *header;
    if encapsulation[1] == 0 {
        // Big endian; the reply is little endian.
        header[..8].reverse();
        header[8..].reverse();
    }
    Some((Mapping::Header(header), [encapsulation, body].concat()))
}

fn has_header(writer: GUID, body: &[u8]) -> bool {
    is_cyclone(writer) || body.starts_with(&OWN_HEADER)
}

/// A reply's message with its mapping's header.
fn map(message: &[u8], mapping: &Mapping) -> Payload {
    match mapping {
        Mapping::Enhanced(_) => Payload(message.to_vec()),
        Mapping::Header(header) => {
            let (encapsulation, body) = message.split_at(ENCAPSULATION_LEN.min(message.len()));
            Payload([encapsulation, header, body].concat())
        }
    }
}

struct Responder {
    server: Arc<Server>,
    to: Return,
}

impl Respond for Responder {
    fn respond(self: Box<Self>, message: &[u8], instead: Option<&[u8]>) {
        let mapped = |message| map(message, &self.to.mapping);
        let reply = Reply { message: mapped(message), instead: instead.map(mapped) };
        self.server.send_or_wait(reply, self.to);
    }
}

#[cfg(test)]
mod tests {
    use rustdds::SequenceNumber;

    use super::super::peers::CYCLONE_VENDOR;
    use super::*;

    fn request(vendor: [u8; 2], message: &[u8], related: Option<SampleIdentity>) -> Sample {
        let mut guid = [7; 16];
        guid[..2].copy_from_slice(&vendor);
        guid[15] = 0x03;
        Sample {
            message: message.to_vec(),
            writer: GUID::from_bytes(guid),
            sequence_number: SequenceNumber::new(5),
            related,
        }
    }

    #[test]
    fn cyclones_header_is_taken_off_and_put_back_as_it_came() {
        let header: Vec<u8> = (1..=16).collect();
        let message = [&[0, 1, 0, 0], header.as_slice(), b"body"].concat();
        let (mapping, inner) = unmap(&request(CYCLONE_VENDOR, &message, None)).unwrap();
        assert_eq!(inner, b"\0\x01\0\0body");
        let reply = map(b"\0\x01\0\0answer", &mapping);
        assert_eq!(reply.0, [&[0, 1, 0, 0], header.as_slice(), b"answer"].concat());
    }

    #[test]
    fn this_crates_own_client_is_known_by_its_header() {
        let message = [b"\0\x01\0\0".as_slice(), &OWN_HEADER, &[9; 8], b"body"].concat();
        let (mapping, inner) = unmap(&request([0x01, 0x12], &message, None)).unwrap();
        assert_eq!(inner, b"\0\x01\0\0body");
        assert!(
            matches!(mapping, Mapping::Header(header) if header[..8] == OWN_HEADER && header[8..] == [9; 8])
        );
    }

    #[test]
    fn other_vendors_get_the_identity_of_their_request() {
        let sample = request([0x01, 0x0f], b"\0\x01\0\0body", None);
        let (Mapping::Enhanced(identity), inner) = unmap(&sample).unwrap() else {
            panic!("Fast DDS has no header")
        };
        assert_eq!(inner, sample.message);
        assert_eq!((identity.writer_guid, identity.sequence_number), (sample.writer, SequenceNumber::new(5)));

        let reader = GUID::from_bytes([4; 16]);
        let told = SampleIdentity { writer_guid: reader, sequence_number: SequenceNumber::UNKNOWN };
        let sample = request([0x01, 0x0f], b"\0\x01\0\0body", Some(told));
        let Some((Mapping::Enhanced(identity), _)) = unmap(&sample) else { panic!("Fast DDS has no header") };
        assert_eq!((identity.writer_guid, identity.sequence_number), (reader, SequenceNumber::new(5)));
    }

    #[test]
    fn a_cyclone_request_without_room_for_its_header_is_dropped() {
        for len in 0..ENCAPSULATION_LEN + HEADER_LEN {
            assert!(unmap(&request(CYCLONE_VENDOR, &[0; 32][..len], None)).is_none(), "{len} bytes");
        }
    }
}
