//! Where everything lies on the device that executions read and write, and how they are told.

use takt_kernels_cu::{
    driver::{memory::DeviceBuffer, stream::Stream},
    launch::{DeviceAddress, Launch, kv_append::Append, kv_compact::KvPlanes},
};
use takt_tensorrt::runtime::Execution;

use super::{
    batch::{Section, SectionShape},
    input::{ALIGNMENT, InputLayout},
    load::Loaded,
    ports::{
        FEATURES, INPUT_IDS, KV_POSITIONS, LOGITS, LOGITS_ROWS, MASK, POSITION_IDS, Ports, WRITE_INDICES,
    },
};
use crate::{
    Result,
    backend::device::{lanes::DeviceLanes, lists::ListRoom},
    spec::DecoderSpec,
};

/// Where everything lies that executions read and write.
#[derive(Debug)]
pub(super) struct Memory {
    pub ports: Ports,
    /// Of each layer keys, then values, of lane 0.
    pub cache: Vec<DeviceAddress>,
    /// From a lane's keys, or values, to the next one's.
    pub lane_bytes: usize,
    /// Rows of a lane.
    pub lane_rows: usize,
    /// `[G, d]` of a row.
    pub row_shape: [usize; 2],
    /// Of one of its values.
    pub value_bytes: usize,
    /// A section's input.
    pub input: DeviceAddress,
    /// F32 `[places, V]`.
    pub logits: DeviceAddress,
    pub logits_row_bytes: usize,
    /// F32 `[places, features_len]`; null without.
    pub features: DeviceAddress,
    /// Where new rows come out that are appended: one tensor every `present_bytes`; null where they are written in their places.
    pub present: DeviceAddress,
    pub present_bytes: usize,
    pub planes: KvPlanes,
    /// TensorRT's own.
    pub scratch: (DeviceAddress, usize),
    /// Where lists of the likeliest tokens are found.
    pub lists: ListRoom,
    /// Holds all of it but the cache.
    _buffers: Vec<DeviceBuffer>,
}

impl Memory {
    /// What a loaded plan of `spec` takes beside `lanes`, all of it zero.
    ///
    /// # Errors
    /// [`crate::EngineError::Capacity`] without memory, [`crate::EngineError::Backend`] when the device fails.
    pub(super) fn new(
        stream: &Stream,
        spec: &DecoderSpec,
        lanes: &DeviceLanes,
        plan: &Loaded,
    ) -> Result<Self> {
        let (sizes, scratch_bytes) = (&plan.sizes, plan.scratch_bytes);
        let mut buffers = Vec::new();
        let mut buffer = |num_bytes, what| -> Result<DeviceAddress> {
            let buffer = DeviceBuffer::new(stream.context(), num_bytes, what)?;
            stream.zero(&buffer)?;
            let address = buffer.address();
            buffers.push(buffer);
            Ok(address)
        };
        let [keys, sums, results, choices] = sizes.list_bytes;
        Ok(Self {
            lists: ListRoom {
                keys: buffer(keys, "lists of tokens")?,
                sums: buffer(sums, "lists of tokens")?,
                results: buffer(results, "lists of tokens")?,
                choices: buffer(choices, "choices of tokens")?,
            },
            cache: cache_addresses(lanes, spec)?,
            lane_bytes: sizes.lane_bytes,
            lane_rows: sizes.limits.lane_rows,
            row_shape: [spec.num_kv_heads, spec.head_dim],
            value_bytes: sizes.value_bytes,
            input: buffer(sizes.input_bytes, "what a step is about")?,
            logits: buffer(sizes.logits_bytes, "logits")?,
            logits_row_bytes: spec.vocab_size * size_of::<f32>(),
            features: buffer(sizes.features_bytes, "features")?,
            present: buffer(2 * spec.num_layers * sizes.present_bytes, "new rows of the cache")?,
            present_bytes: sizes.present_bytes,
            planes: lanes.kv_planes(),
            scratch: (buffer(scratch_bytes, "TensorRT's scratch")?, scratch_bytes),
            ports: plan.ports.clone(),
            _buffers: buffers,
        })
    }

    /// Bytes of one tensor of new rows with this many tokens of all lanes together, `value_bytes` a value.
    pub(super) fn present_bytes(spec: &DecoderSpec, num_tokens: usize, value_bytes: usize) -> usize {
        (num_tokens * spec.kv_dim() * value_bytes).next_multiple_of(ALIGNMENT)
    }

    /// What does not change from section to section of these lanes.
    pub(super) fn bind_lanes(&self, execution: &mut Execution, first_lane: usize) -> Result<()> {
        execution.set_scratch(self.scratch.0, self.scratch.1)?;
        for (idx, ([past, present], address)) in self.ports.cache.iter().zip(&self.cache).enumerate() {
            let lanes = address.offset(first_lane * self.lane_bytes)?;
            execution.bind(past, lanes)?;
            let new =
                if self.ports.input.appends { self.present.offset(idx * self.present_bytes)? } else { lanes };
            execution.bind(present, new)?;
        }
        Ok(())
    }

    pub(super) fn set_cache_shapes(&self, execution: &mut Execution, num_lanes: usize) -> Result<()> {
        let [num_kv_heads, head_dim] = self.row_shape;
        let shape = [num_lanes, num_kv_heads, self.lane_rows, head_dim];
        self.ports.cache.iter().try_for_each(|[past, _]| execution.set_shape(past, &shape))?;
        Ok(())
    }

    /// What a section is about, and where its outputs go.
    pub(super) fn bind_section(
        &self,
        execution: &mut Execution,
        section: &Section,
        layout: &InputLayout,
    ) -> Result<()> {
        let SectionShape { num_lanes, sequence, kv, num_logits, .. } = section.shape;
        let mut input = |name: &str, offset: usize, shape: &[usize]| -> Result<()> {
            execution.set_shape(name, shape)?;
            Ok(execution.bind(name, self.input.offset(offset)?)?)
        };
        input(INPUT_IDS, layout.input_ids, &[num_lanes, sequence])?;
        input(POSITION_IDS, layout.position_ids, &[num_lanes, sequence])?;
        input(LOGITS_ROWS, layout.logits_rows, &[num_lanes, num_logits])?;
        input(MASK, layout.mask, &[num_lanes, sequence, kv])?;
        if !self.ports.input.appends {
            input(WRITE_INDICES, layout.write_indices, &[num_lanes])?;
        }
        if self.ports.input.has_kv_positions {
            input(KV_POSITIONS, layout.kv_positions, &[num_lanes, kv])?;
        }
        let logits = self.logits.offset(section.logits_place * self.logits_row_bytes)?;
        execution.bind(LOGITS, logits)?;
        if self.ports.features_len > 0 {
            let row_bytes = self.ports.features_len * size_of::<f32>();
            execution.bind(FEATURES, self.features.offset(section.feature_place * row_bytes)?)?;
        }
        Ok(())
    }

    /// Where the rows lie that the first token of every lane of a section of `shape` has left, its lanes' being `start`: addresses and bytes.
    pub(super) fn first_new_rows(
        &self,
        shape: SectionShape,
        start: usize,
    ) -> Result<Vec<(DeviceAddress, usize)>> {
        let [num_kv_heads, head_dim] = self.row_shape;
        let row_bytes = head_dim * self.value_bytes;
        let mut rows = Vec::new();
        for (tensor, cache) in self.cache.iter().enumerate() {
            for head in 0..shape.num_lanes * num_kv_heads {
                let address = if self.ports.input.appends {
                    self.present.offset(tensor * self.present_bytes + head * shape.sequence * row_bytes)?
                } else {
                    cache.offset(
                        shape.first_lane * self.lane_bytes + (head * self.lane_rows + start) * row_bytes,
                    )?
                };
                rows.push((address, row_bytes));
            }
        }
        Ok(rows)
    }

    /// Puts the new rows of a section into its lanes; `None` where they are there already.
    pub(super) fn append(&self, shape: SectionShape, layout: &InputLayout) -> Result<Option<Launch>> {
        if !self.ports.input.appends {
            return Ok(None);
        }
        let append = Append {
            planes: self.planes,
            rows: self.present,
            places: self.input.offset(layout.places)?,
            tensor_bytes: self.present_bytes,
            first_lane: shape.first_lane,
            batch: shape.num_lanes,
            num_tokens: shape.sequence,
        };
        Ok(Some(append.launch()?))
    }
}

/// Of each layer keys, then values, of lane 0.
fn cache_addresses(lanes: &DeviceLanes, spec: &DecoderSpec) -> Result<Vec<DeviceAddress>> {
    let mut addresses = Vec::with_capacity(2 * spec.num_layers);
    for layer_idx in 0..spec.num_layers {
        let cache = lanes.cache(layer_idx)?;
        addresses.extend([cache.keys, cache.values]);
    }
    Ok(addresses)
}
