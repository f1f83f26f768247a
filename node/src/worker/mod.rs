//! The worker: owns the backend, runs one section after another, answers every request exactly once.
//!
//! ```text
//! desk (admission, on the asker's thread) → channel → EDF queue → lane → sections (prefill slices, decode steps) → reply
//! ```
//! [`core`] is the algorithm, driven one section at a time; this module is the thread around it.

mod active;
mod asker;
mod core;
mod desk;
mod heartbeat;
mod prompt;
mod thread;
mod watch;

use std::{path::PathBuf, time::Duration};

use crossbeam_channel::{Receiver, never};

use crate::{
    calibrate::Effort,
    config::RealtimeSettings,
    scheduler::{bandwidth_server::Bandwidth, job::Limits},
};

pub use core::{Drafting, Parts, Turn, WorkerCore};
pub use desk::{Admission, Desk, Seat};
pub use thread::{Facts, Opened, Opener, THREAD_NAME, Worker};

/// How the worker schedules.
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    /// Most prompt tokens of one section.
    pub max_prefill_slice_tokens: usize,
    /// How long a section may take, where a shorter prefill slice can help.
    pub max_section: Duration,
    /// Share of the time for requests without a deadline.
    pub background: Bandwidth,
    /// How long costs are measured at the start, when no table holds.
    pub effort: Effort,
    /// Requests that may wait for a lane.
    pub queue_len: usize,
    /// System prompts whose KV is kept.
    pub prefix_snapshots: usize,
    /// How long before its deadline a reply leaves the worker.
    pub reply_margin: Duration,
    /// Where the system's files are that tell clocks and power mode; `/` outside tests.
    pub system_root: PathBuf,
    /// Who proposes tokens for speculation.
    pub drafting: Drafting,
    /// How the thread is to run.
    pub realtime: RealtimeSettings,
    /// Closed when the process is about to end: an engine that is being opened then is not waited for. Nothing is ever sent.
    pub process_end: Receiver<()>,
}

impl Default for WorkerOptions {
    fn default() -> Self {
        Self {
            max_prefill_slice_tokens: 64,
            max_section: Duration::from_millis(20),
            background: Bandwidth::default(),
            effort: Effort::BRIEF,
            queue_len: 32,
            prefix_snapshots: 4,
            reply_margin: Duration::from_micros(500),
            system_root: PathBuf::from("/"),
            drafting: Drafting::default(),
            realtime: RealtimeSettings::default(),
            process_end: never(),
        }
    }
}

impl WorkerOptions {
    /// Bounds of a section on a backend that computes at most `max_step_tokens` at once.
    #[must_use]
    pub fn limits(&self, max_step_tokens: usize) -> Limits {
        Limits {
            max_prefill_slice_tokens: self.max_prefill_slice_tokens,
            max_step_tokens,
            max_section: self.max_section,
            reply_margin: self.reply_margin,
        }
    }
}
