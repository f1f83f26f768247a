//! How the backend is set up.

use std::time::Duration;

use takt_kernels_cu::driver::context::Share;

use crate::{Result, backend::limits::Sizes, spec::DecoderSpec};

/// How a [`TensorRtBackend`](super::TensorRtBackend) is set up.
#[derive(Debug, Clone)]
pub struct TensorRtOptions {
    /// How the device is shared with other work.
    pub share: Share,
    /// Lanes that can advance together; at most the plan's.
    pub num_lanes: usize,
    /// Tokens one lane holds, at most the plan's; `None` for the plan's.
    pub lane_capacity: Option<usize>,
    /// Most tokens of one plan of a step.
    pub max_step_tokens: usize,
    /// Most logits rows of one.
    pub max_logits_rows: usize,
    /// Most bytes the lanes may take; `None` for what the device gives.
    pub max_kv_bytes: Option<u64>,
    /// Most bytes that the plan's weights, lanes, snapshots and workspace, and a draft head's with the embedding copied for it, may take together; `None` for
    /// what the device gives.
    pub max_bytes: Option<u64>,
    /// Prefix snapshots that will be kept, for `max_bytes`.
    pub num_snapshots: usize,
    /// A step that is not done by then is taken for hung, and the device given up.
    pub step_limit: Duration,
}

impl TensorRtOptions {
    /// For lanes of `lane_capacity` tokens.
    pub(super) fn validate(&self, spec: &DecoderSpec, lane_capacity: usize) -> Result<()> {
        let sizes = Sizes {
            num_lanes: self.num_lanes,
            lane_capacity,
            max_step_tokens: self.max_step_tokens,
            max_logits_rows: self.max_logits_rows,
        };
        sizes.check(spec)
    }
}
