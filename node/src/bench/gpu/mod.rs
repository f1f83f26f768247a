//! What only a GPU has: its memory's bandwidth, every kind of step by itself, and what perception beside the model notices of it.

pub mod bandwidth;
pub mod kinds;
pub mod perception;

use std::path::Path;

use takt_engine::{
    EngineError,
    backend::cuda::{GpuOptions, kernels, usable_device},
};
use takt_kernels_cu::{
    driver::{context::Context, device::Device, module::Kernels},
    source::MEASURES,
};

/// The kernels of measurements in `context`, from the cache or compiled now.
fn measures(context: &Context, gpu: &GpuOptions) -> Result<Kernels, EngineError> {
    let (device, target) = usable_device()?;
    let set = kernels(MEASURES, &device, target, None::<&Path>, gpu)?;
    Ok(Kernels::load(context, set.images().iter().map(|image| image.bytes()))?)
}

/// The device that is measured, and that the CUDA backend would open.
fn device() -> Result<Device, EngineError> {
    Ok(usable_device()?.0)
}
