//! The node in a process of its own: `takt serve`, on loopback and in a domain of its own.

use std::{
    collections::VecDeque,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, ChildStderr, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::DemoError;
use crate::ros::RosOptions;

/// Longest wait for the node to be up, as `TimeoutStartSec` of the unit: opening a large engine takes minutes.
const START_PATIENCE: Duration = Duration::from_secs(900);
/// How often whoever waits is asked whether to go on.
const ASK_AGAIN: Duration = Duration::from_millis(250);
/// Longest wait for it to end by itself.
const STOP_PATIENCE: Duration = Duration::from_secs(3);
/// Lines of its log kept for an error message.
const KEPT_LINES: usize = 12;

/// A running child node; ended when dropped.
#[derive(Debug)]
pub struct NodeProcess {
    child: Child,
    log: Arc<Mutex<VecDeque<String>>>,
    /// Start to ready.
    pub ready_after: Duration,
}

impl NodeProcess {
    /// Starts `takt serve` on `engine` with further arguments, and waits until it says that it is up. Meanwhile `goes_on` is told how long
    /// that has taken; when it says false, the node is ended.
    ///
    /// # Errors
    /// [`DemoError::Node`] with the end of its log.
    pub fn start(
        engine: &Path,
        ros: &RosOptions,
        further: &[String],
        goes_on: impl FnMut(Duration) -> bool,
    ) -> Result<Self, DemoError> {
        let failed = |error: std::io::Error| DemoError::Node(format!("cannot start the node: {error}"));
        let started = Instant::now();
        let mut child = Command::new(std::env::current_exe().map_err(failed)?)
            .args(["serve", "--engine"])
            .arg(engine)
            .args(further)
            .args(["--ros-args", "-r", &format!("__node:={}", ros.node_name)])
            .env("ROS_DOMAIN_ID", ros.domain_id.to_string())
            .env("ROS_LOCALHOST_ONLY", "1")
            .env_remove("ROS_AUTOMATIC_DISCOVERY_RANGE")
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let log = Arc::new(Mutex::new(VecDeque::with_capacity(KEPT_LINES)));
        let stderr = child.stderr.take().ok_or_else(|| DemoError::Node("the node has no log".into()))?;
        let up = follow_log(stderr, Arc::clone(&log)).map_err(failed)?;
        let mut node = Self { child, log, ready_after: Duration::ZERO };
        match wait_until_up(&up, || started.elapsed(), goes_on) {
            Ok(took) => node.ready_after = took,
            Err(why) => return Err(DemoError::Node(format!("{why}:\n{}", node.last_words()))),
        }
        Ok(node)
    }

    /// The process's.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// True while it runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// The end of its log.
    #[must_use]
    pub fn last_words(&self) -> String {
        let lines = self.log.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        lines.iter().map(|line| format!("  {line}\n")).collect()
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM); // gone already is as good
        }
        let patience = Instant::now() + STOP_PATIENCE;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for the message in `up`, which is closed when the process has ended; `waited` is how long that has taken.
///
/// # Errors
/// Why the node is not up.
fn wait_until_up(
    up: &Receiver<()>,
    waited: impl Fn() -> Duration,
    mut goes_on: impl FnMut(Duration) -> bool,
) -> Result<Duration, &'static str> {
    loop {
        let news = up.recv_timeout(ASK_AGAIN);
        let waited = waited();
        match news {
            Ok(()) => return Ok(waited),
            // Before its end: Ctrl-C in a terminal is told to both processes.
            Err(_) if !goes_on(waited) => return Err("interrupted while the node was starting"),
            Err(RecvTimeoutError::Disconnected) => return Err("the node did not start"),
            Err(RecvTimeoutError::Timeout) if waited >= START_PATIENCE => {
                return Err("the node is not up after a quarter of an hour");
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// Keeps the last lines of the log; sends once when the node says how to ask it.
fn follow_log(stderr: ChildStderr, log: Arc<Mutex<VecDeque<String>>>) -> std::io::Result<Receiver<()>> {
    let (up_in, up) = bounded(1);
    std::thread::Builder::new().name("node-log".into()).spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if line.trim_start().starts_with("ask it") {
                let _ = up_in.try_send(());
            }
            let mut kept = log.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if kept.len() == KEPT_LINES {
                kept.pop_front();
            }
            kept.push_back(line);
        }
    })?;
    Ok(up)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_waited_for_while_it_opens_its_engine_and_no_longer_than_it_lives_or_is_wanted() {
        let (up_in, up) = bounded(1);
        let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
        let mut num_asked = 0;
        let found = wait_until_up(
            &up,
            || minutes(14),
            |_| {
                num_asked += 1;
                if num_asked == 2 {
                    up_in.send(()).unwrap();
                }
                true
            },
        );
        assert_eq!(found, Ok(minutes(14)));
        assert!(wait_until_up(&up, || minutes(1), |_| false).unwrap_err().contains("interrupted"));
        assert!(wait_until_up(&up, || minutes(15), |_| true).unwrap_err().contains("a quarter of an hour"));
        drop(up_in);
        assert!(wait_until_up(&up, || minutes(1), |_| true).unwrap_err().contains("did not start"));
        assert!(wait_until_up(&up, || minutes(1), |_| false).unwrap_err().contains("interrupted"));
    }
}
