//! `takt build`.

use std::{path::PathBuf, process::ExitCode, time::Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use takt_engine::{kv::KvKind, quant::WeightKind};
use takt_engine_builder::{
    BoardKernels, BuildError, BuildOptions, BuildReport, DraftReport, GroupError, KernelReport, Progress,
    Stage, add_kernels, build,
    draft::DraftOptions,
    plans::{DevicePlans, add_plans},
};
use takt_kernels_cu::{CudaVersion, Target};

use super::{
    CliError,
    build_plans::{PlanArgs, plans_json, plans_text},
    gpu_options::cuda_roots,
    interrupt::Interrupt,
    paint, print_json,
};
use crate::config::process_environment;

/// Make an engine directory from a Hugging Face folder or an ONNX file
#[derive(Debug, Args)]
#[command(
    after_help = "Examples: takt build models/takt-demo -o engines/takt-demo --weights nvfp4\n          \
    takt build engines/takt-demo --kernels-only --for sm_87 --cuda 12.6,13.0\n          \
    takt build models/takt-demo -o engines/takt-demo --tensorrt\n          \
    takt build engines/takt-demo --tensorrt --plans-only --plan-context 2048"
)]
pub(super) struct BuildArgs {
    /// Hugging Face folder, .onnx file, or folder with model.onnx; with --kernels-only or --plans-only an engine directory
    source: PathBuf,
    /// Engine directory to write; it appears whole or not at all
    #[arg(short, long, value_name = "DIR", required_unless_present_any = ["kernels_only", "plans_only"])]
    output: Option<PathBuf>,
    /// Format of the decoder layers' weights: bf16, fp8, nvfp4, int4
    #[arg(long, value_name = "KIND", default_value = "nvfp4")]
    weights: WeightKind,
    /// Format of the output head [default: bf16 for bf16 weights, and for plans of a GPU without 8-bit floats as Orin's; else fp8]
    #[arg(long, value_name = "KIND")]
    lm_head: Option<WeightKind>,
    /// KV cache format recorded in the engine: bf16, fp8, int8 [default: bf16]
    #[arg(long, value_name = "KIND")]
    kv: Option<KvKind>,
    /// Longest context the engine promises, in tokens [default: the model's]
    #[arg(long, value_name = "N")]
    max_context: Option<usize>,
    /// EAGLE-3 draft head to add: a folder with config.json and model.safetensors
    #[arg(long, value_name = "DIR")]
    draft: Option<PathBuf>,
    /// Prompts the head is tried on, {"system": …, "user": …} a line [default: prompts.jsonl beside the head, or built-in ones]
    #[arg(long, value_name = "FILE", requires = "draft")]
    draft_prompts: Option<PathBuf>,
    /// Compile the CUDA kernels for these boards into the engine, so that they start without a compiler: sm_87 (Orin), sm_90a (Hopper), sm_110a
    /// (Thor), sm_120a (Blackwell). Takes NVRTC and no GPU; CUDA folders are those in TAKT_CUDA_ROOT (several with colons), else CUDA_HOME, CUDA_PATH
    /// and /usr/local/cuda*
    #[arg(long = "for", value_name = "TARGET,…", value_delimiter = ',')]
    targets: Vec<Target>,
    /// Compilers to compile the kernels with, by their versions of CUDA: 12.6, 13.0. A driver takes no kernels of a later major version than its
    /// own, and Orin with JetPack 6 has CUDA 12 [default: the newest of each major version in the CUDA folders]
    #[arg(long, value_name = "VERSION,…", value_delimiter = ',', requires = "targets")]
    cuda: Vec<CudaVersion>,
    /// Compile the kernels of --for into the engine directory SOURCE, and change nothing else of it
    #[arg(long, requires = "targets", conflicts_with_all = ["output", "weights", "lm_head", "kv", "max_context", "draft", "force"])]
    kernels_only: bool,
    /// Replace the engine that is there
    #[arg(long)]
    force: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    plans: PlanArgs,
}

const NO_CUDA: &str = "--for needs NVRTC, CUDA's compiler as a library, and found no CUDA folder: none of TAKT_CUDA_ROOT, CUDA_HOME and \
    CUDA_PATH is set, and there is no /usr/local/cuda; install the CUDA toolkit, or the Python packages nvidia-cuda-nvrtc and \
    nvidia-cuda-runtime with TAKT_CUDA_ROOT set to their folder nvidia/cu13 (no GPU is needed)";

pub(super) fn run(args: &BuildArgs, interrupt: &Interrupt) -> Result<ExitCode, CliError> {
    let kernels = board_kernels(args)?;
    if let (true, Some(kernels)) = (args.kernels_only, &kernels) {
        return run_kernels_only(args, kernels, interrupt);
    }
    let plans = args.plans.open()?;
    if let (true, Some(plans)) = (args.plans.plans_only, &plans) {
        return run_plans_only(args, plans, interrupt);
    }
    let output = args.output.as_deref().ok_or_else(|| CliError::Usage("--output is missing".into()))?;
    let options = BuildOptions {
        weights: args.weights,
        lm_head: args.lm_head,
        kv: args.kv,
        max_context: args.max_context,
        draft: args.draft.as_deref().map(|folder| DraftOptions {
            folder,
            prompts: args.draft_prompts.as_deref(),
            measures: true,
        }),
        kernels: kernels.as_ref(),
        plans: plans.as_ref(),
        force: args.force,
        cancelled: Some(interrupt.flag()),
    };
    let started = Instant::now();
    let bar = progress_bar();
    let built = build(&args.source, output, &options, &mut |progress| show(&bar, progress));
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

/// Opened before the build: whether there is a compiler must not be found out after minutes of quantization.
fn board_kernels(args: &BuildArgs) -> Result<Option<BoardKernels>, CliError> {
    if args.targets.is_empty() {
        return Ok(None);
    }
    let roots = cuda_roots(process_environment);
    if roots.is_empty() {
        return Err(CliError::Failed(NO_CUDA.into()));
    }
    Ok(Some(BoardKernels::open(&roots, &args.targets, &args.cuda)?))
}

/// Adds kernels to an engine that is there.
fn run_kernels_only(
    args: &BuildArgs,
    kernels: &BoardKernels,
    interrupt: &Interrupt,
) -> Result<ExitCode, CliError> {
    let (started, bar) = (Instant::now(), progress_bar());
    let added =
        add_kernels(&args.source, kernels, Some(interrupt.flag()), &mut |progress| show(&bar, progress));
    bar.finish_and_clear();
    let report = added.map_err(|error| match error {
        BuildError::Cancelled => CliError::Failed("cancelled; the engine is as it was".into()),
        error => error.into(),
    })?;
    let (seconds, warning) = (started.elapsed().as_secs_f64(), kernels.warning());
    if args.json {
        return print_json(&json!({
            "engine": args.source, "seconds": seconds, "kernels": kernels_json(&report), "warnings": Vec::from_iter(&warning),
        }));
    }
    let mut text = kernels_text(&report);
    if let Some(warning) = warning {
        text += &format!("{} {warning}\n", paint::yellow("note:"));
    }
    let engine = paint::bold(&args.source.display().to_string());
    say!("{text}{} {engine}: {seconds:.1} s\n", paint::green("✓"));
    Ok(ExitCode::SUCCESS)
}

/// Builds plans into an engine that is there.
fn run_plans_only(
    args: &BuildArgs,
    plans: &DevicePlans,
    interrupt: &Interrupt,
) -> Result<ExitCode, CliError> {
    let (started, bar) = (Instant::now(), progress_bar());
    let added = add_plans(&args.source, plans, Some(interrupt.flag()), &mut |progress| show(&bar, progress));
    bar.finish_and_clear();
    let report = added.map_err(|error| match error {
        BuildError::Cancelled => CliError::Failed("cancelled; the engine is as it was".into()),
        error => error.into(),
    })?;
    let seconds = started.elapsed().as_secs_f64();
    if args.json {
        return print_json(
            &json!({ "engine": args.source, "seconds": seconds, "plans": plans_json(&report) }),
        );
    }
    let engine = paint::bold(&args.source.display().to_string());
    say!("{}{} {engine}: {seconds:.1} s\n", plans_text(&report), paint::green("✓"));
    Ok(ExitCode::SUCCESS)
}

/// Drawn on standard error, and only on a terminal.
fn progress_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:32} {pos:>4}/{len} {prefix}  {elapsed}  {wide_msg}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn show(bar: &ProgressBar, progress: Progress<'_>) {
    bar.set_length(progress.total as u64);
    bar.set_position(progress.done as u64);
    bar.set_message(format!("{}  {}", paint::bytes(progress.bytes), progress.item));
    bar.set_prefix(match progress.stage {
        Stage::Kernels => "kernels",
        Stage::Tensors => "tensors",
        Stage::Models => "onnx",
        Stage::Plans => "plans",
    });
    match progress.stage {
        Stage::Kernels => tracing::info!("compiling {}", progress.item),
        Stage::Plans if progress.done == 0 => tracing::info!("TensorRT, {}", progress.item),
        Stage::Plans | Stage::Tensors | Stage::Models => {}
    }
}

fn as_json(args: &BuildArgs, report: &BuildReport, seconds: f64) -> Value {
    json!({
        "engine": args.output, "seconds": seconds, "engine_bytes": report.engine_bytes,
        "parameters": report.num_parameters, "quantization": report.quantization, "errors": groups_json(&report.groups()),
        "draft": report.draft.as_ref().map(draft_json), "kernels": report.kernels.as_ref().map(kernels_json),
        "plans": report.plans.as_ref().map(plans_json), "warnings": report.warnings,
    })
}

fn groups_json(groups: &[GroupError]) -> Vec<Value> {
    let group = |group: &GroupError| {
        json!({
            "role": format!("{:?}", group.role).to_lowercase(), "kind": group.kind, "tensors": group.num_tensors,
            "relative_rms": group.stats.relative_rms(), "max_abs_error": group.stats.max_abs_error,
            "worst": {"tensor": group.worst.0, "relative_rms": group.worst.1},
        })
    };
    groups.iter().map(group).collect()
}

fn draft_json(draft: &DraftReport) -> Value {
    let manifest = &draft.manifest;
    json!({
        "weights": manifest.weights, "lm_head": manifest.lm_head, "rope_theta": manifest.spec.rope_theta,
        "captured": manifest.spec.captured, "draft_vocab_size": manifest.spec.draft_vocab_size,
        "read_as_published": !draft.differs, "record": manifest.record, "errors": groups_json(&draft.groups()),
    })
}

fn kernels_json(kernels: &KernelReport) -> Value {
    let targets: Vec<&str> = kernels.targets.iter().map(|target| target.name()).collect();
    json!({
        "targets": targets, "cuda": cuda_versions(kernels), "files": kernels.num_files, "bytes": kernels.bytes,
    })
}

fn cuda_versions(kernels: &KernelReport) -> Vec<String> {
    kernels.compilers.iter().map(CudaVersion::to_string).collect()
}

fn as_text(args: &BuildArgs, report: &BuildReport, seconds: f64) -> String {
    let mut text = String::new();
    let header = format!(
        "{:<10} {:<6} {:>8} {:>15} {:>13}  worst",
        "tensors", "format", "count", "relative error", "largest"
    );
    text += &format!("{}\n", paint::dim(&header));
    for group in report.groups() {
        text += &group_text(&group);
    }
    if let Some(draft) = &report.draft {
        text += &draft_text(draft);
    }
    if let Some(kernels) = &report.kernels {
        text += &kernels_text(kernels);
    }
    if let Some(plans) = &report.plans {
        text += &plans_text(plans);
    }
    for warning in &report.warnings {
        text += &format!("{} {warning}\n", paint::yellow("note:"));
    }
    let spec = &report.spec;
    text += &format!(
        "{} {}: {} {}, {} parameters in {} ({:.2} bits each), {seconds:.1} s\n",
        paint::green("✓"),
        paint::bold(&args.output.as_deref().unwrap_or(&args.source).display().to_string()),
        spec.family,
        report.quantization.weights,
        paint::grouped(report.num_parameters),
        paint::bytes(report.engine_bytes),
        report.engine_bytes as f64 * 8.0 / report.num_parameters.max(1) as f64,
    );
    text
}

fn group_text(group: &GroupError) -> String {
    format!(
        "{:<10} {:<6} {:>8} {:>14.3} % {:>12.2e}  {}\n",
        format!("{:?}", group.role).to_lowercase(),
        group.kind.to_string(),
        group.num_tensors,
        group.stats.relative_rms() * 100.0,
        group.stats.max_abs_error,
        paint::dim(&format!("{} ({:.3} %)", group.worst.0, group.worst.1 * 100.0)),
    )
}

fn kernels_text(kernels: &KernelReport) -> String {
    let targets: Vec<&str> = kernels.targets.iter().map(|target| target.name()).collect();
    let (files, bytes) = (kernels.num_files, paint::bytes(kernels.bytes));
    format!(
        "{:<10} for {}: {files} files, {bytes}, CUDA {}\n",
        "kernels",
        targets.join(", "),
        cuda_versions(kernels).join(" and ")
    )
}

/// The head: what it lost, how it was read, and what its proposals are worth.
fn draft_text(draft: &DraftReport) -> String {
    let spec = &draft.manifest.spec;
    let mut text = format!("{}\n", paint::dim("draft head"));
    text += &draft.groups().iter().map(group_text).collect::<String>();
    let reading =
        format!("features at the inputs of layers {:?}, RoPE base {}", spec.captured, spec.rope_theta);
    text += &format!("{:<10} {reading}\n", "read as");
    let Some(record) = &draft.manifest.record else { return text };
    for trial in record.trials.iter().filter(|_| record.trials.len() > 1) {
        let is_chosen = (trial.rope_theta, trial.captured) == (spec.rope_theta, spec.captured);
        let mark = if is_chosen { paint::green("✓") } else { " ".into() };
        text += &format!(
            "         {mark} {:>5.2} tokens a round  {}\n",
            trial.accept_len,
            paint::dim(&format!("layers {:?}, base {}", trial.captured, trial.rope_theta))
        );
    }
    let shares: Vec<String> = record.acceptance.iter().map(|share| format!("{:.0}", share * 100.0)).collect();
    text += &format!(
        "{:<10} {:.2} tokens a round over {} prompts; proposals accepted by position: {} %\n",
        "accepted",
        record.accept_len,
        record.num_prompts,
        shares.join(" ")
    );
    if draft.differs {
        text += &format!(
            "{} the head's files suggest another reading, which is accepted less: the better one is used\n",
            paint::yellow("note:")
        );
    }
    text
}
