//! Captured graphs by shape, and how long each takes.

use std::{collections::HashMap, hash::Hash, time::Duration};

use takt_kernels_cu::driver::{
    DriverError,
    stream::{Found, Graph, Stream},
};

use crate::{EngineError, Result};

/// Most graphs of a kind at a time, where no more are usual. They take memory of the driver's.
const MAX_GRAPHS: usize = 96;

/// The graphs of one kind of work.
#[derive(Debug)]
pub(in crate::backend) struct Captures<S> {
    graphs: HashMap<S, Captured>,
    num_runs: u64,
    max_graphs: usize,
}

#[derive(Debug)]
struct Captured {
    graph: Graph,
    usual: Duration,
    /// By [`Captures::num_runs`].
    last_run: u64,
}

impl<S> Default for Captures<S> {
    fn default() -> Self {
        Self { graphs: HashMap::new(), num_runs: 0, max_graphs: MAX_GRAPHS }
    }
}

impl<S: Copy + Eq + Hash> Captures<S> {
    /// Keeps at least `num_usual` graphs at a time, so that none of the usual ones gives way to another of them.
    pub(in crate::backend) fn make_room(&mut self, num_usual: usize) {
        self.max_graphs = MAX_GRAPHS.max(num_usual);
    }

    /// Whether the graph of `shape` is there.
    pub(in crate::backend) fn contains(&self, shape: S) -> bool {
        self.graphs.contains_key(&shape)
    }

    /// Whether the graph of `shape` is there; it does not give way to others that are added before the next one runs, unless those are too many themselves.
    pub(in crate::backend) fn keeps(&mut self, shape: S) -> bool {
        let next = self.num_runs + 1;
        self.graphs.get_mut(&shape).map(|captured| captured.last_run = next).is_some()
    }

    /// Adds the graph of `shape`, which is about to run; the one that was not run for longest gives way where there are too many.
    pub(in crate::backend) fn insert(&mut self, shape: S, graph: Graph) {
        if self.graphs.len() >= self.max_graphs {
            let oldest = self.graphs.iter().min_by_key(|(_, captured)| captured.last_run);
            if let Some(oldest) = oldest.map(|(shape, _)| *shape) {
                self.graphs.remove(&oldest);
            }
        }
        self.graphs.insert(shape, Captured { graph, usual: Duration::ZERO, last_run: self.num_runs + 1 });
    }

    /// Puts the graph of `shape` into the stream, whose context is current. Returns how long it took lately.
    pub(in crate::backend) fn start(&mut self, stream: &Stream, shape: S) -> Result<Duration> {
        let Some(captured) = self.graphs.get_mut(&shape) else {
            return Err(EngineError::Backend("a graph was not captured".into()));
        };
        self.num_runs += 1;
        captured.last_run = self.num_runs;
        stream.run(&captured.graph)?;
        Ok(captured.usual)
    }

    /// Notes that `shape`, behind others that take `others`, took `took` with them.
    pub(in crate::backend) fn learn(&mut self, shape: S, others: Duration, found: Found, took: Duration) {
        let Some(captured) = self.graphs.get_mut(&shape) else { return };
        captured.usual = learnt(captured.usual, others, found, took);
    }
}

/// What work usually takes that took `usual` until now, and `took` behind others that take `others`.
pub(in crate::backend) fn learnt(
    usual: Duration,
    others: Duration,
    found: Found,
    took: Duration,
) -> Duration {
    let all = usual + others;
    let learnt = match found {
        // The first time is of loading, too.
        _ if usual.is_zero() => took / 2,
        // How much too long the sleep was cannot be known.
        Found::AtOnce => all * 3 / 4,
        Found::Later => (all * 3 + took) / 4,
    };
    learnt.saturating_sub(others)
}

/// Waits for what usually takes `usual`. Where that cannot be, the context is given up: nobody would know when what is in the stream is done with
/// its buffers.
pub(in crate::backend) fn wait(
    stream: &Stream,
    usual: Duration,
    limit: Duration,
) -> Result<Found, DriverError> {
    // A little less than it took lately: a look too early costs microseconds, a sleep too long costs the robot.
    stream.wait(usual.mul_f32(0.9), limit).inspect_err(|_| stream.context().give_up())
}

/// After a fault or a hang nothing in the context can be trusted, so that nothing may seem to go on: whoever holds the backend opens another.
///
/// # Errors
/// [`EngineError::Backend`] when the context of `stream` was given up.
pub(in crate::backend) fn check_alive(stream: &Stream) -> Result<()> {
    if stream.context().is_lost() {
        return Err(EngineError::Backend("the device was lost; the engine has to be opened anew".into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_micros(9700);
    const READ: Duration = Duration::from_micros(300);

    /// How work that takes `took` is found after a sleep for what is usual.
    fn found(usual: Duration, took: Duration) -> Found {
        if usual.mul_f32(0.9) > took { Found::AtOnce } else { Found::Later }
    }

    /// As steps with a head learn: each with the read behind it.
    fn learn_steps(mut usual: Duration, reading: Duration, num_steps: usize) -> Duration {
        for _ in 0..num_steps {
            let took = STEP + READ;
            usual = learnt(usual, reading, found(usual + reading, took), took);
        }
        usual
    }

    #[test]
    fn a_step_that_never_runs_without_its_read_learns_both_together() {
        let all = learn_steps(Duration::ZERO, Duration::ZERO, 30);
        assert!(all > STEP && all <= STEP + READ, "{all:?}");
        // Once the read was measured behind a path that was kept, the step is left with its own.
        let step = learn_steps(all, READ, 30);
        assert!(step > STEP.mul_f32(0.99) && step < STEP.mul_f32(1.01), "{step:?}");
    }

    #[test]
    fn a_first_time_that_was_of_loading_is_unlearnt_beside_a_read_too() {
        let loaded = learnt(Duration::ZERO, Duration::ZERO, Found::Later, 8 * STEP);
        assert_eq!(loaded, 4 * STEP);
        let usual = learn_steps(loaded, Duration::ZERO, 30);
        assert!(usual.mul_f32(0.9) <= STEP + READ, "{usual:?}");
    }
}
