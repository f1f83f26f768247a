//! The node as robots see it: `~/ask` (topic and service) in, `~/answer`, `~/tokens`, `~/status` and replies out.
//!
//! | name | type | what |
//! |---|---|---|
//! | `~/ask` | `std_msgs/String` | a sentence to answer, with the node's default system prompt and deadline |
//! | `~/tokens` | `std_msgs/String` | the answer as it grows, one message a scheduler section; together they are the answer |
//! | `~/answer` | `std_msgs/String` | the answer: once for every sentence that got one, whole or cut at its deadline |
//! | `~/status` | `std_msgs/String` | JSON, once for every sentence, answered or refused: status, reason, timings |
//! | `/diagnostics` | `diagnostic_msgs/DiagnosticArray` | once a second: whether deadlines are promised, or why not |
//! | `~/ask` (service) | `takt_msgs/srv/Ask` | one question with its own deadline; the reply carries status and timings |
//!
//! A refused sentence gets nothing on `~/answer`. What comes there was said by the model, and where the node has a `schema`, completed by
//! its defaults: `~/status` lists them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::Sender;

use super::ask::AskDefaults;
use super::dds::DdsTransport;
use super::diagnostics::Diagnostics;
use super::intake::Intake;
use super::message::{ASK, AskReply, STRING};
use super::outlet::{Outlet, Topics};
use super::transport::{Qos, Transport};
use super::{RosError, RosOptions};
use crate::request::RequestSender;

/// How long a node listens for a namesake before it is up; 20 of 20 second nodes noticed the first within 310 ms of their
/// process's start, on a busy machine of two cores.
const CLAIM_WINDOW: Duration = Duration::from_millis(600);

/// The running node; closes when dropped.
#[derive(Debug)]
pub struct RosNode {
    intake: Arc<Intake>,
    num_open: Arc<AtomicUsize>,
    outlet: Option<JoinHandle<()>>,
    diagnostics: Option<Diagnostics>,
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
        let outlet = start_thread("takt-ros-out", || outlet.run())?;
        let diagnostics = Diagnostics::start(transport.as_ref(), requests.clone(), Arc::clone(&num_open))?;
        let intake = Arc::new(Intake::start(requests, defaults, topics, Arc::clone(&num_open), opened)?);
        let (by_topic, by_service) = (Arc::clone(&intake), Arc::clone(&intake));
        // Made first, so that an error below stops the thread again.
        let running = Self {
            intake,
            num_open,
            outlet: Some(outlet),
            diagnostics: Some(diagnostics),
            stop: Some(stop),
            transport: Some(transport),
        };
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
        self.num_open.load(Ordering::Acquire)
    }

    /// Refuses new requests from now on; open ones go on.
    pub fn stop_accepting(&self) {
        self.intake.stop_accepting();
    }

    /// Ends the node: what is still open is answered `cancelled`, replies are delivered, threads are joined.
    pub fn close(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.intake.close();
        drop(self.stop.take());
        if let Some(diagnostics) = self.diagnostics.take() {
            diagnostics.close();
        }
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

/// A thread of the node, by a name of at most 15 bytes.
pub(super) fn start_thread(
    name: &str,
    work: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, RosError> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work).map_err(|error| RosError::Transport {
        what: "starting a thread".to_owned(),
        reason: error.to_string(),
    })
}

/// How long the last replies may take to be acknowledged when the node ends.
const DELIVERY_WAIT: Duration = Duration::from_millis(500);

impl Drop for RosNode {
    fn drop(&mut self) {
        self.end();
    }
}
