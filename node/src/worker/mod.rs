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
mod opening;
mod prompt;
mod reopening;
mod thread;
mod watch;

use std::{path::PathBuf, time::Duration};

use crossbeam_channel::{Receiver, never};
use takt_engine::backend::Capabilities;

use crate::{
    calibrate::Effort,
    config::RealtimeSettings,
    scheduler::{bandwidth_server::Bandwidth, job::Limits},
};

pub use core::{Drafting, Parts, Turn, WorkerCore};
pub use desk::{Admission, Desk, Seat};
pub use opening::{Facts, Opened, Opener};
pub use thread::{THREAD_NAME, Worker};

/// How the worker schedules.
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    /// Most prompt tokens of one section.
    pub max_prefill_slice_tokens: usize,
    /// How long a section may take, where a shorter prefill slice can help.
    pub max_section: Duration,
    /// What is left of a GPU for others; no effect on the CPU.
    pub gpu: GpuManners,
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
    /// How long an engine that failed is tried to be opened again where there is no memory for it.
    pub memory_patience: Duration,
    /// Closed when the process is about to end: an engine that is being opened then is not waited for. Nothing is ever sent.
    pub process_end: Receiver<()>,
}

impl Default for WorkerOptions {
    fn default() -> Self {
        Self {
            max_prefill_slice_tokens: 64,
            max_section: Duration::from_millis(20),
            gpu: GpuManners::default(),
            background: Bandwidth::default(),
            effort: Effort::BRIEF,
            queue_len: 32,
            prefix_snapshots: 4,
            reply_margin: Duration::from_micros(500),
            system_root: PathBuf::from("/"),
            drafting: Drafting::default(),
            realtime: RealtimeSettings::default(),
            memory_patience: Duration::from_secs(60),
            process_end: never(),
        }
    }
}

/// By how much a sleep may be too long: Linux groups timers of ordinary threads within 50 µs, and the core has to wake.
const WAKE_UP: Duration = Duration::from_micros(100);

/// How the worker makes room for whoever else uses the GPU it runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GpuManners {
    /// How long no section may take; `None` for the limit of any backend.
    pub max_section: Option<Duration>,
    /// How long the worker sleeps after each section.
    pub idle_gap: Duration,
}

impl WorkerOptions {
    /// What is left of the device of these `facts` for others: of a processor, what its scheduler gives them.
    #[must_use]
    pub fn gpu_manners(&self, facts: &Capabilities) -> GpuManners {
        if facts.backend == "cpu" { GpuManners::default() } else { self.gpu }
    }

    /// Bounds of a section on a backend of these `facts`.
    #[must_use]
    pub fn limits(&self, facts: &Capabilities) -> Limits {
        let gpu = self.gpu_manners(facts);
        Limits {
            max_prefill_slice_tokens: self.max_prefill_slice_tokens,
            max_step_tokens: facts.max_step_tokens,
            max_section: gpu.max_section.map_or(self.max_section, |most| most.min(self.max_section)),
            max_any_section: gpu.max_section,
            idle_gap: if gpu.idle_gap.is_zero() { Duration::ZERO } else { gpu.idle_gap + WAKE_UP },
            reply_margin: self.reply_margin,
        }
    }
}
