//! `takt doctor`.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use serde_json::json;

use super::{CliError, paint, print_json};
use crate::{
    board::{self, BoardFile},
    config::process_environment,
    doctor::{Finding, Level, compare, examine},
};

/// Show what this machine has, what follows from what it lacks, and whether it is set up as its board file expects
#[derive(Debug, Args)]
#[command(after_help = "Example: takt doctor --board /etc/takt/board.toml")]
pub(super) struct DoctorArgs {
    /// Board file to compare with [default: the one of jetson-configs for this machine]
    #[arg(long, value_name = "FILE.toml")]
    board: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &DoctorArgs) -> Result<ExitCode, CliError> {
    let mut findings = examine(process_environment);
    let file = board_file(args)?;
    if let Some(file) = &file {
        findings.extend(compare(file, Path::new("/")));
    }
    if args.json {
        return print_json(&json!({ "findings": findings, "board": file.map(|file| file.path) }));
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

/// The file asked for, or the one for this machine. That there is none for it is told, and no failure.
fn board_file(args: &DoctorArgs) -> Result<Option<BoardFile>, CliError> {
    if let Some(path) = &args.board {
        return Ok(Some(BoardFile::read(path)?));
    }
    let found = board::find(&board::folders(), Path::new("/"));
    for fault in &found.faults {
        tracing::warn!("board file left out: {fault}");
    }
    if !found.is_match {
        let instead = if found.file.is_some() { "compared with host.toml" } else { "nothing is compared" };
        eprintln!("no board file is for this machine: {instead}; --board FILE names one");
    }
    Ok(found.file)
}

fn mark(finding: &Finding) -> String {
    match finding.level {
        Level::Good => paint::green("✓"),
        Level::Note => paint::yellow("·"),
        Level::Bad => paint::red("✗"),
    }
}
