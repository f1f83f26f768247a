//! How this participant comes and goes, where RustDDS would do it by halves.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use rustdds::dds::result::CreateError;
use rustdds::{DomainParticipant, DomainParticipantBuilder, Publisher};

use super::ports;
use crate::ros::RosOptions;

/// How long to wait for whoever holds the participant for a moment.
const MAX_DEPARTURE: Duration = Duration::from_secs(1);

/// Joins as a participant that is heard on the ports it names.
pub(super) fn build(options: &RosOptions) -> Result<DomainParticipant, CreateError> {
    let mut builder = DomainParticipantBuilder::new(options.domain_id);
    if options.localhost_only {
        builder = builder.with_only_networks([Ipv4Addr::LOCALHOST]);
    }
    let held = ports::hold_useless(options.domain_id);
    let _held = held.map_err(|error| CreateError::OutOfResources { reason: error.to_string() })?;
    builder.build()
}

/// Sees to it that the participant says goodbye, once everybody here has let go of it.
///
/// The discovery thread of RustDDS 0.15.1 holds the participant while it announces it, as it does 10 ms after it has met another
/// one. If it is the last to let go, it has to wait for its own end: it panics, nobody is told that the participant has left, and
/// the others take it for present for 50 s more.
pub(super) struct Departure {
    /// Leads to the participant for as long as it is there.
    publisher: Publisher,
}

impl Departure {
    /// Of the participant of `publisher`; to be dropped after it.
    pub fn of(publisher: Publisher) -> Self {
        Self { publisher }
    }
}

impl Drop for Departure {
    fn drop(&mut self) {
        let started = Instant::now();
        while started.elapsed() < MAX_DEPARTURE
            && let Some(participant) = self.publisher.participant()
        {
            // By then this is the last hold on it.
            std::thread::sleep(Duration::from_millis(1));
            drop(participant);
        }
    }
}
