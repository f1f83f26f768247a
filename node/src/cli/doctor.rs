//! `takt doctor`.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::{CliError, paint, print_json};
use crate::{
    config::process_environment,
    doctor::{Finding, Level, examine},
};

/// Show what this machine has, and what follows from what it lacks
#[derive(Debug, Args)]
#[command(after_help = "Example: takt doctor --json")]
pub(super) struct DoctorArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &DoctorArgs) -> Result<ExitCode, CliError> {
    let findings = examine(process_environment);
    if args.json {
        return print_json(&json!({ "findings": findings }));
    }
    let width = findings.iter().map(|finding| finding.topic.len()).max().unwrap_or(0);
    for finding in &findings {
        sayln!("{} {:<width$}  {}", mark(finding), finding.topic, finding.found);
        if !finding.effect.is_empty() {
            sayln!("  {:<width$}  {}", "", paint::dim(&finding.effect));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn mark(finding: &Finding) -> String {
    match finding.level {
        Level::Good => paint::green("✓"),
        Level::Note => paint::yellow("·"),
        Level::Bad => paint::red("✗"),
    }
}
