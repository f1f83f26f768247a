//! Tokens to text, one at a time.

use std::sync::Arc;

use super::pieces::{Join, Piece, PieceTable};
use crate::TokenId;

/// Turns a stream of tokens into whole characters.
///
/// All text pushed plus what [`Self::finish`] adds equals [`super::Text::decode`] of all the tokens. A character whose bytes are still
/// incomplete is held back; U+FFFD appears only for bytes that can no longer become a character, or at the end. With sentencepiece's byte
/// fallback a run of byte tokens is held back until it ends, because one bad byte turns the whole run into U+FFFD.
///
/// Costs O(1) amortised a token and allocates nothing but the growth of its caller's string.
#[derive(Debug, Clone)]
pub struct StreamDecoder {
    table: Arc<PieceTable>,
    skip_special: bool,
    has_begun: bool,
    /// Bytes that are no whole character yet ([`Join::Bytes`]: at most 3), or an open run of byte tokens.
    held: Vec<u8>,
    /// Leading characters that may still be stripped.
    num_to_strip: usize,
}

impl StreamDecoder {
    pub(super) fn new(table: Arc<PieceTable>, skip_special: bool) -> Self {
        let num_to_strip = table.strip.map_or(0, |strip| strip.max_count);
        Self { table, skip_special, has_begun: false, held: Vec::with_capacity(64), num_to_strip }
    }

    /// The decoder of a text that goes on: its first token is read as any other, and nothing leading is stripped.
    #[must_use]
    pub fn inside_text(mut self) -> Self {
        (self.has_begun, self.num_to_strip) = (true, 0);
        self
    }

    /// Appends bytes that no token stands for, after those of the tokens so far: the end of a text that was cut.
    pub fn push_bytes(&mut self, bytes: &[u8], out: &mut String) {
        self.has_begun = true;
        self.held.extend_from_slice(bytes);
        if self.table.join == Join::Bytes {
            self.release_characters(out);
        } else {
            self.release_run(out);
        }
    }

    /// Appends the text that `token` completes to `out`. Unknown tokens have no text.
    pub fn push(&mut self, token: TokenId, out: &mut String) {
        let table = Arc::clone(&self.table);
        let Some(piece) = table.piece(token, !self.has_begun, self.skip_special) else { return };
        self.has_begun = true;
        match piece {
            Piece::Byte(byte) => self.held.push(byte),
            Piece::Text(bytes) if table.join == Join::Bytes => {
                self.held.extend_from_slice(bytes);
                self.release_characters(out);
            }
            Piece::Text(bytes) => {
                self.release_run(out);
                // Pieces of these joins come from `String`s, so this never replaces anything.
                self.emit(&String::from_utf8_lossy(bytes), out);
            }
        }
    }

    /// Appends what was held back: the end of the text.
    pub fn finish(&mut self, out: &mut String) {
        if self.table.join == Join::Bytes {
            if !self.held.is_empty() {
                self.emit("\u{FFFD}", out);
            }
            self.held.clear();
        } else {
            self.release_run(out);
        }
    }

    /// Emits all of `held` but an incomplete last character.
    fn release_characters(&mut self, out: &mut String) {
        let held = std::mem::take(&mut self.held);
        let mut num_incomplete = 0;
        let mut num_left = held.len();
        for chunk in held.utf8_chunks() {
            self.emit(chunk.valid(), out);
            let invalid = chunk.invalid();
            num_left -= chunk.valid().len() + invalid.len();
            // Only at the very end may more bytes complete a character.
            if num_left == 0 && is_incomplete(invalid) {
                num_incomplete = invalid.len();
            } else if !invalid.is_empty() {
                self.emit("\u{FFFD}", out);
            }
        }
        self.held = held;
        self.held.drain(..self.held.len() - num_incomplete);
    }

    /// Emits the open run of byte tokens: as text if all of it is UTF-8, else as one U+FFFD a byte.
    fn release_run(&mut self, out: &mut String) {
        if self.held.is_empty() {
            return;
        }
        let held = std::mem::take(&mut self.held);
        match str::from_utf8(&held) {
            Ok(text) => self.emit(text, out),
            Err(_) => (0..held.len()).for_each(|_| self.emit("\u{FFFD}", out)),
        }
        self.held = held;
        self.held.clear();
    }

    /// Appends `text` without the leading characters that are to be stripped.
    fn emit(&mut self, mut text: &str, out: &mut String) {
        while self.num_to_strip > 0 && !text.is_empty() {
            match self.table.strip.and_then(|strip| text.strip_prefix(strip.content)) {
                Some(rest) => (text, self.num_to_strip) = (rest, self.num_to_strip - 1),
                None => self.num_to_strip = 0,
            }
        }
        out.push_str(text);
    }
}

/// True for the start of a character.
fn is_incomplete(invalid: &[u8]) -> bool {
    !invalid.is_empty() && str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none())
}
