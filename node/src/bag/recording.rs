//! What is kept of a whole recording, topic by topic, and whose the topics are.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    ops::RangeInclusive,
};

use super::{
    asked::Asked,
    definition::Kind,
    row::{PromptRow, ReplyRow, Times},
    stream::{StreamRow, Streams},
};
use crate::ros::{
    cdr::CdrError,
    message::{Answer, Message as _, Question, Token},
};

/// Everything that was read, in the order it was recorded.
#[derive(Debug, Default)]
pub struct Recording {
    /// Earliest and latest time of logging, of any topic; `None` before the first message.
    pub span_ns: Option<(u64, u64)>,
    /// Replies by topic.
    pub replies: BTreeMap<String, Vec<ReplyRow>>,
    /// Prompts by topic.
    pub prompts: BTreeMap<String, Vec<PromptRow>>,
    /// Streamed tokens and sentences by topic.
    pub streams: BTreeMap<String, Streams>,
    /// Messages that could not be read, and what was wrong with the first, by topic.
    pub malformed: BTreeMap<String, (u64, String)>,
    /// All types of the bag.
    pub types: BTreeSet<String>,
}

impl Recording {
    /// Takes note that something was logged at `log_ns`.
    pub fn note_time(&mut self, log_ns: u64) {
        let (start, end) = self.span_ns.unwrap_or((log_ns, log_ns));
        self.span_ns = Some((start.min(log_ns), end.max(log_ns)));
    }

    /// Takes note of a topic, which may have no messages.
    pub fn note_topic(&mut self, kind: Kind, topic: &str) {
        let topic = topic.to_owned();
        match kind {
            Kind::Reply => drop(self.replies.entry(topic).or_default()),
            Kind::Prompt => drop(self.prompts.entry(topic).or_default()),
            Kind::Token => drop(self.streams.entry(topic).or_default()),
        }
    }

    /// Takes a message in; one that cannot be read is counted.
    pub fn add(&mut self, kind: Kind, topic: &str, times: Times, message: &[u8]) {
        let added = match kind {
            Kind::Reply => Answer::decode(message).map_err(text).and_then(|answer| {
                let row = ReplyRow::new(answer, times)?;
                self.replies.entry(topic.to_owned()).or_default().push(row);
                Ok(())
            }),
            Kind::Prompt => Question::decode(message).map_err(text).map(|question| {
                self.prompts.entry(topic.to_owned()).or_default().push(PromptRow::new(question, times));
            }),
            Kind::Token => Token::decode(message).map_err(text).map(|token| {
                self.streams.entry(topic.to_owned()).or_default().add(&token, times.log_ns);
            }),
        };
        if let Err(fact) = added {
            self.add_malformed(topic, fact);
        }
    }

    /// Counts a message that cannot be read.
    pub fn add_malformed(&mut self, topic: &str, fact: String) {
        let (count, _) = self.malformed.entry(topic.to_owned()).or_insert((0, fact));
        *count += 1;
    }

    /// Whether there is any topic of a Takt node.
    pub fn has_takt_topics(&self) -> bool {
        !(self.replies.is_empty() && self.prompts.is_empty() && self.streams.is_empty())
    }

    /// Seconds from the recording's start to `log_ns`.
    pub fn seconds(&self, log_ns: u64) -> f64 {
        let (start, _) = self.span_ns.unwrap_or_default();
        log_ns.saturating_sub(start) as f64 / 1e9
    }

    /// What each node has, of what was logged `within` so many seconds from the start.
    pub fn nodes(&self, within: RangeInclusive<f64>) -> Vec<NodeRecord<'_>> {
        let mut nodes: BTreeMap<&str, NodeRecord<'_>> = BTreeMap::new();
        for (topic, rows) in &self.replies {
            node(&mut nodes, owner(topic), topic).add_replies(rows);
        }
        let only = match nodes.keys().copied().collect::<Vec<&str>>()[..] {
            [only] => Some(only),
            _ => None,
        };
        // A remapped topic: whose it is can only be told when there is one node.
        let owners: HashSet<&str> = nodes.keys().copied().collect();
        let owner = |topic| {
            let name = owner(topic);
            if owners.contains(name) { name } else { only.unwrap_or(name) }
        };
        for (topic, rows) in &self.prompts {
            node(&mut nodes, owner(topic), topic).add_prompts(rows);
        }
        for (topic, streams) in &self.streams {
            node(&mut nodes, owner(topic), topic).streams.push((topic, streams.rows.iter().collect()));
        }
        let is_within = |log_ns: u64| within.contains(&self.seconds(log_ns));
        let mut nodes: Vec<NodeRecord<'_>> = nodes.into_values().collect();
        for node in &mut nodes {
            node.replies.sort_by_key(|row| row.times.log_ns);
            // Before anything is left out: a reply just outside is a reply.
            node.asked.match_replies(&node.replies);
            node.replies.retain(|row| is_within(row.times.log_ns));
            node.asked.retain(is_within);
            node.streams.iter_mut().for_each(|(_, rows)| rows.retain(|row| is_within(row.first_ns)));
        }
        nodes
    }
}

/// A node's part of a recording.
#[derive(Debug)]
pub struct NodeRecord<'a> {
    /// Its name with namespace, as far as topics tell it.
    pub name: &'a str,
    /// Its topics that were recorded.
    pub topics: Vec<&'a str>,
    /// Its replies by time of logging, each once.
    pub replies: Vec<&'a ReplyRow>,
    /// What it was asked over its topic.
    pub asked: Asked<'a>,
    /// Streams by topic.
    pub streams: Vec<(&'a str, Vec<&'a StreamRow>)>,
    /// Replies that are in the whole recording a second time: two recorders, or a part given twice.
    pub num_replies_twice: u64,
    /// As of replies.
    pub num_prompts_twice: u64,
}

impl<'a> NodeRecord<'a> {
    fn add_replies(&mut self, rows: &'a [ReplyRow]) {
        let mut seen = HashSet::new();
        for row in rows {
            if row.stamps.1 == 0 || seen.insert((&*row.request_id, row.stamps)) {
                self.replies.push(row);
            } else {
                self.num_replies_twice += 1;
            }
        }
    }

    fn add_prompts(&mut self, rows: &'a [PromptRow]) {
        self.asked.is_recorded = true;
        let mut seen = HashSet::new();
        for row in rows {
            if row.request_id.is_empty() {
                self.asked.unnamed.push(row);
            } else if seen.insert((&*row.request_id, row.times.publish_ns)) {
                self.asked.unanswered.push(row);
            } else {
                self.num_prompts_twice += 1;
            }
        }
    }
}

fn node<'n, 'a>(
    nodes: &'n mut BTreeMap<&'a str, NodeRecord<'a>>,
    name: &'a str,
    topic: &'a str,
) -> &'n mut NodeRecord<'a> {
    let node = nodes.entry(name).or_insert_with(|| NodeRecord {
        name,
        topics: Vec::new(),
        replies: Vec::new(),
        asked: Asked::default(),
        streams: Vec::new(),
        num_replies_twice: 0,
        num_prompts_twice: 0,
    });
    node.topics.push(topic);
    node
}

/// The node of `~/reply`: what comes before the last part of the name; a topic at the root stands for itself.
fn owner(topic: &str) -> &str {
    match topic.rsplit_once('/') {
        Some((node, _)) if !node.is_empty() => node,
        _ => topic,
    }
}

fn text(error: CdrError) -> String {
    error.to_string()
}
