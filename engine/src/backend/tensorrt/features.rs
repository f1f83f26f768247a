//! Residual streams that a plan puts out, for whoever asked for them and for a draft head.

use std::ops::Range;

use takt_kernels_cu::{
    driver::{
        context::Context,
        memory::{DeviceBuffer, MappedBuffer},
        module::Kernels,
        stream::Stream,
    },
    launch::{DeviceAddress, rows::ScatterRows},
};

use super::batch::Batch;
use crate::{
    EngineError, Result,
    backend::{cuda::draft::FeatureRows, device::captures::Captures},
    dir::PlanEntry,
    spec::DecoderSpec,
    step::StepPlan,
};

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

/// The way of a step's features from where sections leave them to where a draft head looks for them: one small graph behind the sections, by the span of
/// rows that they lie in.
#[derive(Debug)]
pub(super) struct FeatureRoute {
    graphs: Captures<(usize, usize)>,
    /// I32, by place on the device: the head's row, -1 for none.
    pinned: MappedBuffer,
    rows: DeviceBuffer,
    /// By token of the plan: its place.
    places: Vec<usize>,
    span: Range<usize>,
    /// F32 values of a token.
    len: usize,
}

impl FeatureRoute {
    /// Bytes on the device for `num_places` rows, and as many of pinned memory.
    pub(super) fn num_bytes(num_places: usize) -> usize {
        num_places * size_of::<i32>()
    }

    /// For `num_places` rows of `len` values, of which a step has at most `max_step_tokens`.
    pub(super) fn new(
        context: &Context,
        num_places: usize,
        len: usize,
        max_step_tokens: usize,
    ) -> Result<Self> {
        let num_bytes = Self::num_bytes(num_places);
        Ok(Self {
            graphs: Captures::default(),
            pinned: MappedBuffer::new(context, num_bytes, "rows of features")?,
            rows: DeviceBuffer::new(context, num_bytes, "rows of features")?,
            places: Vec::with_capacity(max_step_tokens),
            span: 0..0,
            len,
        })
    }

    /// Notes where the features of `plan`'s tokens will be; none of them are wanted yet. The step before must be done.
    pub(super) fn lay_out(&mut self, plan: &StepPlan, batch: &Batch) -> Result<()> {
        self.places.clear();
        for idx in 0..plan.segments.len() {
            batch.feature_places(plan, idx, |_, place, len| {
                self.places.extend(place..place + len);
                Ok(())
            })?;
        }
        let first = self.places.iter().min().copied().unwrap_or(0);
        self.span = first..self.places.iter().max().map_or(first, |last| last + 1);
        for place in self.span.clone() {
            self.put(place, -1);
        }
        Ok(())
    }

    fn put(&mut self, place: usize, row: i32) {
        let at = place * size_of::<i32>();
        if let Some(word) = self.pinned.bytes_mut().get_mut(at..at + size_of::<i32>()) {
            word.copy_from_slice(&row.to_ne_bytes());
        }
    }

    /// Captures what [`Self::run`] runs, unless it is there: features at `from` to rows at `to`.
    pub(super) fn prepare(
        &mut self,
        stream: &Stream,
        kernels: &mut Kernels,
        (from, to): (DeviceAddress, DeviceAddress),
    ) -> Result<()> {
        let key = (self.span.start, self.span.end);
        if self.span.is_empty() || self.graphs.contains(key) {
            return Ok(());
        }
        let (at, num_bytes) = (self.span.start * size_of::<i32>(), self.span.len() * size_of::<i32>());
        let rows = self.rows.address().offset(at)?;
        let scatter = ScatterRows {
            from: from.offset(self.span.start * self.len * size_of::<f32>())?,
            rows,
            to,
            in_stride: self.len,
            out_stride: self.len,
            num_rows: self.span.len(),
            width: self.len,
        };
        let launch = scatter.launch()?;
        stream.context().make_current()?;
        kernels.prepare(&launch)?;
        let graph = stream.capture(|stream| {
            stream.send_from(&self.pinned, at, num_bytes, rows)?;
            stream.launch(kernels, &launch)
        })?;
        self.graphs.insert(key, graph);
        Ok(())
    }

    /// Puts it into the stream, behind the sections.
    pub(super) fn run(&mut self, stream: &Stream) -> Result<()> {
        if self.span.is_empty() {
            return Ok(());
        }
        self.graphs.start(stream, (self.span.start, self.span.end)).map(drop)
    }
}

impl FeatureRows for FeatureRoute {
    /// After [`Self::lay_out`], which wants none.
    fn put_feature_row(&mut self, token: usize, row: usize) {
        if let (Some(&place), Ok(row)) = (self.places.get(token), i32::try_from(row)) {
            self.put(place, row);
        }
    }
}
