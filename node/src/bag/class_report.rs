//! A class of a node's requests in figures: how they ended, what became of promises, how long things took.

use serde::Serialize;

use super::{
    row::ReplyRow,
    spread::{Slack, Spread},
};
use crate::{request::Status, scheduler::class::Class};

/// How requests ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct StatusCounts {
    /// Whole answers.
    pub complete: u64,
    /// Ended by the deadline.
    pub truncated_at_deadline: u64,
    /// Ended by the deadline and completed to the form asked for.
    pub closed_at_deadline: u64,
    /// Refused.
    pub rejected: u64,
    /// Ended by the asker, or by the node's end.
    pub cancelled: u64,
    /// Broken.
    pub failed: u64,
}

/// What became of deadlines. Every request counts once: a late one as late, whatever its status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Deadlines {
    /// Requests.
    pub num: u64,
    /// Answered by the deadline.
    pub kept: u64,
    /// Replied to after it.
    pub missed: u64,
    /// Cancelled before it.
    pub cancelled: u64,
    /// Failed before it.
    pub failed: u64,
    /// Of those missed: reply minus deadline.
    pub missed_by_ms: Option<Spread>,
}

impl Deadlines {
    fn of<'a>(rows: impl Iterator<Item = &'a ReplyRow> + Clone) -> Self {
        let late = rows.clone().filter_map(ReplyRow::slack_ms).filter(|slack| *slack < 0.0);
        let mut counts = Self { missed_by_ms: Spread::of(late.map(|slack| -slack)), ..Self::default() };
        for row in rows {
            counts.num += 1;
            *match row.status {
                _ if row.is_late() => &mut counts.missed,
                Status::Cancelled => &mut counts.cancelled,
                Status::Failed => &mut counts.failed,
                _ => &mut counts.kept,
            } += 1;
        }
        counts
    }
}

/// What was refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Refusals {
    /// All.
    pub num: u64,
    /// Because the deadline could not have been kept.
    pub num_for_want_of_time: u64,
    /// Of those: what could have been promised.
    pub earliest_deadline_ms: Option<Spread>,
    /// Of those: how much longer that is than what was asked for.
    pub short_by_ms: Option<Spread>,
    /// Arrival to the refusal, of all.
    pub refused_after_ms: Option<Spread>,
}

impl Refusals {
    fn of<'a>(rows: impl Iterator<Item = &'a ReplyRow> + Clone) -> Self {
        let refused = rows.filter(|row| row.status == Status::Rejected);
        let earliest = refused.clone().filter_map(|row| row.earliest_deadline_ms);
        let short = refused.clone().filter_map(|row| Some(row.earliest_deadline_ms? - row.deadline_ms?));
        Self {
            num: refused.clone().count() as u64,
            num_for_want_of_time: earliest.clone().count() as u64,
            earliest_deadline_ms: Spread::of(earliest),
            short_by_ms: Spread::of(short),
            refused_after_ms: Spread::of(refused.map(|row| row.total_ms)),
        }
    }
}

/// What speculation came to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Speculation {
    /// Rounds.
    pub rounds: u64,
    /// Proposals verified.
    pub num_drafted: u64,
    /// Proposals accepted.
    pub num_accepted: u64,
    /// Share of proposals accepted.
    pub acceptance: f64,
    /// Tokens a round: accepted ones and the target's own.
    pub accept_len: f64,
}

impl Speculation {
    fn of<'a>(rows: impl Iterator<Item = &'a ReplyRow>) -> Option<Self> {
        let [rounds, num_drafted, num_accepted] = rows.fold([0; 3], |mut sums: [u64; 3], row| {
            sums.iter_mut().zip(row.speculation).for_each(|(sum, count)| *sum += u64::from(count));
            sums
        });
        (rounds > 0).then(|| Self {
            rounds,
            num_drafted,
            num_accepted,
            acceptance: num_accepted as f64 / num_drafted.max(1) as f64,
            accept_len: num_accepted as f64 / rounds as f64 + 1.0,
        })
    }
}

/// A class in figures. Times are of answered requests: a refusal is fast, and would flatter them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassReport {
    /// Which.
    pub class: Class,
    /// Requests that were replied to.
    pub num_requests: u64,
    /// How.
    pub status: StatusCounts,
    /// Deadlines that were promised.
    pub promised: Deadlines,
    /// Deadlines that were not, without what was refused.
    pub unpromised: Deadlines,
    /// What was refused.
    pub rejected: Refusals,
    /// Arrival to the reply.
    pub total_ms: Option<Spread>,
    /// Arrival to the first token.
    pub ttft_ms: Option<Spread>,
    /// Arrival to the first work.
    pub queue_ms: Option<Spread>,
    /// First work to the end of the prompt.
    pub prefill_ms: Option<Spread>,
    /// What was left of the deadline at the reply; negative: late.
    pub slack_ms: Option<Slack>,
    /// Tokens after the first, by the time after the first, all answers together.
    pub tok_s: Option<f64>,
    /// Tokens of all answers.
    pub num_tokens: u64,
    /// Share of answers in which declared defaults stand in for something.
    pub defaulted_share: Option<f64>,
    /// Share of answers in which a value was cut.
    pub cut_share: Option<f64>,
    /// If there was any.
    pub speculation: Option<Speculation>,
}

impl ClassReport {
    /// The figures of `class` among `replies`; `None` without a request.
    pub fn of(class: Class, replies: &[&ReplyRow]) -> Option<Self> {
        let rows = replies.iter().copied().filter(move |row| row.class == class);
        let num_requests = rows.clone().count() as u64;
        let answered = rows.clone().filter(|row| row.is_answered());
        let num_answered = answered.clone().count();
        let share = |count: usize| (num_answered > 0).then(|| count as f64 / num_answered as f64);
        let has_deadline = |row: &&ReplyRow| row.slack_ms().is_some();
        (num_requests > 0).then(|| Self {
            class,
            num_requests,
            status: count_statuses(rows.clone()),
            promised: Deadlines::of(rows.clone().filter(|row| row.is_promised).filter(has_deadline)),
            unpromised: Deadlines::of(rows.clone().filter(|row| !row.is_promised).filter(has_deadline)),
            rejected: Refusals::of(rows.clone()),
            total_ms: Spread::of(answered.clone().map(|row| row.total_ms)),
            ttft_ms: Spread::of(answered.clone().filter_map(|row| row.ttft_ms)),
            queue_ms: Spread::of(answered.clone().map(|row| row.queue_ms)),
            prefill_ms: Spread::of(answered.clone().map(|row| row.prefill_ms)),
            slack_ms: Slack::of(answered.clone().filter_map(ReplyRow::slack_ms)),
            tok_s: tok_s(answered.clone()),
            num_tokens: answered.clone().map(|row| u64::from(row.num_tokens)).sum(),
            defaulted_share: share(answered.clone().filter(|row| row.is_defaulted).count()),
            cut_share: share(answered.filter(|row| row.is_cut).count()),
            speculation: Speculation::of(rows),
        })
    }
}

fn count_statuses<'a>(rows: impl Iterator<Item = &'a ReplyRow>) -> StatusCounts {
    let mut counts = StatusCounts::default();
    for row in rows {
        *match row.status {
            Status::Complete => &mut counts.complete,
            Status::TruncatedAtDeadline => &mut counts.truncated_at_deadline,
            Status::ClosedAtDeadline => &mut counts.closed_at_deadline,
            Status::Rejected => &mut counts.rejected,
            Status::Cancelled => &mut counts.cancelled,
            Status::Failed => &mut counts.failed,
        } += 1;
    }
    counts
}

fn tok_s<'a>(answered: impl Iterator<Item = &'a ReplyRow>) -> Option<f64> {
    let (mut num_tokens, mut ms) = (0, 0.0);
    for row in answered.filter(|row| row.num_tokens > 1) {
        if let Some(ttft_ms) = row.ttft_ms.filter(|ttft_ms| *ttft_ms < row.total_ms) {
            num_tokens += row.num_tokens - 1;
            ms += row.total_ms - ttft_ms;
        }
    }
    (num_tokens > 0).then(|| f64::from(num_tokens) / ms * 1e3)
}
