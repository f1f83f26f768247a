//! The text of an answer while it grows.

use crate::{
    TokenId,
    text::{StopScan, StopStrings, StreamDecoder},
};

/// The answer's text: all of it, and how much may be shown.
#[derive(Debug, Clone)]
pub(super) struct AnswerText {
    decoder: Option<StreamDecoder>,
    stops: StopStrings,
    text: String,
    /// `[0, scanned_len)` has been searched for stop strings.
    scanned_len: usize,
    /// `[0, shown_len)` can no longer be part of a stop string.
    pub shown_len: usize,
    stopped: bool,
    ended: bool,
}

impl AnswerText {
    pub fn new(decoder: Option<StreamDecoder>, stops: StopStrings, capacity: usize) -> Self {
        let text = String::with_capacity(capacity);
        Self { decoder, stops, text, scanned_len: 0, shown_len: 0, stopped: false, ended: false }
    }

    /// Adds a token; true when a stop string ended the answer.
    pub fn push(&mut self, token: TokenId) -> bool {
        if let Some(decoder) = &mut self.decoder {
            decoder.push(token, &mut self.text);
        }
        self.scan()
    }

    /// No more tokens: everything held back is shown, or cut by a stop string inside it (then true).
    pub fn end(&mut self) -> bool {
        if self.ended {
            return self.stopped;
        }
        self.ended = true;
        if let Some(decoder) = self.decoder.as_mut().filter(|_| !self.stopped) {
            decoder.finish(&mut self.text);
            self.scan();
        }
        self.shown_len = self.text.len();
        self.stopped
    }

    fn scan(&mut self) -> bool {
        match self.stops.scan(&self.text[self.scanned_len..]) {
            StopScan::Open { held_len } => self.shown_len = self.text.len() - held_len,
            StopScan::Found { end, len } => {
                self.text.truncate(self.scanned_len + end - len);
                self.shown_len = self.text.len();
                self.stopped = true;
            }
        }
        self.scanned_len = self.text.len();
        self.stopped
    }

    pub fn shown_from(&self, offset: usize) -> &str {
        &self.text[offset..self.shown_len]
    }
}
