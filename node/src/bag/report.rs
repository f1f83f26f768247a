//! A recording in figures.

use serde::Serialize;

use super::{
    BagError,
    asked::AskedReport,
    class_report::ClassReport,
    reader::FileReport,
    recording::{NodeRecord, Recording},
    row::ReplyRow,
    spread::Spread,
    stream::StreamRow,
};
use crate::{request::Status, scheduler::class::Class};

/// Requests that are named as the worst.
const NUM_WORST: usize = 5;

/// Everything that is to be said.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The files, and how much of each could be read.
    pub files: Vec<FileReport>,
    /// Time of the first message, in nanoseconds since 1970 (or of simulated time).
    pub start_ns: u64,
    /// First to last message of any topic.
    pub length_s: f64,
    /// What was looked at, from the start; `until_s` is null for all there is.
    pub since_s: f64,
    /// As of `since_s`.
    pub until_s: Option<f64>,
    /// By name.
    pub nodes: Vec<NodeReport>,
    /// Messages that could not be read, by topic.
    pub malformed: Vec<Malformed>,
}

/// Messages of a topic that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Malformed {
    /// Which.
    pub topic: String,
    /// How many.
    pub num: u64,
    /// What was wrong with the first.
    pub first: String,
}

/// A node in figures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodeReport {
    /// Its name.
    pub node: String,
    /// Topics of it that were recorded.
    pub topics: Vec<String>,
    /// Requests that were replied to.
    pub num_requests: u64,
    /// Replies that are in the recording a second time; they count once.
    pub num_replies_twice: u64,
    /// Prompts that are in the recording a second time; they count once.
    pub num_prompts_twice: u64,
    /// Classes that had a request.
    pub classes: Vec<ClassReport>,
    /// From the asker's side, if prompts were recorded.
    pub asked: Option<AskedReport>,
    /// By topic.
    pub streams: Vec<StreamReport>,
    /// What went worst, the worst first.
    pub worst: Vec<Worst>,
}

/// Streamed messages of a topic.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StreamReport {
    /// Which.
    pub topic: String,
    /// Requests that were streamed.
    pub num_streams: u64,
    /// Messages.
    pub num_messages: u64,
    /// Messages that are missing, by their count.
    pub num_lost: u64,
    /// Messages that do not continue the text.
    pub num_offset_jumps: u64,
    /// Messages that came after later ones.
    pub num_late: u64,
    /// Messages that were there before.
    pub num_repeated: u64,
    /// Streams without a last message.
    pub num_unended: u64,
    /// One message to the next of the same request.
    pub between_ms: Option<Spread>,
}

impl StreamReport {
    fn of(topic: &str, rows: &[&StreamRow]) -> Self {
        let sum = |count: fn(&StreamRow) -> u32| rows.iter().map(|row| u64::from(count(row))).sum();
        let gaps = rows.iter().flat_map(|row| &row.gaps_us).map(|us| f64::from(*us) / 1e3);
        Self {
            topic: topic.to_owned(),
            num_streams: rows.len() as u64,
            num_messages: sum(|row| row.num_messages),
            num_lost: sum(|row| row.num_lost),
            num_offset_jumps: sum(|row| row.num_offset_jumps),
            num_late: sum(|row| row.num_late),
            num_repeated: sum(|row| row.num_repeated),
            num_unended: sum(|row| u32::from(!row.is_ended)),
            between_ms: Spread::of(gaps),
        }
    }
}

/// A request that went badly.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Worst {
    /// `promise missed`, `failed`, `late` or `in time`.
    pub what: &'static str,
    /// Its name.
    pub request_id: String,
    /// When its reply was logged, from the recording's start.
    pub at_s: f64,
    /// What it was promised.
    pub class: Class,
    /// How it ended.
    pub status: &'static str,
    /// Arrival to the deadline.
    pub deadline_ms: Option<f64>,
    /// Arrival to the reply.
    pub total_ms: f64,
}

/// How bad it is, in words; the worst first.
const TROUBLES: [&str; 4] = ["promise missed", "failed", "late", "in time"];

/// Place in [`TROUBLES`]; `None` for what nobody minds: refused, cancelled, or without a deadline.
fn trouble(row: &ReplyRow) -> Option<usize> {
    match row.status {
        _ if row.is_late() && row.is_promised => Some(0),
        Status::Failed => Some(1),
        _ if row.is_late() => Some(2),
        _ if row.is_answered() && row.deadline_ms.is_some() => Some(3),
        _ => None,
    }
}

fn worst(recording: &Recording, replies: &[&ReplyRow]) -> Vec<Worst> {
    let slack = |row: &ReplyRow| row.slack_ms().unwrap_or(f64::INFINITY);
    let mut rows: Vec<(usize, &ReplyRow)> =
        replies.iter().filter_map(|row| Some((trouble(row)?, *row))).collect();
    rows.sort_by(|(a, left), (b, right)| a.cmp(b).then(slack(left).total_cmp(&slack(right))));
    let named = rows.into_iter().take(NUM_WORST).map(|(trouble, row)| Worst {
        what: TROUBLES[trouble],
        request_id: row.request_id.to_string(),
        at_s: recording.seconds(row.times.log_ns),
        class: row.class,
        status: row.status.name(),
        deadline_ms: row.deadline_ms,
        total_ms: row.total_ms,
    });
    named.collect()
}

impl NodeReport {
    fn of(recording: &Recording, node: &NodeRecord<'_>) -> Self {
        Self {
            node: node.name.to_owned(),
            topics: node.topics.iter().map(|topic| (*topic).to_owned()).collect(),
            num_requests: node.replies.len() as u64,
            num_replies_twice: node.num_replies_twice,
            num_prompts_twice: node.num_prompts_twice,
            classes: Class::ALL
                .into_iter()
                .filter_map(|class| ClassReport::of(class, &node.replies))
                .collect(),
            asked: AskedReport::of(recording, node),
            streams: node.streams.iter().map(|(topic, rows)| StreamReport::of(topic, rows)).collect(),
            worst: worst(recording, &node.replies),
        }
    }
}

/// What of a recording is looked at.
#[derive(Debug, Clone, PartialEq)]
pub struct Selection {
    /// Seconds from the start; replies count by when they were logged.
    pub since_s: f64,
    /// As of `since_s`; `None` for all there is.
    pub until_s: Option<f64>,
    /// One node only.
    pub node: Option<String>,
}

impl Selection {
    /// The part of `recording` that is looked at.
    ///
    /// # Errors
    /// [`BagError`] if there is nothing of a Takt node in it, or not of the one that is named.
    pub fn nodes<'a>(&self, recording: &'a Recording) -> Result<Vec<NodeRecord<'a>>, BagError> {
        if !recording.has_takt_topics() {
            let types: Vec<String> =
                recording.types.iter().map(|name| name.escape_debug().to_string()).collect();
            let types = if types.is_empty() { "none".to_owned() } else { types.join(", ") };
            return Err(BagError::NoTaktTopics { types });
        }
        let nodes = recording.nodes(self.since_s..=self.until_s.unwrap_or(f64::INFINITY));
        let Some(name) = &self.node else { return Ok(nodes) };
        let known: Vec<&str> = nodes.iter().map(|node| node.name).collect();
        let known = known.join(", ");
        let bare = |name: &str| name.trim_start_matches('/').to_owned();
        let found: Vec<NodeRecord<'a>> =
            nodes.into_iter().filter(|node| bare(node.name) == bare(name)).collect();
        if found.is_empty() { Err(BagError::NoSuchNode { name: name.clone(), known }) } else { Ok(found) }
    }
}

impl Report {
    /// The figures of `nodes`, what `selection` chose of `recording`.
    #[must_use]
    pub fn of(
        recording: &Recording,
        selection: &Selection,
        nodes: &[NodeRecord<'_>],
        files: Vec<FileReport>,
    ) -> Self {
        let (start_ns, end_ns) = recording.span_ns.unwrap_or_default();
        let malformed = recording.malformed.iter().map(|(topic, (num, first))| Malformed {
            topic: topic.clone(),
            num: *num,
            first: first.clone(),
        });
        Self {
            files,
            start_ns,
            length_s: end_ns.saturating_sub(start_ns) as f64 / 1e9,
            since_s: selection.since_s,
            until_s: selection.until_s,
            nodes: nodes.iter().map(|node| NodeReport::of(recording, node)).collect(),
            malformed: malformed.collect(),
        }
    }
}
