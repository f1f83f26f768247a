//! What the next section computes: every lane's decode step together with one bounded prefill slice.
//!
//! A pure function of (lanes, now, pace, limits). The prefill slice goes to the request with the earliest deadline among
//! those still reading their prompt. Whoever cannot finish another section before its deadline is cut now, with what it has:
//! a reply that leaves before the deadline is worth more than one token more after it.

use std::time::{Duration, Instant};

use takt_engine::kv::LaneId;

use super::{edf::Rank, pace::Pace};

/// An active request as the planner sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneState {
    /// The lane it holds.
    pub lane: LaneId,
    /// Its place in the order.
    pub rank: Rank,
    /// What it needs next.
    pub phase: Phase,
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
    /// How long before its deadline a reply must leave the worker, for the way to the asker.
    pub reply_margin: Duration,
}

/// The planner's decision; buffers are kept from section to section.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Section {
    /// Lanes whose request is out of time.
    pub cut: Vec<LaneId>,
    /// Lanes that advance by one token, in order of their deadlines.
    pub decodes: Vec<LaneId>,
    /// Lane that reads more of its prompt, and how many tokens.
    pub prefill: Option<(LaneId, usize)>,
}

impl Section {
    /// True when there is nothing to compute.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.decodes.is_empty() && self.prefill.is_none()
    }
}

/// Plans the next section into `section`. `lanes` must be sorted by rank.
pub fn plan(lanes: &[LaneState], now: Instant, pace: &Pace, limits: &Limits, section: &mut Section) {
    section.cut.clear();
    section.decodes.clear();
    section.prefill = None;
    let mut first_prefill: Option<(&LaneState, usize)> = None;
    // When the earliest of the prefill and the decoding lanes ahead of it must have its reply out.
    let mut section_limit: Option<Instant> = None;
    for state in lanes {
        if is_out_of_time(state, now, pace, limits) {
            section.cut.push(state.lane);
            continue;
        }
        match state.phase {
            Phase::Decode => {
                if section.decodes.len() >= limits.max_step_tokens {
                    continue; // more lanes than a step holds: the latest deadlines wait
                }
                section.decodes.push(state.lane);
                if first_prefill.is_none() {
                    section_limit = section_limit.or(reply_by(state, limits));
                }
            }
            Phase::Prefill { remaining, until_stop } => {
                if first_prefill.is_none() {
                    first_prefill = Some((state, remaining.min(until_stop)));
                    section_limit = section_limit.or(reply_by(state, limits));
                }
            }
        }
    }
    let Some((state, wanted_len)) = first_prefill else { return };
    let step_room = limits.max_step_tokens.saturating_sub(section.decodes.len());
    let mut slice_len = wanted_len.min(limits.max_prefill_slice_tokens).min(step_room);
    if let Some(limit) = section_limit {
        // Shorten the slice rather than make the earliest deadline in the section late.
        slice_len = pace.slice_within(limit.saturating_duration_since(now), section.decodes.len(), slice_len);
    }
    if slice_len > 0 {
        section.prefill = Some((state.lane, slice_len));
    }
}

/// Whether the shortest section this request could use would end after its reply must have left.
#[must_use]
pub fn is_out_of_time(state: &LaneState, now: Instant, pace: &Pace, limits: &Limits) -> bool {
    let Some(reply_by) = reply_by(state, limits) else { return false };
    let shortest = match state.phase {
        Phase::Decode => pace.decode(),
        // The first token comes only at the end of the prompt; a prefill that cannot end in time would still be wasted,
        // but the estimate for a whole prompt is rougher than for one token, so only the next token is asked for.
        Phase::Prefill { .. } => pace.section(0, 1),
    };
    now + shortest > reply_by
}

fn reply_by(state: &LaneState, limits: &Limits) -> Option<Instant> {
    let deadline = state.rank.deadline?;
    Some(deadline.checked_sub(limits.reply_margin).unwrap_or(deadline))
}
