//! Everything a step writes in device memory, one allocation sized for the largest step.

use takt_kernels_cu::launch::DeviceAddress;

use super::{input::InputLayout, lists::ListRoom, shape::ShapeLimits};
use crate::{Result, spec::DecoderSpec};

const ALIGNMENT: usize = 256;

/// Offsets of the buffers, and bytes of all.
#[derive(Debug, Clone, Copy)]
pub(super) struct WorkspaceLayout {
    input: usize,
    residual: usize,
    normed: usize,
    qkv: [usize; 3],
    q: usize,
    heads: usize,
    gated: usize,
    last: usize,
    last_normed: usize,
    logits: usize,
    lists: [usize; 4],
    partial_out: usize,
    partial_state: usize,
    num_bytes: usize,
}

/// Where the buffers are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Workspace {
    /// Copy of the step's input.
    pub input: DeviceAddress,
    /// Residual stream F32 `[M, D]`.
    pub residual: DeviceAddress,
    /// BF16 `[M, D]`.
    pub normed: DeviceAddress,
    /// Q `[M, H · d]`, K and V `[M, G · d]`, F32.
    pub qkv: [DeviceAddress; 3],
    /// Q ready for attention, BF16 `[M, H · d]`.
    pub q: DeviceAddress,
    /// Attention's result BF16 `[M, H · d]`.
    pub heads: DeviceAddress,
    /// BF16 `[M, F]`.
    pub gated: DeviceAddress,
    /// Rows whose logits are wanted, F32 `[R, D]`.
    pub last: DeviceAddress,
    /// BF16 `[R, D]`.
    pub last_normed: DeviceAddress,
    /// F32 `[R, V]`.
    pub logits: DeviceAddress,
    /// For the likeliest tokens of the rows.
    pub lists: ListRoom,
    /// Attention's partial results and their states.
    pub partial: (DeviceAddress, DeviceAddress),
}

impl WorkspaceLayout {
    /// For steps within `limits`, `partial_lens` F32 values of attention's partial results.
    ///
    /// # Errors
    /// [`crate::EngineError::Backend`] for sizes past the address space.
    pub(super) fn new(
        spec: &DecoderSpec,
        limits: ShapeLimits,
        input: &InputLayout,
        partial_lens: (usize, usize),
    ) -> Result<Self> {
        let (tokens, rows) = (limits.max_tokens, limits.max_logits);
        let (hidden, inner, q_dim, kv_dim) =
            (spec.hidden_size, spec.intermediate_size, spec.q_dim(), spec.kv_dim());
        let mut end = 0_usize;
        let mut place = |num_bytes: usize| {
            let start = end;
            end = (start + num_bytes).next_multiple_of(ALIGNMENT);
            start
        };
        let input = place(input.num_bytes());
        let residual = place(4 * tokens * hidden);
        let normed = place(2 * tokens * hidden);
        let qkv = [q_dim, kv_dim, kv_dim].map(|width| place(4 * tokens * width));
        let q = place(2 * tokens * q_dim);
        let heads = place(2 * tokens * q_dim);
        let gated = place(2 * tokens * inner);
        let last = place(4 * rows * hidden);
        let last_normed = place(2 * rows * hidden);
        let logits = place(4 * rows * spec.vocab_size);
        let lists = ListRoom::num_bytes(rows, spec.vocab_size)?.map(&mut place);
        let partial_out = place(4 * partial_lens.0);
        let partial_state = place(4 * partial_lens.1);
        Ok(Self {
            input,
            residual,
            normed,
            qkv,
            q,
            heads,
            gated,
            last,
            last_normed,
            logits,
            lists,
            partial_out,
            partial_state,
            num_bytes: end,
        })
    }

    pub(super) fn num_bytes(&self) -> usize {
        self.num_bytes
    }

    /// The buffers of a workspace at `base`.
    pub(super) fn at(&self, base: DeviceAddress) -> Result<Workspace> {
        let at = |offset| base.offset(offset);
        Ok(Workspace {
            input: at(self.input)?,
            residual: at(self.residual)?,
            normed: at(self.normed)?,
            qkv: [at(self.qkv[0])?, at(self.qkv[1])?, at(self.qkv[2])?],
            q: at(self.q)?,
            heads: at(self.heads)?,
            gated: at(self.gated)?,
            last: at(self.last)?,
            last_normed: at(self.last_normed)?,
            logits: at(self.logits)?,
            lists: ListRoom {
                keys: at(self.lists[0])?,
                sums: at(self.lists[1])?,
                results: at(self.lists[2])?,
                choices: at(self.lists[3])?,
            },
            partial: (at(self.partial_out)?, at(self.partial_state)?),
        })
    }
}
