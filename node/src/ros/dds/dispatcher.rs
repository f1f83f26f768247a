//! The transport's one thread: waits for samples, for news of other participants and for replies that become due.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use rustdds::dds::result::ReadError;
use rustdds::mio1::{Events, Interest, Poll, Token, Waker, event::Source};
use rustdds::no_key::SimpleDataReader;
use rustdds::rpc::SampleIdentity;
use rustdds::{DomainParticipant, DomainParticipantStatusListener, GUID, SequenceNumber, StatusEvented};

use super::announcement::Announcement;
use super::first_message::FirstMessages;
use super::payload::{AsIs, Payload};
use super::peers::Peers;
use super::renewal::{Look, RenewedWriter};
use super::server::Server;
use crate::ros::RosError;

pub(super) type Reader = SimpleDataReader<Payload, AsIs>;

/// A message as it came, with where it came from.
#[derive(Debug)]
pub(super) struct Sample {
    pub message: Vec<u8>,
    pub writer: GUID,
    pub sequence_number: SequenceNumber,
    pub related: Option<SampleIdentity>,
}

pub(super) type OnSample = Box<dyn FnMut(Sample) + Send>;

/// What other threads ask of the dispatcher.
enum Command {
    Listen(Box<Reader>, OnSample),
    Serve(Arc<Server>),
    Renew(Arc<RenewedWriter>),
    Repeat(Arc<Announcement>),
    Stop,
}

/// Handle to the thread; stops and joins it when dropped.
#[derive(Debug)]
pub(super) struct Dispatcher {
    commands: Sender<Command>,
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
}

const STATUS: Token = Token(0);
const WAKE: Token = Token(1);
/// Readers have the tokens from here on, in the order they came.
const FIRST_READER: usize = 2;

impl Dispatcher {
    /// Starts the thread on `participant`'s events.
    pub fn start(
        participant: &DomainParticipant,
        peers: Arc<Peers>,
        first_messages: FirstMessages,
    ) -> Result<Self, RosError> {
        let create = || -> io::Result<Self> {
            let poll = Poll::new()?;
            let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
            let mut status = participant.status_listener();
            status.as_status_source_mio1().register(poll.registry(), STATUS, Interest::READABLE)?;
            // A handful of endpoints are made at start; nobody waits on this channel for long.
            let (commands, inbox) = crossbeam_channel::bounded(64);
            let (readers, servers, writers) = (Vec::new(), Vec::new(), Vec::new());
            let announcement = None;
            let event_loop = EventLoop {
                poll,
                status,
                peers,
                first_messages,
                inbox,
                readers,
                servers,
                writers,
                announcement,
            };
            let thread =
                std::thread::Builder::new().name("takt-ros".to_owned()).spawn(|| event_loop.run())?;
            Ok(Self { commands, waker, thread: Some(thread) })
        };
        create().map_err(|error| RosError::Transport {
            what: "starting the dispatcher".to_owned(),
            reason: error.to_string(),
        })
    }

    /// Calls `on_sample` for every sample of `reader` from now on.
    pub fn listen(&self, reader: Reader, on_sample: OnSample) -> Result<(), RosError> {
        self.send(Command::Listen(Box::new(reader), on_sample))
    }

    /// Sends `server`'s waiting replies when they become due.
    pub fn serve(&self, server: Arc<Server>) -> Result<(), RosError> {
        self.send(Command::Serve(server))
    }

    /// Renews `writer` when it is time.
    pub fn renew(&self, writer: Arc<RenewedWriter>) -> Result<(), RosError> {
        self.send(Command::Renew(writer))
    }

    /// Repeats `announcement` whenever a writer is renewed.
    pub fn repeat(&self, announcement: Arc<Announcement>) -> Result<(), RosError> {
        self.send(Command::Repeat(announcement))
    }

    /// Wakes the thread up from elsewhere.
    pub fn waker(&self) -> Arc<Waker> {
        Arc::clone(&self.waker)
    }

    fn send(&self, command: Command) -> Result<(), RosError> {
        let stopped = || RosError::Transport {
            what: "the dispatcher".to_owned(),
            reason: "its thread has ended".to_owned(),
        };
        self.commands.send(command).map_err(|_| stopped())?;
        self.waker.wake().map_err(|_| stopped())
    }
}

impl Drop for Dispatcher {
    fn drop(&mut self) {
        // A thread that is gone already cannot be told; joining it below is all that is left.
        let _ = self.send(Command::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the ROS 2 dispatcher thread panicked");
        }
    }
}

struct EventLoop {
    poll: Poll,
    status: DomainParticipantStatusListener,
    peers: Arc<Peers>,
    first_messages: FirstMessages,
    inbox: Receiver<Command>,
    readers: Vec<(Box<Reader>, OnSample)>,
    servers: Vec<Arc<Server>>,
    writers: Vec<Arc<RenewedWriter>>,
    announcement: Option<Arc<Announcement>>,
}

impl EventLoop {
    fn run(mut self) {
        let mut events = Events::with_capacity(64);
        let mut timeout = None;
        loop {
            if let Err(error) = self.poll.poll(&mut events, timeout)
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!(%error, "waiting for ROS 2 events failed; the node no longer hears anything");
                return;
            }
            // Before the samples: a request's client must be known when the request is looked at.
            while let Some(event) = self.status.try_recv_status() {
                self.first_messages.note(&event, Instant::now());
                self.peers.apply(event);
            }
            if !self.obey() {
                return;
            }
            for token in events.iter().map(|event| event.token().0) {
                if let Some((reader, on_sample)) =
                    token.checked_sub(FIRST_READER).and_then(|i| self.readers.get_mut(i))
                {
                    take_all(reader, on_sample);
                }
            }
            timeout = self.flush();
        }
    }

    /// Carries out what other threads asked; `false` to stop.
    fn obey(&mut self) -> bool {
        while let Ok(command) = self.inbox.try_recv() {
            match command {
                Command::Listen(mut reader, mut on_sample) => {
                    self.first_messages.note_reader(reader.guid(), Instant::now());
                    let token = Token(FIRST_READER + self.readers.len());
                    if let Err(error) = reader.register(self.poll.registry(), token, Interest::READABLE) {
                        tracing::error!(%error, "cannot wait for a ROS 2 topic");
                    }
                    // What came before the registration raised no event here.
                    take_all(&reader, &mut on_sample);
                    self.readers.push((reader, on_sample));
                }
                Command::Serve(server) => self.servers.push(server),
                Command::Renew(writer) => self.writers.push(writer),
                Command::Repeat(announcement) => self.announcement = Some(announcement),
                Command::Stop => return false,
            }
        }
        true
    }

    /// Sends what is due; how long until the next is.
    fn flush(&mut self) -> Option<Duration> {
        let now = Instant::now();
        let replies = self.servers.iter().filter_map(|server| server.flush(now));
        let next_due = replies.chain(self.first_messages.flush(now)).chain(self.renew(now)).min()?;
        Some(next_due.saturating_duration_since(now).max(Duration::from_millis(1)))
    }

    /// Renews the writers that are due; when the next is to be looked at.
    fn renew(&self, now: Instant) -> Option<Instant> {
        let of_servers = self.servers.iter().map(|server| server.renew(now));
        let looks: Vec<Look> =
            of_servers.chain(self.writers.iter().map(|writer| writer.renew(now))).collect();
        if let Some(announcement) = &self.announcement
            && looks.contains(&Look::Renewed)
        {
            announcement.repeat();
        }
        looks.iter().filter_map(Look::again_at).min()
    }
}

/// Hands every sample that is there to `on_sample`.
fn take_all(reader: &Reader, on_sample: &mut OnSample) {
    reader.drain_read_notifications();
    loop {
        match reader.try_take_one() {
            Ok(Some(change)) => on_sample(Sample {
                related: change.related_sample_identity(),
                writer: change.writer_guid,
                sequence_number: change.sequence_number,
                message: change.into_value().0,
            }),
            Ok(None) => return,
            // RustDDS has stepped past the sample: the next one may be good.
            Err(ReadError::Deserialization { reason }) => {
                tracing::warn!("a ROS 2 message was dropped: {reason}")
            }
            Err(error) => {
                tracing::warn!("reading a ROS 2 topic: {error}");
                return;
            }
        }
    }
}
