//! Options that say which form an answer must have.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use takt_engine::grammar::{ClosingPolicy, GrammarSpec, limits::MAX_SCHEMA_BYTES};

use super::CliError;
use crate::request::Form;

/// The form of the answer; at most one of the first three.
#[derive(Debug, Args)]
pub(super) struct FormArgs {
    /// Answer in JSON that this JSON Schema accepts, also when the deadline cuts it
    #[arg(long, value_name = "FILE.json", conflicts_with_all = ["regex", "choice"])]
    schema: Option<PathBuf>,
    /// Answer in text that this regex matches from start to end
    #[arg(long, value_name = "R", conflicts_with = "choice")]
    regex: Option<String>,
    /// Answer with one of the texts given; give it several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    choice: Vec<String>,
    /// What stands in for a value without a declared default when time is up: nothing (such a schema is refused), or the shortest value
    #[arg(long, value_name = "POLICY", default_value = "declared", requires = "schema")]
    closing: ClosingArg,
}

/// [`ClosingPolicy`] by name.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum ClosingArg {
    /// Only declared defaults
    Declared,
    /// Also the shortest valid values
    Minimal,
}

impl FormArgs {
    /// The form asked for, if any.
    pub(super) fn form(&self) -> Result<Option<Form>, CliError> {
        let closing = match self.closing {
            ClosingArg::Declared => ClosingPolicy::Declared,
            ClosingArg::Minimal => ClosingPolicy::Minimal,
        };
        let spec = self.spec()?;
        if let Some(spec) = &spec {
            spec.check()?;
        }
        Ok(spec.map(|spec| Form { spec, closing }))
    }

    fn spec(&self) -> Result<Option<GrammarSpec>, CliError> {
        if let Some(path) = &self.schema {
            let failed = |fact: String| CliError::Failed(format!("{}: {fact}", path.display()));
            return read_schema(path).map(Some).map_err(failed);
        }
        if let Some(regex) = &self.regex {
            return Ok(Some(GrammarSpec::Regex(regex.clone())));
        }
        Ok((!self.choice.is_empty()).then(|| GrammarSpec::Choice(self.choice.clone())))
    }
}

/// The schema in the file at `path`, or what is wrong with it.
pub(super) fn read_schema(path: &Path) -> Result<GrammarSpec, String> {
    let unreadable = |error: std::io::Error| format!("cannot be read: {error}");
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    // A pipe would never end, and a device neither.
    if !metadata.is_file() {
        return Err("no ordinary file".to_owned());
    }
    let size = metadata.len();
    if size > MAX_SCHEMA_BYTES as u64 {
        return Err(format!("{size} bytes, a schema has at most {MAX_SCHEMA_BYTES}: make it smaller"));
    }
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    GrammarSpec::from_schema_text(&text).map_err(|error| error.to_string())
}

/// Which values are not the model's.
pub(super) fn not_the_models(defaulted_fields: &[String], cut_fields: &[String]) -> String {
    let list = |fields: &[String]| match fields {
        [] => "none".to_owned(),
        fields => {
            let shown = |field: &String| if field.is_empty() { "the whole".into() } else { field.clone() };
            fields.iter().map(shown).collect::<Vec<_>>().join(", ")
        }
    };
    format!("defaults: {}; cut: {}", list(defaulted_fields), list(cut_fields))
}
