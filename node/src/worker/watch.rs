//! Watches whether the device is still set up as when costs were measured: another power mode or clock has other costs.

use std::{path::PathBuf, sync::Arc, thread::JoinHandle, time::Duration};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use takt_engine::backend::Capabilities;

use super::desk::Desk;
use crate::calibrate::DeviceKey;

/// How often the system is asked; a change is noticed at most so late.
const PERIOD: Duration = Duration::from_secs(1);

/// The watching thread; ends when dropped.
#[derive(Debug)]
pub(super) struct Watch {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Watches from now on; `root` is where the system's files are, `measured_as` what they said before costs were measured. Without a
    /// thread nothing is watched, and the log says so.
    pub fn start(desk: Arc<Desk>, facts: Capabilities, root: PathBuf, measured_as: DeviceKey) -> Self {
        let (stop, stopped) = bounded::<()>(0);
        let mut known = measured_as;
        let work = move || {
            while matches!(stopped.recv_timeout(PERIOD), Err(RecvTimeoutError::Timeout)) {
                let found = DeviceKey::new(&facts, &root);
                if let Some(change) = known.change_to(&found) {
                    tracing::warn!("no deadline is promised: {change}");
                    desk.withdraw(change);
                    known = found;
                }
            }
        };
        let thread = std::thread::Builder::new().name("takt-watch".into()).spawn(work);
        if let Err(error) = &thread {
            tracing::warn!("changes of clocks and power mode will not be noticed: no thread: {error}");
        }
        Self { stop: Some(stop), thread: thread.ok() }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // it cannot panic
        }
    }
}
