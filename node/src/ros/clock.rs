//! ROS time: what messages are stamped with. The time of day, or with `use_sim_time` whatever `/clock` said last.
//!
//! Architecture invariant: deadlines never depend on it. They are durations from arrival and run on the steady clock: a simulator that
//! pauses does not stop the processor that computes an answer, nor the robot that waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::SystemTime;

use super::RosError;
use super::message::{Clock, Message as _, Time};
use super::names::Names;
use super::transport::{Qos, Reliability, Transport};

/// Where simulated time comes from: `rcl` listens best effort, to whatever is offered.
const CLOCK_QOS: Qos = Qos { reliability: Reliability::BestEffort, depth: 1, ..Qos::DEFAULT };

/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct RosClock(Source);

#[derive(Debug, Clone)]
enum Source {
    System,
    /// Nanoseconds that `/clock` said last; 0 until then, as in every ROS 2 node.
    Simulated(Arc<AtomicI64>),
}

impl RosClock {
    /// The time of day.
    #[must_use]
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// Whatever `/clock` says.
    ///
    /// # Errors
    /// [`RosError::Transport`].
    pub fn simulated(transport: &dyn Transport, names: &Names) -> Result<Self, RosError> {
        let nanos = Arc::new(AtomicI64::new(0));
        let last = Arc::clone(&nanos);
        let on_message = Box::new(move |message: &[u8]| match Clock::decode(message) {
            Ok(Clock { clock }) => last.store(clock.as_nanos(), Ordering::Relaxed),
            Err(error) => tracing::debug!("/clock: {error}"),
        });
        transport.subscribe(&names.resolve_topic("/clock")?, Clock::TYPE, CLOCK_QOS, on_message)?;
        Ok(Self(Source::Simulated(nanos)))
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> Time {
        match &self.0 {
            Source::System => Time::from_system(SystemTime::now()),
            Source::Simulated(nanos) => Time::from_nanos(nanos.load(Ordering::Relaxed)),
        }
    }
}
