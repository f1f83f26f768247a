//! `takt build`.

use std::{path::PathBuf, process::ExitCode, time::Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use takt_engine::{kv::KvKind, quant::WeightKind};
use takt_engine_builder::{BuildError, BuildOptions, BuildReport, Progress, build};

use super::{CliError, interrupt::Interrupt, paint, print_json};

/// Make an engine directory from a Hugging Face folder or an ONNX file
#[derive(Debug, Args)]
#[command(after_help = "Example: takt build models/takt-demo -o engines/takt-demo --weights nvfp4")]
pub(super) struct BuildArgs {
    /// Hugging Face folder, .onnx file, or folder with model.onnx
    source: PathBuf,
    /// Engine directory to write; it appears whole or not at all
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Format of the decoder layers' weights: bf16, fp8, nvfp4, int4
    #[arg(long, value_name = "KIND", default_value = "nvfp4")]
    weights: WeightKind,
    /// Format of the output head [default: bf16 for bf16 weights, else fp8]
    #[arg(long, value_name = "KIND")]
    lm_head: Option<WeightKind>,
    /// KV cache format recorded in the engine: bf16, fp8, int8 [default: bf16]
    #[arg(long, value_name = "KIND")]
    kv: Option<KvKind>,
    /// Longest context the engine promises, in tokens [default: the model's]
    #[arg(long, value_name = "N")]
    max_context: Option<usize>,
    /// Replace the engine that is there
    #[arg(long)]
    force: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[arg(long, hide = true, value_name = "DIR")]
    draft: Option<PathBuf>,
    #[arg(long = "for", hide = true, value_name = "ARCH")]
    targets: Option<String>,
    #[arg(long, hide = true)]
    tensorrt: bool,
}

pub(super) fn run(args: &BuildArgs, interrupt: &Interrupt) -> Result<ExitCode, CliError> {
    refuse_later_options(args)?;
    let options = BuildOptions {
        weights: args.weights,
        lm_head: args.lm_head,
        kv: args.kv,
        max_context: args.max_context,
        force: args.force,
        cancelled: Some(interrupt.flag()),
    };
    let started = Instant::now();
    let bar = progress_bar();
    let built = build(&args.source, &args.output, &options, &mut |progress| show(&bar, progress));
    bar.finish_and_clear();
    let report = built.map_err(|error| match error {
        BuildError::Cancelled => CliError::Failed("build cancelled; nothing was written".into()),
        error => error.into(),
    })?;
    let seconds = started.elapsed().as_secs_f64();
    if args.json {
        return print_json(&as_json(args, &report, seconds));
    }
    say!("{}", as_text(args, &report, seconds));
    Ok(ExitCode::SUCCESS)
}

fn refuse_later_options(args: &BuildArgs) -> Result<(), CliError> {
    let asked =
        [("--draft", args.draft.is_some()), ("--for", args.targets.is_some()), ("--tensorrt", args.tensorrt)];
    match asked.iter().find(|(_, is_asked)| *is_asked) {
        Some((option, _)) => Err(CliError::not_yet(option)),
        None => Ok(()),
    }
}

/// Drawn on standard error, and only on a terminal.
fn progress_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:32} {pos:>4}/{len} tensors  {elapsed}  {wide_msg}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn show(bar: &ProgressBar, progress: Progress<'_>) {
    bar.set_length(progress.total as u64);
    bar.set_position(progress.done as u64);
    bar.set_message(format!("{}  {}", paint::bytes(progress.bytes), progress.tensor));
}

fn as_json(args: &BuildArgs, report: &BuildReport, seconds: f64) -> Value {
    let groups: Vec<Value> = report
        .groups()
        .iter()
        .map(|group| {
            json!({
                "role": format!("{:?}", group.role).to_lowercase(), "kind": group.kind, "tensors": group.num_tensors,
                "relative_rms": group.stats.relative_rms(), "max_abs_error": group.stats.max_abs_error,
                "worst": {"tensor": group.worst.0, "relative_rms": group.worst.1},
            })
        })
        .collect();
    json!({
        "engine": args.output, "seconds": seconds, "engine_bytes": report.engine_bytes,
        "parameters": report.num_parameters, "quantization": report.quantization, "errors": groups,
        "warnings": report.warnings,
    })
}

fn as_text(args: &BuildArgs, report: &BuildReport, seconds: f64) -> String {
    let mut text = String::new();
    let header = format!(
        "{:<10} {:<6} {:>8} {:>15} {:>13}  worst",
        "tensors", "format", "count", "relative error", "largest"
    );
    text += &format!("{}\n", paint::dim(&header));
    for group in report.groups() {
        text += &format!(
            "{:<10} {:<6} {:>8} {:>14.3} % {:>12.2e}  {}\n",
            format!("{:?}", group.role).to_lowercase(),
            group.kind.to_string(),
            group.num_tensors,
            group.stats.relative_rms() * 100.0,
            group.stats.max_abs_error,
            paint::dim(&format!("{} ({:.3} %)", group.worst.0, group.worst.1 * 100.0)),
        );
    }
    for warning in &report.warnings {
        text += &format!("{} {warning}\n", paint::yellow("note:"));
    }
    let spec = &report.spec;
    text += &format!(
        "{} {}: {} {}, {} parameters in {} ({:.2} bits each), {seconds:.1} s\n",
        paint::green("✓"),
        paint::bold(&args.output.display().to_string()),
        spec.family,
        report.quantization.weights,
        paint::grouped(report.num_parameters),
        paint::bytes(report.engine_bytes),
        report.engine_bytes as f64 * 8.0 / report.num_parameters.max(1) as f64,
    );
    text
}
