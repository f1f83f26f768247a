//! Residual streams that a plan puts out, handed to whoever asked for them.

use takt_kernels_cu::driver::{context::Context, memory::MappedBuffer, stream::Stream};
use takt_kernels_cu::launch::DeviceAddress;

use super::batch::Batch;
use crate::{EngineError, Result, dir::PlanEntry, spec::DecoderSpec, step::StepPlan};

/// The features of the last step on the host, where they are wanted.
#[derive(Debug, Default)]
pub(super) struct Features {
    /// `[max_step_tokens, features_len]` F32.
    host: Option<MappedBuffer>,
    /// F32 values of a token.
    len: usize,
}

impl Features {
    /// Those at the inputs of `layers`, which are none, or what the plan of `entry` puts out.
    ///
    /// # Errors
    /// [`EngineError::Input`] for a layer that does not exist, [`EngineError::Unsupported`] for one whose input the plan does not put out.
    pub(super) fn new(
        context: &Context,
        (spec, entry): (&DecoderSpec, &PlanEntry),
        layers: &[usize],
        max_step_tokens: usize,
    ) -> Result<Self> {
        let num_layers = spec.num_layers;
        if let Some(layer) = layers.iter().find(|&&layer| layer > num_layers) {
            return Err(EngineError::Input(format!(
                "features at the input of layer {layer}, the model has {num_layers} layers: expected 0..={num_layers}"
            )));
        }
        if layers.is_empty() {
            return Ok(Self::default());
        }
        if layers != entry.captured {
            let has = match entry.captured.is_empty() {
                true => "none".to_owned(),
                false => format!("those of layers {:?}, together and in this order", entry.captured),
            };
            return Err(EngineError::Unsupported(format!(
                "features at the inputs of layers {layers:?}: the TensorRT plan puts out {has}"
            )));
        }
        let len = layers.len() * spec.hidden_size;
        let num_bytes = max_step_tokens * len * size_of::<f32>();
        Ok(Self { host: Some(MappedBuffer::new(context, num_bytes, "captured features")?), len })
    }

    /// Brings the features of a step's tokens, in the stream's order.
    pub(super) fn bring(
        &self,
        stream: &Stream,
        plan: &StepPlan,
        batch: &Batch,
        on_device: DeviceAddress,
    ) -> Result<()> {
        let Some(host) = &self.host else { return Ok(()) };
        let row_bytes = self.len * size_of::<f32>();
        for (idx, segment) in plan.segments.iter().enumerate() {
            batch.feature_places(plan, idx, |first, place, len| {
                let at = (segment.tokens.start + first) * row_bytes;
                Ok(stream.fetch_to(on_device.offset(place * row_bytes)?, host, at, len * row_bytes)?)
            })?;
        }
        Ok(())
    }

    /// Of a step of `num_tokens`; empty when nobody wants them.
    pub(super) fn of(&self, num_tokens: usize) -> &[f32] {
        let floats =
            self.host.as_ref().map(MappedBuffer::floats).and_then(|all| all.get(..num_tokens * self.len));
        floats.unwrap_or(&[])
    }
}
