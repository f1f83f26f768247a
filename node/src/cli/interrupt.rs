//! Ctrl-C and SIGTERM as a flag and a closed channel instead of a sudden death. Another, a second later, ends the process at once.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use nix::sys::signal::{SigSet, Signal};

use super::CliError;

/// Signals so soon after the first are the same wish, told twice: a terminal or a service manager ends a whole group of
/// processes, and a launch file in it hands the signal on.
const ONE_WISH: Duration = Duration::from_secs(1);

/// Says when the user wants the command to end.
#[derive(Debug, Clone)]
pub struct Interrupt {
    flag: Arc<AtomicBool>,
    /// Closed by the first signal.
    first: Receiver<()>,
}

impl Interrupt {
    /// Takes SIGINT and SIGTERM over. Call before any thread starts, so that all of them inherit the blocked signals.
    pub(super) fn install() -> Result<Self, CliError> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.add(Signal::SIGTERM);
        let failed = |error| CliError::Failed(format!("cannot watch for Ctrl-C: {error}"));
        signals.thread_block().map_err(failed)?;
        let (flag, (first_in, first)) = (Arc::new(AtomicBool::new(false)), crossbeam_channel::bounded(0));
        let raised = Arc::clone(&flag);
        let watch = move || {
            let (mut since, mut first_in): (Option<Instant>, _) = (None, Some(first_in));
            while let Ok(signal) = signals.wait() {
                match since {
                    None => {
                        since = Some(Instant::now());
                        raised.store(true, Ordering::SeqCst);
                        first_in.take(); // SYNC POINT: closed for all who wait
                    }
                    Some(since) if since.elapsed() < ONE_WISH => {}
                    Some(_) => std::process::exit(128 + signal as i32),
                }
            }
        };
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(watch)
            .map_err(|error| CliError::Failed(format!("cannot start a thread: {error}")))?;
        Ok(Self { flag, first })
    }

    /// True once the user wants the command to end.
    pub(super) fn flag(&self) -> &AtomicBool {
        &self.flag
    }

    /// Whether the user wants the command to end.
    pub(super) fn is_raised(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }

    /// Closed when the user wants the command to end; nothing is ever sent.
    pub(super) fn receiver(&self) -> &Receiver<()> {
        &self.first
    }
}
