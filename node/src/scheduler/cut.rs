//! Who is out of time: a reply that leaves before the deadline is worth more than one token more after it.

use std::time::Instant;

use super::{
    cost_table::Bounds,
    job::{Job, Limits, Phase, is_late, section_cost},
};

/// Whether the shortest section `job` could use would end after its reply must have left.
#[must_use]
pub fn is_out_of_time(job: &Job, now: Instant, limits: &Limits, bounds: &Bounds) -> bool {
    let Some(reply_by) = job.reply_by(limits) else { return false };
    let shortest = match job.phase {
        Phase::Decode => section_cost(1, 0, job.context_len + 1, bounds),
        // The first token comes only at the end of the prompt; a prefill that cannot end in time would still be wasted,
        // but the bound of a whole prompt is rougher than that of one slice, so only the next one is asked for.
        Phase::Prefill { .. } => section_cost(0, 1, job.context_len + 1, bounds),
    };
    is_late(now + shortest + job.mask_cost(bounds), reply_by)
}
