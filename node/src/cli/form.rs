//! Options that say which form an answer must have.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use takt_engine::grammar::{ClosingPolicy, GrammarSpec, limits::MAX_SCHEMA_BYTES};

use super::CliError;

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
    pub(super) fn spec(&self) -> Result<Option<GrammarSpec>, CliError> {
        if let Some(path) = &self.schema {
            let failed = |fact: String| CliError::Failed(format!("{}: {fact}", path.display()));
            let size =
                std::fs::metadata(path).map_err(|error| failed(format!("cannot be read: {error}")))?.len();
            if size > MAX_SCHEMA_BYTES as u64 {
                return Err(failed(format!(
                    "{size} bytes, a schema has at most {MAX_SCHEMA_BYTES}: make it smaller"
                )));
            }
            let text =
                std::fs::read_to_string(path).map_err(|error| failed(format!("cannot be read: {error}")))?;
            let spec = GrammarSpec::from_schema_text(&text).map_err(|error| failed(error.to_string()))?;
            return Ok(Some(spec));
        }
        if let Some(regex) = &self.regex {
            return Ok(Some(GrammarSpec::Regex(regex.clone())));
        }
        Ok((!self.choice.is_empty()).then(|| GrammarSpec::Choice(self.choice.clone())))
    }

    /// What may stand in.
    pub(super) fn policy(&self) -> ClosingPolicy {
        match self.closing {
            ClosingArg::Declared => ClosingPolicy::Declared,
            ClosingArg::Minimal => ClosingPolicy::Minimal,
        }
    }
}
