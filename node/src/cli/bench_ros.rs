//! `takt bench --ros`: what asking over ROS 2 costs.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use indicatif::{ProgressBar, ProgressStyle};
use takt_engine::backend::cpu::ActivationArithmetic;

use super::{CliError, demo, engine_args::EngineArgs, interrupt::Interrupt, paint, print_json};
use crate::{
    bench::ros::{
        Effort, Settings, measure, plot,
        report::{LoopRow, Quantiles, Report},
    },
    demo::find_model,
};

/// What `takt bench --ros` was asked for.
#[derive(Debug, clap::Args)]
pub(super) struct RosBenchArgs {
    /// Instead: what asking over ROS 2 costs, on a node in a process of its own, and what the node costs a 100 Hz control loop; without DIR on the demo model
    #[arg(long, group = "what", conflicts_with_all = ["shape", "deadlines", "speculation", "sustained"])]
    pub ros: bool,
    /// With --ros: a few seconds instead of a minute and a half
    #[arg(long, requires = "ros")]
    fast: bool,
    /// With --ros: the node's configuration, as for `takt serve`
    #[arg(long, value_name = "FILE.toml", requires = "ros")]
    config: Option<PathBuf>,
    /// With --ros: threads that compute beside the busy node
    #[arg(long, value_name = "N", default_value_t = 0, requires = "ros", value_parser = clap::value_parser!(u16).range(0..=1024))]
    busy_threads: u16,
    /// With --ros: run the control loop with this SCHED_FIFO priority; ros2_control's is 50 [default: the ordinary policy]
    #[arg(long, value_name = "N", requires = "ros", value_parser = clap::value_parser!(u8).range(1..=99))]
    loop_priority: Option<u8>,
}

impl RosBenchArgs {
    /// Arguments for `takt serve`.
    pub fn node_args(&self, engine: &EngineArgs) -> Result<Vec<String>, CliError> {
        let activations = match engine.activations {
            ActivationArithmetic::Auto => "auto",
            ActivationArithmetic::F32 => "f32",
            ActivationArithmetic::Int8 => "int8",
        };
        let mut args = vec!["--activations".to_owned(), activations.to_owned()];
        let threads = engine.threads.map(|threads| threads.to_string());
        let kv = engine.kv.map(|kind| kind.to_string());
        let config = match &self.config {
            Some(path) => Some(path.to_str().map(str::to_owned).ok_or_else(|| {
                CliError::Usage(format!("--config {}: expected a path in UTF-8", path.display()))
            })?),
            None => None,
        };
        for (name, value) in [("--threads", threads), ("--kv", kv), ("--config", config)] {
            args.extend(value.into_iter().flat_map(|value| [name.to_owned(), value]));
        }
        Ok(args)
    }
}

pub(super) fn run(
    args: &RosBenchArgs,
    dir: Option<&Path>,
    node_args: &[String],
    plot: Option<&Path>,
    as_json: bool,
    interrupt: &Interrupt,
) -> Result<ExitCode, CliError> {
    let engine = match dir {
        Some(dir) => dir.to_owned(),
        None => demo::prepare(&find_model("name an engine directory: takt bench --ros DIR")?, interrupt)?.dir,
    };
    let settings = Settings {
        engine: &engine,
        node_args,
        ros: &demo::own_network("takt_bench"),
        effort: if args.fast { Effort::FAST } else { Effort::NORMAL },
        num_busy_threads: args.busy_threads.into(),
        loop_priority: args.loop_priority,
    };
    let bar = if as_json { ProgressBar::hidden() } else { ProgressBar::new(1000) };
    let style = ProgressStyle::with_template("{msg:<30} {wide_bar} {elapsed}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let measured = measure(&settings, interrupt.flag(), |what, share| {
        bar.set_message(what.to_owned());
        bar.set_position((share * 1000.0) as u64); // within [0, 1000]
    });
    bar.finish_and_clear();
    if interrupt.is_raised() {
        return Err(CliError::Failed("interrupted".into()));
    }
    let report = measured?;
    if let Some(path) = plot {
        std::fs::write(path, plot::svg(&report))
            .map_err(|error| CliError::Failed(format!("cannot write {}: {error}", path.display())))?;
    }
    if as_json {
        let value = serde_json::to_value(&report).map_err(|error| CliError::Failed(error.to_string()))?;
        print_json(&value)?;
    } else {
        show(&report);
        if let Some(path) = plot {
            sayln!("\n  {} {}", paint::dim("plot"), path.display());
        }
    }
    match report.messages.lost {
        0 => Ok(ExitCode::SUCCESS),
        lost => {
            Err(CliError::Failed(format!("{lost} of {} questions were never answered", report.messages.sent)))
        }
    }
}

fn show(report: &Report) {
    sayln!("{}  {}", paint::bold("ROS 2"), report.machine.processor);
    say!("{}", paint::facts(&circumstances(report)));
    show_round_trips(report);
    show_decisions(report);
    show_loop(report);
    let messages = &report.messages;
    let grouped = paint::grouped;
    let lost = format!("{} lost", grouped(messages.lost));
    sayln!(
        "\n{} questions, {} answered, {}; before that {} to warm up",
        grouped(messages.sent),
        grouped(messages.answered),
        if messages.lost == 0 { paint::green(&lost) } else { paint::red(&lost) },
        report.num_warm_up
    );
}

fn circumstances(report: &Report) -> Vec<(&'static str, String)> {
    let (machine, load) = (&report.machine, &report.load);
    let kernel = if machine.is_preempt_rt { "PREEMPT_RT" } else { "not PREEMPT_RT" };
    let average = machine.load_average.map_or(String::new(), |load| format!(", load average {load} before"));
    let worker = report.node.worker.as_ref().map_or("unknown".into(), |worker| {
        format!("{}, cores {}, {} locked", worker.policy, worker.cores, paint::bytes(worker.locked_kib << 10))
    });
    let settings = &report.control_loop_settings;
    let policy =
        settings.fifo_priority.map_or("SCHED_OTHER".into(), |priority| format!("SCHED_FIFO {priority}"));
    let refused = report.control_loop.iter().find_map(|row| row.refused.as_ref());
    let policy = refused.map_or(policy, |reason| format!("SCHED_OTHER ({reason})"));
    let beside = match load.busy_threads {
        0 => "no other load".into(),
        num => format!("{num} busy threads beside it"),
    };
    vec![
        ("machine", format!("{} cores, kernel {} ({kernel}){average}", machine.cores, machine.kernel)),
        ("node", format!("takt serve on loopback, decode step {:.2} ms", report.node.decode_step_ms)),
        ("worker", worker),
        (
            "control loop",
            format!(
                "{:.0} Hz, {policy}, a question every {} ticks",
                settings.rate_hz, settings.ticks_per_question
            ),
        ),
        (
            "busy",
            format!(
                "{} background requests open on {} lanes, {:.0} tokens/s of theirs; {beside}",
                load.open_requests, load.lanes, load.tok_s
            ),
        ),
    ]
}

/// `p50 p99 max` in columns.
fn columns(quantiles: &Quantiles) -> String {
    let column = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.2}"));
    format!("{:>9}{:>9}{:>9}", column(quantiles.p50), column(quantiles.p99), column(quantiles.max))
}

/// Titles of columns; those of a group of three stand above its middle.
fn header(first: &str, groups: &[&str]) {
    let groups: String = groups.iter().map(|name| format!("  {name:^27}")).collect();
    sayln!("\n{}", paint::dim(&format!("  {first:<28}{:>7}{groups}", "")));
}

fn under(num_groups: usize) {
    let group = format!("  {:>9}{:>9}{:>9}", "p50", "p99", "max").repeat(num_groups);
    sayln!("{}", paint::dim(&format!("  {:<28}{:>7}{group}", "", "count")));
}

fn show_round_trips(report: &Report) {
    header("round trip, ms", &["as the client sees it", "of it in the node", "transport overhead"]);
    under(3);
    for row in &report.round_trips {
        let label = format!("{}, node {}", row.door.name(), row.node);
        let not_whole =
            if row.otherwise > 0 { format!("  {} not whole", row.otherwise) } else { String::new() };
        sayln!(
            "  {label:<28}{:>7}  {}  {}  {}{not_whole}",
            row.complete,
            columns(&row.round_trip_ms),
            columns(&row.in_node_ms),
            columns(&row.overhead_ms)
        );
    }
}

fn show_decisions(report: &Report) {
    header("decision, ms", &["sent to decided"]);
    under(1);
    for row in &report.decisions {
        let label = format!("{} {}, node {}", row.door.name(), row.decision, row.node);
        let otherwise =
            if row.otherwise > 0 { format!("  {} otherwise", row.otherwise) } else { String::new() };
        sayln!("  {label:<28}{:>7}  {}{otherwise}", row.decided, columns(&row.ms));
    }
}

fn show_loop(report: &Report) {
    header("control loop, ms", &["late", "sending a question"]);
    under(2);
    for row in &report.control_loop {
        let LoopRow { beside, ticks, missed, late_ms, asking_ms, .. } = row;
        let missed = format!("  {missed} ticks missed");
        sayln!("  {beside:<28}{ticks:>7}  {}  {}{missed}", columns(late_ms), columns(asking_ms));
    }
}
