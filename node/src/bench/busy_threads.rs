//! Other work on the same cores, as perception would be.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{JoinHandle, available_parallelism, spawn},
};

/// Threads that compute all the time; they end when this is dropped.
#[derive(Debug)]
pub struct BusyThreads {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<u64>>,
}

impl BusyThreads {
    /// As many as there are cores.
    #[must_use]
    pub fn one_a_core() -> Self {
        Self::start(available_parallelism().map_or(1, usize::from))
    }

    /// `num_threads` of them.
    #[must_use]
    pub fn start(num_threads: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let run = |_| {
            let stop = Arc::clone(&stop);
            spawn(move || compute(&stop))
        };
        let threads = (0..num_threads).map(run).collect();
        Self { stop, threads }
    }
}

/// Half a MiB is written over and over: the caches are shared too.
fn compute(stop: &AtomicBool) -> u64 {
    let mut state = vec![1_u64; 1 << 16];
    let mut sum = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        for value in &mut state {
            *value = value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            sum ^= *value;
        }
    }
    sum
}

impl Drop for BusyThreads {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // The sum keeps the work from being left out.
            let _ = std::hint::black_box(thread.join());
        }
    }
}
