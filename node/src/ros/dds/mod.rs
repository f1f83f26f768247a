//! The default transport: ROS 2's wire protocol through `rustdds`, with nothing of ROS 2 installed.

mod announcement;
mod bypass;
mod client;
mod dispatcher;
#[cfg(target_env = "gnu")]
mod epoll_wait;
mod first_heartbeat;
mod first_message;
mod heartbeat;
mod inbox;
mod long_reply;
mod participant;
mod payload;
mod peers;
mod ports;
mod renewal;
mod server;
mod threads;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustdds::dds::result::CreateError;
use rustdds::policy;
use rustdds::{DomainParticipant, GUID, QosPolicies, QosPolicyBuilder, RTPSEntity, TopicKind, WriteOptions};

use self::announcement::Announcement;
use self::client::{Calls, Client, write_error};
use self::dispatcher::Dispatcher;
use self::first_heartbeat::FirstHeartbeats;
use self::first_message::FirstMessages;
use self::inbox::{Cache, Inbox, OnSample, Reader};
use self::long_reply::LongReplies;
use self::participant::Participant;
use self::payload::Payload;
use self::peers::Peers;
use self::renewal::{Blueprint, NEVER, Overlap, RENEW_AFTER, RenewedWriter};
use self::server::Server;
use super::name::{reply_topic, request_topic, topic};
use super::options::{EnvironmentRange, RosOptions};
use super::presence::{self, Guid, ParticipantEntities};
use super::transport::{
    Call, Durability, OnMessage, OnRequest, Publish, Qos, Reliability, Subscription, Transport,
};
use super::{NodeName, RosError, TypeName};

/// How long a write may wait for subscribers that do not acknowledge.
const MAX_BLOCKING: Duration = Duration::from_millis(10);
/// Every participant announces itself with one message; a late one must still find them all.
const PRESENCE_QOS: Qos =
    Qos { reliability: Reliability::Reliable, durability: Durability::TransientLocal, depth: 1 };
/// As reader: one message of each participant, which share one history.
const PRESENCES_QOS: Qos = Qos { depth: 1000, ..PRESENCE_QOS };

/// One node in one domain.
pub struct DdsTransport {
    // Dropped first: it owns the readers and every callback.
    dispatcher: Dispatcher,
    announcement: Arc<Announcement>,
    publisher: rustdds::Publisher,
    subscriber: rustdds::Subscriber,
    participant: Participant,
    peers: Arc<Peers>,
    node: NodeName,
    long_replies: Arc<LongReplies>,
    first_heartbeats: Arc<FirstHeartbeats>,
    /// Samples after which volatile writers are renewed.
    renew_after: i64,
}

impl std::fmt::Debug for DdsTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DdsTransport").field("node", &self.node).finish_non_exhaustive()
    }
}

impl DdsTransport {
    /// Joins the domain; the name is not claimed yet.
    ///
    /// # Errors
    /// [`RosError::Name`], [`RosError::Transport`].
    pub fn join(options: &RosOptions) -> Result<Self, RosError> {
        Self::join_renewing(options, RENEW_AFTER)
    }

    /// As [`Self::join`], with writers that are replaced by fresh ones after `renew_after` samples each, which nobody should
    /// notice: for tests.
    ///
    /// # Errors
    /// As [`Self::join`].
    pub fn join_renewing(options: &RosOptions, renew_after: i64) -> Result<Self, RosError> {
        let node = options.node()?;
        if options.environment_range == EnvironmentRange::Off {
            return Err(RosError::Option {
                name: "ROS_AUTOMATIC_DISCOVERY_RANGE",
                value: "OFF".to_owned(),
                expected: "the built-in DDS cannot switch discovery off; use LOCALHOST or SUBNET",
            });
        }
        let joining = |error| create_error(&format!("joining domain {}", options.domain_id), &error);
        let peers = Arc::new(Peers::default());
        let participant = Participant::join(options, Arc::clone(&peers)).map_err(joining)?;
        let publisher = participant.create_publisher(&policies(Qos::DEFAULT)).map_err(joining)?;
        let subscriber = participant.create_subscriber(&policies(Qos::DEFAULT)).map_err(joining)?;
        let first_messages = FirstMessages::new(&participant, options)?;
        let long_replies = Arc::new(LongReplies::new(participant.domain(), options)?);
        let first_heartbeats =
            Arc::new(FirstHeartbeats::new(participant.domain(), Arc::clone(&peers), options)?);
        let dispatcher = Dispatcher::start(&participant, Arc::clone(&peers), first_messages)?;
        let ty = presence::TYPE.message();
        let presence = blueprint(&participant, &publisher, presence::TOPIC, &ty, PRESENCE_QOS)?
            .build()
            .map_err(|error| writing(presence::TOPIC, &error))?;
        let (presences, _) = create_reader(&participant, &subscriber, presence::TOPIC, &ty, PRESENCES_QOS)?;
        let announced = Arc::new(AtomicBool::new(false));
        let watch = Watch {
            own: participant.guid().to_bytes(),
            node: node.clone(),
            announced: Arc::clone(&announced),
            peers: Arc::clone(&peers),
        };
        let on_presence: OnSample = Box::new(move |sample| watch.note(&sample.message));
        // Whose last words nobody needs.
        dispatcher.listen(Inbox::new(presences, None, on_presence))?;
        let announcement = Arc::new(Announcement {
            presence,
            participant: participant.guid().to_bytes(),
            node: node.clone(),
            gid_len: options.gid_len,
            announced,
            endpoints: Mutex::default(),
        });
        dispatcher.repeat(Arc::clone(&announcement))?;
        Ok(Self {
            dispatcher,
            announcement,
            publisher,
            subscriber,
            participant,
            peers,
            node,
            long_replies,
            first_heartbeats,
            renew_after,
        })
    }

    fn create_writer(
        &self,
        topic: &str,
        ty: &str,
        qos: Qos,
        renew_after: i64,
        overlap: Overlap,
    ) -> Result<Arc<RenewedWriter>, RosError> {
        let blueprint = blueprint(&self.participant, &self.publisher, topic, ty, qos)?;
        let (peers, waker) = (Arc::clone(&self.peers), self.dispatcher.waker());
        let first_heartbeats = Arc::clone(&self.first_heartbeats);
        let writer = RenewedWriter::new(blueprint, renew_after, overlap, peers, waker, first_heartbeats)
            .map_err(|error| writing(topic, &error))?;
        let writer = Arc::new(writer);
        self.announcement.endpoints().writers.push(Arc::clone(&writer));
        Ok(writer)
    }

    fn create_reader(&self, topic: &str, ty: &str, qos: Qos) -> Result<(Reader, Option<Cache>), RosError> {
        let (reader, topic) = create_reader(&self.participant, &self.subscriber, topic, ty, qos)?;
        self.announcement.endpoints().readers.push(reader.guid());
        let cache = (qos.reliability == Reliability::Reliable).then(|| {
            let subscriber = self.subscriber.clone();
            let qos = policies(Qos { reliability: Reliability::BestEffort, ..Qos::DEFAULT });
            Cache { subscriber, topic, qos }
        });
        Ok((reader, cache))
    }
}

impl Transport for DdsTransport {
    fn node(&self) -> &NodeName {
        &self.node
    }

    /// Of two that claim a name at once, the one with the smaller identity keeps it.
    fn claim_name(&self, window: Duration) -> Result<(), RosError> {
        self.announcement.claim()?;
        let own = self.participant.guid().to_bytes();
        let taken = self.peers.wait_for(window, |state| {
            state.namesakes(&self.node).any(|(other, node)| !node.is_claim() || other < own)
        });
        if taken {
            return Err(RosError::NameTaken {
                node: self.node.to_string(),
                domain_id: self.participant.domain_id(),
            });
        }
        Ok(())
    }

    fn publisher(&self, name: &str, message: TypeName, qos: Qos) -> Result<Box<dyn Publish>, RosError> {
        let is_volatile = qos.durability == Durability::Volatile;
        let renew_after = if is_volatile { self.renew_after } else { NEVER };
        let writer =
            self.create_writer(&topic(name), &message.message(), qos, renew_after, Overlap::TOPIC)?;
        self.dispatcher.renew(Arc::clone(&writer))?;
        Ok(Box::new(Topic { name: name.to_owned(), endpoint: writer, peers: Arc::clone(&self.peers) }))
    }

    fn subscribe(
        &self,
        name: &str,
        message: TypeName,
        qos: Qos,
        mut on_message: OnMessage,
    ) -> Result<Box<dyn Subscription>, RosError> {
        let (reader, cache) = self.create_reader(&topic(name), &message.message(), qos)?;
        let endpoint = reader.guid();
        let on_sample: OnSample = Box::new(move |sample| on_message(&sample.message));
        self.dispatcher.listen(Inbox::new(reader, cache, on_sample))?;
        Ok(Box::new(Topic { name: name.to_owned(), endpoint, peers: Arc::clone(&self.peers) }))
    }

    fn serve(
        &self,
        service: &str,
        ty: TypeName,
        blank: &[u8],
        mut on_request: OnRequest,
    ) -> Result<(), RosError> {
        let (topic, overlap) = (reply_topic(service), server::OVERLAP);
        // A thousand refusals take milliseconds, and a client may be slower than that.
        let writer = self.create_writer(&topic, &ty.response(), Qos::BURST, self.renew_after, overlap)?;
        let (reader, cache) = self.create_reader(&request_topic(service), &ty.request(), Qos::BURST)?;
        let (peers, waker) = (Arc::clone(&self.peers), self.dispatcher.waker());
        let server =
            Arc::new(Server::new(service, blank, writer, peers, waker, Arc::clone(&self.long_replies)));
        server.send_to_nobody();
        self.dispatcher.serve(Arc::clone(&server))?;
        self.announcement.endpoints().servers.push(Arc::clone(&server));
        let on_sample: OnSample = Box::new(move |sample| server.receive(sample, &mut on_request));
        self.dispatcher.listen(Inbox::new(reader, cache, on_sample))
    }

    fn client(&self, service: &str, ty: TypeName) -> Result<Box<dyn Call>, RosError> {
        let (reader, cache) = self.create_reader(&reply_topic(service), &ty.response(), Qos::DEFAULT)?;
        let (topic, overlap) = (request_topic(service), Overlap::TOPIC);
        let writer = self.create_writer(&topic, &ty.request(), Qos::DEFAULT, NEVER, overlap)?;
        let calls = Arc::new(Calls::new(self.participant.guid()));
        let waiting = Arc::clone(&calls);
        let (service, peers, reader_guid) = (service.to_owned(), Arc::clone(&self.peers), reader.guid());
        let on_sample: OnSample = Box::new(move |sample| waiting.receive(&sample.message));
        self.dispatcher.listen(Inbox::new(reader, cache, on_sample))?;
        Ok(Box::new(Client { service, writer, reader: reader_guid, calls, peers }))
    }

    fn announce(&self) -> Result<(), RosError> {
        self.announcement.tell()
    }

    fn wait_delivered(&self, timeout: Duration) -> bool {
        let end = Instant::now() + timeout;
        let (servers, writers) = {
            let endpoints = self.announcement.endpoints();
            (endpoints.servers.clone(), endpoints.writers.clone())
        };
        let flushed =
            servers.iter().all(|server| server.wait_flushed(end.saturating_duration_since(Instant::now())));
        let acknowledged = writers.iter().all(|writer| {
            let left = end.saturating_duration_since(Instant::now());
            writer.wait_acknowledged(left)
        });
        flushed && acknowledged
    }

    fn is_listening(&self) -> bool {
        self.participant.is_served() && self.dispatcher.is_running()
    }
}

/// One end of a topic: a writer, or the identity of a reader that the dispatcher owns.
struct Topic<E> {
    name: String,
    endpoint: E,
    peers: Arc<Peers>,
}

impl<E> std::fmt::Debug for Topic<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Topic").field(&self.name).finish()
    }
}

impl Publish for Topic<Arc<RenewedWriter>> {
    fn publish(&self, message: &[u8]) -> Result<(), RosError> {
        let sent = self.endpoint.write(Payload(message.to_vec()), WriteOptions::default());
        sent.map_err(|error| write_error(&self.name, &error))?;
        Ok(())
    }

    fn wait_for_subscriber(&self, timeout: Duration) -> bool {
        self.peers.wait_for(timeout, |state| state.has_match(self.endpoint.guid(), |_| true))
    }
}

impl Subscription for Topic<GUID> {
    fn wait_for_publisher(&self, timeout: Duration) -> bool {
        self.peers.wait_for(timeout, |state| state.has_match(self.endpoint, |_| true))
    }
}

/// Follows what other participants say of their nodes.
struct Watch {
    own: Guid,
    node: NodeName,
    announced: Arc<AtomicBool>,
    peers: Arc<Peers>,
}

impl Watch {
    fn note(&self, message: &[u8]) {
        let entities = match ParticipantEntities::decode(message) {
            Ok(entities) if entities.participant == self.own => return,
            Ok(entities) => entities,
            Err(error) => {
                tracing::debug!("{} of an unknown form: {error}", presence::TOPIC);
                return;
            }
        };
        // Found by the claim if they start within its window; on networks slower than that, this is all that tells.
        let namesake = entities.nodes.iter().any(|other| other.is_named(&self.node) && !other.is_claim());
        if namesake && self.announced.load(Ordering::Acquire) {
            tracing::error!(
                "a second node named {} is up: every question is answered twice; stop one or rename it",
                self.node
            );
        }
        self.peers.note_nodes(entities);
    }
}

/// Every policy that takes part in matching, explicitly, as rmw offers and requests them.
fn policies(qos: Qos) -> QosPolicies {
    let reliability = match qos.reliability {
        Reliability::Reliable => {
            policy::Reliability::Reliable { max_blocking_time: rustdds::Duration::from_std(MAX_BLOCKING) }
        }
        Reliability::BestEffort => policy::Reliability::BestEffort,
    };
    let durability = match qos.durability {
        Durability::Volatile => policy::Durability::Volatile,
        Durability::TransientLocal => policy::Durability::TransientLocal,
    };
    QosPolicyBuilder::new()
        .reliability(reliability)
        .durability(durability)
        .history(policy::History::KeepLast { depth: i32::from(qos.depth) })
        .deadline(policy::Deadline(rustdds::Duration::INFINITE))
        .lifespan(policy::Lifespan { duration: rustdds::Duration::INFINITE })
        .liveliness(policy::Liveliness::Automatic { lease_duration: rustdds::Duration::INFINITE })
        .ownership(policy::Ownership::Shared)
        .destination_order(policy::DestinationOrder::ByReceptionTimestamp)
        .build()
}

fn blueprint(
    participant: &DomainParticipant,
    publisher: &rustdds::Publisher,
    name: &str,
    ty: &str,
    qos: Qos,
) -> Result<Blueprint, RosError> {
    let qos = policies(qos);
    let topic = participant
        .create_topic(name.to_owned(), ty.to_owned(), &qos, TopicKind::NoKey)
        .map_err(|error| writing(name, &error))?;
    Ok(Blueprint { publisher: publisher.clone(), topic, qos })
}

fn writing(topic: &str, error: &CreateError) -> RosError {
    create_error(&format!("writing {topic}"), error)
}

fn create_reader(
    participant: &DomainParticipant,
    subscriber: &rustdds::Subscriber,
    name: &str,
    ty: &str,
    qos: Qos,
) -> Result<(Reader, rustdds::Topic), RosError> {
    let create = || {
        let topic =
            participant.create_topic(name.to_owned(), ty.to_owned(), &policies(qos), TopicKind::NoKey)?;
        let reader = subscriber.create_simple_datareader_no_key(&topic, Some(policies(qos)))?;
        Ok((reader, topic))
    };
    create().map_err(|error| create_error(&format!("reading {name}"), &error))
}

fn create_error(what: &str, error: &CreateError) -> RosError {
    RosError::Transport { what: what.to_owned(), reason: error.to_string() }
}
