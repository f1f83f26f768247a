//! The options of `takt build` that are about TensorRT plans, and what it says of them.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Map, Value, json};
use takt_engine::dir::{PlanActivations, PlanCompute, PlanKv};
use takt_engine_builder::{
    PlanReport, PlansReport, TimingCacheUse,
    export::{Form, KvType},
    plans::{DevicePlans, PlanOptions},
};
use takt_tensorrt::build::Profile;

use super::{CliError, gpu_options::cache_folder, inspect_plans::timed_on, paint};
use crate::config::process_environment;

/// Below the user's cache: what TensorRT measured on this device.
const TIMINGS_FOLDER: &str = "tensorrt";

#[derive(Debug, Args)]
#[command(next_help_heading = "TensorRT plans")]
pub(super) struct PlanArgs {
    /// Build TensorRT plans into the engine, for the GPU and the TensorRT of this machine. Takes minutes; what TensorRT measures is kept in
    /// $XDG_CACHE_HOME/takt/tensorrt for the next time
    #[arg(long)]
    pub tensorrt: bool,
    /// Build plans into the engine directory SOURCE, and change nothing else of it; plans for other machines stay
    #[arg(long, requires = "tensorrt", conflicts_with_all = ["output", "weights", "lm_head", "kv", "max_context", "draft", "force", "targets", "kernels_only"])]
    pub plans_only: bool,
    /// Lanes that advance together in a plan [default: 4, as many as a node has]
    #[arg(long, value_name = "N", requires = "tensorrt")]
    plan_lanes: Option<usize>,
    /// Tokens a lane of a plan holds [default: the model's context, at most 4096]
    #[arg(long, value_name = "N", requires = "tensorrt")]
    plan_context: Option<usize>,
    /// The type of a plan's matrix products, and of a plain cache: bf16, or f16, which is finer and overflows above 65504 [default: bf16]
    #[arg(long, value_name = "TYPE", requires = "tensorrt", value_parser = compute)]
    plan_dtype: Option<PlanCompute>,
    /// What fp8 and nvfp4 weights are multiplied with: plain (16 bits) or quantized (as the weights are, which is less exact) [default: plain]
    #[arg(long, value_name = "KIND", requires = "tensorrt", value_parser = activations)]
    plan_activations: Option<PlanActivations>,
    /// Most device memory a layer may take beside its weights and values, in bytes, or as 512M or 2G [default: TensorRT's]
    #[arg(long, value_name = "BYTES", requires = "tensorrt", value_parser = bytes)]
    plan_workspace: Option<usize>,
    /// How long TensorRT searches, from 0, quick, to 5 [default: TensorRT's, 3]
    #[arg(long, value_name = "LEVEL", requires = "tensorrt", value_parser = clap::value_parser!(u32).range(0..=5))]
    plan_effort: Option<u32>,
    /// Plans whose weights may stay in the host's memory, for models larger than the device's. On a Jetson the two are the same
    #[arg(long, requires = "tensorrt")]
    plan_streaming: bool,
    /// Plans that take other weights of the same model later, by --plan-refit-from. They have one profile for everything, chosen for single tokens:
    /// prompts and trees may be slower
    #[arg(long, requires = "tensorrt")]
    plan_refit: bool,
    /// Give the plan of that engine directory, built with --plan-refit, this engine's weights, instead of building one: nothing is timed again. The
    /// two have to be one model but for their weights, in the same formats; what the plan can do stays
    #[arg(long, value_name = "DIR", requires = "tensorrt", conflicts_with_all = ["plan_refit", "plan_lanes", "plan_context", "plan_dtype",
        "plan_activations", "plan_workspace", "plan_effort", "plan_streaming", "plan_sm_share", "plan_form", "plan_kv"])]
    plan_refit_from: Option<PathBuf>,
    /// Percent of the GPU's multiprocessors that the plans will run on, as `[gpu] sm_share_percent`: kernels are timed in a green context of that share.
    /// Without it plans run on all of them. Takes TensorRT 10.16 and a driver of CUDA 13 or later
    #[arg(long, value_name = "PERCENT", requires = "tensorrt", value_parser = clap::value_parser!(u8).range(1..=100))]
    plan_sm_share: Option<u8>,
    /// How the model is written that TensorRT reads: operators (TensorRT 10.15 and later), or primitives, for a TensorRT that refuses one of those
    /// [default: operators where it has them]
    #[arg(long, value_name = "FORM", requires = "tensorrt")]
    plan_form: Option<Form>,
    /// What a plan's cache holds: plain (the 16 bits of its products), or fp8, half of that, in form primitives on GPUs from sm_89 on
    /// [default: as the engine's, where form and GPU take it]
    #[arg(long, value_name = "KIND", requires = "tensorrt")]
    plan_kv: Option<KvType>,
}

fn compute(text: &str) -> Result<PlanCompute, String> {
    match text {
        "bf16" => Ok(PlanCompute::Bf16),
        "f16" => Ok(PlanCompute::F16),
        _ => Err(format!("unknown type {text:?}: expected bf16 or f16")),
    }
}

fn activations(text: &str) -> Result<PlanActivations, String> {
    match text {
        "plain" => Ok(PlanActivations::Plain),
        "quantized" => Ok(PlanActivations::Quantized),
        _ => Err(format!("unknown activations {text:?}: expected plain or quantized")),
    }
}

/// `1073741824`, `1024M`, `1G`.
fn bytes(text: &str) -> Result<usize, String> {
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        _ => (text, 0),
    };
    let number = digits.parse::<usize>().ok().filter(|&number| number > 0);
    number
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| format!("{text:?} is no number of bytes: expected one as 1073741824, 512M or 2G"))
}

impl PlanArgs {
    /// Opened before the build: whether there is a TensorRT and a GPU must not be found out after minutes of quantization.
    pub(super) fn open(&self) -> Result<Option<DevicePlans>, CliError> {
        if !self.tensorrt {
            return Ok(None);
        }
        if let Some(pattern) = &self.plan_refit_from {
            return Ok(Some(DevicePlans::open_refit(pattern)?));
        }
        let timings = cache_folder(TIMINGS_FOLDER, process_environment);
        Ok(Some(DevicePlans::open(self.options(), timings)?))
    }

    fn options(&self) -> PlanOptions {
        let default = PlanOptions::default();
        PlanOptions {
            num_lanes: self.plan_lanes.unwrap_or(default.num_lanes),
            lane_capacity: self.plan_context,
            compute: self.plan_dtype.unwrap_or(default.compute),
            activations: self.plan_activations.unwrap_or(default.activations),
            workspace_bytes: self.plan_workspace,
            effort: self.plan_effort,
            is_refittable: self.plan_refit,
            streams_weights: self.plan_streaming,
            sm_share: self.plan_sm_share,
            form: self.plan_form,
            kv: self.plan_kv,
        }
    }
}

pub(super) fn plans_json(report: &PlansReport) -> Value {
    let plans: Vec<Value> = report.plans.iter().map(plan_json).collect();
    json!({
        "tensorrt": report.tensorrt.to_string(), "sm": report.sm, "device": report.device, "plans": plans,
        "warnings": report.warnings,
    })
}

fn plan_json(plan: &PlanReport) -> Value {
    let entry = &plan.entry;
    let timing_cache = match plan.timing_cache {
        TimingCacheUse::Used => "used",
        TimingCacheUse::New => "new",
        TimingCacheUse::Refitted => "refitted",
    };
    json!({
        "role": entry.role, "file": entry.file, "bytes": entry.size_bytes, "blake3": entry.blake3,
        "tensorrt": entry.tensorrt, "sm": entry.sm, "form": entry.form, "dtype": entry.compute,
        "activations": entry.activations, "kv": entry.kv,
        "lanes": entry.num_lanes, "lane_capacity": entry.lane_capacity, "seconds": plan.seconds,
        "timed_in_green_context": entry.timed_in_green_context, "refittable": entry.refittable.is_some(),
        "profiles": plan.profiles.iter().map(profile_json).collect::<Vec<_>>(),
        "timing_cache": timing_cache, "warnings": plan.warnings,
    })
}

fn profile_json(profile: &Profile) -> Value {
    let range = |(name, range): &(String, takt_tensorrt::tensor::ShapeRange)| {
        (name.clone(), json!({ "min": range.min, "opt": range.opt, "max": range.max }))
    };
    json!({ "name": profile.name, "inputs": profile.inputs.iter().map(range).collect::<Map<_, _>>() })
}

pub(super) fn plans_text(report: &PlansReport) -> String {
    let mut text = format!("{:<10} TensorRT {}, {}\n", "plans", report.tensorrt, report.device);
    for plan in &report.plans {
        let entry = &plan.entry;
        let measured = match plan.timing_cache {
            TimingCacheUse::Used => "with earlier measurements",
            TimingCacheUse::New => "all measured anew",
            TimingCacheUse::Refitted => "given other weights, nothing measured",
        };
        let lanes = match entry.num_lanes {
            1 => "1 lane".into(),
            num_lanes => format!("{num_lanes} lanes"),
        };
        text += &format!(
            "{:<10} {}: {}, {lanes} of {} tokens{}, {}, {:.1} s, {measured}\n",
            entry.role.to_string(),
            entry.file,
            paint::bytes(entry.size_bytes),
            entry.lane_capacity,
            if entry.kv == PlanKv::Fp8 { " in fp8" } else { "" },
            timed_on(entry),
            plan.seconds,
        );
        for warning in &plan.warnings {
            text += &format!("{} {warning}\n", paint::yellow("note:"));
        }
    }
    for warning in &report.warnings {
        text += &format!("{} {warning}\n", paint::yellow("note:"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_bytes_have_units_and_are_never_nothing() {
        for (text, expected) in [("1", 1), ("512M", 512 << 20), ("2g", 2 << 30), ("8k", 8192)] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in ["", "M", "0", "0G", "-1", "1.5G", "2T", "1 G", "99999999999999999G", "é"] {
            assert!(bytes(text).is_err_and(|message| message.contains("512M")), "{text}");
        }
        assert!(compute("f32").is_err_and(|message| message.contains("bf16 or f16")));
        assert!(activations("fp8").is_err_and(|message| message.contains("plain or quantized")));
    }
}
