//! `/rosout`: what the node logs, for `rqt_console` and recordings.
//!
//! [`RosoutLayer`] belongs to the process's log from its start; records go nowhere until a node publishes them.

use std::fmt::Write as _;
use std::sync::{PoisonError, RwLock};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::RosError;
use super::clock::RosClock;
use super::message::{Log, Message as _, Time};
use super::names::Names;
use super::node::start_thread;
use super::transport::{Durability, Publish, Qos, Transport};

/// As rcl publishes its log.
const QOS: Qos = Qos { durability: Durability::TransientLocal, depth: 1000, ..Qos::DEFAULT };
/// Records on their way; a burst beyond it is dropped rather than waited for.
const ROOM: usize = 256;

/// Where records go, while a node publishes them.
static SINK: RwLock<Option<Sender<Log>>> = RwLock::new(None);

/// Hands the process's log to the node.
#[derive(Debug, Clone, Copy)]
pub struct RosoutLayer;

impl<S: Subscriber> Layer<S> for RosoutLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let sink = SINK.read().unwrap_or_else(PoisonError::into_inner);
        let Some(sink) = &*sink else { return };
        let metadata = event.metadata();
        let mut text = Text::default();
        event.record(&mut text);
        let level = match *metadata.level() {
            Level::TRACE | Level::DEBUG => 10,
            Level::INFO => 20,
            Level::WARN => 30,
            Level::ERROR => 40,
        };
        let record = Log {
            stamp: Time::ZERO, // the publishing thread knows the time
            level,
            name: String::new(),
            msg: text.0,
            file: metadata.file().unwrap_or_default().to_owned(),
            function: metadata.target().to_owned(),
            line: metadata.line().unwrap_or(0),
        };
        // Full: the log on standard error has it.
        let _ = sink.try_send(record);
    }
}

/// The message, then the other fields as `name=value`.
#[derive(Default)]
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = if field.name() == "message" {
            let rest = std::mem::take(&mut self.0);
            write!(self.0, "{value:?}{rest}")
        } else {
            write!(self.0, " {}={value:?}", field.name())
        };
    }
}

/// The publishing thread; one a process.
#[derive(Debug)]
pub(super) struct Rosout {
    thread: JoinHandle<()>,
}

impl Rosout {
    pub fn start(transport: &dyn Transport, names: &Names, clock: &RosClock) -> Result<Self, RosError> {
        let publisher = transport.publisher(&names.resolve_topic("/rosout")?, Log::TYPE, QOS)?;
        // As rcl names a node's logger.
        let name = transport.node().to_string().trim_start_matches('/').replace('/', ".");
        let (sink, records) = bounded(ROOM);
        let clock = clock.clone();
        let thread = start_thread("takt-ros-log", move || run(&*publisher, &name, &clock, &records))?;
        *SINK.write().unwrap_or_else(PoisonError::into_inner) = Some(sink);
        Ok(Self { thread })
    }

    /// Publishes what is left, and ends.
    pub fn close(self) {
        *SINK.write().unwrap_or_else(PoisonError::into_inner) = None;
        if self.thread.join().is_err() {
            eprintln!("the thread that publishes the log panicked");
        }
    }
}

fn run(publisher: &dyn Publish, name: &str, clock: &RosClock, records: &Receiver<Log>) {
    for record in records {
        let record = Log { stamp: clock.now(), name: name.to_owned(), ..record };
        // Nothing is logged here: it would come back.
        if let Ok(message) = record.encode() {
            let _ = publisher.publish(&message);
        }
    }
}
