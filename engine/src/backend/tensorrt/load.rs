//! A plan loaded to its device, with all that is known of it before anything else is allocated, and everything that would keep it from running refused.

use takt_kernels_cu::driver::context::Context;
use takt_tensorrt::{TensorRt, TensorRtError, runtime::Plan};

use super::{
    SerializedPlan, TensorRtOptions,
    budget::Budget,
    fit::{check_entry, check_kv, scratch_bytes, stream_weights},
    input::InputFacts,
    ports::Ports,
    sizes::Sizes,
};
use crate::{
    EngineError, Result,
    backend::{
        Capabilities, Multiprocessors,
        device::{
            lanes::DeviceLanes,
            room::{Needs, Room},
        },
    },
    dir::{PlanActivations, PlanCompute, PlanForm},
    spec::DecoderSpec,
};

/// TensorRT's refusal of a plan with what to do: it is whole, as its hash says.
fn unloadable(error: TensorRtError) -> EngineError {
    match error {
        TensorRtError::Failed { .. } => EngineError::Backend(format!(
            "{error}; `takt build DIR --tensorrt --plans-only` builds the plan again, with this driver"
        )),
        other => other.into(),
    }
}

/// A plan that fits, and how large what is beside it will be.
#[derive(Debug)]
pub(super) struct Loaded {
    pub plan: Plan,
    pub ports: Ports,
    pub sizes: Sizes,
    /// Of TensorRT's own.
    pub scratch_bytes: usize,
    pub budget: Budget,
}

impl Loaded {
    /// Loads `file`, a plan of `spec`, to the device of `context`.
    ///
    /// # Errors
    /// As [`super::TensorRtBackend::new`].
    pub(super) fn new(
        spec: &DecoderSpec,
        file: &SerializedPlan<'_>,
        (trt, context): (&TensorRt, &Context),
        options: &TensorRtOptions,
    ) -> Result<Self> {
        let entry = file.entry;
        spec.validate()?;
        let lane_capacity = options.lane_capacity.unwrap_or(entry.lane_capacity);
        options.validate(spec, lane_capacity)?;
        check_entry(entry, options, lane_capacity)?;
        let guess = InputFacts {
            integer_bytes: size_of::<i64>(),
            has_kv_positions: spec.windows.iter().any(Option::is_some),
            appends: entry.form == PlanForm::Primitives,
        };
        let guessed = Sizes::new(spec, entry, options, guess)?;
        check_kv(&guessed, entry, options)?;
        let weights = usize::try_from(entry.size_bytes).unwrap_or(usize::MAX);
        // Before anything is loaded; what TensorRT takes while it runs is known afterwards.
        let resident = if entry.streams_weights { 0 } else { weights };
        needs(spec, &guessed, (resident, 0)).check(&Room::of(context)?)?;

        let mut plan = Plan::load(trt, context, file.bytes).map_err(unloadable)?;
        let ports = Ports::new(plan.tensors(), spec, entry)?;
        guessed.check_profiles(&plan, entry)?;
        let sizes = Sizes::new(spec, entry, options, ports.input)?;
        let mut left = 0;
        if entry.streams_weights {
            // What cannot be streamed is on the device already.
            let fixed = weights.saturating_sub(plan.streamable_bytes());
            let beside =
                |others: Needs| Budget::new(Needs { weights: fixed, ..others }, &sizes, options).left();
            left = stream_weights(&mut plan, context, |scratch| needs(spec, &sizes, (0, scratch)), beside)?;
        }
        let scratch_bytes = scratch_bytes(&plan)?;
        needs(spec, &sizes, (0, scratch_bytes)).check(&Room::of(context)?)?;
        let resident = weights.saturating_sub(left);
        let budget = Budget::new(needs(spec, &sizes, (resident, scratch_bytes)), &sizes, options);
        budget.check(None)?;
        Ok(Self { plan, ports, sizes, scratch_bytes, budget })
    }
}

/// What a plan takes whose weights and scratch memory are so many bytes.
fn needs(spec: &DecoderSpec, sizes: &Sizes, (weights, scratch): (usize, usize)) -> Needs {
    Needs {
        weights,
        mapped: 0,
        kv: sizes.lanes.num_bytes(),
        workspace: sizes.workspace_bytes(spec) + scratch,
        pinned: sizes.pinned_bytes(spec),
    }
}

pub(super) fn capabilities(
    context: &Context,
    trt: &TensorRt,
    file: &SerializedPlan<'_>,
    options: &TensorRtOptions,
    lanes: &DeviceLanes,
) -> Capabilities {
    let (device, entry) = (context.device(), file.entry);
    let form = match entry.form {
        PlanForm::Operators => "operators",
        PlanForm::Primitives => "primitives",
    };
    let compute = match entry.compute {
        PlanCompute::Bf16 => "bf16",
        PlanCompute::F16 => "f16",
    };
    let activations = match entry.activations {
        PlanActivations::Plain => "",
        PlanActivations::Quantized => " with quantized activations",
    };
    Capabilities {
        backend: "tensorrt",
        device: device.key(),
        kernels: format!(
            "TensorRT {}, plan {} of {form} in {compute}{activations}, {} of {} multiprocessors",
            trt.version(),
            entry.blake3.get(..8).unwrap_or(&entry.blake3),
            context.num_sms(),
            device.num_sms
        ),
        num_lanes: options.num_lanes,
        lane_capacity: lanes.book.lane_capacity(),
        max_step_tokens: options.max_step_tokens,
        max_logits_rows: options.max_logits_rows,
        num_threads: 1,
        multiprocessors: Some(Multiprocessors { used: context.num_sms(), all: device.num_sms }),
        kv: entry.kv.kind(),
        weight_bytes_per_step: file.weight_bytes_per_step,
        kv_bytes: lanes.num_bytes(),
    }
}
