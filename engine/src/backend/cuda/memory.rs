//! How large everything of a backend and of its head is, known from sizes alone: before a device is asked, and by whoever asks for none.

use takt_kernels_cu::driver::context::Share;

use super::{
    device::usable_device,
    draft::HeadSizes,
    forward::Forward,
    input::InputLayout,
    lanes::{LaneLayout, LaneSizes},
    options::{CudaOptions, GpuShare},
    rows::{RowLimits, StepRows},
    shape::{ShapeLimits, StepShape},
    weights::rope_bytes,
    workspace::WorkspaceLayout,
};
use crate::{Result, draft::DraftSpec, spec::DecoderSpec};

/// Multiprocessors of a device that is not at hand: as many as make a step write most.
const MANY_SMS: usize = 1 << 16;

/// Bytes of memory beside weights, a head's included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeviceMemory {
    /// Of the lanes.
    pub kv: u64,
    /// Buffers of steps, position tables, and the pinned memory through which tokens and logits travel; on devices with memory of their own that
    /// is the host's. Without what the driver takes for itself.
    pub workspace: u64,
}

impl DeviceMemory {
    /// What a model of `spec` (valid) and its head take under `options` on a device of `num_sms` multiprocessors for us; at most, where they are
    /// not known.
    ///
    /// # Errors
    /// [`crate::EngineError::Unsupported`] for sizes without a kernel.
    pub(crate) fn of(
        spec: &DecoderSpec,
        draft: Option<&DraftSpec>,
        options: &CudaOptions,
        num_sms: Option<usize>,
    ) -> Result<Self> {
        let num_sms = num_sms.unwrap_or(MANY_SMS);
        let own = StepSizes::of(spec, options, num_sms)?;
        let mut told = Self {
            kv: own.lanes.num_bytes() as u64,
            workspace: sum(&[
                own.workspace.num_bytes(),
                own.pinned_bytes(spec.vocab_size),
                rope_bytes(spec, options.lane_capacity),
                own.lanes.table_bytes(),
            ]),
        };
        if let Some(draft) = draft {
            let head = HeadSizes::of(draft, options, num_sms)?;
            told.kv += head.lanes.num_bytes() as u64;
            told.workspace += sum(&[
                head.workspace_bytes,
                head.pinned_bytes(),
                rope_bytes(&draft.layer(), head.capacity),
                head.lanes.table_bytes(),
            ]);
        }
        Ok(told)
    }
}

/// Multiprocessors for us of the device at hand, at most, where it gives a share as asked; `None` without a device.
pub(crate) fn sms_at_hand(share: GpuShare) -> Option<usize> {
    /// What the smallest part of a device that can be split off has at most.
    const SMALLEST_PART: u32 = 8;
    let (device, _) = usable_device().ok()?;
    let num_sms = match share.on(&device) {
        Share::GreenContext { num_sms } => num_sms.max(SMALLEST_PART).min(device.num_sms),
        Share::Priority | Share::None => device.num_sms,
    };
    usize::try_from(num_sms).ok()
}

fn sum(bytes: &[usize]) -> u64 {
    bytes.iter().map(|&bytes| bytes as u64).sum()
}

/// Where everything of a model's steps lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepSizes {
    pub limits: ShapeLimits,
    pub rows: RowLimits,
    pub lanes: LaneLayout,
    pub input: InputLayout,
    pub workspace: WorkspaceLayout,
}

impl StepSizes {
    pub(super) fn of(spec: &DecoderSpec, options: &CudaOptions, num_sms: usize) -> Result<Self> {
        let limits = ShapeLimits {
            max_tokens: options.max_step_tokens,
            max_logits: options.max_logits_rows,
            num_lanes: options.num_lanes,
        };
        let rows = RowLimits {
            max_segments: options.num_lanes,
            max_rows: options.max_logits_rows,
            max_places: options.max_logits_rows,
        };
        let lanes =
            LaneLayout::new(spec, LaneSizes::new(options.kv, options.num_lanes, options.lane_capacity));
        let input = InputLayout::new(limits);
        let partial_lens = partial_lens(spec, limits, options.lane_capacity, num_sms)?;
        let workspace = WorkspaceLayout::new(spec, limits, &input, partial_lens)?;
        Ok(Self { limits, rows, lanes, input, workspace })
    }

    /// Bytes of pinned memory.
    pub(super) fn pinned_bytes(&self, vocab_size: usize) -> usize {
        self.input.num_bytes() + StepRows::pinned_bytes(self.rows, vocab_size) + self.lanes.pinned_bytes()
    }
}

/// F32 values of attention's partial results, for the shape that has most.
fn partial_lens(
    spec: &DecoderSpec,
    limits: ShapeLimits,
    capacity: usize,
    num_sms: usize,
) -> Result<(usize, usize)> {
    let mut most = (0, 0);
    for usual in StepShape::usual(limits) {
        // Which segments a step has is not known; whatever it has, its partial results are no more than its tokens'.
        let shapes = [
            usual,
            StepShape { num_segments: limits.num_lanes, ..usual },
            StepShape { num_segments: limits.num_lanes, max_segment_len: 1, ..usual },
        ];
        for shape in shapes {
            let step = Forward::attention_step(shape, capacity, None);
            if let Some((_, lens)) = Forward::merging(spec, &step, num_sms)? {
                most = (most.0.max(lens.0), most.1.max(lens.1));
            }
        }
    }
    Ok(most)
}
