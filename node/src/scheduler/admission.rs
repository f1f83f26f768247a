//! Whether a request is let in, decided on its arrival.
//!
//! Requests run in the order of their deadlines, in sections that end. A new one can be promised its deadline when, for it and
//! for every promise behind it (`algorithms`: Jeffay, Stanat and Martel, 1991, for non-preemptive sections; aperiodic, on arrival):
//!
//! ```text
//! now + rest of the running section + stall + background share until d + Σ mandatory cost of all with a deadline ≤ d  ≤  d
//! ```

use std::time::{Duration, Instant};

use super::bandwidth_server::BandwidthServer;

/// A promise given, or one that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promise {
    /// When the reply must leave.
    pub reply_by: Instant,
    /// Bound of what must still be computed for it.
    pub mandatory: Duration,
}

/// The device's time that is spoken for before any promise is worked on.
#[derive(Debug, Clone, Copy)]
pub struct Occupied<'a> {
    /// The present.
    pub now: Instant,
    /// Rest of the section that runs, and the stall every promise counts once.
    pub blocked: Duration,
    /// Background work's share.
    pub server: &'a BandwidthServer,
}

impl Occupied<'_> {
    /// Whether work of `sum` can be done by `reply_by`.
    fn allows(&self, sum: Duration, reply_by: Instant) -> bool {
        let room = reply_by.saturating_duration_since(self.now);
        self.blocked + self.server.demand_until(reply_by, self.now) + sum <= room
    }

    /// Whether a promise is broken whatever is done, so that it must not keep others out: its work alone, without any reserve, takes
    /// longer than is left.
    fn is_hopeless(&self, sum: Duration, reply_by: Instant) -> bool {
        sum > reply_by.saturating_duration_since(self.now)
    }
}

/// Whether `new` can be promised beside `promises`, which are sorted by `reply_by`.
///
/// # Errors
/// The earliest reply that could be promised instead; `None` when no finite one could.
pub fn admit(new: Promise, promises: &[Promise], occupied: &Occupied<'_>) -> Result<(), Option<Instant>> {
    let is_ahead = |promise: &&Promise| promise.reply_by <= new.reply_by;
    let num_ahead = promises.iter().take_while(is_ahead).count();
    let (ahead, behind) = promises.split_at(num_ahead);
    let mut sum: Duration = ahead.iter().map(|promise| promise.mandatory).sum::<Duration>() + new.mandatory;
    let mut fits = occupied.allows(sum, new.reply_by);
    for promise in behind {
        sum += promise.mandatory;
        fits &= occupied.allows(sum, promise.reply_by)
            || occupied.is_hopeless(sum - new.mandatory, promise.reply_by);
    }
    if fits { Ok(()) } else { Err(earliest(new.mandatory, promises, occupied)) }
}

/// The earliest `reply_by` at which work of `mandatory` can be promised beside `promises`.
#[must_use]
pub fn earliest(mandatory: Duration, promises: &[Promise], occupied: &Occupied<'_>) -> Option<Instant> {
    // It may stand ahead of a promise only if that one, and all behind it, can wait for it.
    let total: Duration = promises.iter().map(|promise| promise.mandatory).sum();
    let (mut sum, mut first_place) = (total, promises.len());
    for (idx, promise) in promises.iter().enumerate().rev() {
        let can_wait = occupied.allows(sum + mandatory, promise.reply_by);
        if !can_wait && !occupied.is_hopeless(sum, promise.reply_by) {
            break;
        }
        first_place = idx;
        sum -= promise.mandatory;
    }
    // `sum` is what stands ahead of `first_place`.
    let mut place = first_place;
    loop {
        let after =
            place.checked_sub(1).and_then(|idx| promises.get(idx)).map_or(occupied.now, |p| p.reply_by);
        let done = completion(sum + mandatory, occupied)?.max(after);
        match promises.get(place) {
            // Behind that promise it would count against `done`, too: look there.
            Some(next) if done >= next.reply_by => {
                sum += next.mandatory;
                place += 1;
            }
            _ => return Some(done),
        }
    }
}

/// When work of `sum` is done with the server's share taken off; `None` when the share leaves nothing.
fn completion(sum: Duration, occupied: &Occupied<'_>) -> Option<Instant> {
    let mut done = occupied.now.checked_add(occupied.blocked)?.checked_add(sum)?;
    // The server's demand grows slower than the time it is asked for, so this ends, unless its share is the whole device.
    for _ in 0..MAX_ROUNDS {
        let demand = occupied.server.demand_until(done, occupied.now);
        let next = occupied.now.checked_add(occupied.blocked)?.checked_add(sum)?.checked_add(demand)?;
        if next <= done {
            return Some(done);
        }
        if next.saturating_duration_since(done) < RESOLUTION {
            return next.checked_add(RESOLUTION);
        }
        done = next;
    }
    None
}

/// Rounds of the fixed point above; with a share of a half it needs about thirty.
const MAX_ROUNDS: usize = 10_000;
/// How exactly it is found.
const RESOLUTION: Duration = Duration::from_nanos(100);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::bandwidth_server::Bandwidth, *};

    const MS: Duration = Duration::from_millis(1);

    fn server(budget_ms: u32) -> BandwidthServer {
        BandwidthServer::new(Bandwidth { budget: budget_ms * MS, period: 20 * MS })
    }

    fn promises(now: Instant, of: &[(u32, u32)]) -> Vec<Promise> {
        let mut promises: Vec<Promise> =
            of.iter().map(|&(by, cost)| Promise { reply_by: now + by * MS, mandatory: cost * MS }).collect();
        promises.sort_by_key(|promise| promise.reply_by);
        promises
    }

    /// The oracle: plays work millisecond by millisecond, always the earliest deadline; true when all are in time.
    fn plays_in_time(promises: &[Promise], now: Instant, blocked: u32) -> bool {
        let mut left: Vec<(Instant, u128)> =
            promises.iter().map(|p| (p.reply_by, p.mandatory.as_millis())).collect();
        let mut clock = now + blocked * MS;
        loop {
            let next = left.iter_mut().filter(|(_, left)| *left > 0).min_by_key(|(by, _)| *by);
            let Some((by, left)) = next else { return true };
            *left -= 1;
            clock += MS;
            if clock > *by {
                return false;
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn admits_exactly_what_a_schedule_by_deadlines_keeps_and_names_the_earliest_that_would_do(
            held in prop::collection::vec((1_u32..60, 0_u32..12), 0..7), by in 1_u32..60, cost in 1_u32..15, blocked in 0_u32..6,
        ) {
            let (now, server) = (Instant::now(), server(0));
            let occupied = Occupied { now, blocked: blocked * MS, server: &server };
            let mut kept: Vec<Promise> = Vec::new();
            for promise in promises(now, &held) {
                if plays_in_time(&[&kept[..], &[promise]].concat(), now, blocked) {
                    kept.push(promise);
                }
            }
            let plays = |by: Instant| {
                plays_in_time(&[&kept[..], &[Promise { reply_by: by, mandatory: cost * MS }]].concat(), now, blocked)
            };
            let new = Promise { reply_by: now + by * MS, mandatory: cost * MS };
            match admit(new, &kept, &occupied) {
                Ok(()) => prop_assert!(plays(new.reply_by), "admitted, but cannot be kept"),
                Err(earliest) => {
                    prop_assert!(!plays(new.reply_by), "refused, but could be kept");
                    let earliest = earliest.unwrap();
                    prop_assert!(plays(earliest), "{:?} is said to do, but does not", earliest - now);
                    prop_assert!(!plays(earliest - MS), "{:?} would do as well", earliest - MS - now);
                }
            }
        }
    }

    #[test]
    fn background_work_keeps_its_share() {
        let now = Instant::now();
        let [none, quarter, whole] = [0, 5, 20].map(server);
        let occupied = |server| Occupied { now, blocked: Duration::ZERO, server };
        let new = |by: u32| Promise { reply_by: now + by * MS, mandatory: 30 * MS };
        assert_eq!(admit(new(30), &[], &occupied(&none)), Ok(()));
        // A quarter of the time: 30 ms of work take 40.
        let refused = admit(new(39), &[], &occupied(&quarter)).unwrap_err().unwrap();
        assert!(refused >= now + 40 * MS && refused < now + 40 * MS + MS / 1000, "{:?}", refused - now);
        assert_eq!(admit(new(40), &[], &occupied(&quarter)), Ok(()));
        assert_eq!(admit(new(50), &[], &occupied(&whole)), Err(None), "the share leaves nothing");
    }

    #[test]
    fn a_promise_that_is_broken_already_keeps_nobody_out() {
        let now = Instant::now();
        let server = server(0);
        let occupied = Occupied { now, blocked: Duration::ZERO, server: &server };
        let broken = promises(now, &[(5, 50)]);
        let new = Promise { reply_by: now + 4 * MS, mandatory: MS };
        assert_eq!(admit(new, &broken, &occupied), Ok(()));
    }
}
