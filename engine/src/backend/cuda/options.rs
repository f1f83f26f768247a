//! How the backend is set up.

use std::{path::PathBuf, time::Duration};

use takt_kernels_cu::driver::{context::Share, device::Device};

use super::mapped::GpuWeights;
use crate::{Result, backend::limits::Sizes, kv::KvKind, spec::DecoderSpec};

/// How the GPU is shared with the robot's perception.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GpuShare {
    /// A context of our own on so many percent of the multiprocessors; perception has the others to itself.
    GreenContext {
        /// 1 to 100.
        percent: u8,
    },
    /// All multiprocessors, on a stream of the lowest priority.
    Priority,
    /// All multiprocessors, on an ordinary stream.
    None,
}

impl GpuShare {
    /// What that is on `device`.
    #[must_use]
    pub fn on(self, device: &Device) -> Share {
        match self {
            Self::GreenContext { percent } => {
                Share::GreenContext { num_sms: (device.num_sms * u32::from(percent) / 100).max(1) }
            }
            Self::Priority => Share::Priority,
            Self::None => Share::None,
        }
    }
}

/// How a GPU is used, and where its kernels come from.
#[derive(Debug, Clone)]
pub struct GpuOptions {
    /// With whom.
    pub share: GpuShare,
    /// Where weights are read.
    pub weights: GpuWeights,
    /// Folder for kernels that are compiled here, which takes seconds once; `None` to compile them each time.
    pub kernel_cache: Option<PathBuf>,
    /// Folders of CUDA toolkits, for kernels that neither the engine directory nor the cache has: the newest whose cubins the driver takes is used.
    pub cuda_roots: Vec<PathBuf>,
    /// A step that is not done by then is taken for hung, and the device given up.
    pub step_limit: Duration,
}

impl Default for GpuOptions {
    fn default() -> Self {
        Self {
            share: GpuShare::GreenContext { percent: 50 },
            weights: GpuWeights::Auto,
            kernel_cache: None,
            cuda_roots: Vec::new(),
            step_limit: Duration::from_secs(5),
        }
    }
}

/// How a [`CudaBackend`](super::CudaBackend) is set up.
#[derive(Debug, Clone)]
pub struct CudaOptions {
    /// How the device is shared with other work.
    pub share: Share,
    /// Where weights are read.
    pub weights: GpuWeights,
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
        let sizes = Sizes {
            num_lanes: self.num_lanes,
            lane_capacity: self.lane_capacity,
            max_step_tokens: self.max_step_tokens,
            max_logits_rows: self.max_logits_rows,
        };
        sizes.check(spec)
    }
}
