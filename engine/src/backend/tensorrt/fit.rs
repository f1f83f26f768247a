//! Whether a plan can be run as it is asked to be, and everything beside it fits.

use takt_kernels_cu::driver::context::Context;
use takt_tensorrt::runtime::Plan;

use super::{options::TensorRtOptions, sizes::Sizes};
use crate::{
    EngineError, Result,
    backend::device::room::{Needs, Room},
    dir::PlanEntry,
};

/// That `entry` is one that this version runs with `options`.
pub(super) fn check_entry(entry: &PlanEntry, options: &TensorRtOptions, lane_capacity: usize) -> Result<()> {
    // An engine directory has none that does not hold; other callers may.
    entry.check_sizes().map_err(EngineError::Unsupported)?;
    if entry.stripped {
        return Err(EngineError::Unsupported(format!(
            "plan {:?} has no weights of its own, which this version does not give it: build it again without stripping",
            entry.file
        )));
    }
    if options.num_lanes > entry.num_lanes || lane_capacity > entry.lane_capacity {
        return Err(EngineError::Unsupported(format!(
            "{} lanes of {lane_capacity} tokens asked, plan {:?} has {} of {}",
            options.num_lanes, entry.file, entry.num_lanes, entry.lane_capacity
        )));
    }
    Ok(())
}

/// That the cache stays within what is allowed.
pub(super) fn check_kv(sizes: &Sizes, entry: &PlanEntry, options: &TensorRtOptions) -> Result<()> {
    let kv = sizes.lanes.num_bytes();
    match options.max_kv_bytes.filter(|&most| kv as u64 > most) {
        None => Ok(()),
        Some(max_bytes) => Err(EngineError::Capacity(format!(
            "the {}-bit KV cache of {} lanes x {} rows, which the plan fixes, takes {kv} bytes, {max_bytes} are allowed",
            8 * entry.kv.element_bytes(),
            options.num_lanes,
            entry.lane_rows
        ))),
    }
}

/// Leaves weights in the host's memory as far as there is no room for them beside everything else, or `allowed`, which is told of everything else, gives
/// none; how many bytes that are.
pub(super) fn stream_weights(
    plan: &mut Plan,
    context: &Context,
    others: impl Fn(usize) -> Needs,
    allowed: impl Fn(Needs) -> usize,
) -> Result<usize> {
    // What TensorRT takes while it runs has a place for what is sent: it is most when nothing stays.
    plan.set_weight_budget(0)?;
    let others = others(scratch_bytes(plan)?);
    let room = Room::of(context)?;
    let (streamable, available) = (plan.streamable_bytes(), room.available_beside(0));
    let has_room = available.saturating_sub(others.of_device(&room));
    let budget = has_room.min(allowed(others)).min(streamable);
    if context.device().is_integrated {
        tracing::warn!(
            "the plan sends weights from the host's memory, which on this board is the device's: it saves nothing here; build it without --plan-streaming"
        );
    }
    let left = streamable - budget;
    if left > 0 {
        tracing::warn!(
            "{left} of {streamable} bytes of weights stay in the host's memory and are sent with every step"
        );
    }
    plan.set_weight_budget(budget)?;
    Ok(left)
}

/// For the largest sections of any profile, none of which run at the same time.
pub(super) fn scratch_bytes(plan: &Plan) -> Result<usize> {
    let mut most = 0;
    for profile in 0..plan.num_profiles() {
        most = most.max(plan.scratch_bytes(profile)?);
    }
    Ok(most)
}
