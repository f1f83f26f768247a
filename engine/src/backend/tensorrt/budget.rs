//! What `[memory] budget_mib` allows, and all that counts against it: a plan, and the draft head beside it.

use super::{options::TensorRtOptions, sizes::Sizes};
use crate::{
    EngineError, Result,
    backend::{cuda::draft::HeadNeeds, device::room::Needs},
};

/// What is allowed, and what is taken of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget {
    /// `None` for what the device gives.
    max_bytes: Option<u64>,
    plan: Needs,
    /// Of one snapshot.
    snapshot: usize,
    num_snapshots: usize,
    /// Of the copied embedding.
    embedding: usize,
}

impl Budget {
    /// Of a plan that takes `plan`, those of its weights included that are on the device, without a head.
    pub(super) fn new(plan: Needs, sizes: &Sizes, options: &TensorRtOptions) -> Self {
        let snapshot = plan.kv / sizes.limits.num_lanes.max(1);
        let TensorRtOptions { max_bytes, num_snapshots, .. } = *options;
        Self { max_bytes, plan, snapshot, num_snapshots, embedding: 0 }
    }

    /// With an embedding of so many bytes, in place of one of before.
    pub(super) fn with_embedding(self, num_bytes: usize) -> Self {
        Self { embedding: num_bytes, ..self }
    }

    /// Bytes that are allowed beside all of it, without a head.
    pub(super) fn left(&self) -> usize {
        let allowed = self.max_bytes.map_or(usize::MAX, |most| usize::try_from(most).unwrap_or(usize::MAX));
        allowed.saturating_sub(sum(self.own()))
    }

    /// Weights, lanes, snapshots, workspace, pinned memory, embedding.
    fn own(&self) -> [usize; 6] {
        let Self { plan: Needs { weights, kv, workspace, pinned, .. }, embedding, num_snapshots, .. } = *self;
        [weights, kv, self.snapshot.saturating_mul(num_snapshots), workspace, pinned, embedding]
    }

    /// That all of it, with `head`, stays within what is allowed.
    ///
    /// # Errors
    /// [`EngineError::Capacity`] with every size.
    pub(super) fn check(&self, head: Option<&HeadNeeds>) -> Result<()> {
        let Some(max_bytes) = self.max_bytes else { return Ok(()) };
        let num_snapshots = self.num_snapshots;
        let [weights, kv, snapshots, workspace, pinned, embedding] = self.own();
        let heads = head.map_or([0; 5], |head| {
            let snapshots = head.snapshot.saturating_mul(num_snapshots);
            [head.weights, head.kv, snapshots, head.workspace, head.pinned]
        });
        let total = sum(self.own().into_iter().chain(heads));
        if total as u64 <= max_bytes {
            return Ok(());
        }
        let [head_weights, head_kv, head_snapshots, head_workspace, head_pinned] = heads;
        let (beside, without) = match head {
            _ if head.is_none() && embedding == 0 => (String::new(), ""),
            None => (format!("; embedding for the draft head {embedding}"), "no draft head, "),
            Some(_) => (
                format!(
                    "; draft head: embedding {embedding}, weights {head_weights}, KV cache {head_kv}, snapshots {head_snapshots}, workspace \
                     {head_workspace}, pinned {head_pinned}"
                ),
                "no draft head, ",
            ),
        };
        Err(EngineError::Capacity(format!(
            "the engine takes {total} bytes (plan {weights}, KV cache {kv}, {num_snapshots} snapshots {snapshots}, workspace {workspace}, pinned \
             {pinned}{beside}), the memory budget is {max_bytes}: use {without}fewer lanes or snapshots, or a plan with a shorter context \
             (--plan-context)"
        )))
    }
}

fn sum(parts: impl IntoIterator<Item = usize>) -> usize {
    parts.into_iter().fold(0, usize::saturating_add)
}
