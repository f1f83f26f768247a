//! What a request may demand of its answer's form.

use serde_json::Value;

use super::{
    error::refuse,
    limits::{MAX_CHOICES, MAX_CHOICES_BYTES, MAX_REGEX_BYTES, MAX_SCHEMA_BYTES, MAX_SCHEMA_DEPTH},
};
use crate::Result;

/// The form of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum GrammarSpec {
    /// JSON that a JSON Schema (draft 2020-12, or an older one) accepts, written without white space.
    JsonSchema(Value),
    /// Text that a regex (Rust syntax, without look-around) matches from its start to its end.
    Regex(String),
    /// One of these texts; the first stands in when nothing of the answer was written.
    Choice(Vec<String>),
}

/// What may stand in for a value that the model had no time to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClosingPolicy {
    /// Only what the schema declares: `default`, `const`, the first value of an `enum` or alternative of an `anyOf` marked
    /// `"x-takt-safe": true`; and `null`, `[]` and `{}` where they are valid. A schema that needs more is refused.
    #[default]
    Declared,
    /// The shortest valid value of the type counts as a default, too. Not for motion commands.
    Minimal,
}

impl GrammarSpec {
    /// Reads a schema's text.
    ///
    /// # Errors
    /// [`crate::EngineError::Grammar`] when it is too long or no JSON.
    pub fn from_schema_text(text: &str) -> Result<Self> {
        check_size("the schema", text.len(), MAX_SCHEMA_BYTES)?;
        serde_json::from_str(text)
            .map(Self::JsonSchema)
            .map_err(|error| refuse("", format!("the schema is no JSON: {error}")))
    }

    /// Checks the sizes that need no compiling.
    ///
    /// # Errors
    /// [`crate::EngineError::Grammar`] saying what was found and what the limit is.
    pub fn check(&self) -> Result<()> {
        match self {
            Self::JsonSchema(schema) => {
                // The depth first: everything after it recurses.
                check_depth(schema, MAX_SCHEMA_DEPTH)?;
                check_size("the schema", schema.to_string().len(), MAX_SCHEMA_BYTES)
            }
            Self::Regex(regex) if regex.is_empty() => {
                Err(refuse("", "the regex is empty, so only the empty answer matches: leave it out".into()))
            }
            Self::Regex(regex) => check_size("the regex", regex.len(), MAX_REGEX_BYTES),
            Self::Choice(choices) => check_choices(choices),
        }
    }
}

fn check_choices(choices: &[String]) -> Result<()> {
    if choices.is_empty() {
        return Err(refuse("", "no choices: give at least one".into()));
    }
    if choices.len() > MAX_CHOICES {
        let fact = format!("{} choices, at most {MAX_CHOICES} are possible", choices.len());
        return Err(refuse("", fact));
    }
    if let Some(position) = choices.iter().position(String::is_empty) {
        return Err(refuse("", format!("choice {position} is empty: give it at least one character")));
    }
    check_size("the choices", choices.iter().map(String::len).sum(), MAX_CHOICES_BYTES)
}

fn check_size(what: &str, len: usize, max_len: usize) -> Result<()> {
    if len <= max_len {
        return Ok(());
    }
    Err(refuse("", format!("{what}: {len} bytes, at most {max_len} are possible: make it smaller")))
}

/// Without recursion: `serde_json` refuses text nested deeper than 128, but a [`Value`] can be made of anything.
fn check_depth(value: &Value, max_depth: usize) -> Result<()> {
    let mut open = vec![(value, 0)];
    while let Some((value, depth)) = open.pop() {
        if depth > max_depth {
            return Err(refuse("", format!("the schema is nested deeper than {max_depth} levels")));
        }
        match value {
            Value::Array(items) => open.extend(items.iter().map(|item| (item, depth + 1))),
            Value::Object(members) => open.extend(members.values().map(|member| (member, depth + 1))),
            _ => {}
        }
    }
    Ok(())
}
