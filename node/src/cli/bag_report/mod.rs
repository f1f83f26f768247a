//! `takt bag-report`: how deadlines were kept, from a recording.

use std::{fs, path::PathBuf, process::ExitCode};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::{CliError, interrupt::Interrupt, paint, print_json};
use crate::bag::{self, BagError, FileReport, Recording, Report, Selection};

mod terminal;

/// How deadlines were kept, from what a robot recorded: replies, prompts and streamed tokens in rosbag2's MCAP files
#[derive(Debug, Args)]
#[command(after_help = "Examples: takt bag-report field_test/ --plot field_test.svg\n          \
    takt bag-report field_test_0.mcap --node /robot1/takt --since 60 --until 120 --json\n\
    Record with: ros2 bag record -s mcap /takt/prompt /takt/reply /takt/stream")]
pub(super) struct BagReportArgs {
    /// MCAP files, parts of one recording, or the folder of a rosbag2
    #[arg(value_name = "FILE.mcap|FOLDER", required = true)]
    bags: Vec<PathBuf>,
    /// Only this node [default: all]
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Only from this many seconds after the recording's start
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    since: Option<f64>,
    /// Only up to this many seconds after the recording's start
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    until: Option<f64>,
    /// Draw each reply's time as a share of its deadline
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected a number of seconds, such as 12.5".to_owned())?;
    if seconds.is_finite() && seconds >= 0.0 {
        Ok(seconds)
    } else {
        Err("expected 0 or more seconds".to_owned())
    }
}

impl From<BagError> for CliError {
    fn from(error: BagError) -> Self {
        Self::Failed(error.to_string())
    }
}

pub(super) fn run(args: &BagReportArgs, interrupt: &Interrupt) -> Result<ExitCode, CliError> {
    let selection =
        Selection { since_s: args.since.unwrap_or(0.0), until_s: args.until, node: args.node.clone() };
    if selection.until_s.is_some_and(|until_s| until_s <= selection.since_s) {
        return Err(CliError::Usage("--until must be later than --since".into()));
    }
    let mut recording = Recording::default();
    let files = read(args, &mut recording, interrupt)?;
    let nodes = match selection.nodes(&recording) {
        // What is damaged may be all there is to say.
        Err(error @ BagError::NoTaktTopics { .. }) => {
            let notes = files.iter().flat_map(|file| file.notes.iter().map(move |note| (file, note)));
            let notes: String = notes.map(|(file, note)| format!("\n{}: {note}", file.path)).collect();
            return Err(CliError::Failed(format!("{error}{notes}")));
        }
        nodes => nodes?,
    };
    let report = Report::of(&recording, &selection, &nodes, files);
    if let Some(path) = &args.plot {
        fs::write(path, bag::svg(&recording, &nodes, &selection))
            .map_err(|error| CliError::Failed(format!("{}: cannot be written: {error}", path.display())))?;
    }
    if args.json {
        let value = serde_json::to_value(&report).map_err(|error| CliError::Failed(error.to_string()))?;
        return print_json(&value);
    }
    terminal::show(&report);
    if let Some(path) = &args.plot {
        sayln!("\n  {} {}", paint::dim("plot"), path.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn read(
    args: &BagReportArgs,
    recording: &mut Recording,
    interrupt: &Interrupt,
) -> Result<Vec<FileReport>, CliError> {
    let paths = bag::find(&args.bags)?;
    let lens: Vec<u64> = paths.iter().map(|path| fs::metadata(path).map_or(0, |data| data.len())).collect();
    let bar = if args.json { ProgressBar::hidden() } else { ProgressBar::new(lens.iter().sum()) };
    let style = ProgressStyle::with_template("reading {wide_bar} {bytes} of {total_bytes}, {eta} left");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let (mut files, mut before) = (Vec::new(), 0);
    for (path, len) in paths.iter().zip(lens) {
        files.push(bag::read(path, recording, &mut |at| {
            bar.set_position(before + at);
            !interrupt.is_raised()
        })?);
        before += len;
    }
    bar.finish_and_clear();
    Ok(files)
}
