//! Everything a draft head writes besides keys and values, one allocation sized when it is attached.

use takt_kernels_cu::launch::{
    DeviceAddress,
    logits::{Logits, LogitsOutput, LogitsScratch},
};

use super::{
    input::{LevelInput, ReadInput},
    shape::LevelShape,
};
use crate::{
    Result,
    draft::{DraftSpec, MAX_DRAFT_ROWS, MAX_PLAN_ROWS, MAX_TOP_K},
};

const ALIGNMENT: usize = 256;

/// What decides the sizes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub num_lanes: usize,
    /// Tokens of a step of the target.
    pub max_step_tokens: usize,
    /// Rows read at once.
    pub max_read_rows: usize,
    /// Features that wait, a lane.
    pub num_slots: usize,
    /// F32 values of attention's partial results.
    pub partial_lens: (usize, usize),
}

/// Where the buffers are: offsets first, then addresses.
#[derive(Debug, Clone, Copy)]
pub(super) struct Workspace<P = DeviceAddress> {
    /// F32 `[max_step_tokens + num_lanes · num_slots, 3 · H]`: of the last step's tokens, then of those that wait.
    pub features: P,
    /// F32 `[num_lanes · (1 + MAX_DRAFT_ROWS), h]`: of each lane the fused features of the last row read, and what was said after each row
    /// since its root.
    pub hidden: P,
    /// Copies of both inputs.
    pub read_input: P,
    pub level_input: P,
    /// Features as `fc` reads them, BF16 `[N, 3 · H]`.
    pub featured: P,
    /// Embeddings F32 `[N, h]`.
    pub embedded: P,
    /// Embedding and hidden beside each other BF16 `[N, 2 · h]`.
    pub joined: P,
    /// Fused features, or the residual stream, F32 `[N, h]`.
    pub residual: P,
    /// Q `[R, H · d]`, K and V `[N, G · d]`, F32.
    pub qkv: [P; 3],
    /// Q ready for attention, BF16 `[R, H · d]`.
    pub q: P,
    /// Attention's result BF16 `[R, H · d]`.
    pub heads: P,
    /// BF16 `[R, h]`.
    pub normed: P,
    /// BF16 `[R, F]`.
    pub gated: P,
    /// F32 `[R, Vd]`.
    pub logits: P,
    /// Of the choice among slices of them.
    pub keys: P,
    pub sums: P,
    /// Attention's partial results and their states.
    pub partial: (P, P),
    /// What travels back: see [`output_of`].
    pub output: P,
}

/// Bytes of what travels back of `shape`: tokens and values `[num_rows, k]`, log-sum-exp and status `[num_rows]`, behind each other.
pub(super) fn output_bytes(shape: LevelShape) -> usize {
    shape.num_rows * (2 * shape.k + 2) * size_of::<u32>()
}

/// Where a level of `shape` leaves what travels back.
pub(super) fn output_of(start: DeviceAddress, shape: LevelShape) -> Result<LogitsOutput> {
    let (lists, rows) = (shape.num_rows * shape.k * size_of::<u32>(), shape.num_rows * size_of::<u32>());
    Ok(LogitsOutput {
        tokens: start,
        values: start.offset(lists)?,
        log_sum_exp: start.offset(2 * lists)?,
        status: start.offset(2 * lists + rows)?,
    })
}

impl Workspace<usize> {
    /// Offsets, and bytes of all.
    pub fn lay_out(spec: &DraftSpec, sizes: &Sizes) -> Result<(Self, usize)> {
        let (h, rows) = (spec.hidden_size, MAX_PLAN_ROWS);
        let most = sizes.max_read_rows.max(rows);
        let scratch = Logits {
            logits: DeviceAddress::NULL,
            masks: None,
            scratch: LogitsScratch { keys: DeviceAddress::NULL, sums: DeviceAddress::NULL },
            output: output_of(DeviceAddress::NULL, LevelShape::largest(1, 1))?,
            num_rows: rows,
            vocab_size: spec.draft_vocab_size,
            k: MAX_TOP_K,
        };
        let (keys_len, sums_len) = scratch.scratch_lens()?;
        let mut end = 0_usize;
        let mut place = |num_bytes: usize| {
            let start = end;
            end = (start + num_bytes).next_multiple_of(ALIGNMENT);
            start
        };
        let num_features = sizes.max_step_tokens + sizes.num_lanes * sizes.num_slots;
        let layout = Self {
            features: place(4 * num_features * spec.features_len()),
            hidden: place(4 * sizes.num_lanes * (1 + MAX_DRAFT_ROWS) * h),
            read_input: place(ReadInput::num_bytes(sizes.max_read_rows)),
            level_input: place(LevelInput::num_bytes(sizes.num_lanes)),
            featured: place(2 * sizes.max_read_rows * spec.features_len()),
            embedded: place(4 * most * h),
            joined: place(4 * most * h),
            residual: place(4 * most * h),
            qkv: [
                place(4 * rows * spec.q_dim()),
                place(4 * most * spec.kv_dim()),
                place(4 * most * spec.kv_dim()),
            ],
            q: place(2 * rows * spec.q_dim()),
            heads: place(2 * rows * spec.q_dim()),
            normed: place(2 * rows * h),
            gated: place(2 * rows * spec.intermediate_size),
            logits: place(4 * rows * spec.draft_vocab_size),
            keys: place(8 * keys_len),
            sums: place(4 * sums_len),
            partial: (place(4 * sizes.partial_lens.0), place(4 * sizes.partial_lens.1)),
            output: place(output_bytes(LevelShape::largest(1, 1))),
        };
        Ok((layout, end))
    }

    /// The buffers of a workspace at `base`.
    pub fn at(&self, base: DeviceAddress) -> Result<Workspace> {
        let at = |offset| base.offset(offset);
        Ok(Workspace {
            features: at(self.features)?,
            hidden: at(self.hidden)?,
            read_input: at(self.read_input)?,
            level_input: at(self.level_input)?,
            featured: at(self.featured)?,
            embedded: at(self.embedded)?,
            joined: at(self.joined)?,
            residual: at(self.residual)?,
            qkv: [at(self.qkv[0])?, at(self.qkv[1])?, at(self.qkv[2])?],
            q: at(self.q)?,
            heads: at(self.heads)?,
            normed: at(self.normed)?,
            gated: at(self.gated)?,
            logits: at(self.logits)?,
            keys: at(self.keys)?,
            sums: at(self.sums)?,
            partial: (at(self.partial.0)?, at(self.partial.1)?),
            output: at(self.output)?,
        })
    }
}
