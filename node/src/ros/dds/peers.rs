//! What is known of the other participants: which remote endpoints are matched since when, and which nodes they hold.
//!
//! The dispatcher writes it from RustDDS's status events; everybody else reads it or waits for it to change.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustdds::{DomainParticipantStatusEvent as Event, EndpointDescription, GUID, LostReason, QosPolicies};

use crate::ros::NodeName;
use crate::ros::presence::{Guid, NodeEntities, ParticipantEntities};

/// How long after an endpoint has left a match of it may be told: RustDDS's discovery tells of departures and its other thread
/// of matches, and where the latter is behind an endpoint that lived for a moment is matched after it has left.
const BELATED: Duration = Duration::from_secs(10);
/// First bytes of every identity of an Eclipse CycloneDDS participant.
pub(super) const CYCLONE_VENDOR: [u8; 2] = [0x01, 0x10];
/// Participants remembered by their announcements; each is one process on the robot.
const MAX_PARTICIPANTS: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Peers {
    state: Mutex<PeerState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
pub(super) struct PeerState {
    /// Local endpoint → remote endpoints it is matched with, and since when.
    matched: HashMap<GUID, HashMap<GUID, Instant>>,
    /// rmw_cyclonedds marks a client's request writer and reply reader with the same key.
    client_keys: HashMap<GUID, Vec<u8>>,
    /// Endpoints that have left for good, and when; their identities are not given again within [`BELATED`].
    left_endpoints: HashMap<GUID, Instant>,
    /// The same of participants.
    left_participants: HashMap<[u8; 12], Instant>,
    /// When another participant was discovered last.
    last_arrival: Option<Instant>,
    /// Nodes of each other participant, by its identity's prefix.
    nodes: HashMap<[u8; 12], ParticipantEntities>,
}

/// How a service client can be told from others.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClientIdentity {
    /// Writer of its requests.
    pub request_writer: GUID,
    /// Reader of its replies, if the request told.
    pub reply_reader: Option<GUID>,
}

impl Peers {
    fn lock(&self) -> MutexGuard<'_, PeerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over one status event.
    pub fn apply(&self, event: Event) {
        let mut state = self.lock();
        match event {
            Event::RemoteReaderMatched { local_writer, remote_reader } => {
                state.note_match(local_writer, remote_reader);
            }
            Event::RemoteWriterMatched { local_reader, remote_writer } => {
                state.note_match(local_reader, remote_writer);
            }
            Event::ParticipantDiscovered { dpd } => {
                // A process that joins a second time may use the identity it had.
                state.left_participants.remove(&prefix_of(dpd.guid.to_bytes()));
                state.left_endpoints.retain(|guid, _| guid.prefix != dpd.guid.prefix);
                state.last_arrival = Some(Instant::now());
            }
            Event::ReaderDetected { reader } => state.note_key(&reader),
            Event::WriterDetected { writer } => state.note_key(&writer),
            Event::ReaderLost { guid, reason } | Event::WriterLost { guid, reason } => {
                if is_for_good(&reason) {
                    note_departure(&mut state.left_endpoints, guid);
                }
                state.forget(|other| other == guid)
            }
            Event::ParticipantLost { id, reason } => {
                if let (true, Ok(prefix)) = (is_for_good(&reason), id.as_ref().try_into()) {
                    note_departure(&mut state.left_participants, prefix);
                }
                state.forget(|other| other.prefix == id);
                state.nodes.retain(|prefix, _| prefix.as_slice() != id.as_ref());
            }
            Event::RemoteReaderQosIncompatible { remote_reader, requested_qos, .. } => {
                warn_incompatible("subscriber", remote_reader, &requested_qos);
            }
            Event::RemoteWriterQosIncompatible { remote_writer, offered_qos, .. } => {
                warn_incompatible("publisher", remote_writer, &offered_qos);
            }
            _ => return,
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Remote endpoints matched with `local` that leave for good by `event`, which is to be applied yet.
    pub fn departing(&self, local: GUID, event: &Event) -> Vec<GUID> {
        let has_left = |remote: &GUID| match event {
            Event::WriterLost { guid, reason } => is_for_good(reason) && remote == guid,
            Event::ParticipantLost { id, reason } => is_for_good(reason) && remote.prefix == *id,
            _ => false,
        };
        let state = self.lock();
        state.matched.get(&local).into_iter().flat_map(HashMap::keys).copied().filter(has_left).collect()
    }

    /// Takes over a participant's list of its nodes; the same participant's former list is replaced.
    pub fn note_nodes(&self, entities: ParticipantEntities) {
        let mut state = self.lock();
        let prefix = prefix_of(entities.participant);
        if state.nodes.len() < MAX_PARTICIPANTS || state.nodes.contains_key(&prefix) {
            state.nodes.insert(prefix, entities);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Waits until `condition` holds; `false` after `timeout`.
    pub fn wait_for(&self, timeout: Duration, condition: impl Fn(&PeerState) -> bool) -> bool {
        let waited = self.changed.wait_timeout_while(self.lock(), timeout, |state| !condition(state));
        let (_state, result) = waited.unwrap_or_else(PoisonError::into_inner);
        !result.timed_out()
    }

    /// Since when `local` is matched with the client's reply reader; `None` while it is not.
    pub fn client_matched_at(&self, local: GUID, client: &ClientIdentity) -> Option<Instant> {
        let state = self.lock();
        let remotes = state.matched.get(&local)?;
        if let Some(reader) = client.reply_reader {
            return remotes.get(&reader).copied();
        }
        match state.client_keys.get(&client.request_writer) {
            Some(key) => latest(remotes, |guid| state.client_keys.get(&guid) == Some(key)),
            None => latest(remotes, |guid| guid.prefix == client.request_writer.prefix),
        }
    }

    /// Since when whoever is matched with `old` is matched with `new` too, the last of them; `None` while somebody is not.
    pub fn follow(&self, old: GUID, new: GUID) -> Option<Option<Instant>> {
        let state = self.lock();
        let (old, new) = (state.matched.get(&old), state.matched.get(&new));
        let since = |remote| new.and_then(|new| new.get(remote)).copied();
        let all: Option<Vec<Instant>> = old.into_iter().flat_map(HashMap::keys).map(since).collect();
        all.map(|all| all.into_iter().max())
    }

    /// CycloneDDS's readers that `local` has been matched with since `earliest` or later.
    pub fn fresh_cyclone_readers(&self, local: GUID, earliest: Instant) -> Vec<GUID> {
        let state = self.lock();
        let remotes = state.matched.get(&local).into_iter().flatten();
        let fresh = remotes.filter(|(guid, since)| is_cyclone(**guid) && **since >= earliest);
        fresh.map(|(guid, _)| *guid).collect()
    }

    /// When another participant came last.
    pub fn last_arrival(&self) -> Option<Instant> {
        self.lock().last_arrival
    }

    /// Forgets an endpoint of this participant that is gone.
    pub fn forget_local(&self, local: GUID) {
        self.lock().matched.remove(&local);
    }

    /// Whether `local` is matched with any endpoint of the client's participant.
    pub fn participant_matched(&self, local: GUID, client: &ClientIdentity) -> bool {
        self.lock().has_match(local, |guid| guid.prefix == client.request_writer.prefix)
    }
}

fn warn_incompatible(what: &str, guid: GUID, qos: &QosPolicies) {
    let (reliability, durability) = (qos.reliability(), qos.durability());
    tracing::warn!(
        ?guid,
        ?reliability,
        ?durability,
        "a {what} is not connected, its QoS does not fit: use reliable, volatile"
    );
}

fn latest(remotes: &HashMap<GUID, Instant>, is_client: impl Fn(GUID) -> bool) -> Option<Instant> {
    remotes.iter().filter(|(guid, _)| is_client(**guid)).map(|(_, since)| *since).max()
}

pub(super) fn is_cyclone(guid: GUID) -> bool {
    guid.prefix.as_ref().starts_with(&CYCLONE_VENDOR)
}

/// The participant's part of an identity.
pub(super) fn prefix_of(guid: Guid) -> [u8; 12] {
    let mut prefix = [0; 12];
    prefix.copy_from_slice(&guid[..12]);
    prefix
}

/// Whoever was only not heard for a while may come back as who it was.
fn is_for_good(reason: &LostReason) -> bool {
    matches!(reason, LostReason::Disposed)
}

fn note_departure<Id: Eq + Hash>(left: &mut HashMap<Id, Instant>, who: Id) {
    let now = Instant::now();
    left.retain(|_, at| now < *at + BELATED);
    left.insert(who, now);
}

impl PeerState {
    fn note_match(&mut self, local: GUID, remote: GUID) {
        let now = Instant::now();
        let is_late = |at: &Instant| now < *at + BELATED;
        let has_left = self.left_endpoints.get(&remote).is_some_and(is_late)
            || self.left_participants.get(&prefix_of(remote.to_bytes())).is_some_and(is_late);
        if !has_left {
            self.matched.entry(local).or_default().entry(remote).or_insert(now);
        }
    }

    fn note_key(&mut self, endpoint: &EndpointDescription) {
        if let Some(key) = client_key(&endpoint.user_data) {
            self.client_keys.insert(endpoint.guid, key.to_vec());
        }
    }

    fn forget(&mut self, gone: impl Fn(GUID) -> bool) {
        self.client_keys.retain(|guid, _| !gone(*guid));
        for remotes in self.matched.values_mut() {
            remotes.retain(|guid, _| !gone(*guid));
        }
    }

    /// Whether `local` is matched with a remote endpoint that `wanted` accepts.
    pub fn has_match(&self, local: GUID, wanted: impl Fn(GUID) -> bool) -> bool {
        self.matched.get(&local).is_some_and(|remotes| remotes.keys().any(|guid| wanted(*guid)))
    }

    /// Whether one participant reads what `writer` sends and writes what `reader` hears.
    pub fn has_server(&self, writer: GUID, reader: GUID) -> bool {
        self.has_match(writer, |server| self.has_match(reader, |guid| guid.prefix == server.prefix))
    }

    /// Another participant that holds a node named `node`, as that participant's identity and the node.
    pub fn namesakes(&self, node: &NodeName) -> impl Iterator<Item = (Guid, &NodeEntities)> {
        self.nodes.values().flat_map(move |entities| {
            let named = entities.nodes.iter().filter(move |other| other.is_named(node));
            named.map(|other| (entities.participant, other))
        })
    }
}

/// `X` of `…;clientid=X;…`, as rmw_cyclonedds writes USER_DATA.
fn client_key(user_data: &[u8]) -> Option<&[u8]> {
    user_data.split(|byte| *byte == b';').find_map(|part| part.strip_prefix(b"clientid="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_key_is_found_among_the_other_user_data() {
        assert_eq!(client_key(b"typehash=RIHS01_00;clientid=01.02.ff;"), Some(b"01.02.ff".as_slice()));
        assert_eq!(client_key(b"clientid=7"), Some(b"7".as_slice()));
        assert_eq!(client_key(b"serviceid=7;"), None);
        assert_eq!(client_key(b""), None);
    }

    fn guid(participant: u8, entity: u8) -> GUID {
        let mut bytes = [participant; 16];
        bytes[15] = entity;
        GUID::from_bytes(bytes)
    }

    fn reader_matched(peers: &Peers, local_writer: GUID, remote_reader: GUID) {
        peers.apply(Event::RemoteReaderMatched { local_writer, remote_reader });
    }

    #[test]
    fn a_client_is_matched_once_its_own_reply_reader_is() {
        let (peers, local) = (Peers::default(), guid(1, 1));
        let told = ClientIdentity { request_writer: guid(2, 3), reply_reader: Some(guid(2, 4)) };
        let untold = ClientIdentity { request_writer: guid(2, 3), reply_reader: None };
        reader_matched(&peers, local, guid(3, 4));
        assert!(peers.client_matched_at(local, &told).is_none() && !peers.participant_matched(local, &told));
        reader_matched(&peers, local, guid(2, 5));
        assert!(peers.client_matched_at(local, &told).is_none());
        assert!(peers.client_matched_at(local, &untold).is_some());
        reader_matched(&peers, local, guid(2, 4));
        assert!(peers.client_matched_at(local, &told).is_some());
    }

    #[test]
    fn a_writer_follows_another_once_all_its_readers_are_matched() {
        let (peers, old, new) = (Peers::default(), guid(1, 1), guid(1, 2));
        assert_eq!(peers.follow(old, new), Some(None), "nobody is left behind");
        reader_matched(&peers, old, guid(2, 4));
        reader_matched(&peers, old, guid(3, 4));
        reader_matched(&peers, new, guid(2, 4));
        assert_eq!(peers.follow(old, new), None);
        reader_matched(&peers, new, guid(3, 4));
        assert!(peers.follow(old, new).flatten().is_some());
        peers.forget_local(new);
        assert_eq!(peers.follow(old, new), None);
    }

    #[test]
    fn cyclones_readers_are_fresh_for_a_while_after_their_match() {
        let (peers, writer, before) = (Peers::default(), guid(1, 1), Instant::now());
        let cyclone = |entity| {
            let mut bytes = [entity; 16];
            bytes[..2].copy_from_slice(&CYCLONE_VENDOR);
            GUID::from_bytes(bytes)
        };
        reader_matched(&peers, writer, cyclone(4));
        reader_matched(&peers, writer, guid(2, 4));
        reader_matched(&peers, guid(1, 2), cyclone(7));
        assert_eq!(peers.fresh_cyclone_readers(writer, before), [cyclone(4)]);
        assert!(peers.fresh_cyclone_readers(writer, Instant::now() + BELATED).is_empty());
        peers.apply(Event::ReaderLost { guid: cyclone(4), reason: LostReason::Disposed });
        assert!(peers.fresh_cyclone_readers(writer, before).is_empty());
    }

    #[test]
    fn a_reader_learns_which_of_its_writers_leave_for_good() {
        let (peers, local, reason) = (Peers::default(), guid(1, 2), LostReason::Disposed);
        for (participant, entity) in [(2, 3), (2, 5), (3, 3)] {
            let remote_writer = guid(participant, entity);
            peers.apply(Event::RemoteWriterMatched { local_reader: local, remote_writer });
        }
        let writer_lost = Event::WriterLost { guid: guid(2, 3), reason };
        assert_eq!(peers.departing(local, &writer_lost), [guid(2, 3)]);
        assert!(peers.departing(guid(1, 3), &writer_lost).is_empty());
        let participant_lost = |reason| Event::ParticipantLost { id: guid(2, 0).prefix, reason };
        let mut left = peers.departing(local, &participant_lost(LostReason::Disposed));
        left.sort();
        assert_eq!(left, [guid(2, 3), guid(2, 5)]);
        let [lease, elapsed] = [rustdds::Duration::from_secs(50); 2];
        // It may come back, and its samples were taken long ago.
        assert!(peers.departing(local, &participant_lost(LostReason::Timeout { lease, elapsed })).is_empty());
    }

    #[test]
    fn an_endpoint_that_left_before_its_match_was_told_of_is_not_matched() {
        let (peers, old, new, reason) = (Peers::default(), guid(1, 1), guid(1, 2), LostReason::Disposed);
        for writer in [old, new] {
            reader_matched(&peers, writer, guid(2, 4));
        }
        peers.apply(Event::ReaderLost { guid: guid(2, 7), reason: reason.clone() });
        reader_matched(&peers, old, guid(2, 7));
        peers.apply(Event::ParticipantLost { id: guid(3, 0).prefix, reason });
        reader_matched(&peers, old, guid(3, 4));
        assert!(peers.follow(old, new).flatten().is_some(), "nobody reads the old one alone");
        // After a while it is another one of that name.
        let long_ago = Instant::now().checked_sub(BELATED).unwrap();
        peers.lock().left_endpoints.insert(guid(2, 7), long_ago);
        reader_matched(&peers, old, guid(2, 7));
        assert_eq!(peers.follow(old, new), None);
    }

    #[test]
    fn a_participant_that_was_not_heard_for_a_while_may_come_back() {
        let (peers, writer) = (Peers::default(), guid(1, 1));
        let [lease, elapsed] = [rustdds::Duration::from_secs(50); 2];
        let reason = LostReason::Timeout { lease, elapsed };
        peers.apply(Event::ReaderLost { guid: guid(2, 4), reason: reason.clone() });
        peers.apply(Event::ParticipantLost { id: guid(2, 0).prefix, reason });
        reader_matched(&peers, writer, guid(2, 4));
        assert!(peers.lock().has_match(writer, |remote| remote == guid(2, 4)));
    }

    #[test]
    fn endpoints_that_left_are_forgotten() {
        let (peers, writer, reader) = (Peers::default(), guid(1, 1), guid(1, 2));
        reader_matched(&peers, writer, guid(2, 4));
        peers.apply(Event::RemoteWriterMatched { local_reader: reader, remote_writer: guid(2, 3) });
        assert!(peers.lock().has_server(writer, reader));
        let reason = LostReason::Disposed;
        peers.apply(Event::ReaderLost { guid: guid(2, 4), reason });
        assert!(!peers.lock().has_server(writer, reader));
        assert!(!peers.wait_for(Duration::ZERO, |state| state.has_match(writer, |_| true)));
        assert!(peers.wait_for(Duration::ZERO, |state| state.has_match(reader, |_| true)));
    }
}
