//! From a machine and an engine directory to a backend: the device, a context of our own on it, TensorRT, the plan that is for them.

use std::path::Path;

use takt_kernels_cu::{
    driver::{
        context::{Context, Share},
        device::Device,
    },
    image::Image,
    source::{self, SOURCES, Source},
};
use takt_tensorrt::TensorRt;

use super::{SerializedPlan, TensorRtBackend, TensorRtOptions, entry::Wanted};
use crate::{
    EngineError, Result,
    backend::cuda::{self, GpuOptions},
    dir::{EngineDir, Manifest, Part, PlanEntry, PlanFile, PlanRole, PlanVersion, Role, lay_out, parts},
    kv::KvKind,
};

/// The kernels beside a plan: rows of the cache moved and appended, lists of the likeliest tokens, tokens chosen by them.
const BESIDE_PLANS: [&str; 4] = ["accept", "kv_append", "kv_compact", "logits"];

/// The sources of the kernels that run beside a plan.
#[must_use]
pub fn kernel_sources() -> Vec<Source> {
    BESIDE_PLANS.iter().filter_map(|name| source::find(name)).copied().collect()
}

/// The engine's plan for this machine, of its weights; `None` where there is no such plan, no TensorRT or no GPU, of which opening the engine tells.
#[must_use]
pub fn plan_for_this_machine(manifest: &Manifest) -> Option<&PlanEntry> {
    let version = TensorRt::open().ok()?.version();
    let (_, target) = cuda::usable_device().ok()?;
    let version = PlanVersion { major: version.major, minor: version.minor };
    manifest.plan(version, target.name(), PlanRole::Decoder)
}

/// What is asked of a plan beside its size.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    /// A draft head may be attached.
    pub head: bool,
    /// The cache; `None` for the plan's own.
    pub kv: Option<KvKind>,
}

/// Opens the plan of `dir` that is for the first device there are kernels for.
///
/// # Errors
/// [`EngineError::Unsupported`] without a driver, a device or kernels for it, TensorRT, or a plan for them, with what to do;
/// [`EngineError::Corrupt`] for a plan that is not the one that was built; those of [`TensorRtBackend::new`].
pub(crate) fn open(
    dir: &EngineDir,
    gpu: &GpuOptions,
    asked: Asked,
    options: impl FnOnce(Share) -> TensorRtOptions,
) -> Result<TensorRtBackend> {
    let trt = TensorRt::open()?;
    let (device, target) = cuda::usable_device()?;
    let options = options(gpu.share.on(&device));
    let manifest = dir.manifest();
    let version = trt.version();
    let wanted = Wanted {
        dir: dir.path(),
        role: PlanRole::Decoder,
        tensorrt: PlanVersion { major: version.major, minor: version.minor },
        sm: target.name(),
        weights_blake3: manifest.plan_weights(PlanRole::Decoder).unwrap_or_default(),
        num_lanes: options.num_lanes,
        lane_capacity: options.lane_capacity,
        kv: asked.kv,
    };
    let entry = wanted.choose(&manifest.plans)?;
    if let Some(note) = of_another_board(entry, &device.key()) {
        tracing::warn!("{note}");
    }
    // A head runs through our own kernels, which are then all needed.
    let sources = if asked.head { SOURCES.to_vec() } else { kernel_sources() };
    let kernels = cuda::kernels(&sources, &device, target, Some(dir.path()), gpu)?;
    let context = context(&device, options.share, entry)?;
    let plan = read(dir.path(), entry)?;
    let plan =
        SerializedPlan { entry, bytes: plan.bytes(), weight_bytes_per_step: bytes_per_step(manifest)? };
    let cubins = kernels.images().iter().map(Image::bytes);
    TensorRtBackend::new(&manifest.spec, plan, (&trt, &context), cubins, &options)
}

/// What the user should know of a plan that was built on another board than `device`, of the same kind of GPU: TensorRT's headers promise that a plan runs
/// on the model of GPU it was built on, unless it was built to run on all of a kind, which costs speed.
fn of_another_board(entry: &PlanEntry, device: &str) -> Option<String> {
    (entry.device != device).then(|| {
        format!(
            "plan {:?} was built on {}, and this is {device}: if it does not load or is slow, `takt build DIR --tensorrt --plans-only` builds one here",
            entry.file, entry.device
        )
    })
}

/// A context that the plan of `entry` may run in. TensorRT's headers say that a plan may fail in a green context if its kernels were timed in none, or
/// in one with more multiprocessors: such a plan gets all of them.
fn context(device: &Device, share: Share, entry: &PlanEntry) -> Result<Context> {
    let instead = |reason: &str| {
        tracing::warn!("no green context ({reason}): a low-priority stream on all multiprocessors instead");
    };
    let plan = &entry.file;
    let todo = "`takt build DIR --tensorrt --plans-only --plan-sm-share PERCENT` builds one for `[gpu] sm_share_percent`, and `[gpu] share = \"priority\"` \
                asks for no green context";
    match (share, entry.timed_in_green_context) {
        (Share::GreenContext { .. }, None) => {
            instead(&format!("plan {plan:?} was not timed in one, where TensorRT may fail; {todo}"));
            Ok(Context::open(device, Share::Priority)?.0)
        }
        (Share::GreenContext { .. }, Some(timed)) => {
            let (context, fallback) = Context::open(device, share)?;
            if let Some(fallback) = fallback {
                instead(&fallback.reason);
                return Ok(context);
            }
            let num_sms = context.num_sms();
            if num_sms >= timed {
                return Ok(context);
            }
            drop(context);
            instead(&format!(
                "plan {plan:?} was timed on {timed} multiprocessors, and may fail on {num_sms}; {todo}"
            ));
            Ok(Context::open(device, Share::Priority)?.0)
        }
        (Share::Priority | Share::None, _) => Ok(Context::open(device, share)?.0),
    }
}

/// The plan of `entry`, if it is the one that was built.
fn read(dir: &Path, entry: &PlanEntry) -> Result<PlanFile> {
    PlanFile::open(dir, entry).map_err(|error| match error {
        EngineError::Corrupt { path, fact } => {
            let fact = format!("{fact}; build it again: `takt build DIR --tensorrt --plans-only`");
            EngineError::Corrupt { path, fact }
        }
        other => other,
    })
}

/// Bytes of weights that a decode step reads: all but the embedding, of which it is one row, unless that is the output head, too.
fn bytes_per_step(manifest: &Manifest) -> Result<u64> {
    let mut parts = parts(&manifest.spec, &manifest.quantization);
    let is = |part: &Part, role| matches!(part, Part::Matrix(matrix) if matrix.role == role);
    if parts.iter().any(|part| is(part, Role::LmHead)) {
        parts.retain(|part| !is(part, Role::Embedding));
    }
    Ok(lay_out(&parts)?.iter().map(|tensor| tensor.byte_len as u64).sum())
}

#[cfg(test)]
mod tests {
    use super::{super::entry::tests::plan, *};

    #[test]
    fn a_plan_of_another_board_is_told_of_and_one_of_this_is_not() {
        let entry = plan(16, "sm_87", PlanRole::Decoder);
        assert_eq!(of_another_board(&entry, &entry.device), None);
        let note = of_another_board(&entry, "Orin Nano sm_87 8 SMs").unwrap();
        assert!(
            ["a board with sm_87", "Orin Nano sm_87 8 SMs", "--plans-only"]
                .iter()
                .all(|part| note.contains(part)),
            "{note}"
        );
    }
}
