//! A draft head beside a plan: it runs through our own kernels, over features that the plan puts out.

use takt_kernels_cu::{driver::memory::DeviceBuffer, launch::DeviceAddress};

use super::{
    TensorRtBackend, TensorRtOptions,
    features::{FeatureRoute, Features},
};
use crate::{
    EngineError, Result,
    backend::{
        cuda::{
            CudaOptions, GpuWeights,
            draft::{CudaDraft, DraftSetup, HeadNeeds, Host},
        },
        device::room::{Needs, Room},
    },
    draft::{DraftSource, DraftSpec},
    kv::KvKind,
    quant::{MatrixData, MatrixView},
    step::StepPlan,
};

impl TensorRtBackend {
    /// Whether the plan puts out what a head takes that reads the inputs of these layers.
    #[must_use]
    pub fn puts_out(&self, layer_inputs: &[usize]) -> bool {
        self.entry.captured == layer_inputs
    }

    /// Copies the model's `embedding` to the device, for a draft head without one of its own; before [`Backend::attach_draft`].
    ///
    /// # Errors
    /// [`EngineError::Capacity`] without memory or past the budget, [`EngineError::Backend`] when the device fails.
    pub fn set_embedding(&mut self, embedding: MatrixView<'_>) -> Result<()> {
        let MatrixData::Bf16(bytes) = embedding.data else {
            let fact = "an embedding that is not bf16".to_owned();
            return Err(EngineError::Unsupported(fact));
        };
        let budget = self.budget.with_embedding(bytes.len());
        budget.check(None)?;
        let context = self.stream.context();
        let needs = Needs { weights: bytes.len(), mapped: 0, kv: 0, workspace: 0, pinned: 0 };
        needs.check(&Room::of(context)?)?;
        let buffer = DeviceBuffer::new(context, bytes.len(), "the embedding for the draft head")?;
        self.stream.upload(bytes, &buffer, 0)?;
        (self.embedding, self.budget) = (Some(buffer), budget);
        Ok(())
    }

    /// What the head's kernels are set up with.
    fn head_options(&self) -> CudaOptions {
        let TensorRtOptions {
            share,
            num_lanes,
            max_step_tokens,
            max_logits_rows,
            max_kv_bytes,
            step_limit,
            ..
        } = self.options;
        CudaOptions {
            share,
            weights: GpuWeights::Copied,
            num_lanes,
            lane_capacity: self.capabilities.lane_capacity,
            kv: KvKind::Bf16,
            max_step_tokens,
            max_logits_rows,
            max_kv_bytes,
            step_limit,
        }
    }

    /// See [`crate::backend::Backend::attach_draft`].
    pub(super) fn attach_head(&mut self, spec: &DraftSpec, source: &dyn DraftSource) -> Result<()> {
        spec.validate(&self.spec)?;
        if !self.puts_out(&spec.captured) {
            return Err(EngineError::Unsupported(format!(
                "a draft head over the inputs of layers {:?}: the TensorRT plan puts out those of {:?}",
                spec.captured, self.entry.captured
            )));
        }
        let embedding = self.embedding.as_ref().map(DeviceBuffer::address);
        if embedding.is_none() && !spec.own_embedding {
            return Err(EngineError::Unsupported(
                "a draft head that borrows the model's embedding, which was not loaded".into(),
            ));
        }
        let setup = DraftSetup {
            options: &self.head_options(),
            num_sms: usize::try_from(self.stream.context().num_sms()).unwrap_or(1),
            embedding: embedding.unwrap_or(DeviceAddress::NULL),
            kv_bytes: self.lanes.on_device().num_bytes(),
            weight_bytes: self.entry.size_bytes,
        };
        let num_places = self.sizes.limits.num_feature_places();
        let needs = HeadNeeds::new(spec, source, &setup)?;
        let route_bytes = FeatureRoute::num_bytes(num_places);
        self.budget.check(Some(&HeadNeeds {
            workspace: needs.workspace + route_bytes,
            pinned: needs.pinned + route_bytes,
            ..needs
        }))?;
        let mut host = Host { stream: &self.stream, kernels: &mut self.kernels };
        let head = Box::new(CudaDraft::new(spec, source, &setup, &mut host)?);
        let len = self.memory.ports.features_len;
        let route = FeatureRoute::new(self.stream.context(), num_places, len, self.options.max_step_tokens)?;
        let before = self.lanes.attach(Some(head))?;
        // Graphs go before the buffers of the head that they name.
        self.route = Some(route);
        drop(before);
        self.features = Features::default();
        self.capabilities.kv_bytes = self.lanes.num_bytes();
        Ok(())
    }

    /// Lays out which features of `plan` go where for the head, and what it reads of them.
    pub(super) fn lead_features(&mut self, plan: &StepPlan) -> Result<()> {
        let (Some(route), Some(head)) = (&mut self.route, self.lanes.head()) else { return Ok(()) };
        route.lay_out(plan, &self.batch)?;
        let ends = (self.memory.features, head.features());
        route.prepare(&self.stream, &mut self.kernels, ends)?;
        let mut host = Host { stream: &self.stream, kernels: &mut self.kernels };
        self.lanes.follow_step(plan, route, &mut host)
    }
}
