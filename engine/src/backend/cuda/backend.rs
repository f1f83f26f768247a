//! The CUDA backend: one model in one context of our own.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use takt_kernels_cu::{
    driver::{
        context::Context,
        memory::{DeviceBuffer, MappedBuffer},
        module::Kernels,
        stream::{Found, Graph, Stream},
    },
    launch::DeviceAddress,
};

use super::{
    forward::{Captured, Forward},
    input::{InputLayout, StepInput},
    lanes::{DeviceLanes, LaneLayout},
    mapped::WeightsFile,
    options::CudaOptions,
    room::{Needs, Room},
    shape::{ShapeLimits, StepShape},
    weights::DeviceModel,
    workspace::{Workspace, WorkspaceLayout},
};
use crate::{
    EngineError, Result,
    backend::{
        Backend, Capabilities,
        plan_check::{check_plan, num_logits_rows},
    },
    kv::{LaneId, SnapshotId},
    spec::DecoderSpec,
    step::{StepOutput, StepPlan},
    weights::WeightSource,
};

/// Most graphs at a time: three times as many as the usual shapes of an engine with 256 tokens a step.
const MAX_GRAPHS: usize = 96;

/// Runs a model on an NVIDIA GPU. Fields are given back in their order: graphs before the buffers they name.
#[derive(Debug)]
pub struct CudaBackend {
    graphs: HashMap<StepShape, Captures>,
    stream: Stream,
    kernels: Kernels,
    spec: DecoderSpec,
    capabilities: Capabilities,
    options: CudaOptions,
    limits: ShapeLimits,
    model: DeviceModel,
    lanes: DeviceLanes,
    input: StepInput,
    workspace: Workspace,
    _workspace_buffer: DeviceBuffer,
    logits: MappedBuffer,
    first_row: Vec<usize>,
    captured: Features,
    num_sms: usize,
    num_runs: u64,
}

/// A shape's graph, and how long it takes.
#[derive(Debug)]
struct Captures {
    graph: Graph,
    usual: Duration,
    /// By [`CudaBackend::num_runs`].
    last_run: u64,
}

/// The layers whose inputs are handed out; no buffers without any.
#[derive(Debug, Default)]
struct Features {
    layers: Vec<usize>,
    buffers: Option<(DeviceBuffer, MappedBuffer)>,
}

impl CudaBackend {
    /// Copies the weights of `spec` from `source` to the device of `context`, or has it read them in their file, allocates the lanes and
    /// everything a step needs, and captures the usual steps. `cubins` are all kernels of the device's target.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] or [`EngineError::Tensor`] for a model that does not hold or has sizes without a kernel,
    /// [`EngineError::Capacity`] with all sizes when it does not fit, [`EngineError::Input`] for an option of 0, [`EngineError::Backend`]
    /// when the device fails.
    pub fn new<'a>(
        spec: &DecoderSpec,
        source: &dyn WeightSource,
        context: &Context,
        cubins: impl IntoIterator<Item = &'a [u8]>,
        options: &CudaOptions,
    ) -> Result<Self> {
        spec.validate()?;
        options.validate(spec)?;
        let limits = ShapeLimits {
            max_tokens: options.max_step_tokens,
            max_logits: options.max_logits_rows,
            num_lanes: options.num_lanes,
        };
        let num_sms = usize::try_from(context.num_sms()).unwrap_or(1);
        let (lane_layout, input_layout) = (LaneLayout::new(spec, options), InputLayout::new(limits));
        let partial_lens = partial_lens(spec, limits, options.lane_capacity, num_sms)?;
        let workspace_layout = WorkspaceLayout::new(spec, limits, &input_layout, partial_lens);
        let logits_bytes = options.max_logits_rows * spec.vocab_size * size_of::<f32>();
        let file = WeightsFile::open(context, source, options.weights)?;
        let weights = DeviceModel::num_bytes(spec, source, options.lane_capacity, file.as_ref())?;
        let needs = Needs {
            weights: weights.copied,
            mapped: weights.mapped,
            kv: lane_layout.num_bytes(),
            workspace: workspace_layout.num_bytes(),
            pinned: input_layout.num_bytes() + logits_bytes,
        };
        check_kv(needs.kv, options)?;
        needs.check(&Room::of(context)?)?;

        let stream = Stream::new(context)?;
        let kernels = Kernels::load(context, cubins)?;
        let model = DeviceModel::load(context, &stream, spec, source, options.lane_capacity, file)?;
        let lanes = DeviceLanes::new(context, &stream, lane_layout, options.step_limit)?;
        let workspace_buffer = DeviceBuffer::new(context, needs.workspace, "the workspace of a step")?;
        stream.zero(&workspace_buffer)?;
        let workspace = workspace_layout.at(workspace_buffer.address())?;
        let input = StepInput::new(context, input_layout, workspace.input)?;
        let mut backend = Self {
            graphs: HashMap::new(),
            capabilities: capabilities(context, options, &model, &lanes),
            stream,
            kernels,
            spec: spec.clone(),
            options: options.clone(),
            limits,
            model,
            lanes,
            input,
            workspace,
            _workspace_buffer: workspace_buffer,
            logits: MappedBuffer::new(context, logits_bytes, "logits")?,
            first_row: Vec::with_capacity(options.num_lanes + 1),
            captured: Features::default(),
            num_sms,
            num_runs: 0,
        };
        backend.capture_usual()?;
        Ok(backend)
    }

    fn capture_usual(&mut self) -> Result<()> {
        StepShape::usual(self.limits).into_iter().try_for_each(|shape| self.capture_shape(shape))
    }

    /// Captures the graph of `shape`, unless it is there.
    fn capture_shape(&mut self, shape: StepShape) -> Result<()> {
        if self.graphs.contains_key(&shape) {
            return Ok(());
        }
        let features = self.captured.buffers.as_ref();
        let forward = Forward {
            spec: &self.spec,
            model: &self.model,
            lanes: &self.lanes,
            input: self.input.addresses()?,
            workspace: self.workspace,
            num_sms: self.num_sms,
            capacity: self.options.lane_capacity,
            captured: Captured {
                layers: &self.captured.layers,
                features: features.map_or(DeviceAddress::NULL, |(buffer, _)| buffer.address()),
            },
        };
        let launches = forward.launches(shape)?;
        self.stream.context().make_current()?;
        launches.iter().try_for_each(|launch| self.kernels.prepare(launch))?;
        let logits_bytes = shape.num_logits * self.spec.vocab_size * size_of::<f32>();
        let feature_bytes =
            shape.num_tokens * self.captured.layers.len() * self.spec.hidden_size * size_of::<f32>();
        let (input, logits, from, kernels) =
            (&self.input, &self.logits, self.workspace.logits, &mut self.kernels);
        let graph = self.stream.capture(|stream| {
            input.send(stream, shape)?;
            launches.iter().try_for_each(|launch| stream.launch(kernels, launch))?;
            if logits_bytes > 0 {
                stream.fetch(from, logits, logits_bytes)?;
            }
            match features {
                Some((device, host)) => stream.fetch(device.address(), host, feature_bytes),
                None => Ok(()),
            }
        })?;
        self.drop_oldest_graph();
        self.graphs.insert(shape, Captures { graph, usual: Duration::ZERO, last_run: self.num_runs });
        Ok(())
    }

    /// Makes room for another: they take memory of the driver's.
    fn drop_oldest_graph(&mut self) {
        if self.graphs.len() < MAX_GRAPHS {
            return;
        }
        let oldest = self.graphs.iter().min_by_key(|(_, captures)| captures.last_run);
        if let Some(shape) = oldest.map(|(shape, _)| *shape) {
            self.graphs.remove(&shape);
        }
    }

    /// Runs the graph of `shape` and waits for it: the one wait of a step.
    fn run_graph(&mut self, shape: StepShape) -> Result<()> {
        let Some(captures) = self.graphs.get_mut(&shape) else {
            return Err(EngineError::Backend("a step's graph was not captured".into()));
        };
        self.num_runs += 1;
        captures.last_run = self.num_runs;
        let start = Instant::now();
        self.stream.context().make_current()?;
        self.stream.run(&captures.graph)?;
        // A little less than it took lately: a look too early costs microseconds, a sleep too long costs the robot.
        let found = self.stream.wait(captures.usual.mul_f32(0.9), self.options.step_limit)?;
        let took = start.elapsed();
        captures.usual = match found {
            // The first time is of loading, too.
            _ if captures.usual.is_zero() => took / 2,
            // How much too long the sleep was cannot be known.
            Found::AtOnce => captures.usual * 3 / 4,
            Found::Later => (captures.usual * 3 + took) / 4,
        };
        Ok(())
    }

    /// After a fault or a hang nothing in the context can be trusted, so that nothing may seem to go on: whoever holds the backend opens another.
    fn check_alive(&self) -> Result<()> {
        if self.stream.context().is_lost() {
            return Err(EngineError::Backend("the device was lost; the engine has to be opened anew".into()));
        }
        Ok(())
    }

    fn lay_out_logits(&mut self, plan: &StepPlan) -> usize {
        self.first_row.clear();
        let mut num_rows = 0;
        for segment in &plan.segments {
            self.first_row.push(num_rows);
            num_rows += num_logits_rows(segment);
        }
        self.first_row.push(num_rows);
        num_rows
    }
}

impl Backend for CudaBackend {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    fn run_step(&mut self, plan: &StepPlan) -> Result<StepOutput<'_>> {
        self.check_alive()?;
        check_plan(plan, self.spec.vocab_size, &self.capabilities, &self.lanes.book)?;
        let num_logits = self.lay_out_logits(plan);
        let shape = StepShape::of(plan, num_logits, self.limits);
        self.input.write(plan, shape, &self.lanes.book)?;
        self.capture_shape(shape)?;
        // Whatever comes of it, the rows of earlier trees are overwritten.
        plan.segments.iter().for_each(|segment| self.lanes.book.forget_tree(segment.lane));
        self.run_graph(shape)?;
        for segment in &plan.segments {
            if segment.is_tree {
                self.lanes.book.note_tree(segment.lane, &plan.parents[segment.tokens.clone()]);
            } else {
                self.lanes.book.commit(segment.lane, segment.tokens.len());
            }
        }
        let vocab_size = self.spec.vocab_size;
        let feature_len = plan.tokens.len() * self.captured.layers.len() * self.spec.hidden_size;
        Ok(StepOutput {
            logits: &self.logits.floats()[..num_logits * vocab_size],
            first_row: &self.first_row,
            vocab_size,
            features: match &self.captured.buffers {
                Some((_, host)) => &host.floats()[..feature_len],
                None => &[],
            },
        })
    }

    fn capture(&mut self, layer_inputs: &[usize]) -> Result<()> {
        self.check_alive()?;
        let num_layers = self.spec.num_layers;
        if let Some(layer) = layer_inputs.iter().find(|&&layer| layer > num_layers) {
            return Err(EngineError::Input(format!(
                "features at the input of layer {layer}, the model has {num_layers} layers: expected 0..={num_layers}"
            )));
        }
        let num_bytes =
            self.options.max_step_tokens * layer_inputs.len() * self.spec.hidden_size * size_of::<f32>();
        let context = self.stream.context();
        let buffers = if num_bytes == 0 {
            None
        } else {
            let device = DeviceBuffer::new(context, num_bytes, "captured features")?;
            Some((device, MappedBuffer::new(context, num_bytes, "captured features")?))
        };
        // Their launches name the buffers of before.
        self.graphs.clear();
        self.captured = Features { layers: layer_inputs.to_vec(), buffers };
        self.capture_usual()
    }

    fn keep(&mut self, lane: LaneId, path: &[usize]) -> Result<()> {
        self.check_alive()?;
        self.lanes.keep(&self.stream, &mut self.kernels, lane, path)
    }

    fn committed_len(&self, lane: LaneId) -> usize {
        self.lanes.book.committed_len(lane)
    }

    fn truncate(&mut self, lane: LaneId, len: usize) -> Result<()> {
        self.check_alive()?;
        self.lanes.book.truncate(lane, len)
    }

    fn save_snapshot(&mut self, lane: LaneId, len: usize) -> Result<SnapshotId> {
        self.check_alive()?;
        self.lanes.save_snapshot(&self.stream, &mut self.kernels, lane, len)
    }

    fn restore_snapshot(&mut self, lane: LaneId, snapshot: SnapshotId) -> Result<()> {
        self.check_alive()?;
        self.lanes.restore_snapshot(&self.stream, &mut self.kernels, lane, snapshot)
    }

    fn drop_snapshot(&mut self, snapshot: SnapshotId) {
        self.lanes.drop_snapshot(snapshot);
    }
}

/// That the cache stays within what is allowed.
fn check_kv(kv: usize, options: &CudaOptions) -> Result<()> {
    match options.max_kv_bytes.filter(|&most| kv as u64 > most) {
        None => Ok(()),
        Some(max_bytes) => Err(EngineError::Capacity(format!(
            "the {} KV cache of {} lanes x {} tokens takes {kv} bytes, {max_bytes} are allowed",
            options.kv, options.num_lanes, options.lane_capacity
        ))),
    }
}

/// F32 values of attention's partial results, for the shape that has most.
fn partial_lens(
    spec: &DecoderSpec,
    limits: ShapeLimits,
    capacity: usize,
    num_sms: usize,
) -> Result<(usize, usize)> {
    let mut most = (0, 0);
    for usual in StepShape::usual(limits) {
        // Which segments a step has is not known; whatever it has, its partial results are no more than its tokens'.
        let shapes = [
            usual,
            StepShape { num_segments: limits.num_lanes, ..usual },
            StepShape { num_segments: limits.num_lanes, max_segment_len: 1, ..usual },
        ];
        for shape in shapes {
            let step = Forward::attention_step(shape, capacity, None);
            if let Some((_, lens)) = Forward::merging(spec, &step, num_sms)? {
                most = (most.0.max(lens.0), most.1.max(lens.1));
            }
        }
    }
    Ok(most)
}

fn capabilities(
    context: &Context,
    options: &CudaOptions,
    model: &DeviceModel,
    lanes: &DeviceLanes,
) -> Capabilities {
    let device = context.device();
    let target = device.target().map_or_else(|| "unknown".into(), |target| target.to_string());
    Capabilities {
        backend: "cuda",
        device: device.key(),
        kernels: format!(
            "{target}, {} of {} multiprocessors{}",
            context.num_sms(),
            device.num_sms,
            if model.mapped_bytes > 0 { ", weights in their mapped file" } else { "" }
        ),
        num_lanes: options.num_lanes,
        lane_capacity: options.lane_capacity,
        max_step_tokens: options.max_step_tokens,
        max_logits_rows: options.max_logits_rows,
        num_threads: 1,
        kv: options.kv,
        weight_bytes_per_step: model.bytes_per_step,
        kv_bytes: lanes.num_bytes(),
    }
}
