//! What makes a plan of a model and loads one that takes other weights: TensorRT, or what tests have in its place.

use std::{fmt, ops::ControlFlow};

use takt_kernels_cu::driver::{
    context::{Context, Share},
    device,
};
use takt_tensorrt::{
    TensorRt, TensorRtError, Version,
    build::{BuildProgress, BuiltPlan, PlanRequest, build_plan},
    runtime::{Plan, Weights},
    tensor::DataType,
};

use super::refit::LoadedPlan;

/// A plan that was made of a model.
pub(super) struct Compiled {
    pub plan: Box<dyn AsRef<[u8]>>,
    pub timing_cache: Vec<u8>,
    pub used_timing_cache: bool,
    pub warnings: Vec<String>,
}

/// What makes a plan of a model.
pub(super) trait PlanCompiler: fmt::Debug {
    fn version(&self) -> Version;

    /// Of the headers it is called through.
    fn header_version(&self) -> Version;

    fn build(
        &self,
        request: &PlanRequest<'_>,
        progress: &mut dyn FnMut(BuildProgress<'_>) -> ControlFlow<()>,
    ) -> takt_tensorrt::Result<Compiled>;

    /// Copies a plan that takes other weights to the device.
    fn load(&self, plan: &[u8]) -> takt_tensorrt::Result<Box<dyn LoadedPlan>>;
}

impl PlanCompiler for TensorRt {
    fn version(&self) -> Version {
        self.version()
    }

    fn header_version(&self) -> Version {
        self.header_version()
    }

    fn build(
        &self,
        request: &PlanRequest<'_>,
        progress: &mut dyn FnMut(BuildProgress<'_>) -> ControlFlow<()>,
    ) -> takt_tensorrt::Result<Compiled> {
        let BuiltPlan { plan, timing_cache, used_timing_cache, warnings, .. } =
            build_plan(self, request, progress)?;
        Ok(Compiled { plan: Box::new(plan), timing_cache, used_timing_cache, warnings })
    }

    fn load(&self, plan: &[u8]) -> takt_tensorrt::Result<Box<dyn LoadedPlan>> {
        let devices = device::probe()?;
        // There was one when this was opened.
        let first =
            devices.first().ok_or_else(|| TensorRtError::Missing("there is no GPU any more".into()))?;
        // Nothing runs in it: multiprocessors make no difference.
        let (context, _) = Context::open(first, Share::None)?;
        Ok(Box::new(Plan::load(self, &context, plan)?))
    }
}

impl LoadedPlan for Plan {
    fn weights(&self) -> takt_tensorrt::Result<Vec<Weights>> {
        self.refittable_weights()
    }

    fn refit(&mut self, weights: &[(&str, DataType, &[u8])]) -> takt_tensorrt::Result<Box<dyn AsRef<[u8]>>> {
        Self::refit(self, weights)?;
        Ok(Box::new(self.serialize()?))
    }
}
