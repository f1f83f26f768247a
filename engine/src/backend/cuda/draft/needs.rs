//! What a head takes of memory beside its target, known before anything of it is allocated, and whether that fits.

use super::{DraftSetup, HeadSizes, Host, model::DraftModel};
use crate::{
    EngineError, Result,
    backend::{cuda::mapped::WeightsFile, device::room::Room},
    draft::{DraftSource, DraftSpec, MAX_WAITING},
};

/// Device memory left to the driver for the head's graphs.
const DRIVER_BYTES: usize = 16 << 20;

/// Bytes of memory that a head takes beside its target, by what they are for.
#[derive(Debug, Clone, Copy)]
pub(in crate::backend) struct HeadNeeds {
    /// In memory of the device's own.
    pub weights: usize,
    /// The head's whole file, when weights are read in it; the device's memory where it is shared.
    pub mapped: usize,
    pub kv: usize,
    pub workspace: usize,
    /// Of the host's; the device's own where both share memory.
    pub pinned: usize,
    /// Of what it keeps with each snapshot of its target, at most.
    pub snapshot: usize,
}

impl HeadNeeds {
    /// Of a head of `spec`, which was validated against its target, with all of its weights copied.
    ///
    /// # Errors
    /// [`EngineError::Tensor`] or [`EngineError::Unsupported`] for a head that does not hold.
    pub fn new(spec: &DraftSpec, source: &dyn DraftSource, setup: &DraftSetup<'_>) -> Result<Self> {
        Self::with_file(spec, source, setup, None)
    }

    /// [`Self::new`] with weights that are read in `file`.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(super) fn with_file(
        spec: &DraftSpec,
        source: &dyn DraftSource,
        setup: &DraftSetup<'_>,
        file: Option<&WeightsFile>,
    ) -> Result<Self> {
        let sizes = HeadSizes::of(spec, setup.options, setup.num_sms)?;
        let kv = sizes.lanes.num_bytes();
        Ok(Self {
            weights: DraftModel::num_bytes(spec, source, sizes.capacity, file)?.copied,
            // All of it is kept in memory, what is copied, too.
            mapped: file.map_or(0, WeightsFile::num_bytes),
            kv,
            workspace: sizes.workspace_bytes,
            pinned: sizes.pinned_bytes(),
            snapshot: kv / setup.options.num_lanes.max(1)
                + MAX_WAITING * spec.features_len() * size_of::<f32>(),
        })
    }

    /// That all of it fits what is free, and the cache what is allowed.
    pub(super) fn check(&self, host: &Host<'_>, setup: &DraftSetup<'_>) -> Result<()> {
        let Self { weights, mapped, kv, workspace, pinned, .. } = self;
        let (options, context) = (setup.options, host.stream.context());
        let left = options.max_kv_bytes.map(|most| most.saturating_sub(setup.kv_bytes));
        if let Some(max_bytes) = left.filter(|&most| *kv as u64 > most) {
            return Err(EngineError::Capacity(format!(
                "the draft head's {} KV cache of {} lanes takes {kv} bytes, {max_bytes} are left of those allowed",
                options.kv, options.num_lanes
            )));
        }
        let room = Room::of(context)?;
        let shared = if room.shared.is_some() { mapped + pinned } else { 0 };
        let needed = weights + kv + workspace + DRIVER_BYTES + shared;
        let held = usize::try_from(setup.weight_bytes.saturating_add(setup.kv_bytes)).unwrap_or(usize::MAX);
        if needed > room.available_beside(held) {
            let room = room.in_words();
            return Err(EngineError::Capacity(format!(
                "the draft head takes {needed} bytes of device memory (weights {weights}, in the mapped file {mapped}; KV cache {kv}, workspace \
                 {workspace}, driver {DRIVER_BYTES}; pinned {pinned}) beside the model, {room}: use fewer or shorter lanes, go without \
                 speculation, or free memory"
            )));
        }
        Ok(())
    }
}
