//! The node in a process of its own: `takt serve`, on loopback and in a domain of its own.

use std::{
    collections::VecDeque,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, ChildStderr, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, bounded};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::DemoError;
use crate::ros::RosOptions;

/// Longest wait for the node to be up.
const START_PATIENCE: Duration = Duration::from_secs(30);
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
    /// Starts `takt serve` on `engine` with further arguments, and waits until it says that it is up.
    ///
    /// # Errors
    /// [`DemoError::Node`] with the end of its log.
    pub fn start(engine: &Path, ros: &RosOptions, further: &[String]) -> Result<Self, DemoError> {
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
        // Disconnected when the process has ended.
        if up.recv_timeout(START_PATIENCE).is_err() {
            return Err(DemoError::Node(format!("the node did not start:\n{}", node.last_words())));
        }
        node.ready_after = started.elapsed();
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
