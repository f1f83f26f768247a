//! Whose lane goes to a request that waits while all lanes are in use.

use takt_engine::kv::LaneId;

use super::{
    class::Class,
    job::{Job, Phase},
};

/// The lane to take for `waiting` from `holders`: that of the least urgent one that `waiting` goes ahead of.
///
/// Only a control loop's request takes a lane from others with a deadline. Those that have their first token, so that nothing
/// is owed to them, come last among their own; `is_pressed` says that `waiting` can wait no longer for what is owed to it, and
/// then it goes ahead of them whatever their deadlines. Background work takes no lane, and keeps its last one where there are
/// others, or its share of the time would be worth nothing.
#[must_use]
pub fn victim(waiting: &Job, is_pressed: bool, holders: &[Job]) -> Option<LaneId> {
    let num_background = holders.iter().filter(|job| job.class == Class::Background).count();
    let is_spared = |job: &Job| job.class == Class::Background && num_background == 1 && holders.len() > 1;
    let is_owed = |job: &Job| matches!(job.phase, Phase::Prefill { .. });
    let goes_ahead = |job: &Job| match (waiting.class, job.class) {
        (Class::Background, _) => false,
        (Class::Interactive, of) => of == Class::Background,
        (Class::Control, Class::Control) => match (is_owed(waiting), is_owed(job)) {
            (true, false) => is_pressed || waiting.rank < job.rank,
            (false, true) => false,
            _ => waiting.rank < job.rank,
        },
        (Class::Control, _) => true,
    };
    let candidates = holders.iter().filter(|job| job.lane.is_some() && !is_spared(job) && goes_ahead(job));
    candidates.max_by_key(|job| (job.class, !is_owed(job), job.rank))?.lane
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::scheduler::edf::Rank;

    #[test]
    fn the_least_urgent_lane_is_taken_and_only_for_somebody_more_urgent() {
        let now = Instant::now();
        let job = |lane: Option<usize>, class, deadline_ms: u64| Job {
            lane: lane.map(LaneId),
            class,
            rank: Rank { deadline: Some(now + Duration::from_millis(deadline_ms)), ticket: 0 },
            phase: Phase::Decode,
            context_len: 1,
            num_forced: 0,
            has_form: false,
            mandatory: Duration::ZERO,
        };
        use Class::{Background, Control, Interactive};
        let control = |ms| job(None, Control, ms);
        let lanes = [job(Some(0), Control, 50), job(Some(1), Background, 10), job(Some(2), Interactive, 90)];
        assert_eq!(
            victim(&control(99), false, &lanes),
            Some(LaneId(2)),
            "the last background lane is spared"
        );
        assert_eq!(
            victim(&control(99), false, &lanes[1..2]),
            Some(LaneId(1)),
            "where it is not the only one"
        );
        let two = [lanes[0], lanes[1], job(Some(3), Background, 20)];
        assert_eq!(victim(&control(99), false, &two), Some(LaneId(3)));
        assert_eq!(victim(&job(None, Interactive, 1), false, &two), Some(LaneId(3)));
        assert_eq!(victim(&control(99), false, &[lanes[0], lanes[2]]), Some(LaneId(2)));
        assert_eq!(victim(&job(None, Interactive, 1), false, &[lanes[0], lanes[2]]), None);
        assert_eq!(victim(&control(40), false, &lanes[..1]), Some(LaneId(0)));
        assert_eq!(victim(&control(60), false, &lanes[..1]), None);
        assert_eq!(victim(&job(None, Background, 1), false, &lanes), None);
        assert_eq!(victim(&control(1), false, &[]), None);
    }

    #[test]
    fn who_has_a_first_token_makes_room_for_a_promise_that_can_wait_no_longer_and_does_not_take_it_back() {
        let now = Instant::now();
        let job = |lane: Option<usize>, deadline_ms: u64, phase| Job {
            lane: lane.map(LaneId),
            class: Class::Control,
            rank: Rank { deadline: Some(now + Duration::from_millis(deadline_ms)), ticket: 0 },
            phase,
            context_len: 1,
            num_forced: 0,
            has_form: false,
            mandatory: Duration::ZERO,
        };
        let reads = Phase::Prefill { remaining: 5, until_stop: 5 };
        let holders = [job(Some(0), 20, Phase::Decode), job(Some(1), 10, reads)];
        assert_eq!(victim(&job(None, 50, reads), false, &holders), None);
        assert_eq!(victim(&job(None, 50, reads), true, &holders), Some(LaneId(0)));
        let after = [job(Some(0), 50, reads), job(Some(1), 10, reads)];
        assert_eq!(victim(&job(None, 20, Phase::Decode), true, &after), None);
        assert_eq!(victim(&job(None, 5, reads), false, &after), Some(LaneId(0)));
    }
}
