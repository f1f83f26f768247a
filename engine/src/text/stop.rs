//! Stop strings in a stream of text.

use crate::{EngineError, Result};

/// Finds the first stop string in text that arrives in pieces of any size, wherever the pieces are cut.
///
/// "First" is the one that ends first; of several that end at the same place the longest, so the answer is cut before all of them.
/// Matching is Knuth–Morris–Pratt (1977), one automaton a stop string, over bytes: UTF-8 never matches inside a character.
#[derive(Debug, Clone, Default)]
pub struct StopStrings {
    automata: Vec<Automaton>,
}

/// What scanning one piece of text found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopScan {
    /// No stop string yet; the last `held_len` bytes seen so far may be the start of one.
    Open {
        /// Bytes at the end of all text seen that must not be shown yet.
        held_len: usize,
    },
    /// A stop string ended inside this piece.
    Found {
        /// End of the match, in bytes from the start of the piece.
        end: usize,
        /// Length of the stop string; it may begin before the piece.
        len: usize,
    },
}

impl StopStrings {
    /// Prepares to look for `stops`; an empty list costs nothing.
    ///
    /// # Errors
    /// [`EngineError::Input`] when a stop string is empty.
    pub fn new<S: AsRef<str>>(stops: &[S]) -> Result<Self> {
        if stops.iter().any(|stop| stop.as_ref().is_empty()) {
            return Err(EngineError::Input(
                "a stop string is empty: leave it out, or give at least one character".into(),
            ));
        }
        Ok(Self { automata: stops.iter().map(|stop| Automaton::new(stop.as_ref())).collect() })
    }

    /// Reads the next piece of text. After a match the state is that of the matched place; do not go on.
    pub fn scan(&mut self, piece: &str) -> StopScan {
        if self.automata.is_empty() {
            return StopScan::Open { held_len: 0 };
        }
        for (byte_idx, byte) in piece.bytes().enumerate() {
            let mut longest = 0;
            for automaton in &mut self.automata {
                if automaton.step(byte) {
                    longest = longest.max(automaton.stop.len());
                }
            }
            if longest > 0 {
                return StopScan::Found { end: byte_idx + 1, len: longest };
            }
        }
        let held_len = self.automata.iter().map(|automaton| automaton.matched_len).max().unwrap_or(0);
        StopScan::Open { held_len }
    }
}

#[derive(Debug, Clone)]
struct Automaton {
    stop: Box<[u8]>,
    /// `fallback[i]`: length of the longest proper prefix of `stop[..=i]` that also ends it.
    fallback: Box<[usize]>,
    matched_len: usize,
}

impl Automaton {
    fn new(stop: &str) -> Self {
        let stop = stop.as_bytes();
        let mut fallback = vec![0; stop.len()];
        let mut len = 0;
        for end in 1..stop.len() {
            while len > 0 && stop[end] != stop[len] {
                len = fallback[len - 1];
            }
            if stop[end] == stop[len] {
                len += 1;
            }
            fallback[end] = len;
        }
        Self { stop: stop.into(), fallback: fallback.into(), matched_len: 0 }
    }

    /// Reads one byte; true when the stop string ends here.
    fn step(&mut self, byte: u8) -> bool {
        if self.matched_len == self.stop.len() {
            self.matched_len = self.fallback[self.matched_len - 1];
        }
        while self.matched_len > 0 && self.stop[self.matched_len] != byte {
            self.matched_len = self.fallback[self.matched_len - 1];
        }
        if self.stop[self.matched_len] == byte {
            self.matched_len += 1;
        }
        self.matched_len == self.stop.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// By brute force: the match that ends first, the longest of those.
    fn naive_find(text: &str, stops: &[String]) -> Option<(usize, usize)> {
        (1..=text.len()).find_map(|end| {
            let ending = stops.iter().filter(|stop| text.as_bytes()[..end].ends_with(stop.as_bytes()));
            ending.map(|stop| stop.len()).max().map(|len| (end, len))
        })
    }

    /// By brute force: the longest end of the text that starts a stop string.
    fn naive_held(text: &str, stops: &[String]) -> usize {
        let starts_one = |tail: &str| stops.iter().any(|stop| stop.starts_with(tail));
        (0..=text.len())
            .filter(|&at| text.is_char_boundary(at))
            .find(|&at| starts_one(&text[at..]))
            .map_or(0, |at| text.len() - at)
    }

    proptest! {
        #[test]
        fn streaming_finds_what_a_naive_search_finds(
            pieces in prop::collection::vec("[abé🤖]{0,3}", 0..12),
            stops in prop::collection::vec("[abé🤖]{1,4}", 0..4),
        ) {
            let text = pieces.concat();
            let mut matcher = StopStrings::new(&stops).unwrap();
            let (mut seen_len, mut found) = (0, None);
            for piece in &pieces {
                match matcher.scan(piece) {
                    StopScan::Found { end, len } => {
                        found = Some((seen_len + end, len));
                        break;
                    }
                    StopScan::Open { held_len } => {
                        seen_len += piece.len();
                        prop_assert_eq!(held_len, naive_held(&text[..seen_len], &stops));
                    }
                }
            }
            prop_assert_eq!(found, naive_find(&text, &stops));
        }
    }

    #[test]
    fn a_stop_string_is_found_across_three_pieces() {
        let mut stops = StopStrings::new(&["\n\n", "END"]).unwrap();
        assert_eq!(stops.scan("go E"), StopScan::Open { held_len: 1 });
        assert_eq!(stops.scan("N"), StopScan::Open { held_len: 2 });
        assert_eq!(stops.scan("D now"), StopScan::Found { end: 1, len: 3 });
    }

    #[test]
    fn an_empty_stop_string_is_refused() {
        assert!(StopStrings::new(&["a", ""]).unwrap_err().to_string().contains("empty"));
    }
}
