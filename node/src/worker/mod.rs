//! The worker: owns the backend, runs one section after another, answers every request exactly once.
//!
//! ```text
//! channel → accept → EDF queue → lane → sections (prefill slices, decode steps) → reply
//! ```
//! [`core`] is the algorithm, driven one section at a time; this module is the thread around it.

mod active;
mod asker;
mod core;
mod prompt;
mod thread;
mod warm_up;

use std::time::Duration;

use crate::config::RealtimeSettings;

pub use core::{Turn, WorkerCore};
pub use thread::{Facts, Opened, Opener, Worker};

/// How the worker schedules.
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    /// Most prompt tokens of one section.
    pub max_prefill_slice_tokens: usize,
    /// Requests that may wait for a lane.
    pub queue_len: usize,
    /// System prompts whose KV is kept.
    pub prefix_snapshots: usize,
    /// How long before its deadline a reply leaves the worker.
    pub reply_margin: Duration,
    /// How the thread is to run.
    pub realtime: RealtimeSettings,
}

impl Default for WorkerOptions {
    fn default() -> Self {
        Self {
            max_prefill_slice_tokens: 64,
            queue_len: 32,
            prefix_snapshots: 4,
            reply_margin: Duration::from_micros(500),
            realtime: RealtimeSettings::default(),
        }
    }
}
