//! The TensorRT backend: one plan in one context of our own.

use std::{
    collections::HashMap,
    ops::Range,
    time::{Duration, Instant},
};

use takt_kernels_cu::{
    driver::{
        context::Context,
        memory::{DeviceBuffer, MappedBuffer},
        module::Kernels,
        stream::Stream,
    },
    launch::DeviceAddress,
};
use takt_tensorrt::{TensorRt, runtime::Plan};

use super::{
    batch::{Batch, Section, SectionShape, Work},
    executions::{Executions, Host, Memory, Ready},
    features::{FeatureRoute, Features},
    fit::{check_budget, check_entry, check_kv, scratch_bytes, stream_weights},
    input::{InputFacts, InputLayout},
    options::TensorRtOptions,
    ports::Ports,
    sizes::{self, Sizes},
};
use crate::{
    EngineError, Result,
    backend::{
        Backend, Capabilities, Multiprocessors,
        cuda::{
            CudaOptions, GpuWeights,
            draft::{self, CudaDraft, DraftSetup},
        },
        device::{
            captures::{self, learnt},
            lanes::DeviceLanes,
            lists::ListRoom,
            room::{Needs, Room},
            rows::StepRows,
        },
        no_draft,
        plan_check::check_plan,
    },
    dir::{PlanEntry, PlanForm},
    draft::{DraftFacts, DraftOutput, DraftPlan, DraftSource, DraftSpec},
    kv::{KvKind, LaneId, SnapshotId},
    quant::{MatrixData, MatrixView},
    rows::{FetchPermit, Likeliest, RowSource},
    spec::DecoderSpec,
    step::{StepOutput, StepPlan},
};

/// A plan, and what it is.
#[derive(Debug, Clone, Copy)]
pub struct SerializedPlan<'a> {
    /// What it is.
    pub entry: &'a PlanEntry,
    /// The serialized network.
    pub bytes: &'a [u8],
    /// Bytes of weights that a decode step reads.
    pub weight_bytes_per_step: u64,
}

/// Runs a model through a TensorRT plan. Fields are given back in their order: executions before the plan and the buffers they name.
#[derive(Debug)]
pub struct TensorRtBackend {
    executions: Executions,
    head: Option<Head>,
    rows: StepRows,
    stream: Stream,
    kernels: Kernels,
    plan: Plan,
    spec: DecoderSpec,
    entry: PlanEntry,
    capabilities: Capabilities,
    options: TensorRtOptions,
    sizes: Sizes,
    lanes: DeviceLanes,
    batch: Batch,
    memory: Memory,
    pinned: MappedBuffer,
    features: Features,
    /// The model's, BF16 `[V, D]`, for a draft head that has none of its own: a plan's cannot be had.
    embedding: Option<DeviceBuffer>,
    /// How long sections took lately.
    usual: HashMap<SectionShape, Duration>,
    _buffers: Vec<DeviceBuffer>,
}

/// A draft head through our own kernels, and the way of the features to it.
#[derive(Debug)]
struct Head {
    draft: Box<CudaDraft>,
    route: FeatureRoute,
}

impl TensorRtBackend {
    /// Loads `plan`, of `spec`, to the device of `context`, allocates the lanes and everything a step needs, and runs the usual decode steps once.
    /// `cubins` are the kernels of [`super::kernel_sources`], of all sources where a draft head is to be attached, for the device's target.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] for a plan that is not what its entry says, or that TensorRT refuses; [`EngineError::Capacity`] with all sizes when
    /// it does not fit, [`EngineError::Input`] for an option out of range, [`EngineError::Backend`] when the device or TensorRT fails.
    pub fn new<'a>(
        spec: &DecoderSpec,
        file: SerializedPlan<'_>,
        (trt, context): (&TensorRt, &Context),
        cubins: impl IntoIterator<Item = &'a [u8]>,
        options: &TensorRtOptions,
    ) -> Result<Self> {
        let entry = file.entry;
        spec.validate()?;
        let lane_capacity = options.lane_capacity.unwrap_or(entry.lane_capacity);
        options.validate(spec, lane_capacity)?;
        check_entry(entry, options, lane_capacity)?;
        let guess = InputFacts {
            integer_bytes: size_of::<i64>(),
            has_kv_positions: spec.windows.iter().any(Option::is_some),
            appends: entry.form == PlanForm::Primitives,
        };
        sizes::check_entry(spec, entry)?;
        let sizes = Sizes::new(spec, entry, options, guess)?;
        let needs = |weights, scratch| Needs {
            weights,
            mapped: 0,
            kv: sizes.lanes.num_bytes(),
            workspace: sizes.workspace_bytes(spec) + scratch,
            pinned: sizes.pinned_bytes(spec),
        };
        check_kv(&sizes, entry, options)?;
        let weights = usize::try_from(entry.size_bytes).unwrap_or(usize::MAX);
        // Before anything is loaded; what TensorRT takes while it runs is known afterwards.
        needs(if entry.streams_weights { 0 } else { weights }, 0).check(&Room::of(context)?)?;

        let mut plan = Plan::load(trt, context, file.bytes)?;
        let ports = Ports::new(plan.tensors(), spec, entry)?;
        sizes.check_profiles(&plan)?;
        let sizes = Sizes::new(spec, entry, options, ports.input)?;
        if entry.streams_weights {
            stream_weights(&mut plan, context, |scratch| needs(0, scratch))?;
        }
        let scratch_bytes = scratch_bytes(&plan)?;
        needs(0, scratch_bytes).check(&Room::of(context)?)?;
        check_budget(&needs(weights, scratch_bytes), &sizes, options)?;

        let stream = Stream::new(context)?;
        let kernels = Kernels::load(context, cubins)?;
        let lanes = DeviceLanes::new(context, &stream, sizes.lanes, options.step_limit)?;
        // Rows that nobody has written are multiplied by nothing, which makes nothing of numbers only.
        lanes.clear(&stream)?;
        let mut buffers = Vec::new();
        let mut buffer = |num_bytes, what| {
            let buffer = DeviceBuffer::new(context, num_bytes, what)?;
            stream.zero(&buffer)?;
            let address = buffer.address();
            buffers.push(buffer);
            Ok::<_, EngineError>(address)
        };
        let [keys, sums, results] = sizes.list_bytes;
        let room = ListRoom {
            keys: buffer(keys, "lists of tokens")?,
            sums: buffer(sums, "lists of tokens")?,
            results: buffer(results, "lists of tokens")?,
        };
        let memory = Memory {
            cache: cache_addresses(&lanes, spec)?,
            lane_bytes: sizes.lane_bytes,
            lane_rows: entry.lane_rows,
            row_shape: [spec.num_kv_heads, spec.head_dim],
            input: buffer(sizes.input_bytes, "what a step is about")?,
            logits: buffer(sizes.logits_bytes, "logits")?,
            logits_row_bytes: spec.vocab_size * size_of::<f32>(),
            features: buffer(sizes.features_bytes, "features")?,
            present: buffer(2 * spec.num_layers * sizes.present_bytes, "new rows of the cache")?,
            present_bytes: sizes.present_bytes,
            planes: lanes.kv_planes(),
            scratch: (buffer(scratch_bytes, "TensorRT's scratch")?, scratch_bytes),
            ports,
        };
        let rows = StepRows::new(context, sizes.rows, (memory.logits, spec.vocab_size), room)?;
        let mut backend = Self {
            executions: Executions::new(&plan, sizes.limits.num_usual_shapes()),
            head: None,
            rows,
            capabilities: capabilities(context, trt, &file, options, &lanes),
            stream,
            kernels,
            plan,
            spec: spec.clone(),
            entry: entry.clone(),
            options: options.clone(),
            batch: Batch::new(sizes.limits),
            pinned: MappedBuffer::new(context, sizes.pinned[3], "what a step is about")?,
            sizes,
            lanes,
            memory,
            features: Features::default(),
            embedding: None,
            usual: HashMap::new(),
            _buffers: buffers,
        };
        backend.capture_usual()?;
        Ok(backend)
    }

    /// Whether the plan puts out what a head takes that reads the inputs of these layers.
    #[must_use]
    pub fn puts_out(&self, layer_inputs: &[usize]) -> bool {
        self.entry.captured == layer_inputs
    }

    /// Copies the model's `embedding` to the device, for a draft head without one of its own; before [`Backend::attach_draft`].
    ///
    /// # Errors
    /// [`EngineError::Capacity`] without memory, [`EngineError::Backend`] when the device fails.
    pub fn set_embedding(&mut self, embedding: MatrixView<'_>) -> Result<()> {
        let MatrixData::Bf16(bytes) = embedding.data else {
            let fact = "an embedding that is not bf16".to_owned();
            return Err(EngineError::Unsupported(fact));
        };
        let context = self.stream.context();
        let needs = Needs { weights: bytes.len(), mapped: 0, kv: 0, workspace: 0, pinned: 0 };
        needs.check(&Room::of(context)?)?;
        let buffer = DeviceBuffer::new(context, bytes.len(), "the embedding for the draft head")?;
        self.stream.upload(bytes, &buffer, 0)?;
        self.embedding = Some(buffer);
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

    /// All decode steps that there are, of every set of lanes and for every length of the cache: run once with nothing to do, which writes rows that do
    /// not count. No answer waits for a capture.
    fn capture_usual(&mut self) -> Result<()> {
        let place = self.sizes.limits.decode_logits();
        for shape in self.sizes.limits.decode_shapes() {
            let section = Section { shape, work: Work::Singles, logits_place: place, feature_place: 0 };
            self.usual.insert(key(&section), Duration::ZERO);
            self.stream.context().make_current()?;
            let put = self.put(&StepPlan::default(), &section, 0);
            captures::wait(&self.stream, Duration::ZERO, self.options.step_limit)?;
            put?;
        }
        self.sizes.limits.lane_sets().try_for_each(|lanes| {
            self.rows.capture_usual(&self.stream, &mut self.kernels, place..place + lanes.len())
        })
    }

    /// Writes what `section` is about to `at` in pinned memory and puts it into the stream.
    fn put(&mut self, plan: &StepPlan, section: &Section, at: usize) -> Result<()> {
        let layout = InputLayout::new(section.shape, self.memory.ports.input);
        let bytes = &mut self.pinned.bytes_mut()[at..at + layout.num_bytes];
        layout.write(section, plan, &self.lanes.book, &self.sizes.limits, bytes);
        let mut host = Host {
            stream: &self.stream,
            kernels: &mut self.kernels,
            plan: &self.plan,
            memory: &self.memory,
            pinned: &self.pinned,
            step_limit: self.options.step_limit,
        };
        self.executions.run(&mut host, Ready { section, layout: &layout, at })
    }

    /// Puts all sections into the stream, and what `plan` wants of their outputs behind them.
    fn put_all(&mut self, plan: &StepPlan) -> Result<()> {
        let [decode, verify, runs, end] = self.sizes.pinned;
        let mut next = runs;
        for idx in 0..self.batch.sections().len() {
            let section = self.batch.sections()[idx];
            let at = match section.work {
                Work::Singles => decode,
                Work::Trees => verify,
                Work::Slice { .. } => {
                    let num_bytes = InputLayout::new(section.shape, self.memory.ports.input).num_bytes;
                    if next + num_bytes > end {
                        // The device is still to read what is there.
                        captures::wait(&self.stream, Duration::ZERO, self.options.step_limit)?;
                        next = runs;
                    }
                    next += num_bytes;
                    next - num_bytes
                }
            };
            self.put(plan, &section, at)?;
        }
        self.features.bring(&self.stream, plan, &self.batch, self.memory.features)?;
        if let Some(head) = &mut self.head {
            head.route.run(&self.stream)?;
        }
        self.rows.bring(&self.stream, plan)
    }

    /// Runs the sections and waits for them: the one wait of a step, but for those with more runs of tokens than have room in pinned memory.
    fn run_sections(&mut self, plan: &StepPlan) -> Result<()> {
        let start = Instant::now();
        self.stream.context().make_current()?;
        let put = self.put_all(plan);
        let usual = self.batch.sections().iter().map(|section| self.usual_of(section)).sum();
        // Whatever came of the rest, what is in the stream reads and writes what the next step does.
        let (found, reading) = match self.head.as_mut().filter(|head| head.draft.has_to_read() && put.is_ok())
        {
            Some(head) => head.draft.read_and_wait(&self.stream, usual)?,
            None => (captures::wait(&self.stream, usual, self.options.step_limit)?, Duration::ZERO),
        };
        put?;
        if let Some(last) = self.batch.sections().last() {
            let own = self.usual_of(last);
            let others = usual.saturating_sub(own) + reading;
            let learnt = learnt(own, others, found, start.elapsed());
            self.usual.insert(key(last), learnt);
        }
        Ok(())
    }

    /// Lays out which features of `plan` go where for the head, and what it reads of them.
    fn lead_features(&mut self, plan: &StepPlan) -> Result<()> {
        let Some(Head { draft, route }) = &mut self.head else { return Ok(()) };
        route.lay_out(plan, &self.batch)?;
        let ends = (self.memory.features, draft.features());
        route.prepare(&self.stream, &mut self.kernels, ends)?;
        let mut host = draft::Host { stream: &self.stream, kernels: &mut self.kernels };
        draft.follow_step(plan, &self.lanes.book, route, &mut host)
    }

    fn usual_of(&self, section: &Section) -> Duration {
        self.usual.get(&key(section)).copied().unwrap_or_default()
    }

    /// After a fault or a hang nothing in the context can be trusted, so that nothing may seem to go on: whoever holds the backend opens another.
    fn check_alive(&self) -> Result<()> {
        if self.stream.context().is_lost() {
            return Err(EngineError::Backend("the device was lost; the engine has to be opened anew".into()));
        }
        Ok(())
    }
}

impl Backend for TensorRtBackend {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    fn run_step(&mut self, plan: &StepPlan) -> Result<StepOutput<'_>> {
        self.check_alive()?;
        check_plan(plan, self.spec.vocab_size, &self.capabilities, &self.lanes.book)?;
        self.batch.lay_out(plan, &self.lanes.book)?;
        self.rows.lay_out(plan);
        for idx in 0..plan.segments.len() {
            let first = self.rows.first_row()[idx];
            self.batch.logits_places(plan, idx, |row, place| self.rows.put(first + row, place));
        }
        let span = self.batch.listed(self.rows.span());
        self.rows.prepare(&self.stream, &mut self.kernels, (plan, span))?;
        self.lead_features(plan)?;
        let ran = self.run_sections(plan);
        // Whatever came of it, the rows of earlier trees are overwritten.
        plan.segments.iter().for_each(|segment| self.lanes.book.forget_tree(segment.lane));
        if let Err(error) = ran {
            if let Some(head) = &mut self.head {
                plan.segments.iter().for_each(|segment| head.draft.go_cold(segment.lane));
            }
            return Err(error);
        }
        for segment in &plan.segments {
            if segment.is_tree {
                self.lanes.book.note_tree(segment.lane, &plan.parents[segment.tokens.clone()]);
            } else {
                self.lanes.book.commit(segment.lane, segment.tokens.len());
            }
        }
        let features = self.features.of(plan.tokens.len());
        Ok(StepOutput::new(self, self.rows.first_row(), self.spec.vocab_size, features))
    }

    fn capture(&mut self, layer_inputs: &[usize]) -> Result<()> {
        self.check_alive()?;
        if self.head.is_some() {
            return Err(EngineError::Input("features are captured for the draft head already".into()));
        }
        let of = (&self.spec, &self.entry);
        self.features = Features::new(self.stream.context(), of, layer_inputs, self.options.max_step_tokens)?;
        Ok(())
    }

    fn keep(&mut self, lane: LaneId, path: &[usize]) -> Result<()> {
        self.check_alive()?;
        let mut host = draft::Host { stream: &self.stream, kernels: &mut self.kernels };
        if let Some(head) = &mut self.head {
            head.draft.prepare_keep(lane, path, &mut host)?;
        }
        self.lanes.keep(host.stream, host.kernels, lane, path)?;
        self.head.as_mut().map_or(Ok(()), |head| head.draft.keep(lane, path, &self.stream))
    }

    fn committed_len(&self, lane: LaneId) -> usize {
        self.lanes.book.committed_len(lane)
    }

    fn truncate(&mut self, lane: LaneId, len: usize) -> Result<()> {
        self.check_alive()?;
        self.lanes.book.truncate(lane, len)?;
        if let Some(head) = &mut self.head {
            head.draft.truncate(lane, len);
        }
        Ok(())
    }

    fn save_snapshot(&mut self, lane: LaneId, len: usize) -> Result<SnapshotId> {
        self.check_alive()?;
        let mut host = draft::Host { stream: &self.stream, kernels: &mut self.kernels };
        let snapshot = self.lanes.save_snapshot(host.stream, host.kernels, lane, len)?;
        if let Some(head) = &mut self.head
            && let Err(error) = head.draft.save_snapshot(lane, len, snapshot, &mut host)
        {
            self.lanes.drop_snapshot(snapshot);
            return Err(error);
        }
        Ok(snapshot)
    }

    fn restore_snapshot(&mut self, lane: LaneId, snapshot: SnapshotId) -> Result<()> {
        self.check_alive()?;
        let mut host = draft::Host { stream: &self.stream, kernels: &mut self.kernels };
        self.lanes.restore_snapshot(host.stream, host.kernels, lane, snapshot)?;
        self.head.as_mut().map_or(Ok(()), |head| head.draft.restore_snapshot(lane, snapshot, &mut host))
    }

    fn drop_snapshot(&mut self, snapshot: SnapshotId) {
        self.lanes.drop_snapshot(snapshot);
        if let Some(head) = &mut self.head {
            head.draft.drop_snapshot(snapshot);
        }
    }

    fn attach_draft(&mut self, spec: &DraftSpec, source: &dyn DraftSource) -> Result<()> {
        self.check_alive()?;
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
            kv_bytes: self.lanes.num_bytes(),
            weight_bytes: self.entry.size_bytes,
        };
        let mut host = draft::Host { stream: &self.stream, kernels: &mut self.kernels };
        let draft = Box::new(CudaDraft::new(spec, source, &setup, &mut host)?);
        let (num_places, len) = (self.sizes.limits.num_feature_places(), self.memory.ports.features_len);
        let route = FeatureRoute::new(self.stream.context(), num_places, len, self.options.max_step_tokens)?;
        (0..self.options.num_lanes).try_for_each(|lane| self.truncate(LaneId(lane), 0))?;
        self.features = Features::default();
        self.capabilities.kv_bytes = self.lanes.num_bytes() + draft.kv_bytes();
        self.head = Some(Head { draft, route });
        Ok(())
    }

    fn draft_facts(&self) -> Option<&DraftFacts> {
        self.head.as_ref().map(|head| head.draft.facts())
    }

    fn follow(&mut self, lane: LaneId, follows: bool) {
        let committed_len = self.lanes.book.committed_len(lane);
        if let Some(head) = &mut self.head {
            head.draft.follow(lane, follows, committed_len);
        }
    }

    fn can_draft(&self, lane: LaneId) -> bool {
        let head = self.head.as_ref();
        head.is_some_and(|head| head.draft.is_warm(lane, self.lanes.book.committed_len(lane)))
    }

    fn draft(&mut self, plan: &DraftPlan) -> Result<DraftOutput<'_>> {
        self.check_alive()?;
        let Some(head) = &mut self.head else { return Err(no_draft("tensorrt")) };
        let mut host = draft::Host { stream: &self.stream, kernels: &mut self.kernels };
        head.draft.draft(plan, |lane| self.lanes.book.committed_len(lane), &mut host)
    }
}

impl RowSource for TensorRtBackend {
    fn here(&self, rows: Range<usize>) -> Option<&[f32]> {
        self.rows.here(rows)
    }

    fn list(&self, row: usize) -> Option<Likeliest<'_>> {
        self.rows.list(row)
    }

    fn fetch(&self, row: usize, _: FetchPermit) -> Result<&[f32]> {
        self.check_alive()?;
        self.rows.fetch(&self.stream, row, self.options.step_limit)
    }
}

/// What a section's usual time is known by: runs of tokens of about the same length take about as long, in whatever lane.
fn key(section: &Section) -> SectionShape {
    match section.work {
        Work::Slice { .. } => {
            let sequence = section.shape.sequence.next_power_of_two();
            SectionShape { first_lane: 0, sequence, num_logits: 1, kv: 0, ..section.shape }
        }
        _ => section.shape,
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

fn capabilities(
    context: &Context,
    trt: &TensorRt,
    file: &SerializedPlan<'_>,
    options: &TensorRtOptions,
    lanes: &DeviceLanes,
) -> Capabilities {
    let (device, entry) = (context.device(), file.entry);
    let form = match entry.form {
        PlanForm::Operators => "operators",
        PlanForm::Primitives => "primitives",
    };
    let compute = match entry.compute {
        crate::dir::PlanCompute::Bf16 => "bf16",
        crate::dir::PlanCompute::F16 => "f16",
    };
    Capabilities {
        backend: "tensorrt",
        device: device.key(),
        kernels: format!(
            "TensorRT {}, plan {} of {form} in {compute}, {} of {} multiprocessors",
            trt.version(),
            entry.blake3.get(..8).unwrap_or(&entry.blake3),
            context.num_sms(),
            device.num_sms
        ),
        num_lanes: options.num_lanes,
        lane_capacity: lanes.book.lane_capacity(),
        max_step_tokens: options.max_step_tokens,
        max_logits_rows: options.max_logits_rows,
        num_threads: 1,
        multiprocessors: Some(Multiprocessors { used: context.num_sms(), all: device.num_sms }),
        kv: KvKind::Bf16,
        weight_bytes_per_step: file.weight_bytes_per_step,
        kv_bytes: lanes.num_bytes(),
    }
}
