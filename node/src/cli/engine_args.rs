//! Options that say how an engine is run, shared by the commands that run one.

use clap::Args;
use takt_engine::{
    backend::{
        cpu::ActivationArithmetic,
        cuda::{GpuOptions, GpuShare, GpuWeights},
    },
    engine::{BackendKind, EngineOptions},
    kv::KvKind,
};

use super::{CliError, gpu_options::gpu_options};
use crate::config::process_environment;

#[derive(Debug, Args)]
pub(super) struct EngineArgs {
    /// What computes: auto (the CPU), cpu, cuda, tensorrt (neither tried on a GPU yet; tensorrt runs the plans of `takt build --tensorrt`)
    #[arg(long, default_value = "auto", value_name = "NAME")]
    pub backend: BackendKind,
    /// Computing threads [default: one for each processor the system gives us]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// KV cache format: bf16, fp8, int8 [default: the one recorded in the engine]
    #[arg(long, value_name = "KIND")]
    pub kv: Option<KvKind>,
    /// Where a GPU reads weights: copied to its memory, mapped (in the engine's file, where it can), auto (mapped where it shares the processor's
    /// memory and page tables, as on Thor)
    #[arg(long, default_value = "auto", value_name = "WHERE")]
    pub gpu_weights: GpuWeights,
    /// The CPU's arithmetic in linear layers: auto, f32, int8
    #[arg(long, default_value = "auto", value_name = "NAME")]
    pub activations: ActivationArithmetic,
}

impl EngineArgs {
    pub(super) fn options(&self) -> EngineOptions {
        EngineOptions {
            backend: self.backend,
            threads: self.threads.map(usize::from),
            kv: self.kv,
            arithmetic: self.activations,
            // Nobody else is at work beside a command.
            gpu: GpuOptions {
                weights: self.gpu_weights,
                ..gpu_options(GpuShare::Priority, process_environment)
            },
            ..EngineOptions::default()
        }
    }
}

/// Random draft heads run on the CPU only so far; asked for another backend, that is said rather than the CPU measured in its place.
pub(super) fn check_runs_shapes(backend: BackendKind) -> Result<(), CliError> {
    match backend {
        BackendKind::Auto | BackendKind::Cpu => Ok(()),
        BackendKind::Cuda | BackendKind::TensorRt => Err(CliError::Usage(
            "--speculation with --shape runs on the CPU only so far: give an engine directory, or leave --backend out".into(),
        )),
    }
}
