//! From a machine and an engine directory to a backend: the device, a context of our own on it, its kernels.

use std::path::Path;

use takt_kernels_cu::{
    Target,
    cache::Cache,
    compiler,
    driver::{
        context::{Context, Share},
        device::{self, Device},
    },
    kernel_set::{KernelSet, Places},
    source::{SOURCES, Source},
};

use super::{CudaBackend, CudaOptions, GpuOptions};
use crate::{EngineError, Result, dir::KERNELS_FOLDER, spec::DecoderSpec, weights::WeightSource};

/// Opens `spec` on the first device there are kernels for.
///
/// # Errors
/// [`EngineError::Unsupported`] without a driver, a device or kernels for it, with what to do; those of [`CudaBackend::new`].
pub(crate) fn open(
    spec: &DecoderSpec,
    source: &dyn WeightSource,
    engine_dir: Option<&Path>,
    gpu: &GpuOptions,
    options: impl FnOnce(Share) -> CudaOptions,
) -> Result<CudaBackend> {
    let (device, target) = usable_device()?;
    let kernels = kernels(SOURCES, &device, target, engine_dir, gpu)?;
    let options = options(gpu.share.on(&device));
    let (context, fallback) = Context::open(&device, options.share)?;
    if let Some(fallback) = fallback {
        tracing::warn!(
            "no green context ({}): a low-priority stream on all multiprocessors instead",
            fallback.reason
        );
    }
    let cubins = kernels.images().iter().map(takt_kernels_cu::image::Image::bytes);
    CudaBackend::new(spec, source, &context, cubins, &options)
}

/// The first device there are kernels for, and what they are compiled for.
///
/// # Errors
/// [`EngineError::Unsupported`] without a driver, a device or kernels for it.
pub fn usable_device() -> Result<(Device, Target)> {
    choose(device::probe()?)
}

fn choose(devices: Vec<Device>) -> Result<(Device, Target)> {
    let found: Vec<String> = devices.iter().map(Device::key).collect();
    let mut usable = devices.into_iter().filter_map(|device| device.target().map(|target| (device, target)));
    usable.next().ok_or_else(|| {
        let targets = Target::ALL.map(|target| target.to_string()).join(", ");
        EngineError::Unsupported(format!("no kernels for {}: there are some for {targets}", found.join(", ")))
    })
}

/// The kernels of `sources` from the engine directory, where there is one, the cache, or compiled now.
///
/// # Errors
/// [`EngineError::Unsupported`] with what is missing and what to do.
pub fn kernels(
    sources: &[Source],
    device: &Device,
    target: Target,
    engine_dir: Option<&Path>,
    gpu: &GpuOptions,
) -> Result<KernelSet> {
    let in_engine = engine_dir.map(|dir| dir.join(KERNELS_FOLDER)).filter(|folder| folder.is_dir());
    let folders: Vec<Cache> = in_engine.iter().chain(&gpu.kernel_cache).map(Cache::new).collect();
    let driver = Some(device.driver_version);
    // The engine directory is not written to.
    let without_compiler = Places { folders: &folders, compiler: None, driver };
    let missing = match KernelSet::open_of(sources, target, without_compiler, |_| ()) {
        Ok((kernels, _)) => return Ok(kernels),
        Err(error) => error,
    };
    let unsupported = |error: &dyn std::fmt::Display| EngineError::Unsupported(error.to_string());
    if gpu.cuda_roots.is_empty() {
        return Err(unsupported(&missing));
    }
    let compilers = compiler::open_all(&gpu.cuda_roots).map_err(|error| unsupported(&error))?;
    // Of compilers that are all too new the newest stands in the message; one that does not know the board says so itself.
    let fit = compiler::choose(&compilers, target, driver);
    let compiler = fit.or_else(|| compiler::choose(&compilers, target, None)).or(compilers.first());
    let cached = gpu.kernel_cache.is_some();
    let places = Places { folders: if cached { &folders } else { &[] }, compiler, driver };
    let compiling = |source: &Source| {
        tracing::info!("compiling {} for {target}, which takes seconds, once", source.name);
    };
    let (kernels, not_stored) =
        KernelSet::open_of(sources, target, places, compiling).map_err(|error| unsupported(&error))?;
    for error in not_stored {
        tracing::warn!("a compiled kernel could not be kept and will be compiled again: {error}");
    }
    Ok(kernels)
}
