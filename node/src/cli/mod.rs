//! The command line: one file a command.
//!
//! Exit status: 0 done, 1 the work failed, 2 wrong usage. With `--json` standard output holds one JSON object and nothing else;
//! logs and errors go to standard error.

#[macro_use]
mod say;

mod ask;
mod bag_report;
mod bench;
mod bench_compare;
mod bench_deadlines;
mod bench_gpu;
mod bench_perception;
mod bench_ros;
mod bench_speculation;
#[cfg(test)]
mod board_fit;
mod build;
mod build_plans;
mod calibrate;
mod demo;
mod doctor;
mod duration;
mod engine_args;
mod error;
mod export;
mod form;
mod generate;
mod gpu_options;
mod inspect;
mod inspect_kernels;
mod inspect_plans;
mod interrupt;
mod paint;
mod score;
mod score_draft;
mod serve;
mod served_engine;
mod simulate;

use std::{ffi::OsString, io::IsTerminal, process::ExitCode};

use clap::{Parser, Subcommand};
use tracing_subscriber::{
    EnvFilter, Layer as _, filter::Targets, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

use crate::{
    config::{RosArgs, Severity},
    ros::rosout::RosoutLayer,
};

pub use error::CliError;
use interrupt::Interrupt;

/// Runs language models on robots, on the beat of their control loop.
#[derive(Debug, Parser)]
#[command(
    name = "takt",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    max_term_width = 110
)]
#[command(after_help = "Start with: takt demo")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Build(build::BuildArgs),
    Export(export::ExportArgs),
    Inspect(inspect::InspectArgs),
    Generate(Box<generate::GenerateArgs>),
    Score(score::ScoreArgs),
    Bench(Box<bench::BenchArgs>),
    Calibrate(calibrate::CalibrateArgs),
    Simulate(simulate::SimulateArgs),
    BagReport(bag_report::BagReportArgs),
    Serve(serve::ServeArgs),
    Ask(ask::AskArgs),
    Demo(demo::DemoArgs),
    Doctor(doctor::DoctorArgs),
    #[command(name = bench_perception::SECOND_PROCESS, hide = true)]
    PerceptionFrames(bench_perception::FramesArgs),
}

/// What is logged without `RUST_LOG`, after the level of `--log-level`. Of the silenced parts of rustdds, two call every orderly end
/// on loopback an error, and the third each renewal of a writer (`ros::dds::renewal`).
const LOG_FILTER: &str =
    "rustdds=error,rustdds::network::udp_listener=off,rustdds::dds::pubsub=off,rustdds::rtps::writer=off";

/// Parses `args` (with the program's name first) and runs the command.
///
/// # Errors
/// [`CliError`], which knows its exit status. Wrong usage that clap finds ends the process with status 2 and its own message.
pub fn run(args: Vec<OsString>) -> Result<ExitCode, CliError> {
    let (ros_args, args) = RosArgs::split(args).map_err(CliError::Usage)?;
    let cli = Cli::parse_from(args);
    log_to_stderr(ros_args.log_levels.default);
    let takes_ros_args = matches!(cli.command, Command::Serve(_) | Command::Ask(_));
    if ros_args != RosArgs::default() && !takes_ros_args {
        return Err(CliError::Usage("--ros-args belongs to `takt serve` and `takt ask`".into()));
    }
    for notice in &ros_args.notices {
        tracing::warn!("{notice}");
    }
    // Before any thread starts: signals must be blocked in all of them. Only where they are listened to: they end the others at once.
    let interrupt = Interrupt::install;
    match cli.command {
        Command::Build(args) => build::run(&args, &interrupt()?),
        Command::Export(args) => export::run(&args, &interrupt()?),
        Command::Inspect(args) => inspect::run(&args),
        Command::Generate(args) => generate::run(&args, &interrupt()?),
        Command::Score(args) => score::run(&args),
        Command::Bench(args) => bench::run(&args, &interrupt()?),
        Command::Calibrate(args) => calibrate::run(&args, &interrupt()?),
        Command::Simulate(args) => simulate::run(&args),
        Command::Serve(args) => serve::run(&args, &ros_args, &interrupt()?),
        Command::Ask(args) => ask::run(&args, &ros_args),
        Command::BagReport(args) => bag_report::run(&args, &interrupt()?),
        Command::Demo(args) => demo::run(&args, &interrupt()?),
        Command::Doctor(args) => doctor::run(&args),
        Command::PerceptionFrames(args) => bench_perception::run_second_process(&args),
    }
}

fn log_to_stderr(level: Option<Severity>) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| {
        EnvFilter::new(format!("{},{LOG_FILTER}", level.unwrap_or(Severity::Warn).filter()))
    });
    let colours = std::io::stderr().is_terminal() && crate::config::process_environment("NO_COLOR").is_none();
    let to_stderr =
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colours).with_filter(filter);
    // What a robot's log wants to have, whatever standard error shows.
    let own = Targets::new().with_target("takt_node", tracing::Level::INFO);
    // A second initialisation (tests in one process) keeps the first.
    let _ = tracing_subscriber::registry().with(to_stderr).with(RosoutLayer.with_filter(own)).try_init();
}

/// Prints one JSON object on standard output.
fn print_json(value: &serde_json::Value) -> Result<ExitCode, CliError> {
    use std::io::Write as _;
    let text = serde_json::to_string(value).map_err(|error| CliError::Failed(error.to_string()))?;
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(error) => Err(CliError::Failed(format!("cannot write the result: {error}"))),
    }
}
