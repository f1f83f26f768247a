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
    entries: Arc<Mutex<Vec<Entry>>>,
}

#[derive(Debug)]
struct Entry {
    key: Key,
    grammar: Grammar,
    /// Whether it stays whatever else is asked for.
    is_kept: bool,
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
    pub fn get(&self, key: &Key) -> Option<Grammar> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let found = entries.iter().position(|entry| entry.key == *key)?;
        let entry = entries.remove(found);
        let grammar = entry.grammar.clone();
        entries.push(entry);
        Some(grammar)
    }

    /// Adds a grammar; the one that was used least recently goes for it.
    pub fn put(&self, key: Key, grammar: Grammar) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let num_passing = entries.iter().filter(|entry| !entry.is_kept).count();
        if num_passing >= MAX_CACHED_GRAMMARS
            && let Some(oldest) = entries.iter().position(|entry| !entry.is_kept)
        {
            entries.remove(oldest);
        }
        entries.push(Entry { key, grammar, is_kept: false });
    }

    /// From now on the grammar stays.
    pub fn keep(&self, key: &Key) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.iter_mut().filter(|entry| entry.key == *key).for_each(|entry| entry.is_kept = true);
    }
}
