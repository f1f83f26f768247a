//! Whether RustDDS's threads live. It has two for a participant, and tells nobody when one ends: the participant is deaf from then
//! on, and goes on taking what is written.
//!
//! They are known by their numbers, which the kernel shows for as long as they live: looking costs two system calls and needs
//! nobody who answers.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Threads of this process, each a folder.
const TASKS: &str = "/proc/self/task";
/// How RustDDS 0.15.1 begins the names of its threads; the kernel keeps 15 bytes of one.
const NAME: &[u8] = b"RustDDS ";

/// RustDDS's threads of one participant.
#[derive(Debug)]
pub(super) struct Threads {
    folders: Vec<PathBuf>,
}

impl Threads {
    /// What `start` returns, and RustDDS's threads that were started meanwhile; should another participant join just then, its
    /// threads are among them.
    pub fn started_by<T>(start: impl FnOnce() -> T) -> (T, Self) {
        let before = folders().unwrap_or_default();
        let started = start();
        // Without /proc none is found, and none is ever missed.
        let mut folders = folders().unwrap_or_default();
        folders.retain(|folder| !before.contains(folder) && is_rust_dds(folder));
        (started, Self { folders: folders.into_iter().collect() })
    }

    /// Whether none has ended.
    pub fn are_alive(&self) -> bool {
        self.folders.iter().all(|folder| folder.exists())
    }
}

fn folders() -> io::Result<HashSet<PathBuf>> {
    fs::read_dir(TASKS)?.map(|entry| Ok(entry?.path())).collect()
}

fn is_rust_dds(task: &Path) -> bool {
    fs::read(task.join("comm")).is_ok_and(|name| name.starts_with(NAME))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::participant::Participant;
    use super::*;
    use crate::ros::RosOptions;

    #[test]
    fn the_threads_of_a_participant_are_found_and_missed_when_they_end() {
        // The suites use 1 to 230, the ports 231.
        let options = RosOptions { domain_id: 232, localhost_only: true, ..RosOptions::default() };
        let (participant, threads) =
            Threads::started_by(|| Participant::join(&options, Arc::default()).unwrap());
        assert!(threads.folders.len() >= 2, "{threads:?}: one that hears, one that announces");
        assert!(participant.is_served());
        // No more than the threads of one is missed, should others have joined.
        let first = Threads { folders: threads.folders[..1].to_vec() };
        drop(participant);
        while threads.are_alive() || first.are_alive() {
            std::thread::yield_now();
        }
    }
}
