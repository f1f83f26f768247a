//! `takt simulate`.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::{CliError, paint, print_json};
use crate::{
    scheduler::{
        bandwidth_server::Bandwidth,
        cost_table::{CostTable, StoredTable},
        job::Limits,
    },
    simulate::{Policy, Report, Settings, gantt, play, trace},
};

/// Sections drawn in a picture.
const MAX_DRAWN: usize = 2000;

/// Play a trace of requests against a cost table, in virtual time
#[derive(Debug, Args)]
#[command(
    after_help = "Examples: takt simulate trace.jsonl --costs engines/takt-demo/costs/cpu-….json --svg run.svg\n          \
    takt simulate --random 10000 --rate 40 --costs COSTS.json --policy fifo\n\
    A trace has one request a line: {\"arrival_ms\": 12.5, \"class\": \"control\", \"deadline_ms\": 100, \"prompt_len\": 60, \"answer_len\": 20}"
)]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub(super) struct SimulateArgs {
    /// Requests, one JSON object a line
    #[arg(value_name = "TRACE", group = "what")]
    trace: Option<PathBuf>,
    /// Draw this many requests at random instead
    #[arg(long, value_name = "N", group = "what", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    random: Option<u32>,
    /// Random requests a second
    #[arg(long, value_name = "R", default_value_t = 20.0, requires = "random")]
    rate: f64,
    /// How random requests come: poisson, bursty
    #[arg(long, value_name = "KIND", default_value = "poisson", requires = "random")]
    arrivals: trace::Arrivals,
    /// Cost table, written by `takt calibrate`
    #[arg(long, value_name = "FILE")]
    costs: PathBuf,
    /// Who is let in and who runs next: takt, admit-all, fifo, round-robin, or all to compare
    #[arg(long, value_name = "NAME", default_value = "takt")]
    policy: String,
    /// Lanes
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    lanes: u32,
    /// Requests that may wait
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    queue_len: u32,
    /// Longest section
    #[arg(long, value_name = "TIME", default_value = "20ms", value_parser = super::duration::parse)]
    max_section: Duration,
    /// What passes after every section before the next one, as `idle_gap_us` in [gpu]
    #[arg(long, value_name = "TIME", default_value = "0us", value_parser = super::duration::parse)]
    idle_gap: Duration,
    /// Draws random requests and what sections really take
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Write a picture of the first sections
    #[arg(long, value_name = "FILE.svg")]
    svg: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &SimulateArgs) -> Result<ExitCode, CliError> {
    let policies = match args.policy.as_str() {
        "all" => Policy::ALL.to_vec(),
        name => vec![name.parse().map_err(CliError::Usage)?],
    };
    if !(args.rate.is_finite() && args.rate > 0.0) {
        return Err(CliError::Usage(format!("--rate {}: expected more than 0", args.rate)));
    }
    let table = read_costs(args)?;
    let demands = match (&args.trace, args.random) {
        (Some(path), _) => {
            let failed = |fact: String| CliError::Failed(format!("{}: {fact}", path.display()));
            let text =
                std::fs::read_to_string(path).map_err(|error| failed(format!("cannot be read: {error}")))?;
            trace::parse(&text).map_err(|error| failed(error.to_string()))?
        }
        (None, num) => trace::random(num.unwrap_or(1) as usize, args.rate, args.arrivals, args.seed),
    };
    if demands.is_empty() {
        return Err(CliError::Failed("the trace has no requests".into()));
    }
    let bar = if args.json { ProgressBar::hidden() } else { ProgressBar::new(demands.len() as u64) };
    let style = ProgressStyle::with_template("playing {wide_bar} {pos}/{len} requests");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let mut reports = Vec::new();
    for (idx, &policy) in policies.iter().enumerate() {
        let settings = settings(args, policy, table.grid().prefill_sizes.last().copied().unwrap_or(64));
        let run = play(&demands, &table, &settings, |num_arrived| bar.set_position(num_arrived as u64));
        reports.push((policy, Report::of(&demands, &run)));
        if let Some(path) = args.svg.as_ref().filter(|_| idx == 0) {
            std::fs::write(path, gantt::svg(&demands, &run, settings.num_lanes)).map_err(|error| {
                CliError::Failed(format!("{}: cannot be written: {error}", path.display()))
            })?;
        }
    }
    bar.finish_and_clear();
    if args.json {
        let all: Vec<_> = reports
            .iter()
            .map(|(policy, report)| json!({"policy": policy.to_string(), "report": report}))
            .collect();
        return print_json(&json!({"requests": demands.len(), "runs": all}));
    }
    reports.iter().for_each(|(policy, report)| show(*policy, report));
    if let Some(path) = &args.svg {
        sayln!("\npicture of the first sections: {}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn read_costs(args: &SimulateArgs) -> Result<CostTable, CliError> {
    let stored = StoredTable::read(&args.costs).map_err(|error| CliError::Failed(error.to_string()))?;
    let stored = stored.ok_or_else(|| {
        CliError::Failed(format!(
            "{}: no such file: measure one with `takt calibrate DIR`",
            args.costs.display()
        ))
    })?;
    Ok(stored.table())
}

fn settings(args: &SimulateArgs, policy: Policy, max_slice_len: usize) -> Settings {
    let num_lanes = args.lanes as usize;
    Settings {
        policy,
        num_lanes,
        queue_len: args.queue_len as usize,
        limits: Limits {
            max_prefill_slice_tokens: max_slice_len,
            max_step_tokens: max_slice_len + num_lanes,
            max_section: args.max_section,
            max_any_section: None,
            idle_gap: args.idle_gap,
            reply_margin: Duration::from_micros(500),
        },
        bandwidth: Bandwidth::default(),
        seed: args.seed,
        has_forms: false,
        max_records: if args.svg.is_some() { MAX_DRAWN } else { 0 },
    }
}

fn show(policy: Policy, report: &Report) {
    sayln!(
        "\n{}  {:.1} s, device busy {:.0} %, {:.1} answers in time a second, {} sections, {} preemptions",
        paint::bold(&policy.to_string()),
        report.length_s,
        report.utilisation * 100.0,
        report.goodput,
        paint::grouped(report.num_sections),
        paint::grouped(report.num_preemptions),
    );
    let header = format!(
        "  {:<12}{:>9}{:>9}{:>9}{:>9}{:>10}",
        "class", "asked", "refused", "missed", "in time", "complete"
    );
    sayln!("{}", paint::dim(&header));
    for (class, figures) in report.classes().into_iter().filter(|(_, figures)| figures.num_requests > 0) {
        let missed = format!("{:>9}", paint::grouped(figures.num_missed));
        sayln!(
            "  {:<12}{:>9}{:>9}{}{:>9}{:>10}",
            class.name(),
            paint::grouped(figures.num_requests),
            paint::grouped(figures.num_rejected),
            if figures.num_missed > 0 { paint::red(&missed) } else { paint::green(&missed) },
            paint::grouped(figures.num_answered),
            paint::grouped(figures.num_complete),
        );
    }
}
