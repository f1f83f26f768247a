//! `plans/`: TensorRT plans of an engine, built on the device that runs them.
//!
//! 1. `options`: what is wanted. `device`: for what they are built, found before anything is done; `compiler`: with what.
//!    `green`: what kernels are timed in, for plans that share the GPU.
//! 2. `profiles`: shapes that a plan is optimized for, from the inputs of an exported model.
//! 3. `building`: engine → ONNX in a hidden folder → plans in it. `failure`: what to do where TensorRT fails. `timing_cache`: what it measured, kept for
//!    the next time. `space`: whether there is room.
//! 4. `refit`: another engine's plan, given this one's weights; `weights`: which of a model's it takes.
//! 5. `place`: the hidden folder, and how plans get from there into the engine: all of them, or none.

mod building;
mod compiler;
mod device;
mod failure;
mod green;
mod options;
mod place;
mod profiles;
mod refit;
mod space;
#[cfg(test)]
mod tests;
mod timing_cache;
mod weights;

use std::{path::Path, sync::atomic::AtomicBool};

use takt_engine::dir::Manifest;

pub use device::DevicePlans;
pub use options::PlanOptions;
pub(crate) use space::check_room_with_engine;

use crate::{Progress, Result, report::PlansReport};
use place::Place;

/// Builds `plans` for the engine directory `engine`, which stays as it is otherwise. Plans for the same TensorRT, GPU and model are replaced, others
/// stay.
///
/// The engine's weights are written as ONNX models into a hidden folder below `plans/`, a megabyte at a time; it is removed whatever happens. A plan is
/// in the host's memory once while it is written, beside it, for a refit, the weights it is given. New plans lie under new names beside the old ones before `engine.json` is exchanged, by a rename,
/// for one that names them: whoever opens the engine meanwhile finds the one or the other, whole.
///
/// # Errors
/// [`BuildError::Engine`](crate::BuildError::Engine) for a folder that is no engine directory; [`BuildError::Unsupported`](crate::BuildError::Unsupported)
/// for weights that this TensorRT or GPU does not take, or lanes that the model was not made for; [`BuildError::Source`](crate::BuildError::Source) for
/// one that another process adds plans to, or that has no room; [`BuildError::TensorRt`](crate::BuildError::TensorRt),
/// [`BuildError::Plan`](crate::BuildError::Plan), [`BuildError::Io`](crate::BuildError::Io), [`BuildError::Cancelled`](crate::BuildError::Cancelled).
/// The engine is as it was.
pub fn add_plans(
    engine: &Path,
    plans: &DevicePlans,
    cancelled: Option<&AtomicBool>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<PlansReport> {
    let manifest = Manifest::read(engine)?;
    plans.check(&manifest.spec, &manifest.quantization)?;
    let place = Place::open(engine)?;
    // Nobody else adds plans from here on.
    let manifest = Manifest::read(engine)?;
    space::check(&place, &manifest)?;
    let built = building::build_all(plans, &manifest, &place, cancelled, progress)?;
    let (entries, reports): (Vec<_>, Vec<_>) = built.plans.into_iter().unzip();
    let mut warnings = built.warnings;
    warnings.extend(place.publish(manifest, entries)?);
    Ok(PlansReport {
        tensorrt: plans.version(),
        sm: plans.sm(),
        device: plans.device(),
        plans: reports,
        warnings,
    })
}
