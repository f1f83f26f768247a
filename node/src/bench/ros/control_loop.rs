//! A robot's control loop beside the node: 100 Hz on an absolute timer; it asks now and then and never waits for the answer.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::time::{TimeSpec, TimeValLike as _},
    time::{ClockId, ClockNanosleepFlags, clock_gettime, clock_nanosleep},
};

use super::door::PATIENCE;
use crate::{
    ros::{Answer, AskClient, Question, RosError, client::PendingAsk},
    rt,
};

/// The control period.
pub const PERIOD: Duration = Duration::from_millis(10);
/// Ticks between two questions.
pub const TICKS_PER_QUESTION: u64 = 10;

/// What the loop saw.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LoopTimes {
    /// Due to begun, of each tick that ran.
    pub late: Vec<Duration>,
    /// Ticks that did not run: the loop was still, or not yet, at an earlier one.
    pub num_missed: u64,
    /// What sending a question took of its tick.
    pub asking: Vec<Duration>,
    /// Questions sent.
    pub num_asked: u64,
    /// Answered, in whichever way.
    pub num_answered: u64,
    /// Real-time priority asked for and refused.
    pub refused: Option<String>,
}

/// Runs for `length`, in a thread of its own; asks `question` where there is somebody to ask.
///
/// # Errors
/// [`RosError::Transport`] if the system gives no thread.
pub fn run(
    length: Duration,
    fifo_priority: Option<u8>,
    asking: Option<(&AskClient, &Question)>,
    cancelled: &AtomicBool,
) -> Result<LoopTimes, RosError> {
    let failed = |reason: String| RosError::Transport { what: "the control loop".into(), reason };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("control-loop".into())
            .spawn_scoped(scope, move || ticks(length, fifo_priority, asking, cancelled));
        let thread = thread.map_err(|error| failed(error.to_string()))?;
        thread.join().map_err(|_| failed("it panicked".into()))
    })
}

fn ticks(
    length: Duration,
    fifo_priority: Option<u8>,
    asking: Option<(&AskClient, &Question)>,
    cancelled: &AtomicBool,
) -> LoopTimes {
    let num_ticks = length.as_nanos().div_ceil(PERIOD.as_nanos()).try_into().unwrap_or(u64::MAX);
    let mut times = LoopTimes::default();
    if let Some(priority) = fifo_priority {
        times.refused = rt::set_fifo(priority).err().map(|errno| format!("SCHED_FIFO {priority}: {errno}"));
    }
    rt::memory::touch_stack();
    // Nothing grows while the loop runs.
    times.late.reserve(usize::try_from(num_ticks).unwrap_or(0));
    let mut open: Vec<PendingAsk> = Vec::with_capacity(64);
    let period = i64::try_from(PERIOD.as_nanos()).unwrap_or(i64::MAX);
    let start = now();
    let mut tick = 1;
    while tick <= num_ticks && !cancelled.load(Ordering::Relaxed) {
        let due = start.saturating_add(period.saturating_mul(i64::try_from(tick).unwrap_or(i64::MAX)));
        sleep_until(due);
        let late = now().saturating_sub(due).max(0);
        times.late.push(Duration::from_nanos(late.unsigned_abs()));
        collect(&mut open, &mut times, Duration::ZERO);
        if let Some((client, question)) = asking.filter(|_| tick.is_multiple_of(TICKS_PER_QUESTION)) {
            let began = Instant::now();
            match client.start(question) {
                Ok(pending) => open.push(pending),
                Err(error) => tracing::warn!("the control loop's question: {error}"),
            }
            times.num_asked += 1;
            times.asking.push(began.elapsed());
        }
        // A tick whose time has passed is left out, as ros2_control does it.
        let behind = (now().saturating_sub(due).max(0) / period).unsigned_abs();
        times.num_missed += behind.min(num_ticks - tick);
        tick += 1 + behind;
    }
    collect(&mut open, &mut times, PATIENCE);
    times
}

/// Takes the answers that are there, waiting up to `patience` for each.
fn collect(open: &mut Vec<PendingAsk>, times: &mut LoopTimes, patience: Duration) {
    open.retain(|pending| {
        let answer: Option<Answer> = pending.wait(patience).ok();
        times.num_answered += u64::from(answer.is_some());
        answer.is_none()
    });
}

/// Nanoseconds of the monotonic clock.
fn now() -> i64 {
    // This clock is always there.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| time.num_nanoseconds())
}

fn sleep_until(due: i64) {
    let until = TimeSpec::nanoseconds(due);
    while clock_nanosleep(ClockId::CLOCK_MONOTONIC, ClockNanosleepFlags::TIMER_ABSTIME, &until)
        == Err(Errno::EINTR)
    {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tick_runs_or_is_missed() {
        let times = run(PERIOD * 5, None, None, &AtomicBool::new(false)).unwrap();
        assert_eq!(times.late.len() as u64 + times.num_missed, 5);
        assert_eq!((times.num_asked, times.num_answered, times.refused), (0, 0, None));
    }

    #[test]
    fn a_cancelled_loop_ends() {
        let times = run(Duration::from_secs(3600), None, None, &AtomicBool::new(true)).unwrap();
        assert!(times.late.is_empty());
    }
}
