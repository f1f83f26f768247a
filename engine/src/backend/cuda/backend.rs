//! The CUDA backend: one model in one context of our own.

use std::{mem, ops::Range, time::Instant};

use takt_kernels_cu::{
    driver::{
        context::Context,
        memory::{DeviceBuffer, MappedBuffer},
        module::Kernels,
        stream::Stream,
    },
    launch::DeviceAddress,
};

use super::{
    captures::{self, Captures},
    draft::{CudaDraft, DraftSetup, Host, TargetLanes},
    forward::{Captured, Forward},
    input::StepInput,
    lanes::DeviceLanes,
    mapped::WeightsFile,
    memory::StepSizes,
    options::CudaOptions,
    room::{Needs, Room},
    rows::StepRows,
    shape::{ShapeLimits, StepShape, sizes},
    weights::DeviceModel,
    workspace::Workspace,
};
use crate::{
    EngineError, Result,
    backend::{Backend, Capabilities, Multiprocessors, plan_check::check_plan},
    draft::{DraftFacts, DraftOutput, DraftPlan, DraftSource, DraftSpec},
    kv::{LaneId, SnapshotId},
    rows::{Choice, FetchPermit, Likeliest, RowSource},
    spec::DecoderSpec,
    step::{StepOutput, StepPlan},
    weights::WeightSource,
};

/// Runs a model on an NVIDIA GPU. Fields are given back in their order: graphs before the kernels and buffers they name.
#[derive(Debug)]
pub struct CudaBackend {
    graphs: Captures<StepShape>,
    lanes: TargetLanes,
    rows: StepRows,
    stream: Stream,
    kernels: Kernels,
    spec: DecoderSpec,
    capabilities: Capabilities,
    options: CudaOptions,
    limits: ShapeLimits,
    model: DeviceModel,
    input: StepInput,
    workspace: Workspace,
    _workspace_buffer: DeviceBuffer,
    captured: Features,
    num_sms: usize,
}

/// The layers whose inputs are handed out; no buffers without any, nor for a draft head, which has them stay on the device.
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
        let num_sms = usize::try_from(context.num_sms()).unwrap_or(1);
        let sizes = StepSizes::of(spec, options, num_sms)?;
        let file = WeightsFile::open(context, source, options.weights)?;
        let weights = DeviceModel::num_bytes(spec, source, options.lane_capacity, file.as_ref())?;
        // Nothing of it would be read, and all of it kept in memory.
        let file = file.filter(|file| file.is_of_use(weights.mapped));
        let needs = Needs {
            weights: weights.copied,
            // All of it is kept in memory, what is copied, too.
            mapped: file.as_ref().map_or(0, WeightsFile::num_bytes),
            kv: sizes.lanes.num_bytes(),
            workspace: sizes.workspace.num_bytes(),
            pinned: sizes.pinned_bytes(spec.vocab_size),
        };
        check_kv(needs.kv, options)?;
        needs.check(&Room::of(context)?)?;

        let stream = Stream::new(context)?;
        let kernels = Kernels::load(context, cubins)?;
        let model = DeviceModel::load(context, &stream, spec, source, options.lane_capacity, file)?;
        let lanes = DeviceLanes::new(context, &stream, sizes.lanes, options.step_limit)?;
        let workspace_buffer = DeviceBuffer::new(context, needs.workspace, "the workspace of a step")?;
        stream.zero(&workspace_buffer)?;
        let workspace = sizes.workspace.at(workspace_buffer.address())?;
        let input = StepInput::new(context, sizes.input, workspace.input)?;
        let mut backend = Self {
            graphs: Captures::default(),
            capabilities: capabilities(context, options, &model, &lanes),
            lanes: TargetLanes::new(lanes),
            stream,
            kernels,
            spec: spec.clone(),
            options: options.clone(),
            limits: sizes.limits,
            model,
            input,
            workspace,
            rows: StepRows::new(context, sizes.rows, (workspace.logits, spec.vocab_size), workspace.lists)?,
            _workspace_buffer: workspace_buffer,
            captured: Features::default(),
            num_sms,
        };
        backend.capture_usual()?;
        Ok(backend)
    }

    fn capture_usual(&mut self) -> Result<()> {
        let usual = StepShape::usual(self.limits);
        self.rows.make_room(usual.len());
        // Beside them those of texts that are scored, which are captured when they come.
        self.graphs.make_room(usual.len() + sizes(self.limits.max_tokens).len());
        for shape in usual {
            self.capture_shape(shape)?;
            self.rows.capture_usual(&self.stream, &mut self.kernels, 0..shape.num_logits)?;
        }
        Ok(())
    }

    /// Captures the graph of `shape`, unless it is there.
    fn capture_shape(&mut self, shape: StepShape) -> Result<()> {
        if self.graphs.contains(shape) {
            return Ok(());
        }
        let features = self.captured.buffers.as_ref();
        let input = self.input.addresses()?;
        let (kept, feature_rows) = match (self.lanes.head(), features) {
            // Each token's where the head will look for it.
            (Some(draft), _) => (draft.features(), input.feature_rows),
            (None, Some((buffer, _))) => (buffer.address(), DeviceAddress::NULL),
            (None, None) => (DeviceAddress::NULL, DeviceAddress::NULL),
        };
        let forward = Forward {
            spec: &self.spec,
            model: &self.model,
            lanes: self.lanes.on_device(),
            input,
            workspace: self.workspace,
            num_sms: self.num_sms,
            capacity: self.options.lane_capacity,
            captured: Captured { layers: &self.captured.layers, features: kept, rows: feature_rows },
        };
        let launches = forward.launches(shape)?;
        self.stream.context().make_current()?;
        launches.iter().try_for_each(|launch| self.kernels.prepare(launch))?;
        let feature_bytes =
            shape.num_tokens * self.captured.layers.len() * self.spec.hidden_size * size_of::<f32>();
        let (input, kernels) = (&self.input, &mut self.kernels);
        let graph = self.stream.capture(|stream| {
            input.send(stream, shape)?;
            launches.iter().try_for_each(|launch| stream.launch(kernels, launch))?;
            match features {
                Some((device, host)) => stream.fetch(device.address(), host, feature_bytes),
                None => Ok(()),
            }
        })?;
        self.graphs.insert(shape, graph);
        Ok(())
    }

    /// Runs the graph of `shape`, brings what was wanted of the logits, lets the head read along where it has to, and waits for all of it: the
    /// one wait of a step.
    fn run_graph(&mut self, shape: StepShape) -> Result<()> {
        let start = Instant::now();
        self.stream.context().make_current()?;
        let usual = self.graphs.start(&self.stream, shape)?;
        // The step runs: whatever comes of the rest, it is waited for, since it reads and writes what the next one does.
        let brought = self.rows.bring(&self.stream);
        let limits = (usual, self.options.step_limit);
        let (found, reading) = self.lanes.read_and_wait(&self.stream, &brought, limits)?;
        brought?;
        // Of the step, whatever the read behind it took: that is small, and learnt where it runs without a step.
        self.graphs.learn(shape, reading, found, start.elapsed());
        Ok(())
    }

    /// The lanes, and what they are moved with, of a device that is there.
    fn lanes(&mut self) -> Result<(&mut TargetLanes, Host<'_>)> {
        captures::check_alive(&self.stream)?;
        Ok((&mut self.lanes, Host { stream: &self.stream, kernels: &mut self.kernels }))
    }
}

impl Drop for CudaBackend {
    /// A path that was kept last may still be moving: nobody has waited for it.
    fn drop(&mut self) {
        self.stream.drain();
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
        captures::check_alive(&self.stream)?;
        check_plan(plan, self.spec.vocab_size, &self.capabilities, self.lanes.book())?;
        let num_logits = self.rows.lay_out(plan);
        let shape = StepShape::of(plan, num_logits, self.limits);
        self.input.write(plan, shape, self.lanes.book())?;
        self.capture_shape(shape)?;
        self.rows.want(plan.segments.iter(), 0..shape.num_logits);
        self.rows.prepare(&self.stream, &mut self.kernels, plan)?;
        let mut host = Host { stream: &self.stream, kernels: &mut self.kernels };
        self.lanes.follow_step(plan, &mut self.input, &mut host)?;
        let ran = self.run_graph(shape);
        self.lanes.end_step(plan, ran)?;
        let feature_len = plan.tokens.len() * self.captured.layers.len() * self.spec.hidden_size;
        let features = match &self.captured.buffers {
            Some((_, host)) => &host.floats()[..feature_len],
            None => &[],
        };
        Ok(StepOutput::new(self, self.rows.first_row(), self.spec.vocab_size, features))
    }

    fn capture(&mut self, layer_inputs: &[usize]) -> Result<()> {
        captures::check_alive(&self.stream)?;
        if self.lanes.head().is_some() {
            return Err(EngineError::Input("features are captured for the draft head already".into()));
        }
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
        self.graphs = Captures::default();
        self.captured = Features { layers: layer_inputs.to_vec(), buffers };
        self.capture_usual()
    }

    fn keep(&mut self, lane: LaneId, path: &[usize]) -> Result<()> {
        let (lanes, mut host) = self.lanes()?;
        lanes.keep(lane, path, &mut host)
    }

    fn committed_len(&self, lane: LaneId) -> usize {
        self.lanes.book().committed_len(lane)
    }

    fn truncate(&mut self, lane: LaneId, len: usize) -> Result<()> {
        self.lanes()?.0.truncate(lane, len)
    }

    fn save_snapshot(&mut self, lane: LaneId, len: usize) -> Result<SnapshotId> {
        let (lanes, mut host) = self.lanes()?;
        lanes.save_snapshot(lane, len, &mut host)
    }

    fn restore_snapshot(&mut self, lane: LaneId, snapshot: SnapshotId) -> Result<()> {
        let (lanes, mut host) = self.lanes()?;
        lanes.restore_snapshot(lane, snapshot, &mut host)
    }

    fn drop_snapshot(&mut self, snapshot: SnapshotId) {
        self.lanes.drop_snapshot(snapshot);
    }

    fn attach_draft(&mut self, spec: &DraftSpec, source: &dyn DraftSource) -> Result<()> {
        captures::check_alive(&self.stream)?;
        spec.validate(&self.spec)?;
        let setup = DraftSetup {
            options: &self.options,
            num_sms: self.num_sms,
            embedding: self.model.embedding,
            kv_bytes: self.lanes.on_device().num_bytes(),
            weight_bytes: self.capabilities.weight_bytes_per_step,
        };
        let mut host = Host { stream: &self.stream, kernels: &mut self.kernels };
        let draft = CudaDraft::new(spec, source, &setup, &mut host)?;
        let head = self.lanes.attach(Some(Box::new(draft)))?;
        // Their launches name the buffers of before.
        self.graphs = Captures::default();
        let features = Features { layers: spec.captured.to_vec(), buffers: None };
        let features = mem::replace(&mut self.captured, features);
        let captured = self.capture_usual();
        if captured.is_err() {
            // As if there had never been this head; the graphs of before are captured again when a step wants them.
            self.graphs = Captures::default();
            self.captured = features;
            self.lanes.attach(head)?;
        }
        self.capabilities.kv_bytes = self.lanes.num_bytes();
        captured
    }

    fn draft_facts(&self) -> Option<&DraftFacts> {
        self.lanes.draft_facts()
    }

    fn follow(&mut self, lane: LaneId, follows: bool) {
        self.lanes.follow(lane, follows);
    }

    fn can_draft(&self, lane: LaneId) -> bool {
        self.lanes.can_draft(lane)
    }

    fn draft(&mut self, plan: &DraftPlan) -> Result<DraftOutput<'_>> {
        let (lanes, mut host) = self.lanes()?;
        lanes.draft(plan, "cuda", &mut host)
    }
}

impl RowSource for CudaBackend {
    fn here(&self, rows: Range<usize>) -> Option<&[f32]> {
        self.rows.here(rows)
    }

    fn list(&self, row: usize) -> Option<Likeliest<'_>> {
        self.rows.list(row)
    }

    fn choice(&self, row: usize) -> Option<Choice> {
        self.rows.choice(row)
    }

    fn fetch(&self, row: usize, _: FetchPermit) -> Result<&[f32]> {
        captures::check_alive(&self.stream)?;
        self.rows.fetch(&self.stream, row, self.options.step_limit)
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
        multiprocessors: Some(Multiprocessors { used: context.num_sms(), all: device.num_sms }),
        kv: options.kv,
        weight_bytes_per_step: model.bytes_per_step,
        kv_bytes: lanes.num_bytes(),
    }
}
