//! `takt export`.

use std::{path::PathBuf, process::ExitCode, time::Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use takt_engine_builder::{
    BuildError,
    export::{
        Activations, Compute, Contract, ExportOptions, ExportProgress, ExportReport, Form, KvType, Model,
        Target, Variant, export,
    },
};

use super::{CliError, interrupt::Interrupt, paint, print_json};

/// Write an engine as ONNX models with an explicit cache, for TensorRT or any ONNX runtime
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  takt export engines/takt-demo -o exports/takt-demo --for tensorrt-10.16,sm_110a
  takt export engines/takt-demo-int4 -o exports/orin --for tensorrt-10.3,sm_87 --dtype f16

The folder holds model.onnx (and draft.onnx, where the engine has a draft head), their data, and export.json: names, shapes, types and profiles.")]
pub(super) struct ExportArgs {
    /// Engine directory, made by takt build
    engine: PathBuf,
    /// Folder to write; it appears whole or not at all
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Who reads the models, and on which GPU: tensorrt-VERSION or onnx, with ,sm_NN behind it to have the GPU's formats checked
    #[arg(long = "for", value_name = "TARGET", default_value = "tensorrt-10.16")]
    target: Target,
    /// How operators are written: operators (opset 24) or primitives (opset 20 to 23) [default: operators where the target has them]
    #[arg(long, value_name = "FORM")]
    form: Option<Form>,
    /// The type of matrix products, and of a plain cache: bf16, f16, f32
    #[arg(long, value_name = "TYPE", default_value = "bf16")]
    dtype: Compute,
    /// What fp8 and nvfp4 weights are multiplied with: plain (16 bits) or quantized (as the weights are)
    #[arg(long, value_name = "KIND", default_value = "plain")]
    activations: Activations,
    /// What keys and values are stored as: plain (the type of products) or fp8 (form primitives, GPUs from sm_89 on) [default: as the engine's, where form
    /// and target take it]
    #[arg(long, value_name = "KIND")]
    kv: Option<KvType>,
    /// plain (text), or eagle3 (trees of proposals: mask as input, features as output) [default: eagle3 where the engine has a draft head]
    #[arg(long, value_name = "VARIANT")]
    variant: Option<Variant>,
    /// Tokens a lane of the cache holds [default: the model's context, at most 4096]
    #[arg(long, value_name = "N")]
    max_context: Option<usize>,
    /// Lanes that advance together, for the profiles
    #[arg(long, value_name = "N", default_value_t = 1)]
    lanes: usize,
    /// Also put out the residual stream at every layer's input, for comparing
    #[arg(long)]
    hidden_states: bool,
    /// Replace the export that is there
    #[arg(long)]
    force: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &ExportArgs, interrupt: &Interrupt) -> Result<ExitCode, CliError> {
    let options = ExportOptions {
        target: args.target,
        form: args.form,
        compute: args.dtype,
        activations: args.activations,
        kv: args.kv,
        variant: args.variant,
        max_context: args.max_context,
        padding_rows: 0,
        num_lanes: Some(args.lanes),
        decoder_only: false,
        hidden_states: args.hidden_states,
        force: args.force,
        cancelled: Some(interrupt.flag()),
    };
    let started = Instant::now();
    let bar = progress_bar();
    let exported = export(&args.engine, &args.output, &options, &mut |progress| show(&bar, progress));
    bar.finish_and_clear();
    let report = exported.map_err(|error| match error {
        BuildError::Cancelled => CliError::Failed("export cancelled; nothing was written".into()),
        error => error.into(),
    })?;
    let seconds = started.elapsed().as_secs_f64();
    if args.json {
        return print_json(&as_json(args, &report, seconds));
    }
    say!("{}", as_text(args, &report, seconds));
    Ok(ExitCode::SUCCESS)
}

/// Drawn on standard error, and only on a terminal.
fn progress_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:32} {pos:>4}/{len} {prefix}  {elapsed}  {wide_msg}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn show(bar: &ProgressBar, progress: ExportProgress<'_>) {
    bar.set_length(progress.total as u64);
    bar.set_position(progress.done as u64);
    bar.set_prefix(progress.file.to_owned());
    bar.set_message(format!("{}  {}", paint::bytes(progress.bytes), progress.item));
}

fn as_json(args: &ExportArgs, report: &ExportReport, seconds: f64) -> Value {
    json!({
        "export": args.output, "seconds": seconds, "bytes": report.total_bytes, "contract": report.contract,
        "warnings": report.warnings,
    })
}

fn as_text(args: &ExportArgs, report: &ExportReport, seconds: f64) -> String {
    let contract = &report.contract;
    let header =
        format!("{:<12} {:>6} {:>7} {:>10}  {:<24} in → out", "model", "opset", "nodes", "data", "weights");
    let mut text = format!("{}\n", paint::dim(&header));
    text += &contract.models.iter().map(|model| model_text(contract, model)).collect::<String>();
    for warning in &report.warnings {
        text += &format!("{} {warning}\n", paint::yellow("note:"));
    }
    text += &format!(
        "{} {}: {} for {}, products in {}, {} cache of {} tokens a lane, {} in {seconds:.1} s\n",
        paint::green("✓"),
        paint::bold(&args.output.display().to_string()),
        contract.form.name(),
        contract.target,
        contract.compute.name(),
        contract.kv.name(),
        contract.capacity,
        paint::bytes(report.total_bytes),
    );
    text
}

fn model_text(contract: &Contract, model: &Model) -> String {
    let layers = if model.role == "draft" {
        "draft head".to_owned()
    } else {
        contract.quantization.weights.to_string()
    };
    let is_cache = |name: &str| name.starts_with("past_key_values") || name.starts_with("present");
    let names = |ports: &[takt_engine_builder::export::Port]| {
        let plain: Vec<&str> =
            ports.iter().map(|port| port.name.as_str()).filter(|name| !is_cache(name)).collect();
        plain.join(" ")
    };
    format!(
        "{:<12} {:>6} {:>7} {:>10}  {:<24} {}\n",
        model.file,
        model.opset,
        model.num_nodes,
        paint::bytes(model.data_bytes),
        format!("{layers}, lm_head {}", model.lm_head),
        paint::dim(&format!("{} → {}, and the cache", names(&model.inputs), names(&model.outputs))),
    )
}
