//! Two kinds of work in turn, so that what else runs on the machine hits both.

use std::time::{Duration, Instant};

/// Medians of both, in seconds.
pub fn alternate(mut a: impl FnMut(), mut b: impl FnMut()) -> (f64, f64) {
    let (mut a_times, mut b_times) = (Vec::new(), Vec::new());
    let start = Instant::now();
    while a_times.len() < 9 || (start.elapsed() < Duration::from_millis(250) && a_times.len() < 2_000) {
        a_times.push(time(&mut a));
        b_times.push(time(&mut b));
    }
    (median(&mut a_times), median(&mut b_times))
}

fn time(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn median(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64()
}
