//! What plans are to be able to do.

use takt_engine::dir::{PlanActivations, PlanCompute};

use crate::{
    BuildError, Result,
    export::{Activations, Compute, Form, KvType},
};

/// Most lanes of a plan, as of a backend.
const MAX_LANES: usize = 64;
/// As many as a node has unless its configuration says otherwise.
const DEFAULT_LANES: usize = 4;
/// TensorRT's longest search.
const MAX_EFFORT: u32 = 5;

/// What plans are to be able to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanOptions {
    /// Lanes that advance together.
    pub num_lanes: usize,
    /// Tokens a lane holds; the model's context by default, at most [`takt_engine::engine::DEFAULT_LANE_CAPACITY`].
    pub lane_capacity: Option<usize>,
    /// The type of matrix products, and of a plain cache.
    pub compute: PlanCompute,
    /// What FP8 and NVFP4 weights are multiplied with.
    pub activations: PlanActivations,
    /// What keys and values are stored as; the engine's own by default, as far as form and GPU take it.
    pub kv: Option<KvType>,
    /// Most device memory a layer may take beside its weights and values, in bytes; TensorRT's choice by default.
    pub workspace_bytes: Option<usize>,
    /// How long TensorRT searches, 0 to 5; its choice by default.
    pub effort: Option<u32>,
    /// Plans that take other weights of the same model later, [`DevicePlans::open_refit`](super::DevicePlans::open_refit): with one profile for
    /// everything, as TensorRT gives such a plan no more.
    pub is_refittable: bool,
    /// Weights may stay in the host's memory and be sent when they are needed.
    pub streams_weights: bool,
    /// Percent of the multiprocessors that the plans will run on, in a green context: kernels are timed in such a one. All of them, without one, by
    /// default.
    pub sm_share: Option<u8>,
    /// How the model is written that TensorRT reads; by default in the newest form it takes, and in primitives for a cache of 8 bits that is asked for.
    pub form: Option<Form>,
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self {
            num_lanes: DEFAULT_LANES,
            lane_capacity: None,
            compute: PlanCompute::Bf16,
            activations: PlanActivations::Plain,
            kv: None,
            workspace_bytes: None,
            effort: None,
            is_refittable: false,
            streams_weights: false,
            sm_share: None,
            form: None,
        }
    }
}

impl PlanOptions {
    /// Checks what can be checked without a model.
    pub(super) fn check(&self) -> Result<()> {
        let refuse = |fact: String| Err(BuildError::Unsupported(fact));
        if !(1..=MAX_LANES).contains(&self.num_lanes) {
            return refuse(format!("plans for {} lanes: expected 1 to {MAX_LANES}", self.num_lanes));
        }
        if let Some(effort) = self.effort.filter(|&effort| effort > MAX_EFFORT) {
            return refuse(format!("a search of effort {effort}: TensorRT has 0 to {MAX_EFFORT}"));
        }
        if let Some(percent) = self.sm_share.filter(|percent| !(1..=100).contains(percent)) {
            return refuse(format!("plans for {percent} % of the multiprocessors: expected 1 to 100"));
        }
        if self.is_refittable && self.streams_weights {
            return refuse(
                "a plan whose weights are streamed and that takes other weights: taking them needs all of them on the GPU, whose memory streaming is to save; leave out --plan-refit or --plan-streaming".into(),
            );
        }
        if self.workspace_bytes == Some(0) {
            return refuse("a workspace of 0 bytes: layers need some; leave it to TensorRT".into());
        }
        Ok(())
    }

    pub(super) fn export_compute(&self) -> Compute {
        match self.compute {
            PlanCompute::Bf16 => Compute::Bf16,
            PlanCompute::F16 => Compute::F16,
        }
    }

    pub(super) fn export_activations(&self) -> Activations {
        match self.activations {
            PlanActivations::Plain => Activations::Plain,
            PlanActivations::Quantized => Activations::Quantized,
        }
    }
}
