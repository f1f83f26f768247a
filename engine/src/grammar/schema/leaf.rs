//! Values without parts: strings, numbers, booleans, null and enumerations of them.

use std::{collections::HashMap, sync::Arc};

use llguidance::api::GrammarWithLexer;
use serde_json::{Value, json};

use crate::{
    Result,
    grammar::{
        automaton::{Automaton, State},
        error::refuse,
        limits::{MAX_COUNTED_STATES, MAX_TRANSITIONS},
        schema::emit::with_settings,
    },
};

/// A value without parts.
#[derive(Debug, Clone)]
pub(in crate::grammar) struct Leaf {
    /// What llguidance gets.
    pub schema: Value,
    automaton: Arc<Automaton>,
    /// Bounds on a string's characters that the automaton leaves out.
    length: Option<(usize, Option<usize>)>,
    /// JSON text of the declared default, which a begun value becomes where that fits.
    pub default: Option<Box<[u8]>>,
}

/// How a leaf goes on after some bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::grammar) enum LeafEnd {
    /// It may end here; `is_only` when it cannot go on.
    Whole { is_only: bool },
    /// It needs more; `is_only` when no other text would do.
    Needs { text: Vec<u8>, is_only: bool },
    /// It becomes the declared default.
    Default { text: Vec<u8> },
}

impl Leaf {
    /// True for a whole value as JSON text.
    pub fn accepts(&self, text: &[u8]) -> bool {
        self.automaton.accepts(text) && self.has_length(num_characters(text))
    }

    fn has_length(&self, num_characters: usize) -> bool {
        let (min, max) = self.length.unwrap_or_default();
        num_characters >= min && max.is_none_or(|max| num_characters <= max)
    }

    /// The end of a value that begins with `text`; `None` when it cannot.
    pub fn end(&self, text: &[u8]) -> Option<LeafEnd> {
        let state = self.automaton.run(self.automaton.start(), text)?;
        if self.length.is_some_and(|(_, max)| max.is_some_and(|max| num_characters(text) > max)) {
            return None;
        }
        if self.automaton.is_accepting(state) {
            return Some(LeafEnd::Whole { is_only: self.automaton.is_forced(state) });
        }
        let default = self.default.as_ref().and_then(|default| default.strip_prefix(text));
        if let Some(rest) = default {
            return Some(LeafEnd::Default { text: rest.to_vec() });
        }
        let is_only = self.length.is_none() && self.automaton.is_forced(state);
        Some(LeafEnd::Needs { text: self.completion(text, state), is_only })
    }

    /// The shortest value.
    pub fn shortest(&self) -> Vec<u8> {
        self.completion(b"", self.automaton.start())
    }

    /// True when there is only one value.
    pub fn is_constant(&self) -> bool {
        self.length.is_none() && self.automaton.is_forced(self.automaton.start())
    }

    fn completion(&self, begun: &[u8], state: State) -> Vec<u8> {
        let mut text = Vec::new();
        self.automaton.complete(state, &mut text);
        if let Some((min, _)) = self.length {
            let whole = [begun, &text].concat();
            let num_missing = min.saturating_sub(num_characters(&whole));
            // The closing quote is last.
            let at = text.len().saturating_sub(1);
            text.splice(at..at, std::iter::repeat_n(b'a', num_missing));
        }
        text
    }
}

/// Characters of a JSON string, whole or begun; an escape and a character whose bytes are incomplete count as one.
fn num_characters(text: &[u8]) -> usize {
    let (mut count, mut is_escaped) = (0, false);
    for &byte in text.strip_prefix(b"\"").unwrap_or(text) {
        let begins_one = byte & 0xC0 != 0x80 && byte != b'"';
        if is_escaped {
            is_escaped = false;
        } else if begins_one {
            count += 1;
            is_escaped = byte == b'\\';
        }
    }
    count
}

/// Compiles leaves, each schema once.
#[derive(Debug, Default)]
pub(in crate::grammar) struct LeafCompiler {
    automata: HashMap<String, Arc<Automaton>>,
    num_transitions: usize,
}

impl LeafCompiler {
    /// The leaf of a schema that llguidance reads as one lexeme; `at` is its place.
    ///
    /// # Errors
    /// [`crate::EngineError::Grammar`] when nothing matches it, or it is too large.
    pub fn leaf(&mut self, schema: Value, at: &str) -> Result<Leaf> {
        let (counted, length) = split_length(&schema);
        let automaton = self.automaton(&counted, at)?;
        Ok(Leaf { schema, automaton, length, default: None })
    }

    fn automaton(&mut self, schema: &Value, at: &str) -> Result<Arc<Automaton>> {
        let text = schema.to_string();
        if let Some(automaton) = self.automata.get(&text) {
            return Ok(Arc::clone(automaton));
        }
        let grammar = GrammarWithLexer::from_json_schema(with_settings(schema.clone()));
        let automaton = Arc::new(Automaton::of(grammar, at)?);
        self.num_transitions += automaton.size();
        if self.num_transitions > MAX_TRANSITIONS {
            let fact = format!(
                "the schema's strings and numbers take more than {MAX_TRANSITIONS} transitions to recognize: \
                 shorten its repetitions or simplify its patterns"
            );
            return Err(refuse(at, fact));
        }
        self.automata.insert(text, Arc::clone(&automaton));
        Ok(automaton)
    }
}

/// Long length bounds would multiply an automaton's states; without a pattern, counting does as well.
fn split_length(schema: &Value) -> (Value, Option<(usize, Option<usize>)>) {
    let bound = |name: &str| schema.get(name).and_then(Value::as_u64).map(|bound| bound as usize);
    let (min, max) = (bound("minLength").unwrap_or(0), bound("maxLength"));
    let is_plain = schema.get("type") == Some(&json!("string"))
        && ["pattern", "format", "allOf"].iter().all(|name| schema.get(name).is_none());
    if !is_plain || (min <= MAX_COUNTED_STATES && max.is_none_or(|max| max <= MAX_COUNTED_STATES)) {
        return (schema.clone(), None);
    }
    (json!({"type": "string"}), Some((min, max)))
}
