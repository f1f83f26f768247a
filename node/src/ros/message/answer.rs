//! From the worker's reply to the message that tells it.

use super::{Answer, Time, millis};
use crate::request::{Reply, Status, Timings};
use crate::scheduler::class::Class;

/// What a reply does not know of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct About {
    /// The asker's name for the request, or the node's.
    pub request_id: String,
    /// When it arrived.
    pub arrival: Time,
    /// What it was promised.
    pub class: Class,
}

impl Answer {
    /// In place of an answer that gets lost, or is too long to be sent: that it is.
    #[must_use]
    pub fn not_heard(self) -> Self {
        let failed = Status::Failed.name().to_owned();
        let reason = format!(
            "the reply, a text of {} bytes, was lost on its way or is too long for a client of this DDS vendor: ask again or for fewer \
             tokens, read it on the topic ~/reply, or call from RMW_IMPLEMENTATION=rmw_cyclonedds_cpp",
            self.text.len()
        );
        let (defaulted_fields, cut_fields) = (Vec::new(), Vec::new());
        let text = String::new();
        Self {
            status: failed.clone(),
            finish_reason: failed,
            text,
            reason,
            defaulted_fields,
            cut_fields,
            ..self
        }
    }

    /// `reply`, leaving the node at `stamp`.
    #[must_use]
    pub fn new(reply: &Reply, about: &About, stamp: Time) -> Self {
        let Timings { queue, prefill, ttft, total, deadline } = reply.timings;
        let closing = reply.closing.clone().unwrap_or_default();
        let speculation = reply.speculation.unwrap_or_default();
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Self {
            stamp,
            arrival: about.arrival,
            request_id: about.request_id.clone(),
            status: reply.status.name().to_owned(),
            text: reply.text.clone(),
            finish_reason: reply.finish_reason.to_owned(),
            reason: reply.reason.clone().unwrap_or_default(),
            priority_class: about.class.name().to_owned(),
            ttft_ms: ttft.map_or(f64::NAN, millis),
            total_ms: millis(total),
            queue_ms: millis(queue),
            prefill_ms: millis(prefill),
            deadline_ms: deadline.map_or(f64::NAN, millis),
            earliest_deadline_ms: reply.earliest_deadline.map_or(f64::NAN, millis),
            is_promised: reply.is_promised,
            num_prompt_tokens: count(reply.prompt_token_ids.len()),
            num_tokens: count(reply.token_ids.len()),
            num_speculation_rounds: count(speculation.rounds),
            num_drafted: count(speculation.drafted),
            num_accepted: count(speculation.accepted),
            defaulted_fields: closing.defaulted_fields,
            cut_fields: closing.cut_fields,
        }
    }
}
