//! How large everything of a head is, known from sizes alone.

use takt_kernels_cu::launch::attention::Merging;

use super::{
    forward::Forward,
    input::{LevelInput, ReadInput},
    shape::LevelShape,
    workspace::{self, Sizes, Workspace},
};
use crate::{
    Result,
    backend::{
        cuda::{options::CudaOptions, shape::sizes},
        device::lanes::{LaneLayout, LaneSizes},
    },
    draft::{DraftSpec, MAX_DRAFT_ROWS, MAX_PLAN_ROWS, MAX_WAITING},
    spec::DecoderSpec,
};

/// Of a head beside a target that is opened with some options.
#[derive(Debug, Clone, Copy)]
pub(in crate::backend::cuda) struct HeadSizes {
    /// Tokens of a lane that can be read.
    pub max_positions: usize,
    /// Rows of a lane, those of trees included.
    pub capacity: usize,
    pub lanes: LaneLayout,
    pub(super) workspace: Workspace<usize>,
    pub workspace_bytes: usize,
    /// What comes back of a level.
    pub output_bytes: usize,
    /// Rows read at once.
    pub max_read_rows: usize,
    num_lanes: usize,
}

impl HeadSizes {
    /// Of the head of `spec` beside a target under `options`, on `num_sms` multiprocessors.
    pub fn of(spec: &DraftSpec, options: &CudaOptions, num_sms: usize) -> Result<Self> {
        let num_lanes = options.num_lanes;
        let max_positions = spec.max_positions.min(options.lane_capacity);
        let capacity = max_positions + MAX_DRAFT_ROWS;
        let layer_spec = DecoderSpec { max_context: capacity, ..spec.layer() };
        let sizes = Sizes {
            num_lanes,
            max_step_tokens: options.max_step_tokens,
            max_read_rows: options.max_step_tokens + num_lanes * MAX_WAITING,
            num_slots: MAX_WAITING,
            partial_lens: partial_lens(spec, capacity, num_lanes, num_sms)?,
        };
        let (workspace, workspace_bytes) = Workspace::lay_out(spec, &sizes)?;
        Ok(Self {
            max_positions,
            capacity,
            lanes: LaneLayout::new(&layer_spec, LaneSizes::new(options.kv, num_lanes, capacity)),
            workspace,
            workspace_bytes,
            output_bytes: workspace::output_bytes(LevelShape::largest(1, 1)),
            max_read_rows: sizes.max_read_rows,
            num_lanes,
        })
    }

    /// Bytes of pinned memory.
    pub fn pinned_bytes(&self) -> usize {
        ReadInput::num_bytes(self.max_read_rows)
            + LevelInput::num_bytes(self.num_lanes)
            + self.output_bytes
            + self.lanes.pinned_bytes()
    }
}

/// F32 values of attention's partial results, for the level that has most.
fn partial_lens(
    spec: &DraftSpec,
    capacity: usize,
    num_lanes: usize,
    num_sms: usize,
) -> Result<(usize, usize)> {
    let mut most = (0, 0);
    let num_segments = [1, num_lanes.next_power_of_two(), MAX_PLAN_ROWS];
    for num_rows in sizes(MAX_PLAN_ROWS) {
        let segments = num_segments.iter().map(|&segments| segments.min(num_rows));
        for (num_segments, max_segment_len) in
            segments.flat_map(|segments| [(segments, num_rows), (segments, 1)])
        {
            let shape = LevelShape { num_rows, ..LevelShape::largest(num_segments, max_segment_len) };
            let step = Forward::attention_step(shape, capacity, None);
            let (num_heads, num_kv_heads) = (spec.num_q_heads, spec.num_kv_heads);
            if Merging::for_gpu(&step, num_heads, num_kv_heads, num_sms).is_some() {
                let lens = step.partial_lens(num_heads, spec.head_dim)?;
                most = (most.0.max(lens.0), most.1.max(lens.1));
            }
        }
    }
    Ok(most)
}
