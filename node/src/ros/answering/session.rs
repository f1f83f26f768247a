//! Conversations the node remembers: what was asked and answered under a name comes before the next question.
//!
//! They are kept as text, in memory, and end with the node; the engine reads them again with every question.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Conversations remembered; beyond it the one that rested longest is forgotten.
const MAX_SESSIONS: usize = 64;
/// Questions with their answers remembered of each.
const MAX_TURNS: usize = 16;

/// One question and its answer.
#[derive(Debug, Clone, PartialEq)]
struct Turn {
    question: String,
    answer: String,
}

#[derive(Debug, Default)]
struct Session {
    turns: Vec<Turn>,
    /// When it was last used, counted in uses.
    used: u64,
}

#[derive(Debug, Default)]
struct State {
    sessions: HashMap<String, Session>,
    num_uses: u64,
}

/// All conversations.
#[derive(Debug, Default)]
pub(in crate::ros) struct Sessions(Mutex<State>);

impl Sessions {
    /// What was said before under `name`, as `(role, content)`, the latest that take at most `max_bytes`.
    pub fn recall(&self, name: &str, max_bytes: usize) -> Vec<(String, String)> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.num_uses += 1;
        let now = state.num_uses;
        let Some(session) = state.sessions.get_mut(name) else { return Vec::new() };
        session.used = now;
        let mut left = max_bytes;
        let fits = |turn: &&Turn| {
            let taken = left.checked_sub(turn.question.len() + turn.answer.len());
            left = taken.unwrap_or(0);
            taken.is_some()
        };
        let latest: Vec<&Turn> = session.turns.iter().rev().take_while(fits).collect();
        let messages = latest.into_iter().rev().flat_map(|Turn { question, answer }| {
            [("user".to_owned(), question.clone()), ("assistant".to_owned(), answer.clone())]
        });
        messages.collect()
    }

    /// Forgets the older half of what was said under `name`.
    pub fn shorten(&self, name: &str) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = state.sessions.get_mut(name) {
            session.turns.drain(..session.turns.len().div_ceil(2));
        }
    }

    /// Remembers an answer under `name`.
    pub fn note(&self, name: &str, question: &str, answer: &str) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.num_uses += 1;
        let now = state.num_uses;
        if !state.sessions.contains_key(name) && state.sessions.len() >= MAX_SESSIONS {
            let oldest = state.sessions.iter().min_by_key(|(_, session)| session.used);
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                state.sessions.remove(&oldest);
            }
        }
        let session = state.sessions.entry(name.to_owned()).or_default();
        session.used = now;
        if session.turns.len() >= MAX_TURNS {
            session.turns.remove(0);
        }
        session.turns.push(Turn { question: question.to_owned(), answer: answer.to_owned() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_recalls_its_own_turns_in_order() {
        let sessions = Sessions::default();
        sessions.note("a", "one?", "1");
        sessions.note("b", "other?", "x");
        sessions.note("a", "two?", "2");
        let said: Vec<String> = sessions.recall("a", 1000).into_iter().map(|(_, text)| text).collect();
        assert_eq!(said, ["one?", "1", "two?", "2"]);
        assert!(sessions.recall("c", 1000).is_empty());
    }

    #[test]
    fn what_does_not_fit_is_left_out_from_the_front_and_never_halved() {
        let sessions = Sessions::default();
        sessions.note("a", "12345", "67890");
        sessions.note("a", "abc", "de");
        assert_eq!(sessions.recall("a", 14).len(), 2);
        assert_eq!(sessions.recall("a", 15).len(), 4);
        assert!(sessions.recall("a", 4).is_empty());
    }

    #[test]
    fn what_is_too_long_loses_its_older_half() {
        let sessions = Sessions::default();
        for i in 0..5 {
            sessions.note("a", &i.to_string(), "");
        }
        sessions.shorten("a");
        let said: Vec<String> = sessions.recall("a", 100).into_iter().map(|(_, text)| text).collect();
        assert_eq!(said, ["3", "", "4", ""]);
        sessions.shorten("a");
        sessions.shorten("a");
        sessions.shorten("never heard of");
        assert!(sessions.recall("a", 100).is_empty());
    }

    #[test]
    fn only_so_many_sessions_and_turns_are_kept() {
        let sessions = Sessions::default();
        for i in 0..MAX_TURNS + 3 {
            sessions.note("kept", &i.to_string(), "");
        }
        assert_eq!(sessions.recall("kept", 1000).len(), 2 * MAX_TURNS);
        for i in 0..MAX_SESSIONS {
            sessions.recall("kept", 1000);
            sessions.note(&format!("s{i}"), "q", "a");
        }
        assert!(sessions.recall("s0", 1000).is_empty(), "the one that rested longest");
        assert!(!sessions.recall("kept", 1000).is_empty());
    }
}
