//! The transport's one thread: waits for samples, for news of other participants and for replies that become due.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use rustdds::mio1::{Events, Interest, Poll, Token, Waker};
use rustdds::{
    DomainParticipant, DomainParticipantStatusEvent, DomainParticipantStatusListener, StatusEvented,
};

use super::announcement::Announcement;
use super::first_message::FirstMessages;
use super::inbox::Inbox;
use super::peers::Peers;
use super::renewal::{Look, RenewedWriter};
use super::server::Server;
use crate::ros::RosError;

/// What other threads ask of the dispatcher.
enum Command {
    Listen(Box<Inbox>),
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
            let (inboxes, servers, writers) = (Vec::new(), Vec::new(), Vec::new());
            let announcement = None;
            let event_loop = EventLoop {
                poll,
                status,
                peers,
                first_messages,
                inbox,
                inboxes,
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

    /// Calls the callback of `inbox` for every sample from now on.
    pub fn listen(&self, inbox: Inbox) -> Result<(), RosError> {
        self.send(Command::Listen(Box::new(inbox)))
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

    /// Whether the thread has not ended by itself.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
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
    inboxes: Vec<Inbox>,
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
                self.note(event, Instant::now());
            }
            if !self.obey() {
                return;
            }
            for token in events.iter().map(|event| event.token().0) {
                if let Some(inbox) = token.checked_sub(FIRST_READER).and_then(|i| self.inboxes.get_mut(i)) {
                    inbox.take_all(Instant::now());
                }
            }
            timeout = self.flush();
        }
    }

    /// Takes over what happened to other participants.
    fn note(&mut self, event: DomainParticipantStatusEvent, now: Instant) {
        self.first_messages.note(&event, now);
        for inbox in &mut self.inboxes {
            for writer in self.peers.departing(inbox.guid(), &event) {
                inbox.note_departure(writer, now);
            }
        }
        self.peers.apply(event);
    }

    /// Carries out what other threads asked; `false` to stop.
    fn obey(&mut self) -> bool {
        while let Ok(command) = self.inbox.try_recv() {
            match command {
                Command::Listen(mut inbox) => {
                    self.first_messages.note_reader(inbox.guid(), Instant::now());
                    let token = Token(FIRST_READER + self.inboxes.len());
                    if let Err(error) = inbox.register(self.poll.registry(), token) {
                        tracing::error!(%error, "cannot wait for a ROS 2 topic");
                    }
                    // What came before the registration raised no event here.
                    inbox.take_all(Instant::now());
                    self.inboxes.push(*inbox);
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
        // Before the replies: what they find may be answered at once.
        let departed = self.inboxes.iter_mut().filter_map(|inbox| inbox.flush(now)).min();
        let replies = self.servers.iter().filter_map(|server| server.flush(now));
        let others = self.first_messages.flush(now).into_iter().chain(self.renew(now)).chain(departed);
        let next_due = replies.chain(others).min()?;
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
