//! How this participant comes and goes, where RustDDS would do it by halves.

use std::net::Ipv4Addr;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustdds::dds::result::CreateError;
use rustdds::{DomainParticipant, DomainParticipantBuilder, Publisher, QosPolicies};

#[cfg(target_env = "gnu")]
use super::epoll_wait;
use super::peers::Peers;
use super::ports;
use super::threads::Threads;
use crate::ros::RosOptions;

/// When RustDDS announces a participant: at first, after it has joined, and to each that it meets. (And every 10 s.)
const FIRST_ANNOUNCEMENT: Duration = Duration::from_millis(100);
const ANSWER: Duration = Duration::from_millis(10);
/// How much earlier than said: its clock starts before it tells that it has joined.
const EARLY: Duration = Duration::from_millis(30);
/// How much later, on a busy machine.
const LATE: Duration = Duration::from_millis(40);
/// How long to wait for whoever holds the participant for a moment.
const MAX_HOLD: Duration = Duration::from_secs(1);

/// A participant that is heard on the ports it names, and says goodbye.
///
/// The discovery thread of RustDDS 0.15.1 holds the participant while it announces it. If it is the last to let go, it has to wait
/// for its own end: it panics, nobody is told that the participant has left, and the others take it for present for 50 s more. So
/// the last hold is let go of where no announcement is to be expected; and then it is looked whether it was the last.
pub(super) struct Participant {
    domain: Arc<DomainParticipant>,
    joined: Instant,
    peers: Arc<Peers>,
    threads: Threads,
    // Dropped after `domain`.
    _last_hold: LastHold,
}

impl Participant {
    /// Joins the domain; `peers` is to know of the others' arrivals.
    pub fn join(options: &RosOptions, peers: Arc<Peers>) -> Result<Self, CreateError> {
        let mut builder = DomainParticipantBuilder::new(options.domain_id);
        if options.localhost_only {
            builder = builder.with_only_networks([Ipv4Addr::LOCALHOST]);
        }
        let held = ports::hold_useless(options.domain_id);
        let _held = held.map_err(|error| CreateError::OutOfResources { reason: error.to_string() })?;
        #[cfg(target_env = "gnu")]
        epoll_wait::take_over();
        let (domain, threads) = Threads::started_by(|| builder.build());
        let domain = Arc::new(domain?);
        let publisher = domain.create_publisher(&QosPolicies::qos_none())?;
        Ok(Self { domain, joined: Instant::now(), peers, threads, _last_hold: LastHold { publisher } })
    }

    /// Whether RustDDS still hears and announces it.
    pub fn is_served(&self) -> bool {
        self.threads.are_alive()
    }

    pub fn domain(&self) -> &Arc<DomainParticipant> {
        &self.domain
    }
}

impl Deref for Participant {
    type Target = DomainParticipant;

    fn deref(&self) -> &DomainParticipant {
        &self.domain
    }
}

impl Drop for Participant {
    fn drop(&mut self) {
        let now = Instant::now();
        let quiet = quiet_from(self.joined, self.peers.last_arrival(), now);
        std::thread::sleep(quiet.saturating_duration_since(now));
    }
}

/// From when on no announcement is to be expected, if not already `now`.
fn quiet_from(joined: Instant, last_arrival: Option<Instant>, now: Instant) -> Instant {
    let announcements = [Some(joined + FIRST_ANNOUNCEMENT), last_arrival.map(|arrival| arrival + ANSWER)];
    let is_near = |due: &Instant| (*due..*due + EARLY + LATE).contains(&(now + EARLY));
    announcements.into_iter().flatten().filter(is_near).map(|due| due + LATE).max().unwrap_or(now)
}

/// Takes over from whoever still holds the participant.
struct LastHold {
    /// Leads to the participant for as long as it is there.
    publisher: Publisher,
}

impl Drop for LastHold {
    fn drop(&mut self) {
        let started = Instant::now();
        while started.elapsed() < MAX_HOLD
            && let Some(participant) = self.publisher.participant()
        {
            // By then this is the last hold.
            std::thread::sleep(Duration::from_millis(1));
            drop(participant);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_participant_is_not_dropped_while_it_is_about_to_be_announced() {
        let joined = Instant::now();
        let ms = |ms| joined + Duration::from_millis(ms);
        for (last_arrival, now, quiet) in [
            (None, ms(0), ms(0)),
            (None, ms(69), ms(69)),
            (None, ms(70), ms(140)),
            (None, ms(139), ms(140)),
            (None, ms(140), ms(140)),
            (Some(ms(500)), ms(505), ms(550)),
            (Some(ms(500)), ms(549), ms(550)),
            (Some(ms(500)), ms(550), ms(550)),
            (Some(ms(60)), ms(80), ms(140)),
            (Some(ms(120)), ms(130), ms(170)),
        ] {
            assert_eq!(quiet_from(joined, last_arrival, now), quiet, "{:?}", now - joined);
        }
    }
}
