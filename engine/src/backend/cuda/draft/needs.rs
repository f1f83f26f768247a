//! How large a head is with everything beside it, known before anything of it is allocated, and whether that fits.

use takt_kernels_cu::launch::attention::Merging;

use super::{
    DraftSetup, Host,
    forward::Forward,
    input::{LevelInput, ReadInput},
    model::DraftModel,
    shape::LevelShape,
    workspace::{self, Sizes, Workspace},
};
use crate::{
    EngineError, Result,
    backend::{
        cuda::{options::CudaOptions, shape::sizes},
        device::{
            lanes::{LaneLayout, LaneSizes},
            room::Room,
        },
    },
    draft::{DraftSource, DraftSpec, MAX_DRAFT_ROWS, MAX_PLAN_ROWS, MAX_WAITING},
    spec::DecoderSpec,
};

/// Device memory left to the driver for the head's graphs.
const DRIVER_BYTES: usize = 16 << 20;

/// Where everything of a head will lie.
#[derive(Debug)]
pub(super) struct LaidOut {
    /// As the target's, with lanes of the head's: what it reads, and [`MAX_DRAFT_ROWS`] more.
    pub options: CudaOptions,
    pub lanes: LaneLayout,
    pub sizes: Sizes,
    /// Offsets, and bytes of all.
    pub workspace: (Workspace<usize>, usize),
}

impl LaidOut {
    pub(super) fn new(spec: &DraftSpec, setup: &DraftSetup<'_>) -> Result<Self> {
        let max_positions = spec.max_positions.min(setup.options.lane_capacity);
        let capacity = max_positions + MAX_DRAFT_ROWS;
        let options = CudaOptions { lane_capacity: capacity, ..setup.options.clone() };
        let layer_spec = DecoderSpec { max_context: capacity, ..spec.layer() };
        let num_lanes = options.num_lanes;
        let sizes = Sizes {
            num_lanes,
            max_step_tokens: options.max_step_tokens,
            max_read_rows: options.max_step_tokens + num_lanes * MAX_WAITING,
            num_slots: MAX_WAITING,
            partial_lens: partial_lens(spec, capacity, setup)?,
        };
        let lanes = LaneLayout::new(&layer_spec, LaneSizes::new(options.kv, num_lanes, capacity));
        let workspace = Workspace::lay_out(spec, &sizes)?;
        Ok(Self { options, lanes, sizes, workspace })
    }
}

/// Bytes of a level's output in pinned memory.
pub(super) fn output_bytes() -> usize {
    workspace::output_bytes(LevelShape::largest(1, 1))
}

/// F32 values of attention's partial results, for the level that has most.
fn partial_lens(spec: &DraftSpec, capacity: usize, setup: &DraftSetup<'_>) -> Result<(usize, usize)> {
    let mut most = (0, 0);
    let num_segments = [1, setup.options.num_lanes.next_power_of_two(), MAX_PLAN_ROWS];
    for num_rows in sizes(MAX_PLAN_ROWS) {
        let segments = num_segments.iter().map(|&segments| segments.min(num_rows));
        for (num_segments, max_segment_len) in
            segments.flat_map(|segments| [(segments, num_rows), (segments, 1)])
        {
            let shape = LevelShape { num_rows, ..LevelShape::largest(num_segments, max_segment_len) };
            let step = Forward::attention_step(shape, capacity, None);
            let (num_heads, num_kv_heads) = (spec.num_q_heads, spec.num_kv_heads);
            if Merging::for_gpu(&step, num_heads, num_kv_heads, setup.num_sms).is_some() {
                let lens = step.partial_lens(num_heads, spec.head_dim)?;
                most = (most.0.max(lens.0), most.1.max(lens.1));
            }
        }
    }
    Ok(most)
}

/// Bytes of memory that a head takes beside its target, by what they are for.
#[derive(Debug, Clone, Copy)]
pub(in crate::backend) struct HeadNeeds {
    pub weights: usize,
    pub kv: usize,
    pub workspace: usize,
    /// Of the host's; the device's own where both share memory.
    pub pinned: usize,
    /// Of what it keeps with each snapshot of its target, at most.
    pub snapshot: usize,
}

impl HeadNeeds {
    /// Of a head of `spec`, which was validated against its target.
    ///
    /// # Errors
    /// [`EngineError::Tensor`] or [`EngineError::Unsupported`] for a head that does not hold.
    pub fn new(spec: &DraftSpec, source: &dyn DraftSource, setup: &DraftSetup<'_>) -> Result<Self> {
        let LaidOut { options, lanes, sizes, workspace: (_, workspace) } = LaidOut::new(spec, setup)?;
        let kv = lanes.num_bytes();
        Ok(Self {
            weights: DraftModel::num_bytes(spec, source, options.lane_capacity)?,
            kv,
            workspace,
            pinned: ReadInput::num_bytes(sizes.max_read_rows)
                + LevelInput::num_bytes(options.num_lanes)
                + output_bytes(),
            snapshot: kv / options.num_lanes.max(1) + MAX_WAITING * spec.features_len() * size_of::<f32>(),
        })
    }

    /// That all of it fits what is free, and the cache what is allowed.
    pub(super) fn check(&self, host: &Host<'_>, setup: &DraftSetup<'_>) -> Result<()> {
        let Self { weights, kv, workspace, pinned, .. } = self;
        let (options, context) = (setup.options, host.stream.context());
        let left = options.max_kv_bytes.map(|most| most.saturating_sub(setup.kv_bytes));
        if let Some(max_bytes) = left.filter(|&most| *kv as u64 > most) {
            return Err(EngineError::Capacity(format!(
                "the draft head's {} KV cache of {} lanes takes {kv} bytes, {max_bytes} are left of those allowed",
                options.kv, options.num_lanes
            )));
        }
        let room = Room::of(context)?;
        let needed =
            weights + kv + workspace + DRIVER_BYTES + if room.shared.is_some() { *pinned } else { 0 };
        let held = usize::try_from(setup.weight_bytes.saturating_add(setup.kv_bytes)).unwrap_or(usize::MAX);
        if needed > room.available_beside(held) {
            let room = room.in_words();
            return Err(EngineError::Capacity(format!(
                "the draft head takes {needed} bytes of device memory (weights {weights}, KV cache {kv}, workspace {workspace}, driver \
                 {DRIVER_BYTES}; pinned {pinned}) beside the model, {room}: use fewer or shorter lanes, go without speculation, or free \
                 memory"
            )));
        }
        Ok(())
    }
}
