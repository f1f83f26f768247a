//! Tokens as they were streamed, and what of them is missing.

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
};

use crate::ros::message::Token;

/// Missing messages of a stream that are remembered.
const MAX_MISSING: u32 = 64;

/// The messages of one request on one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamRow {
    /// When the first was logged.
    pub first_ns: u64,
    last_ns: u64,
    /// Index and end of the text of the last.
    last: (u32, u64),
    /// Missing so far, the most recent of them: they may still come.
    missing: VecDeque<u32>,
    /// Microseconds between one message and the next; where some are lost there is no such time.
    pub gaps_us: Vec<u32>,
    /// Messages there are.
    pub num_messages: u32,
    /// Messages that are missing before others that are there.
    pub num_lost: u32,
    /// Messages that continue the count, but not the text.
    pub num_offset_jumps: u32,
    /// Messages that came after later ones.
    pub num_late: u32,
    /// Messages that were there before.
    pub num_repeated: u32,
    /// Whether the last message was there.
    pub is_ended: bool,
}

impl StreamRow {
    fn start(token: &Token, log_ns: u64) -> Self {
        let mut row = Self {
            first_ns: log_ns,
            last_ns: log_ns,
            last: (token.index, end_of(token)),
            missing: VecDeque::new(),
            gaps_us: Vec::new(),
            num_messages: 1,
            num_lost: 0,
            num_offset_jumps: u32::from(token.index == 0 && token.offset != 0),
            num_late: 0,
            num_repeated: 0,
            is_ended: token.is_last,
        };
        row.miss(0..token.index);
        row
    }

    fn miss(&mut self, indices: Range<u32>) {
        self.num_lost = self.num_lost.saturating_add(indices.end - indices.start);
        let start = indices.start.max(indices.end.saturating_sub(MAX_MISSING));
        self.missing.extend(start..indices.end);
        let num_old = self.missing.len().saturating_sub(MAX_MISSING as usize);
        self.missing.drain(..num_old);
    }

    fn follow(&mut self, token: &Token, log_ns: u64) {
        self.num_messages += 1;
        let (last_idx, last_end) = self.last;
        self.is_ended |= token.is_last;
        if token.index <= last_idx {
            match self.missing.iter().position(|idx| *idx == token.index) {
                Some(at) => {
                    self.missing.remove(at);
                    self.num_lost -= 1;
                    self.num_late += 1;
                }
                None => self.num_repeated += 1,
            }
            return;
        }
        self.miss(last_idx + 1..token.index);
        if token.index == last_idx + 1 {
            self.num_offset_jumps += u32::from(u64::from(token.offset) != last_end);
            let gap = log_ns.saturating_sub(self.last_ns) / 1000;
            self.gaps_us.push(u32::try_from(gap).unwrap_or(u32::MAX));
        }
        self.last = (token.index, end_of(token));
        self.last_ns = log_ns;
    }
}

fn end_of(token: &Token) -> u64 {
    u64::from(token.offset) + token.text.len() as u64
}

/// All streams of a topic, in the order in which they began.
#[derive(Debug, Default)]
pub struct Streams {
    /// What is kept of each.
    pub rows: Vec<StreamRow>,
    current: HashMap<Box<str>, usize>,
}

impl Streams {
    /// Takes a message in.
    pub fn add(&mut self, token: &Token, log_ns: u64) {
        let current = self.current.get(token.request_id.as_str()).and_then(|&idx| self.rows.get_mut(idx));
        match current {
            // A name that is used again after its stream ended starts another.
            Some(row) if !(row.is_ended && token.index == 0) => row.follow(token, log_ns),
            _ => {
                self.current.insert(token.request_id.as_str().into(), self.rows.len());
                self.rows.push(StreamRow::start(token, log_ns));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn streams(parts: &[(u32, u32, &str, bool)]) -> Streams {
        let mut streams = Streams::default();
        for (at, &(index, offset, text, is_last)) in parts.iter().enumerate() {
            let token = Token {
                request_id: "a".to_owned(),
                index,
                offset,
                text: text.to_owned(),
                is_last,
                ..Token::default()
            };
            streams.add(&token, at as u64 * 2_000_000);
        }
        streams
    }

    #[test]
    fn a_whole_stream_has_nothing_to_tell_but_its_times() {
        let rows = streams(&[(0, 0, "ü", false), (1, 2, "b", false), (2, 3, "", true)]).rows;
        assert_eq!((rows[0].num_lost, rows[0].num_offset_jumps, rows[0].is_ended), (0, 0, true));
        assert_eq!(rows[0].gaps_us, [2000, 2000]);
    }

    #[test]
    fn what_is_lost_repeated_or_not_continued_is_counted() {
        let rows =
            streams(&[(1, 2, "a", false), (4, 9, "b", false), (4, 9, "b", false), (5, 11, "c", false)]).rows;
        assert_eq!((rows[0].num_lost, rows[0].num_repeated, rows[0].num_offset_jumps), (3, 1, 1));
        assert!(!rows[0].is_ended);
        assert_eq!(rows[0].gaps_us, [4000]);
    }

    #[test]
    fn what_comes_late_is_not_lost() {
        let rows =
            streams(&[(1, 1, "b", false), (0, 0, "a", false), (3, 3, "", true), (2, 2, "c", false)]).rows;
        assert_eq!((rows[0].num_lost, rows[0].num_late, rows[0].num_repeated), (0, 2, 0));
        let rows = streams(&[(0, 0, "", false), (u32::MAX, 9, "", true), (u32::MAX - 1, 9, "", false)]).rows;
        assert_eq!((rows[0].num_lost, rows[0].num_late), (u32::MAX - 2, 1));
    }

    #[test]
    fn a_name_used_again_is_another_stream() {
        let streams = streams(&[(0, 0, "a", true), (0, 0, "b", false), (1, 1, "", true)]);
        assert_eq!(streams.rows.len(), 2);
        assert_eq!(streams.rows[1].gaps_us, [2000]);
    }
}
