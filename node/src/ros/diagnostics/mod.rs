//! `/diagnostics`: once a second, and when the node has come to another state, how well each part is.
//!
//! Names are `NODE: PART`, so that `diagnostic_aggregator` groups them under the node: `lifecycle`, `deadlines`, `queue`, `costs`, `engine`,
//! `speculation`, `hardware`.

mod hardware;
mod report;
mod tally;

use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::RosError;
use super::message::{DiagnosticArray, Header, Message as _};
use super::names::Names;
use super::node::start_thread;
use super::transport::{Publish, Qos, Transport};

pub(super) use report::Source;
pub(super) use tally::Tally;

/// As `diagnostic_updater` does it.
const PERIOD: Duration = Duration::from_secs(1);
/// Topic that diagnostic aggregators listen to.
const TOPIC: &str = "/diagnostics";

/// The publishing thread.
#[derive(Debug)]
pub(super) struct Diagnostics {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Diagnostics {
    /// Publishes what `source` says until it is closed.
    pub fn start(transport: &dyn Transport, names: &Names, source: Source) -> Result<Self, RosError> {
        let publisher =
            transport.publisher(&names.resolve_topic(TOPIC)?, DiagnosticArray::TYPE, Qos::DEFAULT)?;
        let (stop, stopped) = bounded(0);
        let thread = start_thread("takt-ros-diag", move || run(&*publisher, source, &stopped))?;
        Ok(Self { stop, thread })
    }

    pub fn close(self) {
        drop(self.stop);
        if self.thread.join().is_err() {
            tracing::error!("the thread that publishes diagnostics panicked");
        }
    }
}

fn run(publisher: &dyn Publish, mut source: Source, stopped: &Receiver<()>) {
    /// How often the state is looked at between two reports.
    const WATCH: Duration = Duration::from_millis(100);
    loop {
        let state = source.state();
        let array = DiagnosticArray {
            header: Header { stamp: source.now(), frame_id: String::new() },
            status: source.report(),
        };
        let sent = array
            .encode()
            .map_err(|error| RosError::Message { what: "diagnostic_msgs/DiagnosticArray", error })
            .and_then(|message| publisher.publish(&message));
        if let Err(error) = sent {
            tracing::debug!("{error}"); // nobody keeps up with one message a second: not worth a warning
        }
        let mut left = PERIOD;
        while !left.is_zero() && source.state() == state {
            if !matches!(stopped.recv_timeout(WATCH), Err(RecvTimeoutError::Timeout)) {
                return;
            }
            left = left.saturating_sub(WATCH);
        }
    }
}
