//! The beginning of a JSON text, read as far as it goes.

/// A value of which some beginning is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::grammar) enum Partial<'a> {
    /// Nothing of it.
    Unbegun,
    /// A string, number, `true`, `false` or `null`. Of one at the very end it cannot be known whether it is whole, but for strings.
    Scalar { text: &'a [u8], is_whole: bool },
    /// An array.
    Array { items: Vec<Self>, end: ArrayEnd<'a> },
    /// An object; members as (key as JSON text, value).
    Object { members: Vec<(&'a [u8], Self)>, end: ObjectEnd<'a> },
}

/// Where an array ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::grammar) enum ArrayEnd<'a> {
    /// With its bracket.
    Whole,
    /// Where an item or the bracket may follow: after `[`.
    Opened,
    /// After an item.
    Item,
    /// After a comma.
    Comma,
    /// Inside an item.
    Inside(Box<Partial<'a>>),
}

/// Where an object ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::grammar) enum ObjectEnd<'a> {
    /// With its brace.
    Whole,
    /// After `{`.
    Opened,
    /// After a member.
    Member,
    /// After a comma.
    Comma,
    /// Inside a key.
    Key(&'a [u8]),
    /// Between a key and its colon.
    AfterKey(&'a [u8]),
    /// After the colon, or inside the value.
    Inside(&'a [u8], Box<Partial<'a>>),
}

impl Partial<'_> {
    /// True when nothing can be added.
    pub fn is_whole(&self) -> bool {
        match self {
            Self::Unbegun => false,
            Self::Scalar { is_whole, .. } => *is_whole,
            Self::Array { end, .. } => *end == ArrayEnd::Whole,
            Self::Object { end, .. } => *end == ObjectEnd::Whole,
        }
    }
}

/// Reads `text`; `None` when no compact JSON begins like this, or it is nested deeper than `max_depth`.
pub(in crate::grammar) fn read(text: &[u8], max_depth: usize) -> Option<Partial<'_>> {
    let mut reader = Reader { text, at: 0, depth_left: max_depth };
    let partial = reader.value()?;
    (reader.at == text.len()).then_some(partial)
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
    depth_left: usize,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn value(&mut self) -> Option<Partial<'a>> {
        match self.peek() {
            None => Some(Partial::Unbegun),
            Some(b'{') => self.nested(Self::object),
            Some(b'[') => self.nested(Self::array),
            Some(b'"') => {
                let (text, is_whole) = self.string();
                Some(Partial::Scalar { text, is_whole })
            }
            Some(_) => self.word(),
        }
    }

    fn nested(&mut self, read: fn(&mut Self) -> Option<Partial<'a>>) -> Option<Partial<'a>> {
        self.depth_left = self.depth_left.checked_sub(1)?;
        self.at += 1;
        let partial = read(self);
        self.depth_left += 1;
        partial
    }

    /// A string from its first quote; true with its last.
    fn string(&mut self) -> (&'a [u8], bool) {
        let start = self.at;
        self.at += 1;
        let mut is_escaped = false;
        while let Some(byte) = self.peek() {
            self.at += 1;
            match byte {
                _ if is_escaped => is_escaped = false,
                b'\\' => is_escaped = true,
                b'"' => return (&self.text[start..self.at], true),
                _ => {}
            }
        }
        (&self.text[start..], false)
    }

    /// A number or one of the three words: up to what cannot be part of one.
    fn word(&mut self) -> Option<Partial<'a>> {
        let start = self.at;
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
        while self.peek().is_some_and(is_part) {
            self.at += 1;
        }
        let text = &self.text[start..self.at];
        (!text.is_empty()).then_some(Partial::Scalar { text, is_whole: self.at < self.text.len() })
    }

    fn array(&mut self) -> Option<Partial<'a>> {
        let mut items = Vec::new();
        let end = loop {
            match self.peek() {
                None if items.is_empty() => break ArrayEnd::Opened,
                None => break ArrayEnd::Comma,
                Some(b']') if items.is_empty() => {
                    self.at += 1;
                    break ArrayEnd::Whole;
                }
                Some(_) => {}
            }
            let item = self.value()?;
            if self.at == self.text.len() && !item.is_whole() {
                break ArrayEnd::Inside(Box::new(item));
            }
            items.push(item);
            match self.next_or_end(b']')? {
                Some(true) => {}
                Some(false) => break ArrayEnd::Whole,
                None => break ArrayEnd::Item,
            }
        };
        Some(Partial::Array { items, end })
    }

    fn object(&mut self) -> Option<Partial<'a>> {
        let mut members = Vec::new();
        let end = loop {
            match self.peek() {
                None if members.is_empty() => break ObjectEnd::Opened,
                None => break ObjectEnd::Comma,
                Some(b'}') if members.is_empty() => {
                    self.at += 1;
                    break ObjectEnd::Whole;
                }
                Some(b'"') => {}
                Some(_) => return None,
            }
            let (key, is_whole) = self.string();
            if !is_whole {
                break ObjectEnd::Key(key);
            }
            match self.peek() {
                None => break ObjectEnd::AfterKey(key),
                Some(b':') => self.at += 1,
                Some(_) => return None,
            }
            let value = self.value()?;
            if self.at == self.text.len() && !value.is_whole() {
                break ObjectEnd::Inside(key, Box::new(value));
            }
            members.push((key, value));
            match self.next_or_end(b'}')? {
                Some(true) => {}
                Some(false) => break ObjectEnd::Whole,
                None => break ObjectEnd::Member,
            }
        };
        Some(Partial::Object { members, end })
    }

    /// After an entry: `true` for a comma, `false` for the end, inner `None` where the text ends; outer `None` for anything else.
    #[expect(clippy::option_option, reason = "three outcomes and a failure")]
    fn next_or_end(&mut self, close: u8) -> Option<Option<bool>> {
        let Some(byte) = self.peek() else { return Some(None) };
        self.at += 1;
        match byte {
            b',' => Some(Some(true)),
            _ if byte == close => Some(Some(false)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_beginning_of_a_text_is_read_and_nothing_else() {
        let text = r#"{"a":[1,-2.5e1,[],{}],"b\"":{"é":null},"c":"x\\","d":true}"#.as_bytes();
        for len in 0..=text.len() {
            let partial = read(&text[..len], 8).unwrap_or_else(|| panic!("{len}"));
            assert_eq!(partial.is_whole(), len == text.len(), "{len}");
        }
        for wrong in ["{]", "[1 2]", "{\"a\" :1}", "{1", "[,", "{\"a\":1}}", "\"a\"b", "@"] {
            assert_eq!(read(wrong.as_bytes(), 8), None, "{wrong}");
        }
    }

    #[test]
    fn nesting_is_bounded() {
        assert!(read(&[b'['; 8], 8).is_some());
        assert!(read(&[b'['; 9], 8).is_none());
    }
}
