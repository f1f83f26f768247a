//! Grammars compiled before: a robot asks for the same few forms again and again.

use std::sync::{Arc, Mutex, PoisonError};

use super::{
    Grammar,
    limits::MAX_CACHED_GRAMMARS,
    spec::{ClosingPolicy, GrammarSpec},
};

/// The grammars used last. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct GrammarCache {
    /// The one used last is the last.
    entries: Arc<Mutex<Vec<(Key, Grammar)>>>,
}

/// What a grammar is found by. Equal texts, not equal values: the order of properties, which equality of JSON objects leaves out, is the
/// order that answers are written in.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Key {
    policy: ClosingPolicy,
    kind: &'static str,
    texts: Vec<String>,
}

impl Key {
    pub fn of(spec: &GrammarSpec, policy: ClosingPolicy) -> Self {
        let (kind, texts) = match spec {
            GrammarSpec::JsonSchema(schema) => ("schema", vec![schema.to_string()]),
            GrammarSpec::Regex(regex) => ("regex", vec![regex.clone()]),
            GrammarSpec::Choice(choices) => ("choice", choices.clone()),
        };
        Self { policy, kind, texts }
    }
}

impl GrammarCache {
    pub fn contains(&self, key: &Key) -> bool {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.iter().any(|(known, _)| known == key)
    }

    pub fn get(&self, key: &Key) -> Option<Grammar> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let found = entries.iter().position(|(known, _)| known == key)?;
        let entry = entries.remove(found);
        let grammar = entry.1.clone();
        entries.push(entry);
        Some(grammar)
    }

    pub fn put(&self, key: Key, grammar: Grammar) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= MAX_CACHED_GRAMMARS {
            entries.remove(0);
        }
        entries.push((key, grammar));
    }
}
