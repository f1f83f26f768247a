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

    /// Reads the first token as any other, which is how a grammar speaks of it; false when there is no decoder.
    pub fn begin_inside_text(&mut self) -> bool {
        self.decoder = self.decoder.take().map(StreamDecoder::inside_text);
        self.decoder.is_some()
    }

    /// Adds bytes that no token stands for, and ends: a closing. Stop strings do not count in it.
    pub fn close(&mut self, bytes: &[u8]) {
        match &mut self.decoder {
            // Bytes that the decoder still holds belong to what the stop string took away.
            _ if self.stopped => self.text.push_str(&String::from_utf8_lossy(bytes)),
            Some(decoder) => decoder.push_bytes(bytes, &mut self.text),
            None => {}
        }
        self.scanned_len = self.text.len();
        self.shown_len = self.text.len();
        self.ended = true;
    }

    /// The text after a stop string was cut off, for a closing to go on from; nothing is held back any more.
    pub fn stopped_text(&self) -> Option<&str> {
        self.stopped.then_some(&self.text)
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
