//! Requests as the asker sees them: from the prompt on its topic to the reply on its.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::{
    recording::{NodeRecord, Recording},
    row::{PromptRow, ReplyRow},
    spread::Spread,
};

/// Prompts that are named in a report, of those without a reply.
const MAX_NAMED: usize = 5;
/// What a message takes at most from asker to recorder where both read one clock.
const MAX_TRANSIT_NS: u64 = 100_000_000;

/// What is between asker and node.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AskedReport {
    /// Prompts on the topic.
    pub num_prompts: u64,
    /// Of those, without a name: the node made one that only the reply has, nothing can be matched.
    pub num_unnamed: u64,
    /// With their reply.
    pub num_matched: u64,
    /// Named, without a reply.
    pub num_without_reply: u64,
    /// The first of those.
    pub without_reply: Vec<Unanswered>,
    /// Replies without a prompt: asked by service or action, without a name, or before the recording began.
    pub num_replies_without_prompt: u64,
    /// Which times are compared: `publish_time` to `log_time`, or `log_time` of both.
    pub times: &'static str,
    /// Prompt sent to reply received.
    pub round_trip_ms: Option<Spread>,
    /// That minus what the node says it took.
    pub overhead_ms: Option<Spread>,
    /// Round trips that were longer than the deadline.
    pub num_late_for_asker: u64,
}

/// A prompt without a reply.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Unanswered {
    /// Its name.
    pub request_id: String,
    /// When, from the recording's start.
    pub at_s: f64,
}

impl AskedReport {
    /// What `node` was asked over its topic; `None` if that was not recorded.
    pub fn of(recording: &Recording, node: &NodeRecord<'_>) -> Option<Self> {
        let Asked { is_recorded, answered, unanswered, unnamed } = &node.asked;
        if !is_recorded {
            return None;
        }
        let is_sent_known = is_sent_known(answered);
        let sent_ns = |prompt: &PromptRow| {
            if is_sent_known { prompt.times.publish_ns } else { prompt.times.log_ns }
        };
        let round_trips: Vec<(f64, &ReplyRow)> = answered
            .iter()
            .map(|(prompt, reply)| (ms_between(sent_ns(prompt), reply.times.log_ns), *reply))
            .collect();
        let is_late = |(ms, reply): &&(f64, &ReplyRow)| {
            reply.is_answered() && reply.deadline_ms.is_some_and(|deadline| *ms > deadline)
        };
        let without_reply = unanswered.iter().take(MAX_NAMED).map(|prompt| Unanswered {
            request_id: prompt.request_id.to_string(),
            at_s: recording.seconds(prompt.times.log_ns),
        });
        Some(Self {
            num_prompts: (answered.len() + unanswered.len() + unnamed.len()) as u64,
            num_unnamed: unnamed.len() as u64,
            num_matched: answered.len() as u64,
            num_without_reply: unanswered.len() as u64,
            without_reply: without_reply.collect(),
            num_replies_without_prompt: (node.replies.len() - answered.len()) as u64,
            times: if is_sent_known { "publish_time to log_time" } else { "log_time of both" },
            round_trip_ms: Spread::of(round_trips.iter().map(|(ms, _)| *ms)),
            overhead_ms: Spread::of(round_trips.iter().map(|(ms, reply)| ms - reply.total_ms)),
            num_late_for_asker: round_trips.iter().filter(is_late).count() as u64,
        })
    }
}

/// A node's prompts and what became of them.
#[derive(Debug, Default)]
pub struct Asked<'a> {
    /// Whether the topic was recorded.
    pub is_recorded: bool,
    /// Prompts with their replies, by the replies' time of logging.
    pub answered: Vec<(&'a PromptRow, &'a ReplyRow)>,
    /// Named prompts without a reply, by time of logging.
    pub unanswered: Vec<&'a PromptRow>,
    /// Prompts that nothing can be matched with.
    pub unnamed: Vec<&'a PromptRow>,
}

impl<'a> Asked<'a> {
    /// Gives the prompts their replies.
    ///
    /// A name may be used again. Of all prompts of that name a reply belongs to the one nearest to when the node says the request came.
    pub fn match_replies(&mut self, replies: &[&'a ReplyRow]) {
        let mut open: HashMap<&str, BTreeMap<(u64, usize), &'a PromptRow>> = HashMap::new();
        for (idx, prompt) in std::mem::take(&mut self.unanswered).into_iter().enumerate() {
            open.entry(&prompt.request_id).or_default().insert((prompt.times.log_ns, idx), prompt);
        }
        for &reply in replies {
            let Some(prompts) = open.get_mut(&*reply.request_id) else { continue };
            let arrived_ns = reply.times.log_ns.saturating_sub((reply.total_ms * 1e6) as u64); // saturates
            let before = prompts.range(..=(arrived_ns, usize::MAX)).next_back();
            let after = prompts.range((arrived_ns, usize::MAX)..).next();
            let nearest =
                before.into_iter().chain(after).min_by_key(|((log_ns, _), _)| log_ns.abs_diff(arrived_ns));
            let Some((&key, &prompt)) = nearest else { continue };
            prompts.remove(&key);
            self.answered.push((prompt, reply));
        }
        self.unanswered = open.into_values().flat_map(BTreeMap::into_values).collect();
        self.unanswered.sort_by_key(|prompt| prompt.times.log_ns);
    }

    /// Leaves out what was logged at other times: answered prompts count by their reply.
    pub fn retain(&mut self, is_within: impl Fn(u64) -> bool) {
        self.answered.retain(|(_, reply)| is_within(reply.times.log_ns));
        self.unanswered.retain(|prompt| is_within(prompt.times.log_ns));
        self.unnamed.retain(|prompt| is_within(prompt.times.log_ns));
    }
}

/// Whether prompts say when they were sent, by a clock that agrees with the recorder's.
///
/// Many recorders repeat the time of logging, and an asker on another machine may have another time: then only the recorder's clock is fit.
fn is_sent_known(pairs: &[(&PromptRow, &ReplyRow)]) -> bool {
    let mut transits =
        pairs.iter().map(|(prompt, _)| prompt.times.log_ns.checked_sub(prompt.times.publish_ns));
    pairs.iter().any(|(prompt, _)| prompt.times.publish_ns != prompt.times.log_ns)
        && transits.all(|transit| transit.is_some_and(|ns| ns <= MAX_TRANSIT_NS))
}

fn ms_between(start_ns: u64, end_ns: u64) -> f64 {
    // The difference is small, whatever the times are.
    end_ns.wrapping_sub(start_ns).cast_signed() as f64 / 1e6
}
