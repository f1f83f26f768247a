//! The promises given, so that a new one can be weighed on the thread where it arrives, while the worker is busy.
//!
//! Every open request holds a slot, so the slots bound how many there are. Whoever admits holds the gate; the worker never
//! does: it only stores single values, at section boundaries. A value read late is one from before: more remains then than is
//! true, which may refuse somebody, but never breaks a promise.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    admission::{self, Occupied, Promise},
    bandwidth_server::{Bandwidth, BandwidthServer},
    class::Class,
};

/// A request's place in the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SlotId(usize);

/// `reply_by` of a request that is promised nothing.
const NO_PROMISE: u64 = u64::MAX;

#[derive(Debug)]
struct Slot {
    is_taken: AtomicBool,
    /// Whether a background request holds it.
    is_background: AtomicBool,
    /// Nanoseconds since the ledger's start.
    reply_by: AtomicU64,
    mandatory: AtomicU64,
}

/// What the worker tells: everything here is written by it alone.
#[derive(Debug)]
pub struct Ledger {
    start: Instant,
    slots: Box<[Slot]>,
    /// When the running section ends by its bound; in the past when none runs.
    section_end: AtomicU64,
    /// The background server: what is left of its budget, its deadline (`NO_PROMISE` for none), whether it has work.
    bandwidth: Bandwidth,
    server_left: AtomicU64,
    server_deadline: AtomicU64,
    server_has_work: AtomicBool,
    /// Held by whoever admits, from reading the promises until the new one is among them.
    gate: Mutex<Vec<Promise>>,
}

/// Why there is no slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotAdmitted {
    /// Every slot that the request's class may take is taken.
    Full {
        /// Slots the class may take.
        num_slots: usize,
    },
    /// The deadline cannot be promised.
    TooLate {
        /// When a reply could be promised.
        earliest: Option<Instant>,
    },
}

impl Ledger {
    /// An empty ledger of `num_slots` places.
    #[must_use]
    pub fn new(num_slots: usize, bandwidth: Bandwidth, start: Instant) -> Arc<Self> {
        let slot = || Slot {
            is_taken: AtomicBool::new(false),
            is_background: AtomicBool::new(false),
            reply_by: AtomicU64::new(NO_PROMISE),
            mandatory: AtomicU64::new(0),
        };
        Arc::new(Self {
            start,
            slots: (0..num_slots).map(|_| slot()).collect(),
            section_end: AtomicU64::new(0),
            bandwidth,
            server_left: AtomicU64::new(nanoseconds(bandwidth.budget)),
            server_deadline: AtomicU64::new(NO_PROMISE),
            server_has_work: AtomicBool::new(false),
            gate: Mutex::new(Vec::with_capacity(num_slots)),
        })
    }

    /// Takes a slot for a request that is promised nothing. Background work, which nothing ends, may take a quarter of the slots,
    /// and all that is promised nothing three quarters: the rest is for those who are promised something.
    ///
    /// # Errors
    /// [`NotAdmitted::Full`].
    pub fn enter(&self, class: Class) -> Result<SlotId, NotAdmitted> {
        let _promises = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut num_background, mut num_unpromised) = (0, 0);
        for slot in self.slots.iter().filter(|slot| slot.is_taken.load(Ordering::Acquire)) {
            num_background += usize::from(slot.is_background.load(Ordering::Acquire));
            num_unpromised += usize::from(slot.reply_by.load(Ordering::Acquire) == NO_PROMISE);
        }
        let (is_background, num_slots) = (class == Class::Background, self.slots.len());
        let (most_background, most) = (num_slots.div_ceil(4), (num_slots - num_slots / 4).max(1));
        if is_background && num_background >= most_background {
            return Err(NotAdmitted::Full { num_slots: most_background });
        }
        if num_unpromised >= most {
            return Err(NotAdmitted::Full { num_slots: most });
        }
        self.take(NO_PROMISE, Duration::ZERO, is_background)
    }

    /// Takes a slot for `new` if it can be promised. `margin` is what every promise counts once beside the sections: a section
    /// that starts before the worker sees the request, and a stall.
    ///
    /// # Errors
    /// [`NotAdmitted`].
    pub fn admit(&self, new: Promise, margin: Duration, now: Instant) -> Result<SlotId, NotAdmitted> {
        let mut promises = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        promises.clear();
        // SYNC POINT: pairs with the worker's stores in `progress` and `release`.
        let taken = self.slots.iter().filter(|slot| slot.is_taken.load(Ordering::Acquire));
        promises.extend(taken.filter_map(|slot| {
            let reply_by = slot.reply_by.load(Ordering::Acquire);
            let mandatory = Duration::from_nanos(slot.mandatory.load(Ordering::Acquire));
            (reply_by != NO_PROMISE).then(|| Promise { reply_by: self.instant(reply_by), mandatory })
        }));
        promises.sort_unstable_by_key(|promise| promise.reply_by);
        let rest = self.instant(self.section_end.load(Ordering::Acquire)).saturating_duration_since(now);
        let server = self.server();
        let occupied = Occupied { now, blocked: rest + margin, server: &server };
        match admission::admit(new, &promises, &occupied) {
            Ok(()) => self.take(self.ns(new.reply_by), new.mandatory, false),
            Err(earliest) => Err(NotAdmitted::TooLate { earliest }),
        }
    }

    /// Slots that are taken.
    #[must_use]
    pub fn num_taken(&self) -> usize {
        self.slots.iter().filter(|slot| slot.is_taken.load(Ordering::Acquire)).count()
    }

    /// The worker: how much of `slot` is still to be computed.
    pub fn progress(&self, slot: SlotId, mandatory: Duration) {
        if let Some(slot) = self.slots.get(slot.0) {
            slot.mandatory.store(nanoseconds(mandatory), Ordering::Release);
        }
    }

    /// The worker: the request of `slot` has been replied to.
    pub fn release(&self, slot: SlotId) {
        if let Some(slot) = self.slots.get(slot.0) {
            slot.reply_by.store(NO_PROMISE, Ordering::Release);
            slot.mandatory.store(0, Ordering::Release);
            slot.is_taken.store(false, Ordering::Release); // last: from here on somebody else may take it
        }
    }

    /// The worker: a section has begun that ends at `until` by its bound.
    pub fn begin_section(&self, until: Instant) {
        self.section_end.store(self.ns(until), Ordering::Release);
    }

    /// The worker: the section has ended.
    pub fn end_section(&self) {
        self.section_end.store(0, Ordering::Release);
    }

    /// The worker: what background work may claim.
    pub fn publish_server(&self, server: &BandwidthServer) {
        let deadline = server.deadline().map_or(NO_PROMISE, |deadline| self.ns(deadline));
        self.server_left.store(nanoseconds(server.left()), Ordering::Release);
        self.server_deadline.store(deadline, Ordering::Release);
        self.server_has_work.store(server.has_work(), Ordering::Release);
    }

    fn server(&self) -> BandwidthServer {
        let deadline = self.server_deadline.load(Ordering::Acquire);
        let left = Duration::from_nanos(self.server_left.load(Ordering::Acquire));
        let deadline = (deadline != NO_PROMISE).then(|| self.instant(deadline));
        let has_work = self.server_has_work.load(Ordering::Acquire);
        BandwidthServer::as_published(self.bandwidth, left, deadline, has_work)
    }

    /// Called with the gate held.
    fn take(&self, reply_by: u64, mandatory: Duration, is_background: bool) -> Result<SlotId, NotAdmitted> {
        let free = self.slots.iter().position(|slot| !slot.is_taken.load(Ordering::Acquire));
        let Some((idx, slot)) = free.and_then(|idx| Some((idx, self.slots.get(idx)?))) else {
            return Err(NotAdmitted::Full { num_slots: self.slots.len() });
        };
        slot.mandatory.store(nanoseconds(mandatory), Ordering::Release);
        slot.reply_by.store(reply_by, Ordering::Release);
        slot.is_background.store(is_background, Ordering::Release);
        slot.is_taken.store(true, Ordering::Release);
        Ok(SlotId(idx))
    }

    fn ns(&self, at: Instant) -> u64 {
        nanoseconds(at.saturating_duration_since(self.start)).min(NO_PROMISE - 1)
    }

    /// Beyond what the clock can show, the start: in the past.
    fn instant(&self, ns: u64) -> Instant {
        self.start.checked_add(Duration::from_nanos(ns)).unwrap_or(self.start)
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn ledger(num_slots: usize) -> (Arc<Ledger>, Instant) {
        let now = Instant::now();
        let bandwidth = Bandwidth { budget: Duration::ZERO, period: 50 * MS };
        (Ledger::new(num_slots, bandwidth, now), now)
    }

    #[test]
    fn promises_are_weighed_against_each_other_and_their_progress_makes_room() {
        let (ledger, now) = ledger(4);
        let promise = |by: u32, cost: u32| Promise { reply_by: now + by * MS, mandatory: cost * MS };
        let first = ledger.admit(promise(10, 8), Duration::ZERO, now).unwrap();
        let refused = ledger.admit(promise(10, 3), Duration::ZERO, now).unwrap_err();
        assert_eq!(refused, NotAdmitted::TooLate { earliest: Some(now + 11 * MS) });
        ledger.progress(first, 2 * MS);
        let second = ledger.admit(promise(10, 3), Duration::ZERO, now + 5 * MS).unwrap();
        assert_eq!(ledger.num_taken(), 2);
        ledger.release(first);
        ledger.release(second);
        assert_eq!(ledger.num_taken(), 0);
    }

    #[test]
    fn the_running_section_and_the_margin_count() {
        let (ledger, now) = ledger(4);
        ledger.begin_section(now + 4 * MS);
        let promise = Promise { reply_by: now + 10 * MS, mandatory: 5 * MS };
        let refused = ledger.admit(promise, 2 * MS, now).unwrap_err();
        assert_eq!(refused, NotAdmitted::TooLate { earliest: Some(now + 11 * MS) });
        ledger.end_section();
        assert!(ledger.admit(promise, 2 * MS, now).is_ok());
    }

    #[test]
    fn slots_bound_how_many_are_open() {
        let (ledger, now) = ledger(2);
        let slot = ledger.enter(Class::Interactive).unwrap();
        let promise = Promise { reply_by: now + MS, mandatory: Duration::ZERO };
        ledger.admit(promise, Duration::ZERO, now).unwrap();
        assert_eq!(ledger.admit(promise, Duration::ZERO, now), Err(NotAdmitted::Full { num_slots: 2 }));
        ledger.release(slot);
        assert_eq!(ledger.enter(Class::Interactive), Ok(slot));
    }

    #[test]
    fn work_that_is_promised_nothing_never_takes_every_slot() {
        let (ledger, now) = ledger(8);
        let enter_all =
            |class| std::iter::repeat_with(|| ledger.enter(class)).take_while(Result::is_ok).count();
        assert_eq!((enter_all(Class::Background), enter_all(Class::Interactive)), (2, 4));
        let promise = Promise { reply_by: now + MS, mandatory: Duration::ZERO };
        assert!(ledger.admit(promise, Duration::ZERO, now).is_ok());
    }

    #[test]
    fn many_threads_never_get_one_slot_twice() {
        let (ledger, now) = ledger(64);
        let slots: Vec<SlotId> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        let far = Promise { reply_by: now + Duration::from_secs(60), mandatory: MS };
                        (0..8).map(|_| ledger.admit(far, Duration::ZERO, now).unwrap()).collect::<Vec<_>>()
                    })
                })
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        let mut unique: Vec<usize> = slots.iter().map(|slot| slot.0).collect();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), 64);
    }
}
