//! `/diagnostics`: once a second, whether deadlines are promised, and why not.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::RosError;
use super::message::{DIAGNOSTIC_ARRAY, DiagnosticStatus, Level, encode_diagnostics};
use super::node::start_thread;
use super::transport::{Publish, Qos, Transport};
use crate::request::RequestSender;

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

/// What is reported.
struct Source {
    publisher: Box<dyn Publish>,
    node: String,
    requests: RequestSender,
    num_open: Arc<AtomicUsize>,
}

impl Diagnostics {
    pub fn start(
        transport: &dyn Transport,
        requests: RequestSender,
        num_open: Arc<AtomicUsize>,
    ) -> Result<Self, RosError> {
        let publisher = transport.publisher(TOPIC, DIAGNOSTIC_ARRAY, Qos::DEFAULT)?;
        let node = transport.node().to_string();
        let source = Source { publisher, node, requests, num_open };
        let (stop, stopped) = bounded(0);
        let thread = start_thread("takt-ros-diag", move || source.run(&stopped))?;
        Ok(Self { stop, thread })
    }

    pub fn close(self) {
        drop(self.stop);
        if self.thread.join().is_err() {
            tracing::error!("the thread that publishes diagnostics panicked");
        }
    }
}

impl Source {
    fn run(&self, stopped: &Receiver<()>) {
        loop {
            let statuses: Vec<_> = [self.deadlines()].into_iter().chain(self.speculation()).collect();
            let sent = encode_diagnostics(&statuses, SystemTime::now())
                .map_err(|error| RosError::Message { what: "diagnostic_msgs/DiagnosticArray", error })
                .and_then(|message| self.publisher.publish(&message));
            if let Err(error) = sent {
                tracing::debug!("{error}"); // nobody keeps up with one message a second: not worth a warning
            }
            if !matches!(stopped.recv_timeout(PERIOD), Err(RecvTimeoutError::Timeout)) {
                return;
            }
        }
    }

    fn deadlines(&self) -> DiagnosticStatus {
        let distrust = self.requests.distrust();
        DiagnosticStatus {
            level: if distrust.is_some() { Level::Warn } else { Level::Ok },
            name: format!("{}: deadlines", self.node.trim_start_matches('/')),
            message: match distrust {
                None => "deadlines are promised".to_owned(),
                Some(reason) => format!("no deadline is promised: {reason}"),
            },
            hardware_id: self.requests.device().to_owned(),
            values: vec![("open requests", self.num_open.load(Ordering::Acquire).to_string())],
        }
    }

    /// Only once there is something to say: that the draft head does not do what it did when the engine was built.
    fn speculation(&self) -> Option<DiagnosticStatus> {
        let reason = self.requests.no_speculation()?;
        Some(DiagnosticStatus {
            level: Level::Warn,
            name: format!("{}: speculation", self.node.trim_start_matches('/')),
            message: format!("speculation is off: {reason}"),
            hardware_id: self.requests.device().to_owned(),
            values: Vec::new(),
        })
    }
}
