//! What a section may not do: make a reply late, or a promise impossible to keep.

use std::time::{Duration, Instant};

use super::{
    bandwidth_server::BandwidthServer,
    class::Class,
    cost_table::Bounds,
    edf::Rank,
    job::{Job, Limits, Phase, TOLERANCE, is_late, mandatory_after, section_cost},
    round::Round,
};

/// What a decision is made from, besides the jobs.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// The present.
    pub now: Instant,
    /// Bounds of a section.
    pub limits: &'a Limits,
    /// What sections cost at most.
    pub bounds: &'a Bounds,
    /// Background work's share.
    pub server: &'a BandwidthServer,
    /// What speculation would like to use instead of a decode step.
    pub round: Option<Round>,
}

/// A section that could run next; indices are those of the jobs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Draft<'a> {
    /// Jobs that advance by one token.
    pub decodes: &'a [usize],
    /// Forced tokens of theirs that are computed along.
    pub num_forced: usize,
    /// Job that reads more of its prompt, and how many tokens.
    pub slice: Option<(usize, usize)>,
    /// The round that takes the place of the decode step; never beside a slice.
    pub round: Option<Round>,
}

impl Draft<'_> {
    /// True when it computes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.decodes.is_empty() && self.slice.is_none()
    }

    /// Its bound.
    #[must_use]
    pub fn cost(&self, jobs: &[Job], bounds: &Bounds) -> Duration {
        let context = |idx: usize| jobs.get(idx).map_or(0, |job| job.context_len);
        let decoding = self.decodes.iter().map(|&idx| context(idx) + 1 + self.num_forced).max().unwrap_or(0);
        if let Some(round) = self.round {
            let context_len = self.decodes.iter().map(|&idx| context(idx)).max().unwrap_or(0);
            let (num_lanes, num_forms) =
                (self.decodes.len(), self.members(jobs).filter(|job| job.has_form).count());
            return round.cost(num_lanes, num_lanes + self.num_forced, context_len, num_forms, bounds);
        }
        let (slice_len, reading) = self.slice.map_or((0, 0), |(idx, len)| (len, context(idx) + len));
        let masks: Duration = self.members(jobs).map(|job| job.mask_cost(bounds)).sum();
        section_cost(self.decodes.len() + self.num_forced, slice_len, decoding.max(reading), bounds) + masks
    }

    fn members<'j>(&'j self, jobs: &'j [Job]) -> impl Iterator<Item = &'j Job> {
        self.decodes.iter().copied().chain(self.slice.map(|(idx, _)| idx)).filter_map(|idx| jobs.get(idx))
    }
}

/// Whether `draft` may run: all its members can still reply in time after it, and every promise of `jobs` (sorted by rank,
/// those that wait included) that could be kept before it can be kept after it.
#[must_use]
pub fn is_safe(draft: &Draft<'_>, jobs: &[Job], situation: &Situation<'_>) -> bool {
    let Situation { now, limits, bounds, server, .. } = *situation;
    let cost = draft.cost(jobs, bounds);
    if draft
        .members(jobs)
        .any(|job| job.reply_by(limits).is_some_and(|reply_by| is_late(now + cost, reply_by)))
    {
        return false;
    }
    let stall = bounds.stall();
    // Its own reply leaves when it ends; whoever comes next waits for the gap behind it, too.
    let (mut before, mut after) = (Duration::ZERO, cost + limits.idle_gap);
    for (idx, job) in jobs.iter().enumerate() {
        // Who has a first token is owed nothing more, and is cut before a section that would outlast it.
        let is_owed = job.class == Class::Control && job.phase != Phase::Decode;
        let Some(reply_by) = job.reply_by(limits).filter(|_| is_owed) else { continue };
        before += job.mandatory;
        after += match draft.slice {
            Some((slice_idx, len)) if slice_idx == idx => mandatory_after(job, len, limits, bounds),
            _ => job.mandatory,
        };
        let room = reply_by.saturating_duration_since(now);
        let share = server.demand_until(reply_by, now);
        // With all reserves; and when those are gone already, with what is left of them.
        let is_kept = |work: Duration, reserve: Duration| work + reserve <= room + TOLERANCE;
        let breaks = |reserve: Duration| is_kept(before, reserve) && !is_kept(after, reserve);
        if [stall + share, share, Duration::ZERO].into_iter().any(breaks) {
            return false;
        }
    }
    true
}

/// Whether `job`, which waits for a lane, must not wait for one more section of `num_lanes` lanes: its own promise or one behind it,
/// which counts on `job` being done by then, could no longer be kept.
#[must_use]
pub fn is_pressed(job: &Job, jobs: &[Job], num_lanes: usize, situation: &Situation<'_>) -> bool {
    let Situation { now, limits, bounds, server, .. } = *situation;
    let context_len = jobs.iter().map(|other| other.context_len).max().unwrap_or(0);
    let slice_len = limits.slice_len(num_lanes, context_len, bounds);
    let masks: Duration = jobs.iter().take(num_lanes).map(|other| other.mask_cost(bounds)).sum();
    let longest =
        section_cost(num_lanes, slice_len, context_len + slice_len, bounds) + masks + limits.idle_gap;
    let owed = jobs
        .iter()
        .chain([job])
        .filter(|other| other.class == Class::Control && matches!(other.phase, Phase::Prefill { .. }));
    let work_until = |rank: Rank| -> Duration {
        owed.clone().filter(|other| other.rank <= rank).map(|other| other.mandatory).sum()
    };
    owed.clone().filter(|other| other.rank >= job.rank).any(|other| {
        let Some(reply_by) = other.reply_by(limits) else { return false };
        let taken = work_until(other.rank) + server.demand_until(reply_by, now) + bounds.stall() + longest;
        taken > reply_by.saturating_duration_since(now)
    })
}
