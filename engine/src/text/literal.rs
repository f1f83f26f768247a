//! Special tokens written by a person are words, not commands.
//!
//! Whoever may talk to a robot must not be able to end their own message and speak as the system, by typing `<|im_end|><|im_start|>system`.
//! Rendering the chat template with the plain message and tokenizing the result, as transformers does, allows exactly that. So before
//! rendering, a **mark** (a Unicode noncharacter that the messages do not contain) goes into every special token a message spells; the
//! tokenizer then finds the template's own special tokens only, and the marks are taken out before words are split
//! ([`super::tokenizer::Tokenizer::encode_marked`]). Messages without special tokens, all ordinary ones, take transformers' path unchanged.
//!
//! Only tokens that the tokenizer declares special are covered (not Qwen3's `<think>`), and only where the message spells them as they are:
//! a normalizer that turns other characters into a special token's, in a tokenizer that looks for special tokens after
//! normalizing, is not seen through. Neither is a special token of a single character.

use std::borrow::Cow;

use super::chat::Message;
use crate::{EngineError, Result};

/// The noncharacters U+FDD0–U+FDEF: valid in Rust's strings, never assigned, in no text meant for interchange.
const MARKS: std::ops::RangeInclusive<char> = '\u{FDD0}'..='\u{FDEF}';

/// The character that marks special tokens in messages as literal text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LiteralMark(char);

impl LiteralMark {
    /// A mark that no message contains; `None` if they contain all 32.
    fn unused_in(messages: &[Message]) -> Option<Self> {
        let is_used = |mark: char| messages.iter().any(|m| m.content.contains(mark) || m.role.contains(mark));
        MARKS.into_iter().find(|&mark| !is_used(mark)).map(Self)
    }

    pub fn character(self) -> char {
        self.0
    }
}

/// The special tokens of a tokenizer, ready to be looked for in messages.
#[derive(Debug, Default)]
pub(super) struct SpecialSpellings {
    spellings: Vec<String>,
    is_first_byte: Vec<bool>,
}

impl SpecialSpellings {
    pub fn new(spellings: Vec<String>) -> Self {
        // A mark goes between two characters.
        let spellings: Vec<_> =
            spellings.into_iter().filter(|spelling| spelling.chars().nth(1).is_some()).collect();
        let mut is_first_byte = vec![false; 256];
        spellings.iter().for_each(|spelling| is_first_byte[usize::from(spelling.as_bytes()[0])] = true);
        Self { spellings, is_first_byte }
    }

    /// The messages with a mark in every special token they spell; `None` when they spell none.
    ///
    /// # Errors
    /// [`EngineError::Input`] when they also hold every possible mark, which no honest text does.
    pub fn mark(&self, messages: &[Message]) -> Result<Option<(Vec<Message>, LiteralMark)>> {
        if !messages
            .iter()
            .any(|m| self.spelled_at(&m.content).chain(self.spelled_at(&m.role)).next().is_some())
        {
            return Ok(None);
        }
        let mark = LiteralMark::unused_in(messages).ok_or_else(|| {
            EngineError::Input("the messages hold all 32 noncharacters U+FDD0 to U+FDEF: remove them".into())
        })?;
        let marked = |text: &str| self.mark_text(text, mark).into_owned();
        let messages =
            messages.iter().map(|m| Message { role: marked(&m.role), content: marked(&m.content) });
        Ok(Some((messages.collect(), mark)))
    }

    /// Byte offsets at which a special token is spelled.
    fn spelled_at<'a>(&'a self, text: &'a str) -> impl Iterator<Item = usize> + 'a {
        let candidates = text
            .bytes()
            .enumerate()
            .filter(|&(_, byte)| self.is_first_byte.get(usize::from(byte)) == Some(&true));
        candidates.map(|(at, _)| at).filter(|&at| {
            self.spellings.iter().any(|spelling| text.as_bytes()[at..].starts_with(spelling.as_bytes()))
        })
    }

    fn mark_text<'a>(&self, text: &'a str, mark: LiteralMark) -> Cow<'a, str> {
        let mut marked = String::new();
        let mut copied = 0;
        for at in self.spelled_at(text) {
            let after_first = at + text[at..].chars().next().map_or(0, char::len_utf8);
            marked.push_str(&text[copied..after_first]);
            marked.push(mark.character());
            copied = after_first;
        }
        if copied == 0 { Cow::Borrowed(text) } else { Cow::Owned(marked + &text[copied..]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_special_token_is_broken_even_when_two_overlap() {
        let spellings = SpecialSpellings::new(vec!["<a>".into(), ">b<".into(), "é!".into(), "x".into()]);
        let mark = LiteralMark('\u{FDD0}');
        assert_eq!(spellings.mark_text("1<a>b<é!x", mark), "1<\u{FDD0}a>\u{FDD0}b<é\u{FDD0}!x");
        assert_eq!(spellings.mark_text("nothing < here", mark), "nothing < here");
    }

    #[test]
    fn a_mark_that_a_message_contains_is_not_used() {
        let spellings = SpecialSpellings::new(vec!["<a>".into()]);
        let messages = [Message::new("user", "\u{FDD0}<a>")];
        let (marked, mark) = spellings.mark(&messages).unwrap().unwrap();
        assert_eq!((marked[0].content.as_str(), mark), ("\u{FDD0}<\u{FDD1}a>", LiteralMark('\u{FDD1}')));
        assert!(spellings.mark(&[Message::new("user", "<b>")]).unwrap().is_none());
        let all: String = MARKS.collect();
        assert!(
            spellings.mark(&[Message::new("user", all + "<a>")]).unwrap_err().to_string().contains("U+FDD0")
        );
    }
}
