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
    spec: GrammarSpec,
    policy: ClosingPolicy,
    grammar: Grammar,
}

impl GrammarCache {
    pub fn get(&self, spec: &GrammarSpec, policy: ClosingPolicy) -> Option<Grammar> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let found = entries.iter().position(|entry| entry.policy == policy && is_same(&entry.spec, spec))?;
        let entry = entries.remove(found);
        let grammar = entry.grammar.clone();
        entries.push(entry);
        Some(grammar)
    }

    pub fn put(&self, spec: GrammarSpec, policy: ClosingPolicy, grammar: Grammar) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= MAX_CACHED_GRAMMARS {
            entries.remove(0);
        }
        entries.push(Entry { spec, policy, grammar });
    }
}

/// Equal, and with properties in the same order, which is the order that answers are written in.
fn is_same(one: &GrammarSpec, other: &GrammarSpec) -> bool {
    match (one, other) {
        (GrammarSpec::JsonSchema(one), GrammarSpec::JsonSchema(other)) => {
            // Their texts keep the order, which equality of JSON objects leaves out.
            let (one, other) = (one.to_string(), other.to_string());
            one == other
        }
        (one, other) => one == other,
    }
}
