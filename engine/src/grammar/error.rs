//! Refusals, and panics of the libraries below turned into them.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::{EngineError, Result};

/// Longest message taken over from llguidance.
const MAX_FACT_LEN: usize = 300;

/// A grammar is refused; `at` is the place in the described value (`/speed`, `/steps/*/name`), empty for the whole.
pub(super) fn refuse(at: &str, fact: String) -> EngineError {
    EngineError::Grammar { at: at.to_owned(), fact }
}

/// Runs llguidance; a panic inside it becomes an error, as no request may end the process.
pub(super) fn guarded<T>(at: &str, work: impl FnOnce() -> Result<T, String>) -> Result<T> {
    let gave_up = |_| Err("the grammar library gave up on it".to_owned());
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(gave_up).map_err(|text| refuse(at, shortened(&text)))
}

/// The first line of a library's message, which may quote a whole schema.
pub(super) fn shortened(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(MAX_FACT_LEN).collect()
}

/// True when a refusal says that nothing is valid, which makes one alternative less of an `anyOf`.
pub(super) fn is_contradiction(error: &EngineError) -> bool {
    const SIGNS: [&str; 3] = ["Unsatisfiable schema", "no text matches", "is unsatisfiable"];
    matches!(error, EngineError::Grammar { fact, .. } if SIGNS.iter().any(|sign| fact.contains(sign)))
}
