//! A process that is stopped and continued, as by Ctrl-Z and `fg`, a debugger or a paused container, goes on where it was.

use std::{fs, process::Stdio, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use takt_node::ros::{AskClient, Question, RosDuration, RosOptions};

use super::harness::*;

/// Generous: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(30);
/// A thread that happens to be busy when it is stopped has nothing interrupted.
const NUM_STOPS: usize = 3;

/// Stops every thread of the process, and lets go of it when dropped.
struct Stopped(Pid);

impl Stopped {
    fn new(process: u32) -> Self {
        let process = Pid::from_raw(i32::try_from(process).unwrap());
        kill(process, Signal::SIGSTOP).unwrap();
        let stopped = Self(process);
        while !states(process).iter().all(|state| *state == 'T') {
            std::thread::sleep(Duration::from_millis(1));
        }
        stopped
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        kill(self.0, Signal::SIGCONT).unwrap();
    }
}

/// Of each thread, as proc(5) writes it: behind the name in parentheses.
fn states(process: Pid) -> Vec<char> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    // One that ended meanwhile has none.
    let stats = threads.filter_map(|thread| fs::read_to_string(thread.unwrap().path().join("stat")).ok());
    stats.map(|stat| stat[stat.rfind(')').unwrap()..].chars().nth(2).unwrap()).collect()
}

fn question() -> Question {
    let deadline = RosDuration::from_std(PATIENCE);
    Question { prompt: "pick the red cup".into(), deadline, max_tokens: 3, ..Question::default() }
}

#[test]
fn a_node_that_was_stopped_and_continued_answers_old_clients_and_new_ones() {
    let node = Node::start(&["serve", "--engine", engine(), "--ros-args", "-r", "__node:=stopped_test"]);
    let options = RosOptions { node_name: "stopped_test".into(), ..options_on_loopback() };
    let client = AskClient::connect(&options, PATIENCE).unwrap();
    for _ in 0..NUM_STOPS {
        assert_eq!(client.ask(&question(), PATIENCE).unwrap().status, "complete");
        let stopped = Stopped::new(node.0.id());
        let pending = client.start(&question()).unwrap();
        drop(stopped);
        assert_eq!(pending.wait(PATIENCE).unwrap().status, "complete", "asked while the node was stopped");
    }
    drop(client);
    let fresh = AskClient::connect(&options, PATIENCE).unwrap();
    assert_eq!(fresh.ask(&question(), PATIENCE).unwrap().status, "complete");
}

#[test]
fn a_client_that_was_stopped_and_continued_finds_its_node() {
    let serve = ["serve", "--engine", engine(), "--ros-args", "-r", "__node:=late_test"];
    let ask = ["ask", "pick the red cup", "--node", "late_test", "--max-tokens", "3", "--wait", "60s"];
    let asking = on_loopback(&ask).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let has_joined = || fs::read_dir(format!("/proc/{}/task", asking.id())).unwrap().count() > 3;
    while !has_joined() {
        std::thread::sleep(Duration::from_millis(1));
    }
    for _ in 0..NUM_STOPS {
        // Between being set up and waiting.
        std::thread::sleep(Duration::from_millis(50));
        drop(Stopped::new(asking.id()));
    }
    let _node = Node::start(&serve);
    let asked = asking.wait_with_output().unwrap();
    assert!(asked.status.success(), "{}", stderr(&asked));
}
