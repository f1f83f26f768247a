//! The TensorRT backend: one plan in one context of our own.

use std::{
    collections::HashMap,
    ops::Range,
    time::{Duration, Instant},
};

use takt_kernels_cu::driver::{
    context::Context,
    memory::{DeviceBuffer, MappedBuffer},
    module::Kernels,
    stream::Stream,
};
use takt_tensorrt::{TensorRt, runtime::Plan};

use super::{
    batch::{Batch, Profile, Section, SectionShape, Work},
    executions::{Executions, Host, Memory, Ready},
    features::Features,
    input::{InputFacts, InputLayout},
    options::TensorRtOptions,
    ports::Ports,
    sizes::Sizes,
};
use crate::{
    EngineError, Result,
    backend::{
        Backend, Capabilities, Multiprocessors,
        device::{
            captures::{self, learnt},
            lanes::DeviceLanes,
            lists::ListRoom,
            room::{Needs, Room},
            rows::StepRows,
        },
        plan_check::check_plan,
    },
    dir::{PlanEntry, PlanForm},
    kv::{KvKind, LaneId, SnapshotId},
    rows::{FetchPermit, Likeliest, RowSource},
    spec::DecoderSpec,
    step::{StepOutput, StepPlan},
};

/// A plan as it lies in a file.
#[derive(Debug, Clone, Copy)]
pub struct PlanFile<'a> {
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
    /// How long sections took lately.
    usual: HashMap<SectionShape, Duration>,
    _buffers: Vec<DeviceBuffer>,
}

impl TensorRtBackend {
    /// Loads `plan`, of `spec`, to the device of `context`, allocates the lanes and everything a step needs, and runs the usual decode steps once.
    /// `cubins` are the kernels of [`super::SOURCES`] for the device's target.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] for a plan that is not what its entry says, or that TensorRT refuses; [`EngineError::Capacity`] with all sizes when
    /// it does not fit, [`EngineError::Input`] for an option out of range, [`EngineError::Backend`] when the device or TensorRT fails.
    pub fn new<'a>(
        spec: &DecoderSpec,
        file: PlanFile<'_>,
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
            stream_weights(&mut plan, context, &needs(0, 0))?;
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
            executions: Executions::new(&plan),
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
            usual: HashMap::new(),
            _buffers: buffers,
        };
        backend.capture_usual()?;
        Ok(backend)
    }

    /// Decode steps of the first lane, for every length of the cache: run once with nothing to do, which writes rows that do not count.
    fn capture_usual(&mut self) -> Result<()> {
        let place = self.sizes.limits.decode_logits();
        for kv in self.sizes.limits.decode_kvs() {
            let shape = SectionShape {
                profile: Profile::Decode,
                first_lane: 0,
                num_lanes: 1,
                sequence: 1,
                kv,
                num_logits: 1,
            };
            let section = Section { shape, work: Work::Singles, logits_place: place, feature_place: 0 };
            self.stream.context().make_current()?;
            let put = self.put(&StepPlan::default(), &section, 0);
            captures::wait(&self.stream, Duration::ZERO, self.options.step_limit)?;
            put?;
        }
        self.rows.capture_usual(&self.stream, &mut self.kernels, place..place + 1)
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
        self.rows.bring(&self.stream, plan)
    }

    /// Runs the sections and waits for them: the one wait of a step, but for those with more runs of tokens than have room in pinned memory.
    fn run_sections(&mut self, plan: &StepPlan) -> Result<()> {
        let start = Instant::now();
        self.stream.context().make_current()?;
        let put = self.put_all(plan);
        let usual = self.batch.sections().iter().map(|section| self.usual_of(section)).sum();
        // Whatever came of the rest, what is in the stream reads and writes what the next step does.
        let found = captures::wait(&self.stream, usual, self.options.step_limit)?;
        put?;
        if let Some(last) = self.batch.sections().last() {
            let own = self.usual_of(last);
            let learnt = learnt(own, usual.saturating_sub(own), found, start.elapsed());
            self.usual.insert(key(last), learnt);
        }
        Ok(())
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
        let span = self.rows.span();
        self.rows.prepare(&self.stream, &mut self.kernels, (plan, span))?;
        let ran = self.run_sections(plan);
        // Whatever came of it, the rows of earlier trees are overwritten.
        plan.segments.iter().for_each(|segment| self.lanes.book.forget_tree(segment.lane));
        ran?;
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
        let of = (&self.spec, &self.entry);
        self.features = Features::new(self.stream.context(), of, layer_inputs, self.options.max_step_tokens)?;
        Ok(())
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

fn check_entry(entry: &PlanEntry, options: &TensorRtOptions, lane_capacity: usize) -> Result<()> {
    if entry.stripped {
        return Err(EngineError::Unsupported(format!(
            "plan {:?} has no weights of its own, which this version does not give it: build it again without stripping",
            entry.file
        )));
    }
    if options.num_lanes > entry.num_lanes || lane_capacity > entry.lane_capacity {
        return Err(EngineError::Unsupported(format!(
            "{} lanes of {lane_capacity} tokens asked, plan {:?} has {} of {}",
            options.num_lanes, entry.file, entry.num_lanes, entry.lane_capacity
        )));
    }
    if entry.lane_capacity.saturating_add(entry.max_tree) > entry.lane_rows {
        return Err(EngineError::Unsupported(format!(
            "plan {:?} has lanes of {} rows, expected one for each of {} tokens and {} nodes of a tree",
            entry.file, entry.lane_rows, entry.lane_capacity, entry.max_tree
        )));
    }
    Ok(())
}

/// That the cache stays within what is allowed.
fn check_kv(sizes: &Sizes, entry: &PlanEntry, options: &TensorRtOptions) -> Result<()> {
    let kv = sizes.lanes.num_bytes();
    match options.max_kv_bytes.filter(|&most| kv as u64 > most) {
        None => Ok(()),
        Some(max_bytes) => Err(EngineError::Capacity(format!(
            "the 16-bit KV cache of {} lanes x {} rows, which the plan fixes, takes {kv} bytes, {max_bytes} are allowed",
            options.num_lanes, entry.lane_rows
        ))),
    }
}

/// That everything stays within what is allowed.
fn check_budget(needs: &Needs, sizes: &Sizes, options: &TensorRtOptions) -> Result<()> {
    let Some(max_bytes) = options.max_bytes else { return Ok(()) };
    let snapshots = sizes.lanes.num_bytes() / options.num_lanes * options.num_snapshots;
    let parts = [needs.weights, needs.kv, snapshots, needs.workspace, needs.pinned];
    let total = parts.into_iter().fold(0_usize, usize::saturating_add);
    if total as u64 <= max_bytes {
        return Ok(());
    }
    let Needs { weights, kv, workspace, pinned, .. } = needs;
    Err(EngineError::Capacity(format!(
        "the engine takes {total} bytes (plan {weights}, KV cache {kv}, {} snapshots {snapshots}, workspace {workspace}, pinned {pinned}), the memory \
         budget is {max_bytes}: use fewer lanes or snapshots, or a plan with a shorter context (--plan-context)",
        options.num_snapshots
    )))
}

/// Leaves weights in the host's memory as far as there is no room for them beside everything else.
fn stream_weights(plan: &mut Plan, context: &Context, others: &Needs) -> Result<()> {
    let room = Room::of(context)?;
    let (streamable, available) = (plan.streamable_bytes(), room.available_beside(0));
    let budget = available.saturating_sub(others.of_device(&room)).min(streamable);
    if budget < streamable {
        let left = streamable - budget;
        tracing::warn!(
            "{left} of {streamable} bytes of weights stay in the host's memory and are sent with every step"
        );
    }
    Ok(plan.set_weight_budget(budget)?)
}

/// For the largest sections of any profile, none of which run at the same time.
fn scratch_bytes(plan: &Plan) -> Result<usize> {
    let mut most = 0;
    for profile in 0..plan.num_profiles() {
        most = most.max(plan.scratch_bytes(profile)?);
    }
    Ok(most)
}

/// Of each layer keys, then values, of lane 0.
fn cache_addresses(
    lanes: &DeviceLanes,
    spec: &DecoderSpec,
) -> Result<Vec<takt_kernels_cu::launch::DeviceAddress>> {
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
    file: &PlanFile<'_>,
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
