//! The closing of a begun object: its open member, then what is required and missing.

use super::{
    Closing,
    partial::{ObjectEnd, Partial},
    walk::{Walk, append},
};
use crate::grammar::schema::{LeafEnd, NodeId, ObjectShape, Property, escaped};

/// The closing of an object with whole `members` that ends as `end`; `None` when it does not have this shape.
pub(super) fn close(
    walk: &mut Walk<'_>,
    shape: &ObjectShape,
    members: &[(&[u8], Partial<'_>)],
    end: &ObjectEnd<'_>,
) -> Option<Closing> {
    for (key, value) in members {
        let id = shape.value(key)?;
        if !walk.accepts(id, value) {
            return None;
        }
    }
    let written: Vec<&[u8]> = members.iter().map(|(key, _)| *key).collect();
    let rest = Rest { shape, written };
    match end {
        ObjectEnd::Whole => rest.is_complete().then(Closing::default),
        ObjectEnd::Opened => rest.close(walk, Closing::default(), true),
        ObjectEnd::Member => rest.close(walk, Closing::default(), false),
        ObjectEnd::Comma => rest.any_member(walk, b""),
        ObjectEnd::Key(begun) => rest.any_member(walk, begun),
        ObjectEnd::AfterKey(key) => rest.member(walk, b":", key, shape.value(key)?, &Partial::Unbegun),
        ObjectEnd::Inside(key, value) => rest.member(walk, b"", key, shape.value(key)?, value),
    }
}

/// What an object still needs.
#[derive(Clone)]
struct Rest<'a> {
    shape: &'a ObjectShape,
    /// Keys that are there.
    written: Vec<&'a [u8]>,
}

impl<'a> Rest<'a> {
    fn lacks(&self, property: &Property) -> bool {
        !self.written.contains(&&*property.key)
    }

    fn is_complete(&self) -> bool {
        let num_members = self.written.len();
        self.shape.properties.iter().all(|property| !property.is_required || !self.lacks(property))
            && num_members >= self.shape.min_properties
            && self.shape.max_properties.is_none_or(|max| num_members <= max)
    }

    /// Ends the member `key`, of which `head` is written first, and then the object.
    fn member(
        &self,
        walk: &mut Walk<'_>,
        head: &[u8],
        key: &[u8],
        value: NodeId,
        begun: &Partial<'_>,
    ) -> Option<Closing> {
        let mut closing = Closing { bytes: head.to_vec(), ..Closing::default() };
        append(&mut closing, &name(key), walk.value(value, begun)?);
        let mut rest = self.clone();
        // The key may be one that the closing has invented, so it is looked up where it lives as long as the shape.
        let declared = self.shape.property(key).map(|property| &*property.key);
        rest.written.push(declared.unwrap_or(b"\"\""));
        rest.close(walk, closing, false)
    }

    /// Adds what is missing and the brace.
    fn close(mut self, walk: &mut Walk<'_>, mut closing: Closing, mut is_first: bool) -> Option<Closing> {
        let shape = self.shape;
        let required = shape.properties.iter().filter(|property| property.is_required);
        for property in required {
            if self.lacks(property) {
                self.add(walk, property, &mut closing, &mut is_first)?;
            }
        }
        let optional = shape.properties.iter().filter(|property| !property.is_required);
        for property in optional {
            if self.written.len() >= shape.min_properties {
                break;
            }
            if self.lacks(property) {
                // One that nothing can stand in for is passed over.
                let _ = self.add(walk, property, &mut closing, &mut is_first);
            }
        }
        if self.written.len() < shape.min_properties {
            return None;
        }
        closing.bytes.push(b'}');
        Some(closing)
    }

    fn add(
        &mut self,
        walk: &mut Walk<'_>,
        property: &'a Property,
        closing: &mut Closing,
        is_first: &mut bool,
    ) -> Option<()> {
        let fill = walk.value(property.value, &Partial::Unbegun)?;
        if !std::mem::take(is_first) {
            closing.bytes.push(b',');
        }
        closing.bytes.extend_from_slice(&property.key);
        closing.bytes.push(b':');
        append(closing, &escaped(&property.name), fill);
        self.written.push(&property.key);
        Some(())
    }

    /// Writes a member whose key begins with `begun`: the one that makes the shortest object.
    fn any_member(&self, walk: &mut Walk<'_>, begun: &[u8]) -> Option<Closing> {
        let declared = self.shape.properties.iter().filter(|property| self.lacks(property));
        let mut keys: Vec<(Vec<u8>, NodeId)> = declared
            .filter(|property| property.key.starts_with(begun))
            .map(|property| (property.key.to_vec(), property.value))
            .collect();
        keys.extend(self.open_keys(begun));
        let closings = keys.into_iter().filter_map(|(key, value)| {
            let head = [key.strip_prefix(begun)?, b":"].concat();
            self.member(walk, &head, &key, value, &Partial::Unbegun)
        });
        let closings: Vec<Closing> = closings.collect();
        closings.into_iter().min_by_key(|closing| (closing.bytes.len(), closing.defaulted_fields.len()))
    }

    /// Keys that are not declared.
    fn open_keys(&self, begun: &[u8]) -> Vec<(Vec<u8>, NodeId)> {
        let mut keys = Vec::new();
        for pattern in &self.shape.patterns {
            let rest = if begun.is_empty() {
                Some(pattern.keys.shortest())
            } else {
                self.rest_of(&pattern.keys, begun)
            };
            if let Some(rest) = rest {
                keys.push(([begun, &rest].concat(), pattern.value));
            }
        }
        if let Some(value) = self.shape.additional {
            keys.extend(self.free_key(begun).map(|key| (key, value)));
        }
        keys
    }

    fn rest_of(&self, keys: &crate::grammar::schema::Leaf, begun: &[u8]) -> Option<Vec<u8>> {
        match keys.end(begun)? {
            LeafEnd::Needs { text, .. } | LeafEnd::Default { text } => Some(text),
            LeafEnd::Whole { .. } => Some(Vec::new()),
        }
    }

    /// A key that goes on as `begun` and is neither declared nor a pattern's nor there already.
    fn free_key(&self, begun: &[u8]) -> Option<Vec<u8>> {
        let mut key = if begun.is_empty() { b"\"".to_vec() } else { begun.to_vec() };
        finish_character(&mut key);
        for _ in 0..=self.written.len() + self.shape.properties.len() + self.shape.forbidden.len() + 1 {
            let whole = [&key, &b"\""[..]].concat();
            if self.is_free(&whole) {
                return Some(whole);
            }
            key.push(b'_');
        }
        None
    }

    fn is_free(&self, key: &[u8]) -> bool {
        let is_pattern = self.shape.patterns.iter().any(|pattern| pattern.keys.accepts(key));
        let is_forbidden = || {
            let text: Option<String> = serde_json::from_slice(key).ok();
            text.is_none_or(|text| self.shape.forbidden.contains(&text))
        };
        self.shape.property(key).is_none() && !self.written.contains(&key) && !is_pattern && !is_forbidden()
    }
}

/// Completes an escape or a character of several bytes that a begun string ends in.
fn finish_character(text: &mut Vec<u8>) {
    let num_backslashes = text.iter().rev().take_while(|&&byte| byte == b'\\').count();
    if num_backslashes % 2 == 1 {
        text.push(b'n');
        return;
    }
    let invalid = text.utf8_chunks().last().map_or(0, |chunk| chunk.invalid().len());
    let Some(&first) = text.get(text.len() - invalid).filter(|_| invalid > 0) else { return };
    let (len, second) = match first {
        0xE0 => (3, 0xA0),
        0xF0 => (4, 0x90),
        0xC2..=0xDF => (2, 0x80),
        0xE1..=0xEF => (3, 0x80),
        _ => (4, 0x80),
    };
    if invalid == 1 {
        text.push(second);
    }
    let num_missing = len - invalid.max(2);
    text.extend(std::iter::repeat_n(0x80, num_missing));
}

/// A key's step of a JSON pointer.
fn name(key: &[u8]) -> String {
    let text: Option<String> = serde_json::from_slice(key).ok();
    escaped(&text.unwrap_or_else(|| String::from_utf8_lossy(key).into_owned()))
}
