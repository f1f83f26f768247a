//! What a build did: sizes, warnings, and how much each tensor lost.

use takt_engine::{
    dir::{PlanEntry, Quantization, Role},
    draft::DraftManifest,
    quant::{ErrorStats, WeightKind},
    spec::DecoderSpec,
};
use takt_kernels_cu::{CudaVersion, Target};
use takt_tensorrt::{Version, build::Profile};

/// The outcome of a build. The time it took is the caller's to measure.
#[derive(Debug, Clone)]
pub struct BuildReport {
    /// The model.
    pub spec: DecoderSpec,
    /// Its number formats.
    pub quantization: Quantization,
    /// Bytes of the model: the manifest and the files it lists.
    pub engine_bytes: u64,
    /// Parameters of the model, a tied head counted once.
    pub num_parameters: u64,
    /// Every quantized tensor, in the order of the forward pass.
    pub tensors: Vec<TensorError>,
    /// The draft head, where one was added.
    pub draft: Option<DraftReport>,
    /// The kernels, where boards were named.
    pub kernels: Option<KernelReport>,
    /// The TensorRT plans, where they were asked for.
    pub plans: Option<PlansReport>,
    /// What the user should know: no tokenizer, no end token, …
    pub warnings: Vec<String>,
}

/// A head that was added.
#[derive(Debug, Clone)]
pub struct DraftReport {
    /// What it is, with its record.
    pub manifest: DraftManifest,
    /// Every quantized tensor.
    pub tensors: Vec<TensorError>,
    /// Whether another reading than the one its files suggest was better.
    pub differs: bool,
}

/// Kernels that were compiled into the engine.
#[derive(Debug, Clone)]
pub struct KernelReport {
    /// For what, oldest first.
    pub targets: Vec<Target>,
    /// By which compilers, oldest first.
    pub compilers: Vec<CudaVersion>,
    /// Files, one a source, target and compiler.
    pub num_files: usize,
    /// Bytes of all of them.
    pub bytes: u64,
}

/// TensorRT plans that were built into the engine.
#[derive(Debug, Clone)]
pub struct PlansReport {
    /// TensorRT that built them.
    pub tensorrt: Version,
    /// For which GPU: `sm_110a`.
    pub sm: String,
    /// The device in words.
    pub device: String,
    /// The decoder's, then the draft head's.
    pub plans: Vec<PlanReport>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// One plan.
#[derive(Debug, Clone)]
pub struct PlanReport {
    /// What the manifest says of it.
    pub entry: PlanEntry,
    /// Shapes it was optimized for.
    pub profiles: Vec<Profile>,
    /// What earlier measurements were worth.
    pub timing_cache: TimingCacheUse,
    /// How long TensorRT took.
    pub seconds: f64,
    /// What TensorRT warned of, and what the user should know.
    pub warnings: Vec<String>,
}

/// Whether TensorRT had to measure everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimingCacheUse {
    /// What was measured on this device before was used.
    Used,
    /// Everything was measured, and is kept for the next time.
    New,
    /// Nothing was measured: a plan that was there was given other weights.
    Refitted,
}

/// One tensor's loss.
#[derive(Debug, Clone)]
pub struct TensorError {
    /// Name, without `.weight`.
    pub name: String,
    /// What it does.
    pub role: Role,
    /// Its format.
    pub kind: WeightKind,
    /// Against the checkpoint's values.
    pub stats: ErrorStats,
}

/// The loss of all tensors with the same role.
#[derive(Debug, Clone)]
pub struct GroupError {
    /// What they do.
    pub role: Role,
    /// Their format.
    pub kind: WeightKind,
    /// How many.
    pub num_tensors: usize,
    /// Over all of them.
    pub stats: ErrorStats,
    /// The tensor with the largest relative error, and that error.
    pub worst: (String, f64),
}

impl BuildReport {
    /// The tensors grouped by role, in the order of the forward pass.
    #[must_use]
    pub fn groups(&self) -> Vec<GroupError> {
        groups(&self.tensors)
    }
}

impl DraftReport {
    /// The tensors grouped by role.
    #[must_use]
    pub fn groups(&self) -> Vec<GroupError> {
        groups(&self.tensors)
    }
}

fn groups(tensors: &[TensorError]) -> Vec<GroupError> {
    let mut groups: Vec<GroupError> = Vec::new();
    for tensor in tensors {
        let error = tensor.stats.relative_rms();
        match groups.iter_mut().find(|group| group.role == tensor.role) {
            Some(group) => {
                group.num_tensors += 1;
                group.stats.add(&tensor.stats);
                if error > group.worst.1 {
                    group.worst = (tensor.name.clone(), error);
                }
            }
            None => groups.push(GroupError {
                role: tensor.role,
                kind: tensor.kind,
                num_tensors: 1,
                stats: tensor.stats,
                worst: (tensor.name.clone(), error),
            }),
        }
    }
    groups
}
