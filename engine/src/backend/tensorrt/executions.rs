//! Executions of a plan, one for each shape of a section, and the graphs that were captured of them.
//!
//! A section of several lanes has an execution of its own for each shape: addresses and shapes are given once, it is run once as it is, which TensorRT
//! asks for, and captured once; from then on it is one graph. Runs of one lane's tokens come in many lengths and are long: each lane has one
//! execution for them, which is told shapes and addresses each time.

use std::{collections::HashMap, time::Duration};

use takt_kernels_cu::{
    driver::{
        DriverError,
        memory::MappedBuffer,
        module::Kernels,
        stream::{Graph, Stream},
    },
    launch::{DeviceAddress, Launch, kv_append::Append, kv_compact::KvPlanes},
};
use takt_tensorrt::runtime::{Execution, Plan};

use super::{
    batch::{Profile, Section, SectionShape, Work},
    input::{ALIGNMENT, InputLayout},
    ports::{
        FEATURES, INPUT_IDS, KV_POSITIONS, LOGITS, LOGITS_ROWS, MASK, POSITION_IDS, Ports, WRITE_INDICES,
    },
};
use crate::{Result, backend::device::captures, spec::DecoderSpec};

/// Executions with a graph at a time, at least; each takes memory of TensorRT's and the driver's. Where more are usual, as many as are.
const MIN_GRAPHS: usize = 32;
/// How often a shape is captured in vain before it is left at that.
const MAX_TRIES: u32 = 3;

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
}

impl Memory {
    /// Bytes of one tensor of new rows with this many tokens of all lanes together.
    pub(super) fn present_bytes(spec: &DecoderSpec, num_tokens: usize) -> usize {
        (num_tokens * spec.kv_dim() * 2).next_multiple_of(ALIGNMENT)
    }

    /// What does not change from section to section of these lanes.
    fn bind_lanes(&self, execution: &mut Execution, first_lane: usize) -> Result<()> {
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

    fn set_cache_shapes(&self, execution: &mut Execution, num_lanes: usize) -> Result<()> {
        let [num_kv_heads, head_dim] = self.row_shape;
        let shape = [num_lanes, num_kv_heads, self.lane_rows, head_dim];
        self.ports.cache.iter().try_for_each(|[past, _]| execution.set_shape(past, &shape))?;
        Ok(())
    }

    /// What a section is about, and where its outputs go.
    fn bind_section(&self, execution: &mut Execution, section: &Section, layout: &InputLayout) -> Result<()> {
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

    /// Puts the new rows of a section into its lanes; `None` where they are there already.
    fn append(&self, shape: SectionShape, layout: &InputLayout) -> Result<Option<Launch>> {
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

/// What sections are put into the stream with.
pub(super) struct Host<'a> {
    pub stream: &'a Stream,
    pub kernels: &'a mut Kernels,
    pub plan: &'a Plan,
    pub memory: &'a Memory,
    /// What sections are about.
    pub pinned: &'a MappedBuffer,
    /// What is not done by then is taken for hung.
    pub step_limit: Duration,
}

/// A section with its input in place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ready<'a> {
    pub section: &'a Section,
    pub layout: &'a InputLayout,
    /// Where its input lies in pinned memory.
    pub at: usize,
}

#[derive(Debug)]
struct Slot {
    /// `None` until it was captured, and where it cannot be. Goes before what it was captured of.
    graph: Option<Graph>,
    execution: Execution,
    /// Captures that failed.
    num_failed: u32,
    /// By [`Executions::num_runs`].
    last_run: u64,
}

/// All executions of a plan.
#[derive(Debug)]
pub(super) struct Executions {
    slots: HashMap<SectionShape, Slot>,
    slices: HashMap<(usize, Profile), Execution>,
    num_runs: u64,
    /// Most of `slots`.
    max_graphs: usize,
    /// Something was captured.
    has_captured: bool,
    /// Nothing is: a plan whose very first capture fails is not one for graphs.
    cannot_capture: bool,
}

impl Executions {
    /// None yet; of `plan`, whose weights are where they will be. `num_usual` shapes stay captured.
    pub(super) fn new(plan: &Plan, num_usual: usize) -> Self {
        // What is sent while it runs TensorRT sends in no graph.
        let cannot_capture = plan.is_streaming();
        let max_graphs = num_usual.max(MIN_GRAPHS);
        let slots = HashMap::with_capacity(max_graphs);
        Self { slots, slices: HashMap::new(), num_runs: 0, max_graphs, has_captured: false, cannot_capture }
    }

    /// Puts a section into the stream, whose context is current.
    ///
    /// # Errors
    /// What TensorRT or the driver say; parts of it may be in the stream then.
    pub(super) fn run(&mut self, host: &mut Host<'_>, ready: Ready<'_>) -> Result<()> {
        if matches!(ready.section.work, Work::Slice { .. }) {
            return self.run_slice(host, ready);
        }
        self.num_runs += 1;
        let shape = ready.section.shape;
        if !self.slots.contains_key(&shape) {
            let execution = execution(host, ready)?;
            self.make_room();
            self.slots.insert(shape, Slot { graph: None, execution, num_failed: 0, last_run: 0 });
        }
        let Some(slot) = self.slots.get_mut(&shape) else { return Ok(()) };
        slot.last_run = self.num_runs;
        if let Some(graph) = &slot.graph {
            return Ok(host.stream.run(graph)?);
        }
        // As it is, once: TensorRT does then what no capture permits.
        put(host, &mut slot.execution, ready)?;
        if self.cannot_capture || slot.num_failed == MAX_TRIES {
            return Ok(());
        }
        slot.graph = capture(host, &mut slot.execution, ready)?;
        match slot.graph {
            Some(_) => self.has_captured = true,
            // The step ran all the same; the next one of this shape tries again.
            None if self.has_captured => slot.num_failed += 1,
            None => self.cannot_capture = true,
        }
        Ok(())
    }

    /// The one that was not run for longest gives way where there are too many. It is not in the stream: every step is waited for.
    fn make_room(&mut self) {
        if self.slots.len() < self.max_graphs {
            return;
        }
        let oldest = self.slots.iter().min_by_key(|(_, slot)| slot.last_run).map(|(shape, _)| *shape);
        if let Some(oldest) = oldest {
            self.slots.remove(&oldest);
        }
    }

    fn run_slice(&mut self, host: &mut Host<'_>, ready: Ready<'_>) -> Result<()> {
        let SectionShape { profile, first_lane, .. } = ready.section.shape;
        let key = (first_lane, profile);
        if let Some(execution) = self.slices.get_mut(&key) {
            host.memory.bind_section(execution, ready.section, ready.layout)?;
            return put(host, execution, ready);
        }
        let execution = execution(host, ready)?;
        // Kept whatever comes of it: parts of it may be in the stream.
        put(host, self.slices.entry(key).or_insert(execution), ready)
    }
}

/// An execution for a section, which is ready to run.
fn execution(host: &Host<'_>, ready: Ready<'_>) -> Result<Execution> {
    let SectionShape { profile, first_lane, num_lanes, .. } = ready.section.shape;
    let mut execution = Execution::new(host.plan, profile as usize, host.stream)?;
    host.memory.bind_lanes(&mut execution, first_lane)?;
    host.memory.set_cache_shapes(&mut execution, num_lanes)?;
    host.memory.bind_section(&mut execution, ready.section, ready.layout)?;
    execution.check_ready()?;
    Ok(execution)
}

/// The graph of an execution that has been run; `None`, and a warning, where there can be none.
fn capture(host: &mut Host<'_>, execution: &mut Execution, ready: Ready<'_>) -> Result<Option<Graph>> {
    let stream = host.stream;
    // TensorRT asks for that: what it prepares in a first run it has to be done with.
    captures::wait(stream, Duration::ZERO, host.step_limit)?;
    let captured = stream.capture(|_| put(host, execution, ready).map_err(as_driver_error));
    match captured {
        Ok(graph) => Ok(Some(graph)),
        Err(error) if stream.context().is_lost() => Err(error.into()),
        Err(error) => {
            let shape = ready.section.shape;
            tracing::warn!("steps of {shape:?} run without a CUDA graph, which is slower: {error}");
            Ok(None)
        }
    }
}

/// The input, the execution, and new rows to their lanes.
fn put(host: &mut Host<'_>, execution: &mut Execution, ready: Ready<'_>) -> Result<()> {
    let append = host.memory.append(ready.section.shape, ready.layout)?;
    if let Some(append) = &append {
        host.kernels.prepare(append)?;
    }
    host.stream.send_from(host.pinned, ready.at, ready.layout.num_bytes, host.memory.input)?;
    execution.enqueue(host.stream)?;
    append.map_or(Ok(()), |append| Ok(host.stream.launch(host.kernels, &append)?))
}

/// For captures, which know the driver's errors only.
fn as_driver_error(error: crate::EngineError) -> DriverError {
    DriverError::Call { call: "enqueueV3", reason: error.to_string() }
}
