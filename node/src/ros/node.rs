//! The node as robots see it: `~/ask` (topic and service) in, `~/answer`, `~/tokens`, `~/status` and replies out.
//!
//! | name | type | what |
//! |---|---|---|
//! | `~/ask` | `std_msgs/String` | a sentence to answer, with the node's default system prompt and deadline |
//! | `~/tokens` | `std_msgs/String` | the answer as it grows, one message a scheduler section; together they are the answer |
//! | `~/answer` | `std_msgs/String` | the answer: once for every sentence that got one, whole or cut at its deadline |
//! | `~/status` | `std_msgs/String` | JSON, once for every sentence, answered or refused: status, reason, timings |
//! | `~/ask` (service) | `takt_msgs/srv/Ask` | one question with its own deadline; the reply carries status and timings |
//!
//! A refused sentence gets nothing on `~/answer`: whatever comes there was said by the model.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::ask::{Ask, AskDefaults, refusal};
use super::dds::DdsTransport;
use super::message::{ASK, AskReply, AskRequest, STRING, decode_string};
use super::outlet::{Asker, Open, Outlet, Topics};
use super::transport::{Qos, Transport};
use super::{RosError, RosOptions};
use crate::request::{Reply, RequestSender, Status, SubmitError};

/// How long a node listens for a namesake before it is up; 20 of 20 second nodes noticed the first within 310 ms of their
/// process's start, on a busy machine of two cores.
const CLAIM_WINDOW: Duration = Duration::from_millis(600);
/// Events of one request on their way: sections come far slower than they are published.
const EVENT_ROOM: usize = 256;

/// The running node; closes when dropped.
#[derive(Debug)]
pub struct RosNode {
    intake: Arc<Intake>,
    outlet: Option<JoinHandle<()>>,
    /// Tells the outlet to refuse what is still open.
    stop: Option<Sender<()>>,
    transport: Option<Box<dyn Transport>>,
}

/// Joins the domain of `options`, claims the node's name, and answers through `requests` from then on.
///
/// # Errors
/// [`RosError::NameTaken`] if another node has the name, [`RosError::Name`], [`RosError::Transport`].
pub fn serve(
    options: &RosOptions,
    requests: RequestSender,
    defaults: AskDefaults,
) -> Result<RosNode, RosError> {
    let transport = DdsTransport::join(options)?;
    transport.claim_name(CLAIM_WINDOW)?;
    RosNode::start(Box::new(transport), requests, defaults)
}

impl RosNode {
    /// Offers the node's topics and service on `transport`.
    ///
    /// # Errors
    /// [`RosError::Transport`].
    pub fn start(
        transport: Box<dyn Transport>,
        requests: RequestSender,
        defaults: AskDefaults,
    ) -> Result<Self, RosError> {
        let node = transport.node().clone();
        let topics = Arc::new(Topics {
            tokens: transport.publisher(&node.private("tokens"), STRING, Qos::STREAM)?,
            answer: transport.publisher(&node.private("answer"), STRING, Qos::DEFAULT)?,
            status: transport.publisher(&node.private("status"), STRING, Qos::DEFAULT)?,
        });
        let num_open = Arc::new(AtomicUsize::new(0));
        let (opened, newly_open) = crossbeam_channel::bounded(defaults.max_in_flight.max(1));
        let (stop, stopped) = crossbeam_channel::bounded(1);
        let outlet = Outlet::new(Arc::clone(&topics), Arc::clone(&num_open), newly_open, stopped);
        let outlet = std::thread::Builder::new()
            .name("takt-ros-out".to_owned())
            .spawn(|| outlet.run())
            .map_err(|error| RosError::Transport {
                what: "starting a thread".to_owned(),
                reason: error.to_string(),
            })?;
        let closing = AtomicBool::new(false);
        let intake = Arc::new(Intake { requests, defaults, topics, num_open, opened, closing });
        let (by_topic, by_service) = (Arc::clone(&intake), Arc::clone(&intake));
        // Made first, so that an error below stops the thread again.
        let running = Self { intake, outlet: Some(outlet), stop: Some(stop), transport: Some(transport) };
        let transport = running.transport.as_ref();
        let Some(transport) = transport else { return Ok(running) };
        transport.subscribe(
            &node.private("ask"),
            STRING,
            Qos::DEFAULT,
            Box::new(move |message| by_topic.hear(message)),
        )?;
        let on_request = Box::new(move |message: &[u8], respond| by_service.take(message, respond));
        let blank = AskReply::default()
            .encode()
            .map_err(|error| RosError::Message { what: "takt_msgs/srv/Ask reply", error })?;
        transport.serve(&node.private("ask"), ASK, &blank, on_request)?;
        transport.announce()?;
        Ok(running)
    }

    /// Requests being answered.
    #[must_use]
    pub fn num_open(&self) -> usize {
        self.intake.num_open.load(Ordering::Acquire)
    }

    /// Refuses new requests from now on; open ones go on.
    pub fn stop_accepting(&self) {
        self.intake.closing.store(true, Ordering::Release);
    }

    /// Ends the node: what is still open is answered `cancelled`, replies are delivered, threads are joined.
    pub fn close(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop_accepting();
        drop(self.stop.take());
        if let Some(outlet) = self.outlet.take()
            && outlet.join().is_err()
        {
            tracing::error!("the thread that sends ROS 2 answers panicked");
        }
        if let Some(transport) = self.transport.take() {
            transport.wait_delivered(DELIVERY_WAIT);
        }
    }
}

/// How long the last replies may take to be acknowledged when the node ends.
const DELIVERY_WAIT: Duration = Duration::from_millis(500);

impl Drop for RosNode {
    fn drop(&mut self) {
        self.end();
    }
}

/// Checks what comes in and hands it to the worker; runs on the transport's thread and never blocks.
#[derive(Debug)]
struct Intake {
    requests: RequestSender,
    defaults: AskDefaults,
    topics: Arc<Topics>,
    num_open: Arc<AtomicUsize>,
    opened: Sender<Open>,
    closing: AtomicBool,
}

impl Intake {
    /// A sentence on `~/ask`.
    fn hear(&self, message: &[u8]) {
        let request = decode_string(message)
            .map(|prompt| AskRequest { prompt: prompt.to_owned(), ..AskRequest::default() })
            .map_err(|error| format!("not a std_msgs/String: {error}"));
        let prompt = request.as_ref().map(|request| request.prompt.clone()).unwrap_or_default();
        self.admit(request, Asker::Topic { prompt });
    }

    /// A request to the service.
    fn take(&self, message: &[u8], respond: Box<dyn super::transport::Respond>) {
        let request =
            AskRequest::decode(message).map_err(|error| format!("not a takt_msgs/srv/Ask request: {error}"));
        self.admit(request, Asker::Service(respond));
    }

    fn admit(&self, request: Result<AskRequest, String>, asker: Asker) {
        let arrived = Instant::now();
        match request.and_then(|request| self.defaults.complete(request)) {
            Ok(ask) => self.submit(ask, asker, arrived),
            Err(reason) => self.refuse(asker, &refusal(Status::Rejected, reason, arrived, None)),
        }
    }

    fn submit(&self, ask: Ask, asker: Asker, arrived: Instant) {
        let deadline = ask.deadline;
        let refuse = |asker, status, reason: String| {
            self.refuse(asker, &refusal(status, reason, arrived, deadline));
        };
        if self.closing.load(Ordering::Acquire) {
            return refuse(asker, Status::Rejected, "the node is shutting down".to_owned());
        }
        let max = self.defaults.max_in_flight;
        if self.num_open.load(Ordering::Acquire) >= max {
            let reason = format!("{max} requests are being answered, the limit: ask again later");
            return refuse(asker, Status::Rejected, reason);
        }
        let (sender, events) = crossbeam_channel::bounded(EVENT_ROOM);
        match self.requests.submit(ask.into_request(arrived, sender)) {
            Ok(()) => self.open(Open::new(asker, events, arrived, deadline)),
            Err(SubmitError::Full(_)) => {
                refuse(asker, Status::Rejected, "the worker's queue is full: ask again later".to_owned());
            }
            Err(SubmitError::Stopped(_)) => {
                refuse(asker, Status::Failed, "the worker has stopped: see the node's log".to_owned());
            }
        }
    }

    fn open(&self, open: Open) {
        self.num_open.fetch_add(1, Ordering::AcqRel);
        // Room for every request the count admits, so this fails only when the outlet is gone.
        if let Err(error) = self.opened.try_send(open) {
            self.num_open.fetch_sub(1, Ordering::AcqRel);
            let open = error.into_inner();
            let reply =
                refusal(Status::Failed, "the node is shutting down".to_owned(), open.arrived, open.deadline);
            self.refuse(open.asker, &reply);
        }
    }

    fn refuse(&self, asker: Asker, reply: &Reply) {
        tracing::debug!(status = reply.status.name(), reason = reply.reason, "a request is refused");
        self.topics.finish(asker, reply);
    }
}
