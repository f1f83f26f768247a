//! How the backend is set up.

use std::time::Duration;

use takt_kernels_cu::driver::context::Share;

use crate::{EngineError, Result, kv::KvKind, spec::DecoderSpec};

/// How a [`CudaBackend`](super::CudaBackend) is set up.
#[derive(Debug, Clone)]
pub struct CudaOptions {
    /// How the device is shared with other work.
    pub share: Share,
    /// Lanes that can advance together.
    pub num_lanes: usize,
    /// Tokens one lane holds.
    pub lane_capacity: usize,
    /// KV cache format.
    pub kv: KvKind,
    /// Most tokens of one plan.
    pub max_step_tokens: usize,
    /// Most logits rows of one plan.
    pub max_logits_rows: usize,
    /// Most bytes the lanes may take; `None` for what the device gives.
    pub max_kv_bytes: Option<u64>,
    /// A step that is not done by then is taken for hung, and the device given up.
    pub step_limit: Duration,
}

impl CudaOptions {
    pub(super) fn validate(&self, spec: &DecoderSpec) -> Result<()> {
        let counts = [
            ("lanes", self.num_lanes, 1 << 10),
            ("tokens a lane", self.lane_capacity, spec.max_context),
            ("tokens a step", self.max_step_tokens, 1 << 16),
            ("logits rows a step", self.max_logits_rows, 1 << 16),
        ];
        for (what, value, limit) in counts {
            if value == 0 || value > limit {
                return Err(EngineError::Input(format!("{value} {what} asked, expected 1..={limit}")));
            }
        }
        Ok(())
    }
}
