//! What the next section computes: a pure function of (jobs, now, costs).
//!
//! Mandatory work goes in the order of deadlines; everything beyond a first token is optional and runs in the slack. The
//! planner tries drafts from the richest to the leanest and takes the first that is safe:
//!
//! 1. every decoding lane and a slice of the first prompt in order,
//! 2. the decoding lanes ahead of that prompt, and the slice,
//! 3. the slice alone, or the decoding lanes alone: whoever is first in order first,
//! 4. fewer and fewer decoding lanes,
//! 5. a slice of the first promised prompt alone, which is what promises count on.
//!
//! Where no section may be longer than a limit, lanes that would make a decode step so wait, the latest deadlines first, and no slice joins
//! those that do not.

use std::time::Duration;

use takt_engine::kv::LaneId;

use super::{
    class::Class,
    cut::is_out_of_time,
    job::{Job, Phase, is_late, longest_slice},
    round::Round,
    safety::{Draft, Situation, is_safe},
};

/// The planner's decision; buffers are kept from section to section.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Section {
    /// Lanes whose request is out of time.
    pub cut: Vec<LaneId>,
    /// Lanes that advance by one token, in order of their deadlines.
    pub decodes: Vec<LaneId>,
    /// Forced tokens computed along with them, in that order.
    pub num_forced: usize,
    /// What their round of speculation may use; `None` for a plain decode step.
    pub round: Option<Round>,
    /// Lane that reads more of its prompt, and how many tokens.
    pub prefill: Option<(LaneId, usize)>,
    /// How long it may take: whoever must reply within that time, and is not in it, has to be ended before it.
    pub bound: Duration,
    /// Indices of the decoding jobs, for the planner itself.
    decoding: Vec<usize>,
}

impl Section {
    /// True when there is nothing to compute.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.decodes.is_empty() && self.prefill.is_none()
    }

    fn set(&mut self, num_decodes: usize, slice: Option<(usize, usize)>, jobs: &[Job]) {
        let lane = |idx: usize| jobs.get(idx).and_then(|job| job.lane);
        self.decodes.extend(self.decoding.iter().take(num_decodes).filter_map(|&idx| lane(idx)));
        self.prefill = slice.and_then(|(idx, len)| Some((lane(idx)?, len)));
    }
}

/// Plans the next section into `section`. `jobs` must be sorted by rank; those without a lane only count as promises.
pub fn plan(jobs: &[Job], situation: &Situation<'_>, section: &mut Section) {
    let Situation { now, limits, bounds, .. } = *situation;
    section.cut.clear();
    section.decodes.clear();
    section.decoding.clear();
    section.prefill = None;
    section.num_forced = 0;
    section.round = None;
    let mut reading = Reading::default();
    for (idx, job) in jobs.iter().enumerate() {
        let Some(lane) = job.lane else { continue };
        if is_out_of_time(job, now, limits, bounds) {
            section.cut.push(lane);
        } else if job.phase == Phase::Decode {
            if section.decoding.len() < limits.max_step_tokens {
                section.decoding.push(idx);
            } // else more lanes than a step holds: the latest deadlines wait
        } else {
            reading.first.get_or_insert(idx);
            if job.class == Class::Control {
                reading.promised.get_or_insert(idx);
            }
        }
    }
    let (num_decodes, slice) = choose(jobs, &section.decoding, reading, situation);
    let alone = Draft { decodes: &section.decoding[..num_decodes], slice, ..Draft::default() };
    section.num_forced = num_forced(&alone, jobs, situation);
    let plain = Draft { num_forced: section.num_forced, ..alone };
    if let Some((round, num_forced)) = round(&plain, jobs, situation) {
        (section.round, section.num_forced) = (Some(round), num_forced);
    }
    let draft = Draft { round: section.round, num_forced: section.num_forced, ..plain };
    // A round that turns out not to be worth it is a plain step after all.
    section.bound = draft.cost(jobs, bounds).max(plain.cost(jobs, bounds));
    let outlasted = jobs.iter().enumerate().filter(|(idx, job)| {
        !draft.decodes.contains(idx)
            && slice.is_none_or(|(slice_idx, _)| slice_idx != *idx)
            && job.reply_by(limits).is_some_and(|reply_by| is_late(now + section.bound, reply_by))
    });
    for lane in outlasted.filter_map(|(_, job)| job.lane) {
        if !section.cut.contains(&lane) {
            section.cut.push(lane);
        }
    }
    section.set(num_decodes, slice, jobs);
}

/// Jobs that read their prompts: the first in order, and the first with a promise.
#[derive(Debug, Clone, Copy, Default)]
struct Reading {
    first: Option<usize>,
    promised: Option<usize>,
}

/// How many of the decoding jobs advance, and the slice.
fn choose(
    jobs: &[Job],
    decoding: &[usize],
    reading: Reading,
    situation: &Situation<'_>,
) -> (usize, Option<(usize, usize)>) {
    let decoding = &decoding[..num_within_limit(decoding, jobs, situation)];
    let num_ahead =
        reading.first.map_or(decoding.len(), |reading| decoding.partition_point(|&idx| idx < reading));
    let slice = |num_decodes: usize, reading: Option<usize>| {
        let slice = slice_beside(&decoding[..num_decodes], reading?, jobs, situation);
        slice.map(|slice| (num_decodes, Some(slice)))
    };
    let is_reading_first = num_ahead == 0;
    let richest = [slice(decoding.len(), reading.first), slice(num_ahead, reading.first)];
    let alone = [
        slice(0, reading.first).filter(|_| is_reading_first),
        Some((decoding.len(), None)),
        slice(0, reading.first),
    ];
    let halves = std::iter::successors(Some(decoding.len()), |&num| (num > 1).then_some(num / 2));
    let promised = slice(0, reading.promised);
    let drafts =
        richest.into_iter().chain(alone).flatten().chain(halves.map(|num| (num, None))).chain(promised);
    for (num_decodes, slice) in drafts {
        let draft = Draft { decodes: &decoding[..num_decodes], slice, ..Draft::default() };
        if !draft.is_empty() && !is_too_long(&draft, jobs, situation) && is_safe(&draft, jobs, situation) {
            return (num_decodes, slice);
        }
    }
    // Nothing is safe: sections took longer than their bounds. What promises count on goes first.
    let rest = if decoding.is_empty() { slice(0, reading.first) } else { None };
    promised.or(rest).unwrap_or((decoding.len().min(1), None))
}

/// As many of the decoding jobs as a decode step may have that is not longer than any section may be; at least one, where there is one.
fn num_within_limit(decoding: &[usize], jobs: &[Job], situation: &Situation<'_>) -> usize {
    let fits = |&num: &usize| {
        let draft = Draft { decodes: &decoding[..num], ..Draft::default() };
        !is_too_long(&draft, jobs, situation)
    };
    (1..=decoding.len()).rev().find(fits).unwrap_or(0)
}

/// Whether `draft` takes longer than any section may, and something shorter is possible: fewer lanes, or a lane or a slice alone.
fn is_too_long(draft: &Draft<'_>, jobs: &[Job], situation: &Situation<'_>) -> bool {
    let is_least = draft.decodes.len() + usize::from(draft.slice.is_some()) == 1;
    !is_least && situation.limits.is_too_long(draft.cost(jobs, situation.bounds))
}

/// How many forced tokens may be computed along with `draft`: those for which a decode step has room as measured, when that is safe.
fn num_forced(draft: &Draft<'_>, jobs: &[Job], situation: &Situation<'_>) -> usize {
    let waiting: usize =
        draft.decodes.iter().filter_map(|&idx| jobs.get(idx)).map(|job| job.num_forced).sum();
    let room = situation.bounds.max_decode_size().min(situation.limits.max_step_tokens);
    let most = waiting.min(room.saturating_sub(draft.decodes.len()));
    let is_free = draft.slice.is_none() && most > 0;
    let along = Draft { num_forced: most, ..*draft };
    let fits = || along.cost(jobs, situation.bounds) <= situation.limits.max_section;
    if is_free && fits() && is_safe(&along, jobs, situation) { most } else { 0 }
}

/// The largest round, of the one wished for and its halves, that may take the place of `plain`: safe, and not longer than a section may be. So
/// near a deadline, or while a promise presses, decoding is plain. With it the forced tokens that it computes: all, for they are proposals that
/// cannot fail.
fn round(plain: &Draft<'_>, jobs: &[Job], situation: &Situation<'_>) -> Option<(Round, usize)> {
    let wished = situation.round.filter(|_| plain.slice.is_none() && !plain.decodes.is_empty())?;
    let forced = plain.decodes.iter().filter_map(|&idx| jobs.get(idx)).map(|job| job.num_forced).sum();
    let plain_end = situation.now + plain.cost(jobs, situation.bounds);
    // Nobody who could wait for a plain step is ended because of a round.
    let outlasts = |draft: &Draft<'_>| {
        let end = situation.now + draft.cost(jobs, situation.bounds);
        jobs.iter().enumerate().filter(|(idx, _)| !draft.decodes.contains(idx)).any(|(_, job)| {
            let reply_by = job.reply_by(situation.limits);
            reply_by.is_some_and(|reply_by| is_late(end, reply_by) && !is_late(plain_end, reply_by))
        })
    };
    std::iter::successors(Some(wished), |round| round.halved()).find_map(|round| {
        let is_possible = |&num_forced: &usize| {
            let draft = Draft { round: Some(round), num_forced, ..*plain };
            round.fits(plain.decodes.len() + num_forced)
                && draft.cost(jobs, situation.bounds) <= situation.limits.max_section
                && !outlasts(&draft)
                && is_safe(&draft, jobs, situation)
        };
        Some((round, [forced, plain.num_forced].into_iter().find(is_possible)?))
    })
}

/// A slice of job `reading` beside `decodes`, short enough for the limits and for the replies of those beside it; `None` when not
/// even one token is.
fn slice_beside(
    decodes: &[usize],
    reading: usize,
    jobs: &[Job],
    situation: &Situation<'_>,
) -> Option<(usize, usize)> {
    let Situation { now, limits, bounds, .. } = *situation;
    let job = jobs.get(reading)?;
    let Phase::Prefill { remaining, until_stop } = job.phase else { return None };
    if decodes.len() >= limits.max_step_tokens {
        return None;
    }
    let contexts = decodes.iter().filter_map(|&idx| jobs.get(idx)).map(|job| job.context_len + 1);
    let context_len = contexts.max().unwrap_or(0).max(job.context_len);
    let most = remaining.min(until_stop).min(limits.slice_len(decodes.len(), context_len, bounds));
    let beside = decodes.iter().filter_map(|&idx| jobs.get(idx)?.reply_by(limits));
    let len = match beside.min() {
        Some(first) => {
            longest_slice(most, first.saturating_duration_since(now), decodes.len(), context_len, bounds)
        }
        None => most,
    };
    (len > 0).then_some((reading, len))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::scheduler::{
        bandwidth_server::{Bandwidth, BandwidthServer},
        cost_table::{Cost, CostTable, Grid},
        edf::Rank,
        job::Limits,
    };

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn forced_tokens_ride_along_only_where_no_promise_is_endangered() {
        let grid = Grid {
            prefill_sizes: vec![8],
            decode_sizes: vec![1, 4],
            verify_sizes: vec![4],
            draft_sizes: Vec::new(),
            context_lens: vec![1000],
        };
        let costs: Vec<Cost> = [5, 1, 4, 9].map(|ms| Cost::exactly(ms * MS)).into();
        let table = CostTable::with_margin(grid, &costs, 1.0);
        let mut limits = Limits {
            max_prefill_slice_tokens: 8,
            max_step_tokens: 16,
            max_section: 10 * MS,
            max_any_section: None,
            idle_gap: Duration::ZERO,
            reply_margin: Duration::ZERO,
        };
        let now = Instant::now();
        let server = BandwidthServer::new(Bandwidth { budget: Duration::ZERO, period: 100 * MS });
        let job = |lane: Option<usize>, deadline_ms: u32, phase, num_forced, mandatory| Job {
            lane: lane.map(LaneId),
            class: Class::Control,
            rank: Rank { deadline: Some(now + deadline_ms * MS), ticket: u64::from(deadline_ms) },
            phase,
            context_len: 5,
            num_forced,
            has_form: false,
            mandatory,
        };
        let reading = Phase::Prefill { remaining: 8, until_stop: 8 };
        let planned = |limits: &Limits, waiting_until_ms: u32, num_forced: usize| {
            let decoding = job(Some(0), 50, Phase::Decode, num_forced, Duration::ZERO);
            let waiting = job(None, waiting_until_ms, reading, 0, 5 * MS);
            let mut jobs = [decoding, waiting];
            jobs.sort_unstable_by_key(|job| job.rank);
            let situation = Situation { now, limits, bounds: table.bounds(), server: &server, round: None };
            let mut section = Section::default();
            plan(&jobs, &situation, &mut section);
            assert_eq!(section.decodes, [LaneId(0)]);
            (section.num_forced, section.bound)
        };
        assert_eq!(planned(&limits, 20, 2), (2, 4 * MS));
        assert_eq!(planned(&limits, 20, 9), (3, 4 * MS), "no more than a decode step was measured with");
        assert_eq!(planned(&limits, 20, 0), (0, MS));
        assert_eq!(planned(&limits, 7, 3), (0, MS), "5 ms are owed by then");
        limits.max_section = 2 * MS;
        assert_eq!(planned(&limits, 20, 3), (0, MS), "longer than a section may be");
    }

    #[test]
    fn a_strict_limit_makes_lanes_take_turns_and_keeps_slices_away() {
        let grid = Grid {
            prefill_sizes: vec![1, 8],
            decode_sizes: vec![1, 2, 4],
            verify_sizes: vec![4],
            draft_sizes: Vec::new(),
            context_lens: vec![1000],
        };
        // A slice of 1 takes 1 ms, of 8 5 ms; decode steps of 1, 2 and 4 lanes 2, 3 and 6 ms.
        let costs: Vec<Cost> = [1, 5, 2, 3, 6, 9].map(|ms| Cost::exactly(ms * MS)).into();
        let table = CostTable::with_margin(grid, &costs, 1.0);
        let now = Instant::now();
        let server = BandwidthServer::new(Bandwidth { budget: Duration::ZERO, period: 100 * MS });
        let planned = |max_any_section: Option<Duration>, num_decoding: usize, reads_by: Option<u32>| {
            let job = |lane: usize, deadline_ms: u32, phase| Job {
                lane: Some(LaneId(lane)),
                class: Class::Interactive,
                rank: Rank { deadline: Some(now + deadline_ms * MS), ticket: lane as u64 },
                phase,
                context_len: 5,
                num_forced: 0,
                has_form: false,
                mandatory: Duration::ZERO,
            };
            let deadline_ms = |lane: usize| 1000 + 100 * u32::try_from(lane).unwrap();
            let mut jobs: Vec<Job> =
                (0..num_decoding).map(|lane| job(lane, deadline_ms(lane), Phase::Decode)).collect();
            let reading = Phase::Prefill { remaining: 8, until_stop: 8 };
            jobs.extend(reads_by.map(|deadline_ms| job(9, deadline_ms, reading)));
            jobs.sort_unstable_by_key(|job| job.rank);
            let limits = Limits {
                max_prefill_slice_tokens: 8,
                max_step_tokens: 16,
                max_section: max_any_section.unwrap_or(20 * MS).min(20 * MS),
                max_any_section,
                idle_gap: Duration::ZERO,
                reply_margin: Duration::ZERO,
            };
            let situation =
                Situation { now, limits: &limits, bounds: table.bounds(), server: &server, round: None };
            let mut section = Section::default();
            plan(&jobs, &situation, &mut section);
            assert_eq!(section.decodes, (0..section.decodes.len()).map(LaneId).collect::<Vec<_>>());
            (section.decodes.len(), section.prefill.map(|(_, len)| len))
        };
        let last = Some(2000);
        assert_eq!(planned(None, 4, last), (4, Some(8)));
        assert_eq!(planned(Some(20 * MS), 4, last), (4, Some(8)));
        assert_eq!(planned(Some(5 * MS), 4, None), (2, None), "three count as four");
        assert_eq!(planned(Some(3 * MS), 2, last), (2, None), "no room for a token of the prompt");
        assert_eq!(planned(Some(4 * MS), 2, last), (2, Some(1)));
        assert_eq!(planned(Some(MS), 4, None), (1, None), "nothing shorter is possible");
        assert_eq!(planned(Some(MS / 2), 0, last), (0, Some(1)));
        // It waits for those before it, and for nobody else.
        assert_eq!(planned(Some(3 * MS), 2, Some(1050)), (1, Some(1)), "beside the one before it");
        assert_eq!(planned(Some(2 * MS), 2, Some(1050)), (1, None), "no room beside it");
        assert_eq!(planned(Some(2 * MS), 2, Some(950)), (0, Some(1)), "its turn: a slice alone");
    }

    #[test]
    fn a_round_takes_the_place_of_a_decode_step_where_no_promise_is_endangered_and_shrinks_with_the_room() {
        let grid = Grid {
            prefill_sizes: vec![8],
            decode_sizes: vec![1, 4],
            verify_sizes: vec![4, 16],
            draft_sizes: vec![1, 4],
            context_lens: vec![1000],
        };
        // A decode step takes 1 ms; verifying 2 or 4, a level of drafting 1.
        let costs: Vec<Cost> = [5, 1, 1, 2, 4, 1, 1].map(|ms| Cost::exactly(ms * MS)).into();
        let table = CostTable::with_margin(grid, &costs, 1.0);
        let limits = Limits {
            max_prefill_slice_tokens: 8,
            max_step_tokens: 64,
            max_section: 10 * MS,
            max_any_section: None,
            idle_gap: Duration::ZERO,
            reply_margin: Duration::ZERO,
        };
        let wished = Round { num_levels: 4, top_k: 2, num_proposals: 8, max_nodes: 64, has_head: true };
        let now = Instant::now();
        let server = BandwidthServer::new(Bandwidth { budget: Duration::ZERO, period: 100 * MS });
        let planned = |reply_ms: u32, waiting_ms: Option<u32>, reads: bool| {
            let job = |lane: Option<usize>, deadline_ms: u32, phase, mandatory| Job {
                lane: lane.map(LaneId),
                class: Class::Control,
                rank: Rank { deadline: Some(now + deadline_ms * MS), ticket: u64::from(deadline_ms) },
                phase,
                context_len: 5,
                num_forced: 0,
                has_form: false,
                mandatory,
            };
            let reading = Phase::Prefill { remaining: 8, until_stop: 8 };
            let mut jobs = vec![job(Some(0), reply_ms, Phase::Decode, Duration::ZERO)];
            jobs.extend(waiting_ms.map(|ms| job(None, ms, reading, 5 * MS)));
            jobs.extend(reads.then(|| job(Some(1), 60, reading, 5 * MS)));
            jobs.sort_unstable_by_key(|job| job.rank);
            let situation = Situation {
                now,
                limits: &limits,
                bounds: table.bounds(),
                server: &server,
                round: Some(wished),
            };
            let mut section = Section::default();
            plan(&jobs, &situation, &mut section);
            assert_eq!(section.decodes, [LaneId(0)]);
            (section.round.map(|round| (round.num_levels, round.num_proposals)), section.bound)
        };
        assert_eq!(planned(50, None, false), (Some((4, 8)), 8 * MS));
        assert_eq!(planned(7, None, false), (Some((2, 4)), 6 * MS), "the reply is due in 7 ms");
        assert_eq!(planned(4, None, false), (Some((1, 2)), 3 * MS));
        assert_eq!(planned(2, None, false), (None, MS), "near the deadline");
        assert_eq!(planned(50, Some(13), false), (Some((4, 8)), 8 * MS));
        assert_eq!(planned(50, Some(12), false), (Some((2, 4)), 6 * MS), "5 ms are owed by then");
        assert_eq!(planned(50, Some(7), false), (None, MS));
        assert_eq!(planned(50, None, true).0, None, "a prompt's slice goes along with plain steps");
    }
}
