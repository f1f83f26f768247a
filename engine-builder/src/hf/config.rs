//! `config.json` as typed values: a wrong type or an unknown setting is an error, never a default.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::{BuildError, Result};

/// A JSON object with the file it came from. `null` counts as absent.
#[derive(Debug, Clone)]
pub(super) struct Config {
    path: PathBuf,
    /// Where in the file the object is, for messages: empty for the file's own object, `rope_scaling.` for an inner one.
    prefix: String,
    map: Map<String, Value>,
}

impl Config {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).map_err(|source| BuildError::Io {
            action: "read",
            path: path.into(),
            source,
        })?;
        let not_json = |fact: String| BuildError::Source { path: path.into(), fact };
        match serde_json::from_slice(&text) {
            Ok(Value::Object(map)) => Ok(Self { path: path.into(), prefix: String::new(), map }),
            Ok(_) => Err(not_json("is JSON, but not an object".into())),
            Err(e) => Err(not_json(format!("is not JSON: {e}"))),
        }
    }

    /// The file, when there is one.
    pub(super) fn read_if_exists(path: &Path) -> Result<Option<Self>> {
        if path.exists() { Self::read(path).map(Some) } else { Ok(None) }
    }

    pub(super) fn value(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.map.keys().map(String::as_str)
    }

    pub(super) fn count(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a whole number", |value| value.as_u64().and_then(|n| usize::try_from(n).ok()))
    }

    pub(super) fn required_count(&self, key: &str) -> Result<usize> {
        self.count(key)?.ok_or_else(|| self.error(format!("has no {}{key}", self.prefix)))
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    pub(super) fn required_number(&self, key: &str) -> Result<f64> {
        self.number(key)?.ok_or_else(|| self.error(format!("has no {}{key}", self.prefix)))
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub(super) fn string(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", Value::as_str)
    }

    pub(super) fn strings(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let all_strings = |value| Value::as_array(value)?.iter().map(Value::as_str).collect();
        self.typed(key, "a list of strings", all_strings)
    }

    pub(super) fn object(&self, key: &str) -> Result<Option<Self>> {
        let map = self.typed(key, "an object", Value::as_object)?;
        let prefix = format!("{}{key}.", self.prefix);
        Ok(map.map(|map| Self { path: self.path.clone(), prefix, map: map.clone() }))
    }

    /// "PATH: fact".
    pub(super) fn error(&self, fact: impl Into<String>) -> BuildError {
        BuildError::Source { path: self.path.clone(), fact: fact.into() }
    }

    /// "not supported: KEY = VALUE in PATH; hint".
    pub(super) fn unsupported(&self, key: &str, hint: &str) -> BuildError {
        let shown = self.map.get(key).map_or_else(|| "absent".into(), abbreviated);
        let (prefix, path) = (&self.prefix, &self.path);
        BuildError::Unsupported(format!("{prefix}{key} = {shown} in {path:?}; {hint}"))
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let wrong =
            || self.error(format!("{}{key} is {}, expected {expected}", self.prefix, abbreviated(value)));
        read(value).map(Some).ok_or_else(wrong)
    }
}

/// `value` as JSON, cut to a line's length.
fn abbreviated(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
