//! A request as the planner sees it.

use std::time::{Duration, Instant};

use takt_engine::kv::LaneId;

use super::{
    class::Class,
    cost_table::{Bounds, SectionKind, SectionShape},
    edf::Rank,
};

/// An admitted request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Job {
    /// The lane it holds; `None` while it waits for one.
    pub lane: Option<LaneId>,
    /// What it is promised.
    pub class: Class,
    /// Its place in the order; background work runs under its server's deadline.
    pub rank: Rank,
    /// What it needs next.
    pub phase: Phase,
    /// Tokens in its lane.
    pub context_len: usize,
    /// Tokens that a grammar has added behind the one to be decoded: they may be computed along with it.
    pub num_forced: usize,
    /// Whether its answer has a form, so that choosing a token costs a mask.
    pub has_form: bool,
    /// Bound of what must still be computed before there is anything to reply: the rest of the prompt, in slices
    /// ([`mandatory_after`]). Everything after the first token is optional: an answer can be cut (or closed, with a grammar) at any
    /// section boundary. Counted for control jobs only.
    pub mandatory: Duration,
}

/// What a request needs next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// `remaining` prompt tokens are not computed yet (at least 1); a slice must not go beyond `until_stop` of them,
    /// where a snapshot is to be taken.
    Prefill {
        /// Prompt tokens not computed yet.
        remaining: usize,
        /// Most tokens of the next slice.
        until_stop: usize,
    },
    /// One token, for the next one.
    Decode,
}

/// Bounds of a section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most prompt tokens of a section.
    pub max_prefill_slice_tokens: usize,
    /// Most tokens of a section.
    pub max_step_tokens: usize,
    /// How long a section may take by its bound, where a shorter slice can help.
    pub max_section: Duration,
    /// How long a section may take by its bound, whatever is in it, unless nothing shorter is possible: one lane's decode step, or one prompt
    /// token. `None` where nobody else waits for the device.
    pub max_any_section: Option<Duration>,
    /// What passes after every section, at most, before the next one can begin.
    pub idle_gap: Duration,
    /// How long before its deadline a reply must leave the worker, for the way to the asker.
    pub reply_margin: Duration,
}

impl Limits {
    /// Most prompt tokens of a section that keeps [`Self::max_section`] beside `num_decodes` decode steps; at least 1.
    #[must_use]
    pub fn slice_len(&self, num_decodes: usize, context_len: usize, bounds: &Bounds) -> usize {
        let most = self.max_prefill_slice_tokens.min(self.max_step_tokens.saturating_sub(num_decodes)).max(1);
        longest_slice(most, self.max_section, num_decodes, context_len, bounds).max(1)
    }

    /// Whether a section of `cost` is too long even though no slice of it can be made shorter, so that fewer lanes must do.
    #[must_use]
    pub fn is_too_long(&self, cost: Duration) -> bool {
        self.max_any_section.is_some_and(|most| cost > most)
    }
}

/// Promises are admitted to the nanosecond, and shares of time are rounded: less than this late is in time. The reply margin is
/// far longer.
pub const TOLERANCE: Duration = Duration::from_micros(1);

/// Whether what ends at `end` is too late for `by`.
#[must_use]
pub fn is_late(end: Instant, by: Instant) -> bool {
    end.saturating_duration_since(by) > TOLERANCE // not `by + TOLERANCE`, which a deadline at the end of time overflows
}

/// Most prompt tokens, up to `most`, that fit into `room` beside `num_decodes` decode steps; 0 when none do.
#[must_use]
pub fn longest_slice(
    most: usize,
    room: Duration,
    num_decodes: usize,
    context_len: usize,
    bounds: &Bounds,
) -> usize {
    let fits = |len: usize| section_cost(num_decodes, len, context_len + len, bounds) <= room;
    if fits(most) {
        return most;
    }
    // Costs grow with the length, bucket by bucket.
    let (mut fitting, mut too_long) = (0, most);
    while too_long - fitting > 1 {
        let middle = fitting.midpoint(too_long);
        if fits(middle) { fitting = middle } else { too_long = middle }
    }
    fitting
}

/// Bound of a section of `num_decodes` decode steps and a slice of `slice_len` tokens; `context_len` is the longest context in it.
#[must_use]
pub fn section_cost(num_decodes: usize, slice_len: usize, context_len: usize, bounds: &Bounds) -> Duration {
    let cost = |kind, size| {
        if size == 0 { Duration::ZERO } else { bounds.of(SectionShape { kind, size, context_len }) }
    };
    cost(SectionKind::Decode, num_decodes) + cost(SectionKind::Prefill, slice_len)
}

impl Job {
    /// Bound of what choosing its next token adds to a section.
    #[must_use]
    pub fn mask_cost(&self, bounds: &Bounds) -> Duration {
        if self.has_form { bounds.mask() } else { Duration::ZERO }
    }

    /// When its reply must leave the worker; `None` without a deadline.
    #[must_use]
    pub fn reply_by(&self, limits: &Limits) -> Option<Instant> {
        let deadline = self.rank.deadline.filter(|_| self.class != Class::Background)?;
        Some(deadline.checked_sub(limits.reply_margin).unwrap_or(deadline))
    }
}

/// Bound of the mandatory part of `job` once it has read `slice_len` more tokens of its prompt.
#[must_use]
pub fn mandatory_after(job: &Job, slice_len: usize, limits: &Limits, bounds: &Bounds) -> Duration {
    let Phase::Prefill { remaining, until_stop } = job.phase else { return Duration::ZERO };
    let until_stop = if until_stop > slice_len { until_stop - slice_len } else { usize::MAX };
    let remaining = remaining.saturating_sub(slice_len);
    let reading = prefill_cost(job.context_len + slice_len, remaining, until_stop, limits, bounds);
    if remaining == 0 { Duration::ZERO } else { reading + job.mask_cost(bounds) }
}

/// Bound of computing `remaining` prompt tokens in slices, the first of at most `until_stop`, after `context_len` others; with the gap that
/// follows each of them.
#[must_use]
pub fn prefill_cost(
    context_len: usize,
    remaining: usize,
    until_stop: usize,
    limits: &Limits,
    bounds: &Bounds,
) -> Duration {
    let (mut context_len, mut remaining, mut until_stop) = (context_len, remaining, until_stop.max(1));
    let mut sum = Duration::ZERO;
    while remaining > 0 {
        let len = remaining.min(until_stop).min(limits.slice_len(0, context_len, bounds));
        context_len += len;
        remaining -= len;
        until_stop = if until_stop > len { until_stop - len } else { usize::MAX };
        sum += section_cost(0, len, context_len, bounds) + limits.idle_gap;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::{
        super::cost_table::{Cost, CostTable, Grid},
        *,
    };

    const MS: Duration = Duration::from_millis(1);

    /// Slices of up to 8, 16, 32 tokens cost 1, 2, 3 ms.
    fn table() -> CostTable {
        let grid = Grid {
            prefill_sizes: vec![8, 16, 32],
            decode_sizes: vec![1, 4],
            verify_sizes: vec![4],
            draft_sizes: Vec::new(),
            context_lens: vec![1000],
        };
        let costs: Vec<Cost> = [1, 2, 3, 1, 2, 5].map(|ms| Cost::exactly(ms * MS)).into();
        CostTable::with_margin(grid, &costs, 1.0)
    }

    const LIMITS: Limits = Limits {
        max_prefill_slice_tokens: 32,
        max_step_tokens: 40,
        max_section: Duration::from_millis(10),
        max_any_section: None,
        idle_gap: Duration::ZERO,
        reply_margin: Duration::ZERO,
    };

    #[test]
    fn the_mandatory_part_is_the_rest_of_the_prompt_in_slices() {
        let bounds = table().bounds().clone();
        let job = |phase| {
            let rank = Rank { deadline: None, ticket: 0 };
            Job {
                lane: None,
                class: Class::Control,
                rank,
                phase,
                context_len: 0,
                num_forced: 0,
                has_form: false,
                mandatory: Duration::ZERO,
            }
        };
        let reading = |remaining, until_stop| {
            mandatory_after(&job(Phase::Prefill { remaining, until_stop }), 0, &LIMITS, &bounds)
        };
        assert_eq!(reading(70, 70), (3 + 3 + 1) * MS);
        assert_eq!(reading(40, 10), (2 + 3) * MS, "a stop for a snapshot costs a slice");
        let begun = job(Phase::Prefill { remaining: 70, until_stop: 40 });
        assert_eq!(mandatory_after(&begun, 32, &LIMITS, &bounds), (1 + 3) * MS, "8 to the stop, then 30");
        assert_eq!(mandatory_after(&job(Phase::Decode), 0, &LIMITS, &bounds), Duration::ZERO);
    }

    #[test]
    fn every_slice_of_the_mandatory_part_is_followed_by_a_gap() {
        let bounds = table().bounds().clone();
        let spaced = Limits { idle_gap: 2 * MS, ..LIMITS };
        assert_eq!(prefill_cost(0, 70, 70, &spaced, &bounds), (3 + 2 + 3 + 2 + 1 + 2) * MS);
        assert_eq!(prefill_cost(0, 0, 1, &spaced, &bounds), Duration::ZERO);
    }

    #[test]
    fn slices_keep_the_longest_allowed_section_beside_decode_steps() {
        let bounds = table().bounds().clone();
        assert_eq!(LIMITS.slice_len(0, 0, &bounds), 32);
        assert_eq!(LIMITS.slice_len(3, 0, &bounds), 32);
        let tight = Limits { max_section: 2 * MS, ..LIMITS };
        assert_eq!(tight.slice_len(0, 0, &bounds), 16);
        assert_eq!(tight.slice_len(1, 0, &bounds), 8);
        let impossible = Limits { max_section: MS / 2, ..LIMITS };
        assert_eq!(impossible.slice_len(0, 0, &bounds), 1, "no slice keeps it: the shortest there is");
        assert_eq!(longest_slice(32, MS / 2, 0, 0, &bounds), 0);
    }
}
