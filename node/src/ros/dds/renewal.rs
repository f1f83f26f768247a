//! Writers that are replaced by fresh ones, because a volatile writer of RustDDS grows dearer with every sample it has sent.
//!
//! When a reader is matched, RustDDS 0.15.1 sets down every number that the writer has used as one that this reader will not get:
//! one by one, on the one thread that carries all traffic, and goes through them again with each repair. After 1,000,000 samples
//! a new subscriber holds up the whole node for a quarter of a second. So after [`RENEW_AFTER`] samples a second writer is made
//! beside the first, which goes on, and takes its place once no subscriber can tell the difference:
//!
//! - *Nothing is lost:* every reader of the old writer reads the new one too, and has answered it. A CycloneDDS reader throws away
//!   what comes before a writer's first heartbeat, and only where there is a sample are heartbeats sent and answered. So the new
//!   writer starts with a sample addressed to a reader that does not exist: every real one is told that it will not get it, and
//!   acknowledges that.
//!   A subscriber that is just coming may have heard of the old writer only: while somebody is, nothing changes.
//! - *Nothing is reordered or doubled:* the old writer's last sample is acknowledged before the new one's first is written. A
//!   RustDDS reader that has it but has not taken it loses it as the old writer goes; ours do not ([`super::inbox`]).
//!
//! As long as a reader stalls, or samples follow each other faster than they are acknowledged, the old writer goes on.
//! Transient-local writers stay: RustDDS sets nothing down for them, and who comes late needs what they sent.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rustdds::dds::result::{CreateError, WriteError};
use rustdds::mio1::Waker;
use rustdds::no_key::DataWriter;
use rustdds::rpc::SampleIdentity;
use rustdds::{GUID, QosPolicies, RTPSEntity, TopicDescription as _, WriteOptions, WriteOptionsBuilder};

use super::first_heartbeat::FirstHeartbeats;
use super::payload::{AsIs, Payload};
use super::peers::Peers;

/// Samples after which a writer is replaced: a new subscriber then costs 10 ms at worst.
pub(super) const RENEW_AFTER: i64 = 50_000;
/// For a writer that is not.
pub(super) const NEVER: i64 = i64::MAX;
/// How often a renewal under way is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// How long the old writer goes on alone after a renewal that did not succeed.
const REST: Duration = Duration::from_secs(10);
/// What a fresh writer has sent: the sample for nobody.
const NUM_FOR_NOBODY: i64 = 1;

/// How long a new writer stands beside the old one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Overlap {
    /// At least, from the last match on: best-effort readers give no sign.
    pub min: Duration,
    /// At least since a participant came, which may know the old writer only.
    pub arrival: Duration,
    /// After which readers that have not answered are taken to be there; `None` to wait for them.
    pub settled: Option<Duration>,
    /// At most; then the new one is given up.
    pub max: Duration,
}

impl Overlap {
    /// Readers that do not ask for a heartbeat get the first one after 1 s. To tell each other all their endpoints takes two
    /// participants less than that.
    pub const TOPIC: Self = Self {
        min: Duration::from_millis(100),
        arrival: Duration::from_secs(1),
        settled: None,
        max: Duration::from_secs(5),
    };
}

/// How a writer is made.
pub(super) struct Blueprint {
    pub publisher: rustdds::Publisher,
    pub topic: rustdds::Topic,
    pub qos: QosPolicies,
}

type Writer = DataWriter<Payload, AsIs>;

impl Blueprint {
    pub fn build(&self) -> Result<Writer, CreateError> {
        self.publisher.create_datawriter_no_key(&self.topic, Some(self.qos.clone()))
    }
}

/// A writer, and from time to time the one that is to take its place.
pub(super) struct RenewedWriter {
    blueprint: Blueprint,
    /// SYNC POINT: whoever writes holds it shared, so that nothing is written while the writers change places.
    current: RwLock<Arc<Writer>>,
    /// Samples written by `current`.
    num_written: AtomicI64,
    renew_after: i64,
    overlap: Overlap,
    renewal: Mutex<Renewal>,
    peers: Arc<Peers>,
    waker: Arc<Waker>,
    first_heartbeats: Arc<FirstHeartbeats>,
}

#[derive(Default)]
enum Renewal {
    #[default]
    None,
    Resting {
        until: Instant,
    },
    Beside {
        successor: Arc<Writer>,
        since: Instant,
    },
}

/// What a look at a writer found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Look {
    NotDue,
    Again(Instant),
    /// The successor can take over: to be tried at once.
    Ready,
    /// It has.
    Renewed,
}

impl Look {
    pub fn again_after(now: Instant) -> Self {
        Self::Again(now + LOOK_AGAIN)
    }

    pub fn again_at(&self) -> Option<Instant> {
        if let Self::Again(at) = self { Some(*at) } else { None }
    }
}

impl RenewedWriter {
    /// The first writer. `waker` wakes the thread that looks when one is due.
    pub fn new(
        blueprint: Blueprint,
        renew_after: i64,
        overlap: Overlap,
        peers: Arc<Peers>,
        waker: Arc<Waker>,
        first_heartbeats: Arc<FirstHeartbeats>,
    ) -> Result<Self, CreateError> {
        let current = RwLock::new(Arc::new(blueprint.build()?));
        let (num_written, renewal) = (AtomicI64::new(0), Mutex::default());
        Ok(Self {
            blueprint,
            current,
            num_written,
            renew_after,
            overlap,
            renewal,
            peers,
            waker,
            first_heartbeats,
        })
    }

    fn current(&self) -> Arc<Writer> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn lock_renewal(&self) -> MutexGuard<'_, Renewal> {
        self.renewal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Identity of the writer of the moment.
    pub fn guid(&self) -> GUID {
        self.current().guid()
    }

    /// Whether every reader has acknowledged everything, at the latest after `timeout`.
    pub fn wait_acknowledged(&self, timeout: Duration) -> bool {
        // What an older one has sent is acknowledged already. Nothing but the wait can fail.
        self.current().wait_for_acknowledgments(timeout).unwrap_or(true)
    }

    /// Writes one sample.
    pub fn write(
        &self,
        message: Payload,
        options: WriteOptions,
    ) -> Result<SampleIdentity, WriteError<Payload>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        // Who comes late to a transient-local writer asks for what was written before.
        if self.blueprint.qos.is_volatile() {
            // With several threads that write, the number may lag behind: a reader then asks for what it was not told of.
            self.first_heartbeats.send(current.guid(), self.num_written.load(Ordering::Relaxed));
        }
        let sample = current.write_with_options(message, options)?;
        let num_written = i64::from(sample.sequence_number);
        self.num_written.store(num_written, Ordering::Relaxed);
        if num_written == self.renew_after
            && let Err(error) = self.waker.wake()
        {
            tracing::error!(%error, "cannot wake the ROS 2 dispatcher");
        }
        Ok(sample)
    }

    /// Takes the next step towards a renewal, if it is time.
    pub fn look(&self, now: Instant) -> Look {
        // With several threads that write, the number may lag behind by a few.
        if self.num_written.load(Ordering::Relaxed) < self.renew_after {
            return Look::NotDue;
        }
        let mut renewal = self.lock_renewal();
        match &*renewal {
            Renewal::Resting { until } if now < *until => Look::Again(*until),
            Renewal::None | Renewal::Resting { .. } => {
                *renewal = self.begin(now);
                Look::again_after(now)
            }
            Renewal::Beside { since, .. } if now >= *since + self.overlap.max => {
                self.give_up(&mut renewal, now);
                Look::Again(now + REST)
            }
            Renewal::Beside { successor, since } => {
                let current = self.current();
                if self.is_known(&current, successor, *since, now)
                    && self.is_caught_up(&current, successor, *since, now)
                {
                    Look::Ready
                } else {
                    Look::again_after(now)
                }
            }
        }
    }

    /// Takes the next step towards a renewal, and the last one too.
    pub fn renew(&self, now: Instant) -> Look {
        match self.look(now) {
            Look::Ready if self.switch(now).is_some() => Look::Renewed,
            Look::Ready => Look::again_after(now),
            look => look,
        }
    }

    /// Puts the successor in its place unless a sample has been written since it was ready: how many it has sent.
    pub fn switch(&self, now: Instant) -> Option<i64> {
        let mut renewal = self.lock_renewal();
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let successor = match std::mem::take(&mut *renewal) {
            Renewal::Beside { successor, since } if self.is_caught_up(&current, &successor, since, now) => {
                successor
            }
            other => {
                *renewal = other;
                return None;
            }
        };
        let old = std::mem::replace(&mut *current, successor);
        self.num_written.store(NUM_FOR_NOBODY, Ordering::Relaxed);
        tracing::debug!(topic = %self.blueprint.topic.name(), old = ?old.guid(), new = ?current.guid(), "a writer was renewed");
        drop(current);
        self.peers.forget_local(old.guid());
        Some(NUM_FOR_NOBODY)
    }

    fn begin(&self, now: Instant) -> Renewal {
        let begin = || {
            let successor = self.blueprint.build().map_err(|error| error.to_string())?;
            let to_nobody = WriteOptionsBuilder::new().to_single_reader(GUID::GUID_UNKNOWN).build();
            successor
                .write_with_options(Payload(Vec::new()), to_nobody)
                .map_err(|error| error.to_string())?;
            Ok::<_, String>(successor)
        };
        match begin() {
            Ok(successor) => Renewal::Beside { successor: Arc::new(successor), since: now },
            Err(error) => {
                tracing::warn!(topic = %self.blueprint.topic.name(), "a writer could not be renewed: {error}");
                Renewal::Resting { until: now + REST }
            }
        }
    }

    fn give_up(&self, renewal: &mut Renewal, now: Instant) {
        let given_up = std::mem::replace(renewal, Renewal::Resting { until: now + REST });
        if let Renewal::Beside { successor, .. } = given_up {
            tracing::debug!(topic = %self.blueprint.topic.name(), "a writer is not renewed yet: a subscriber is behind");
            self.peers.forget_local(successor.guid());
        }
    }

    /// Whether whoever reads `old`, or is about to, has been matched with `new` for a while.
    fn is_known(&self, old: &Writer, new: &Writer, since: Instant, now: Instant) -> bool {
        if self.peers.last_arrival().is_some_and(|arrival| now < arrival + self.overlap.arrival) {
            return false;
        }
        let matched = self.peers.follow(old.guid(), new.guid());
        matched.is_some_and(|matched| now >= matched.unwrap_or(since) + self.overlap.min)
    }

    /// Whether everything on both is acknowledged. The old one comes first: a reader that has acknowledged a sample of it is
    /// matched with the new one by then, which counts it.
    fn is_caught_up(&self, old: &Writer, new: &Writer, since: Instant, now: Instant) -> bool {
        let is_settled = self.overlap.settled.is_some_and(|settled| now >= since + settled);
        is_acknowledged(old) && (is_settled || is_acknowledged(new))
    }
}

fn is_acknowledged(writer: &Writer) -> bool {
    writer.wait_for_acknowledgments(Duration::ZERO).unwrap_or(true)
}
