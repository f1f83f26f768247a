//! `takt inspect`.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use serde_json::{Value, json};
use takt_engine::{
    dir::{EngineDir, FileCheck, Manifest},
    draft::DraftManifest,
    engine::{BackendKind, DEFAULT_LANE_CAPACITY, EngineOptions},
    kv::KvKind,
    memory::EngineMemory,
};

use super::{
    CliError,
    inspect_kernels::{inspect_kernels, kernels_json, kernels_text},
    inspect_plans::{inspect_plans, plans_json, plans_text},
    paint, print_json,
};

/// Prompt tokens of one section, as `max_prefill_slice_tokens` has them built in.
const SLICE_TOKENS: usize = 64;

/// Show what an engine is, whether its files are intact, and the memory it needs
#[derive(Debug, Args)]
#[command(after_help = "Example: takt inspect robot-engine --lanes 4 --max-context 2048")]
pub(super) struct InspectArgs {
    /// Engine directory, written by `takt build`
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Requests that advance together, for the memory needed
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    lanes: u16,
    /// Tokens a lane holds, for the memory needed [default: the model's, at most 4096]
    #[arg(long, value_name = "N")]
    max_context: Option<usize>,
    /// System prompts kept, for the memory needed: each may take as much as a lane
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(0..=64))]
    snapshots: u16,
    /// KV cache format for the memory needed [default: the one recorded in the engine]
    #[arg(long, value_name = "KIND")]
    kv: Option<KvKind>,
    /// Backend for the memory needed: cpu or cuda; of cuda on the GPU at hand, or at most where there is none
    #[arg(long, value_name = "NAME", default_value = "cpu", value_parser = measured_backend)]
    backend: BackendKind,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A backend whose memory is known before it is opened: a plan's is told when that is.
fn measured_backend(text: &str) -> Result<BackendKind, String> {
    match text.parse()? {
        BackendKind::Cuda => Ok(BackendKind::Cuda),
        BackendKind::Auto | BackendKind::Cpu => Ok(BackendKind::Cpu),
        BackendKind::TensorRt => {
            Err("the memory of a TensorRT plan is told when it is opened: expected cpu or cuda".into())
        }
    }
}

/// Bytes an engine needs to run.
struct Memory {
    backend: BackendKind,
    lanes: usize,
    snapshots: usize,
    max_context: usize,
    kv: KvKind,
    bytes: EngineMemory,
}

pub(super) fn run(args: &InspectArgs) -> Result<ExitCode, CliError> {
    let manifest = Manifest::read(&args.dir)?;
    let checks = manifest.check_files(&args.dir);
    // Hashes say that files are what the builder wrote; opening says that they are an engine.
    let opened = EngineDir::open(&args.dir);
    let draft = opened.as_ref().ok().and_then(|dir| Some(dir.draft()?.manifest().clone()));
    let memory = memory(args, &manifest, draft.as_ref())?;
    let kernels = inspect_kernels(&args.dir);
    let plans = inspect_plans(&args.dir, &manifest);
    let plans_hold = plans.check();
    if args.json {
        let mut facts = as_json(&manifest, &checks, &memory, opened.is_ok() && plans_hold.is_ok());
        facts["draft"] = json!(draft);
        facts["kernels"] = kernels_json(&kernels);
        facts["plans"] = plans_json(&plans);
        print_json(&facts)?;
    } else {
        say!(
            "{}{}{}{}",
            as_text(args, &manifest, &checks, &memory),
            draft.map_or_else(String::new, |draft| draft_text(&draft)),
            kernels_text(&kernels),
            plans_text(&plans)
        );
    }
    opened?;
    plans_hold?;
    Ok(ExitCode::SUCCESS)
}

fn memory(
    args: &InspectArgs,
    manifest: &Manifest,
    draft: Option<&DraftManifest>,
) -> Result<Memory, CliError> {
    let spec = &manifest.spec;
    let max_context = args.max_context.unwrap_or(spec.max_context.min(DEFAULT_LANE_CAPACITY));
    if max_context == 0 || max_context > spec.max_context {
        return Err(CliError::Failed(format!(
            "--max-context {max_context}: the model was made for 1 to {} tokens",
            spec.max_context
        )));
    }
    let (kv, lanes) = (args.kv.unwrap_or(manifest.quantization.kv), usize::from(args.lanes));
    // As `takt serve` opens it.
    let options = EngineOptions {
        backend: args.backend,
        num_lanes: lanes,
        lane_capacity: Some(max_context),
        kv: Some(kv),
        max_step_tokens: lanes + SLICE_TOKENS,
        num_snapshots: usize::from(args.snapshots),
        ..EngineOptions::default()
    };
    let bytes = EngineMemory::of(spec, &manifest.quantization, draft, &options)?;
    Ok(Memory { backend: options.backend, lanes, snapshots: options.num_snapshots, max_context, kv, bytes })
}

fn as_json(manifest: &Manifest, checks: &[FileCheck], memory: &Memory, valid: bool) -> Value {
    let files: Vec<Value> = checks
        .iter()
        .map(|check| {
            let fault = check.outcome.as_ref().err().map(ToString::to_string);
            json!({ "name": check.entry.name, "size_bytes": check.entry.size_bytes, "blake3": check.entry.blake3,
                    "intact": fault.is_none(), "fault": fault })
        })
        .collect();
    json!({
        "valid": valid,
        "schema_version": manifest.schema_version,
        "builder_version": manifest.builder_version,
        "source": manifest.source,
        "architecture": manifest.spec,
        "parameters": num_parameters(manifest),
        "quantization": manifest.quantization,
        "eos_token_ids": manifest.eos_token_ids,
        "engine_bytes": manifest.total_bytes(),
        "files": files,
        "memory": {
            "backend": if memory.backend == BackendKind::Cuda { "cuda" } else { "cpu" },
            "lanes": memory.lanes, "max_context": memory.max_context, "kv": memory.kv,
            "kv_bytes": memory.bytes.kv_bytes, "weight_bytes": memory.bytes.weight_bytes,
            "snapshots": memory.snapshots, "snapshot_bytes": memory.bytes.snapshot_bytes,
            "workspace_bytes": memory.bytes.workspace_bytes, "total_bytes": memory.bytes.total_bytes(),
        },
    })
}

fn as_text(args: &InspectArgs, manifest: &Manifest, checks: &[FileCheck], memory: &Memory) -> String {
    let (spec, formats) = (&manifest.spec, &manifest.quantization);
    let mut text = format!("{}\n", paint::bold(&args.dir.display().to_string()));
    let bias =
        [("QK norm", spec.qk_norm), ("QKV bias", spec.qkv_bias), ("tied embeddings", spec.tied_embeddings)];
    let traits: Vec<&str> = bias.iter().filter(|(_, there)| *there).map(|(name, _)| *name).collect();
    let heads =
        format!("{} query, {} key/value, width {}", spec.num_q_heads, spec.num_kv_heads, spec.head_dim);
    text += &paint::facts(&[
        ("family", format!("{} ({}, builder {})", spec.family, manifest.source, manifest.builder_version)),
        ("parameters", paint::grouped(num_parameters(manifest))),
        (
            "layers",
            format!(
                "{} x (hidden {}, feed-forward {})",
                spec.num_layers, spec.hidden_size, spec.intermediate_size
            ),
        ),
        ("heads", heads),
        ("vocabulary", paint::grouped(spec.vocab_size as u64)),
        (
            "context",
            format!("{} tokens, RoPE {} (theta {})", spec.max_context, spec.rope.scaling, spec.rope.theta),
        ),
        (
            "features",
            if traits.is_empty() { "none beyond the plain decoder".into() } else { traits.join(", ") },
        ),
        (
            "formats",
            format!("weights {}, output head {}, KV cache {}", formats.weights, formats.lm_head, formats.kv),
        ),
    ]);
    text += &format!("\n{}\n", paint::bold("files"));
    let width = checks.iter().map(|check| check.entry.name.len()).max().unwrap_or(0);
    for check in checks {
        let (mark, note) = match &check.outcome {
            Ok(()) => {
                (paint::green("✓"), paint::dim(&check.entry.blake3[..12.min(check.entry.blake3.len())]))
            }
            Err(fault) => (paint::red("✗"), paint::red(&fault.to_string())),
        };
        text += &format!(
            "  {mark} {:<width$}  {:>10}  {note}\n",
            check.entry.name,
            paint::bytes(check.entry.size_bytes)
        );
    }
    let where_to = if memory.backend == BackendKind::Cuda { " on a GPU" } else { "" };
    let what = format!("memory{where_to} for {} lanes of {} tokens", memory.lanes, memory.max_context);
    text += &format!("\n{}\n", paint::bold(&what));
    text += &paint::facts(&[
        ("weights", paint::bytes(memory.bytes.weight_bytes)),
        ("KV cache", format!("{} ({})", paint::bytes(memory.bytes.kv_bytes), memory.kv)),
        ("snapshots", format!("up to {} ({})", paint::bytes(memory.bytes.snapshot_bytes), memory.snapshots)),
        ("workspace", paint::bytes(memory.bytes.workspace_bytes)),
        ("together", paint::bytes(memory.bytes.total_bytes())),
    ]);
    text
}

fn draft_text(draft: &DraftManifest) -> String {
    let spec = &draft.spec;
    let mut facts = vec![
        ("tokens", format!("{} of the model's {}", spec.draft_vocab_size, spec.vocab_size)),
        ("features", format!("inputs of layers {:?}", spec.captured)),
        ("positions", format!("{}, RoPE theta {}", spec.max_positions, spec.rope_theta)),
        ("formats", format!("weights {}, output head {}", draft.weights, draft.lm_head)),
    ];
    if let Some(record) = &draft.record {
        let shares = record.acceptance.iter().map(|share| format!("{:.0}", share * 100.0));
        facts.push((
            "accepted",
            format!(
                "{:.2} tokens a round; by position {} %",
                record.accept_len,
                shares.collect::<Vec<_>>().join(" ")
            ),
        ));
    }
    format!("\n{}\n{}", paint::bold("draft head (EAGLE-3)"), paint::facts(&facts))
}

/// Weights of the model, from its shape: embedding, head of its own, layers, norms.
fn num_parameters(manifest: &Manifest) -> u64 {
    let spec = &manifest.spec;
    let [d, f, v] = [spec.hidden_size, spec.intermediate_size, spec.vocab_size].map(|n| n as u64);
    let (q, kv) = ((spec.num_q_heads * spec.head_dim) as u64, (spec.num_kv_heads * spec.head_dim) as u64);
    let biases = u64::from(spec.qkv_bias) * (q + 2 * kv)
        + u64::from(spec.o_bias) * d
        + u64::from(spec.mlp_bias) * (2 * f + d);
    let qk_norm = u64::from(spec.qk_norm) * 2 * spec.head_dim as u64;
    let layer = 2 * d * q + 2 * d * kv + 3 * d * f + 2 * d + biases + qk_norm;
    let head = if spec.tied_embeddings { 0 } else { v * d };
    v * d + head + d + layer * spec.num_layers as u64
}
