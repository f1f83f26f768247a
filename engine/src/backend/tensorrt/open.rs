//! From a machine and an engine directory to a backend: the device, a context of our own on it, TensorRT, the plan that is for them.

use std::{fs, path::Path};

use memmap2::Mmap;
use takt_kernels_cu::{
    driver::context::{Context, Share},
    image::Image,
    source::{self, Source},
};
use takt_tensorrt::TensorRt;

use super::{PlanFile, TensorRtBackend, TensorRtOptions, entry::Wanted};
use crate::{
    EngineError, Result,
    backend::cuda::{self, GpuOptions},
    dir::{
        EngineDir, Manifest, Part, PlanEntry, PlanRole, PlanVersion, Role, WEIGHTS_FILE, lay_out, map_file,
        parts,
    },
};

/// The kernels beside a plan: rows of the cache moved and appended, lists of the likeliest tokens.
const SOURCES: [&str; 3] = ["kv_append", "kv_compact", "logits"];

/// The sources of the kernels that run beside a plan.
#[must_use]
pub fn kernel_sources() -> Vec<Source> {
    SOURCES.iter().filter_map(|name| source::find(name)).copied().collect()
}

/// Opens the plan of `dir` that is for the first device there are kernels for.
///
/// # Errors
/// [`EngineError::Unsupported`] without a driver, a device or kernels for it, TensorRT, or a plan for them, with what to do;
/// [`EngineError::Corrupt`] for a plan that is not the one that was built; those of [`TensorRtBackend::new`].
pub(crate) fn open(
    dir: &EngineDir,
    gpu: &GpuOptions,
    options: impl FnOnce(Share) -> TensorRtOptions,
) -> Result<TensorRtBackend> {
    let trt = TensorRt::open()?;
    let (device, target) = cuda::usable_device()?;
    let options = options(cuda::share(gpu.share, &device));
    let manifest = dir.manifest();
    let version = trt.version();
    let wanted = Wanted {
        role: PlanRole::Decoder,
        tensorrt: PlanVersion { major: version.major, minor: version.minor },
        sm: target.name(),
        weights_blake3: manifest.file(WEIGHTS_FILE).map_or("", |file| file.blake3.as_str()),
        num_lanes: options.num_lanes,
        lane_capacity: options.lane_capacity,
    };
    let entry = wanted.choose(&manifest.plans)?;
    let kernels = cuda::kernels(&kernel_sources(), &device, target, Some(dir.path()), gpu)?;
    let (context, fallback) = Context::open(&device, options.share)?;
    if let Some(fallback) = fallback {
        tracing::warn!(
            "no green context ({}): a low-priority stream on all multiprocessors instead",
            fallback.reason
        );
    }
    let bytes = read(dir.path(), entry)?;
    let file = PlanFile { entry, bytes: &bytes, weight_bytes_per_step: bytes_per_step(manifest)? };
    let cubins = kernels.images().iter().map(Image::bytes);
    TensorRtBackend::new(&manifest.spec, file, (&trt, &context), cubins, &options)
}

/// The plan of `entry`, mapped, if it is the one that was built.
fn read(dir: &Path, entry: &PlanEntry) -> Result<Mmap> {
    let path = dir.join(&entry.file);
    let io_error = |source| EngineError::Io { path: path.clone(), source };
    let corrupt = |fact: String| EngineError::Corrupt { path: path.clone(), fact };
    let again = "build it again: `takt build DIR --tensorrt --plans-only`";
    let found = fs::metadata(&path).map_err(io_error)?.len();
    if found != entry.size_bytes {
        return Err(corrupt(format!("{found} bytes, engine.json says {}; {again}", entry.size_bytes)));
    }
    let bytes = map_file(&path)?;
    let found = blake3::hash(&bytes).to_hex();
    if found.as_str() != entry.blake3 {
        return Err(corrupt(format!("its BLAKE3 is {found}, engine.json says {}; {again}", entry.blake3)));
    }
    Ok(bytes)
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
