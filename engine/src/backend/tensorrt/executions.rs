//! Executions of a plan, one for each shape of a section, and the graphs that were captured of them.
//!
//! A section of several lanes has an execution of its own for each shape: addresses and shapes are given once, it is run once as it is, which TensorRT
//! asks for, and captured once; from then on it is one graph. Runs of one lane's tokens come in many lengths and are long: each lane has one
//! execution for them, which is told shapes and addresses each time.

use std::{collections::HashMap, time::Duration};

use takt_kernels_cu::driver::{
    DriverError,
    memory::MappedBuffer,
    module::Kernels,
    stream::{Graph, Stream},
};
use takt_tensorrt::runtime::{Execution, Plan};

use super::{
    batch::{Profile, Section, SectionShape, Work},
    input::InputLayout,
    memory::Memory,
};
use crate::{Result, backend::device::captures};

/// Executions with a graph at a time, at least; each takes memory of TensorRT's and the driver's. Where more are usual, as many as are.
const MIN_GRAPHS: usize = 32;
/// How often a shape is captured in vain before it is left at that.
const MAX_TRIES: u32 = 3;

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
    let mut execution = Execution::new(host.plan, profile.idx(host.plan.num_profiles()), host.stream)?;
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
