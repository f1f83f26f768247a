//! How well promises are kept: in virtual time against other policies, and in real time on this machine.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, bounded};
use serde::Serialize;

use super::busy_threads::BusyThreads;
use crate::{
    request::{Event, Prompt, Reply, Request, RequestId, RequestSender, Status, SubmitError},
    scheduler::{
        bandwidth_server::Bandwidth,
        class::Class,
        cost_table::{CostTable, SectionKind, SectionShape},
        job::Limits,
    },
    simulate::{Arrivals, Demand, Policy, Report, Settings, play, trace},
};

/// Loads of the virtual part, as multiples of what the device can do.
pub const LOADS: [f64; 4] = [0.5, 1.0, 2.0, 5.0];
/// Requests drawn to find how many a second the device can do.
const NUM_PROBES: usize = 2000;

/// One trace played by one policy.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VirtualRow {
    /// Multiple of the device's capacity.
    pub load: f64,
    /// How requests came.
    pub arrivals: String,
    /// Who decided.
    pub policy: String,
    /// What became of the requests.
    pub report: Report,
}

/// What the virtual part plays on.
#[must_use]
pub fn virtual_settings(policy: Policy, table: &CostTable, num_lanes: usize) -> Settings {
    let max_slice_len = table.grid().prefill_sizes.last().copied().unwrap_or(64);
    Settings {
        policy,
        num_lanes,
        queue_len: 32,
        limits: Limits {
            max_prefill_slice_tokens: max_slice_len,
            max_step_tokens: max_slice_len + num_lanes,
            max_section: Duration::from_millis(20),
            max_any_section: None,
            idle_gap: Duration::ZERO,
            reply_margin: Duration::from_micros(500),
        },
        bandwidth: Bandwidth::default(),
        seed: 1,
        has_forms: false,
        max_records: 0,
    }
}

/// Requests a second whose whole answers keep the device busy all the time, all lanes decoding together.
#[must_use]
pub fn capacity(table: &CostTable, num_lanes: usize) -> f64 {
    let demands = trace::random(NUM_PROBES, 1.0, Arrivals::Poisson, 99);
    let cost =
        |kind, size, context_len| table.typical(SectionShape { kind, size, context_len }).as_secs_f64();
    let max_slice_len = table.grid().prefill_sizes.last().copied().unwrap_or(1);
    let work = |demand: &Demand| {
        let num_slices = demand.prompt_len.div_ceil(max_slice_len);
        let slice_len = demand.prompt_len.div_ceil(num_slices);
        let reading = num_slices as f64 * cost(SectionKind::Prefill, slice_len, demand.prompt_len);
        let step = cost(SectionKind::Decode, num_lanes, demand.prompt_len) / num_lanes as f64;
        reading + step * demand.answer_len as f64
    };
    demands.len() as f64 / demands.iter().map(work).sum::<f64>()
}

/// Plays `num_each` requests at every load, both kinds of arrivals and all policies; `tick` is told the share done and may end it by
/// saying false.
#[must_use]
pub fn virtual_time(
    table: &CostTable,
    num_lanes: usize,
    num_each: usize,
    mut tick: impl FnMut(f64) -> bool,
) -> Vec<VirtualRow> {
    let capacity = capacity(table, num_lanes);
    let num_rows = LOADS.len() * 2 * Policy::ALL.len();
    let mut rows = Vec::with_capacity(num_rows);
    for load in LOADS {
        for arrivals in [Arrivals::Poisson, Arrivals::Bursty] {
            let demands = trace::random(num_each, capacity * load, arrivals, 1);
            for policy in Policy::ALL {
                let run = play(&demands, table, &virtual_settings(policy, table, num_lanes), |_| {});
                let report = Report::of(&demands, &run);
                rows.push(VirtualRow {
                    load,
                    arrivals: arrivals.to_string(),
                    policy: policy.to_string(),
                    report,
                });
                if !tick(rows.len() as f64 / num_rows as f64) {
                    return rows;
                }
            }
        }
    }
    rows
}

/// Lateness of replies on this machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct RealTime {
    /// Whether other threads kept all cores busy meanwhile.
    pub has_load: bool,
    /// Requests sent.
    pub num_sent: usize,
    /// Of those, promised.
    pub num_promised: usize,
    /// Refused on arrival.
    pub num_rejected: usize,
    /// Let in without a promise: costs did not hold.
    pub num_unpromised: usize,
    /// Promised, with at least a first token by the deadline.
    pub num_answered: usize,
    /// Of those, with the whole answer.
    pub num_complete: usize,
    /// Median time by which a promised reply came before its deadline, in milliseconds.
    pub early_p50_ms: f64,
    /// 99th percentile of the lateness of promised replies; 0 for those in time.
    pub late_p99_ms: f64,
    /// Largest lateness.
    pub late_max_ms: f64,
    /// Share of promised replies that were late at all.
    pub share_late: f64,
    /// Share that were more than 2 ms late.
    pub share_late_2ms: f64,
    /// 99th percentile of the time from arrival to a refusal, in milliseconds.
    pub rejection_p99_ms: f64,
    /// Largest of them.
    pub rejection_max_ms: f64,
}

/// How the real part asks.
#[derive(Debug, Clone, Copy)]
pub struct Asking {
    /// How long.
    pub length: Duration,
    /// Requests a second, at random.
    pub rate: f64,
    /// Shortest and longest deadline in milliseconds.
    pub deadlines_ms: (u64, u64),
    /// Whether to keep all cores busy with other work.
    pub has_load: bool,
}

/// A robot's situation, so that prompts have the length they have in practice.
const SYSTEM: &str = "Battery: 84%. At: hallway. Gripper: empty. Sees: blue wrench, green hammer. Places: lab, workshop, \
                      table, hallway. People: near.";
const SENTENCES: [&str; 6] = [
    "Where are you?",
    "Please bring the blue wrench to the lab.",
    "Stop now!",
    "Could you go to the workshop slowly?",
    "What do you have in your gripper?",
    "Take 4 pictures of the gauge and check whether it is fine, thanks.",
];

/// Asks a running worker for `asking.length`; every request has a deadline to be promised.
///
/// # Errors
/// [`SubmitError`] when the worker has stopped.
pub fn real_time(sender: &RequestSender, asking: &Asking, seed: u64) -> Result<RealTime, SubmitError> {
    let _load = asking.has_load.then(BusyThreads::one_a_core);
    let demands = trace::random(
        (asking.rate * asking.length.as_secs_f64()).ceil().max(1.0) as usize, // small and positive
        asking.rate,
        Arrivals::Poisson,
        seed,
    );
    let (low, high) = asking.deadlines_ms;
    let (events_in, events) = bounded(1 << 16);
    let collector = std::thread::spawn(move || collect(&events));
    let (start, mut deadlines, mut refusals) = (Instant::now(), HashMap::new(), Vec::new());
    for (i, demand) in demands.iter().enumerate() {
        let due = start + demand.arrival;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let (id, arrived) = (RequestId::next(), Instant::now());
        let deadline = arrived + Duration::from_millis(low + (i as u64 * 7919) % (high - low + 1));
        deadlines.insert(id, deadline);
        let sentence = SENTENCES[i % SENTENCES.len()];
        sender.submit(Request {
            id,
            prompt: Prompt::Chat(vec![
                ("system".to_owned(), SYSTEM.to_owned()),
                ("user".to_owned(), sentence.to_owned()),
            ]),
            arrived,
            deadline: Some(deadline),
            class: Class::Control,
            max_tokens: Some(48),
            sampling: None,
            stop: Vec::new(),
            form: None,
            events: events_in.clone(),
            admission: None,
        })?;
        refusals.push((id, arrived.elapsed()));
    }
    drop(events_in);
    let replies = collector.join().unwrap_or_default();
    Ok(figures(asking.has_load, &deadlines, &refusals, &replies))
}

fn collect(events: &Receiver<Event>) -> Vec<(Instant, Reply)> {
    let mut replies = Vec::new();
    for event in events {
        if let Event::Reply(reply) = event {
            replies.push((Instant::now(), *reply));
        }
    }
    replies
}

fn figures(
    has_load: bool,
    deadlines: &HashMap<RequestId, Instant>,
    submits: &[(RequestId, Duration)],
    replies: &[(Instant, Reply)],
) -> RealTime {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let mut found = RealTime { has_load, num_sent: submits.len(), ..RealTime::default() };
    let (mut late, mut early) = (Vec::new(), Vec::new());
    let mut rejected = std::collections::HashSet::new();
    for (at, reply) in replies {
        let Some(&deadline) = deadlines.get(&reply.id) else { continue };
        match (reply.status, reply.is_promised) {
            (Status::Rejected, _) => {
                found.num_rejected += 1;
                rejected.insert(reply.id);
            }
            (_, false) => found.num_unpromised += 1,
            (status, true) => {
                found.num_promised += 1;
                let lateness = at.saturating_duration_since(deadline);
                late.push(ms(lateness));
                early.push(ms(deadline.saturating_duration_since(*at)));
                if lateness.is_zero() && !reply.token_ids.is_empty() {
                    found.num_answered += 1;
                    found.num_complete += usize::from(status == Status::Complete);
                }
            }
        }
    }
    let mut refusals: Vec<f64> =
        submits.iter().filter(|(id, _)| rejected.contains(id)).map(|(_, took)| ms(*took)).collect();
    let share =
        |late_by: f64| late.iter().filter(|&&ms| ms > late_by).count() as f64 / late.len().max(1) as f64;
    (found.share_late, found.share_late_2ms) = (share(0.0), share(2.0));
    found.early_p50_ms = quantile(&mut early, 0.5);
    (found.late_p99_ms, found.late_max_ms) = (quantile(&mut late, 0.99), quantile(&mut late, 1.0));
    (found.rejection_p99_ms, found.rejection_max_ms) =
        (quantile(&mut refusals, 0.99), quantile(&mut refusals, 1.0));
    found
}

fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (values.len() as f64 * share).ceil().max(1.0) as usize; // at most the length
    values.get(rank - 1).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_sorted_values() {
        let mut values = [3.0, 1.0, 2.0, 4.0];
        assert_eq!(
            (quantile(&mut values, 0.5), quantile(&mut values, 0.99), quantile(&mut values, 1.0)),
            (2.0, 4.0, 4.0)
        );
        assert_eq!(quantile(&mut [], 0.5), 0.0);
    }
}
