//! The TensorRT backend: one plan in one context of our own.

use std::{
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
    batch::{Batch, Section, Work},
    budget::Budget,
    executions::{self, Executions, Ready},
    features::{FeatureRoute, Features},
    input::{Constants, InputLayout},
    load::{Loaded, capabilities},
    memory::Memory,
    options::TensorRtOptions,
    padding,
    sizes::Sizes,
    usual::UsualTimes,
};
use crate::{
    EngineError, Result, TokenId,
    backend::{
        Backend, Capabilities,
        cuda::draft::{Host, TargetLanes},
        device::{captures, lanes::DeviceLanes, rows::StepRows},
        plan_check::check_plan,
    },
    dir::PlanEntry,
    draft::{DraftFacts, DraftOutput, DraftPlan, DraftSource, DraftSpec},
    kv::{LaneId, SnapshotId},
    rows::{Choice, FetchPermit, Likeliest, RowSource},
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

/// Runs a model through a TensorRT plan. Fields are given back in their order: executions and graphs before the plan and the buffers they name.
#[derive(Debug)]
pub struct TensorRtBackend {
    executions: Executions,
    /// Of the features to the head, where there is one.
    pub(super) route: Option<FeatureRoute>,
    pub(super) lanes: TargetLanes,
    rows: StepRows,
    pub(super) stream: Stream,
    pub(super) kernels: Kernels,
    plan: Plan,
    pub(super) spec: DecoderSpec,
    pub(super) entry: PlanEntry,
    pub(super) capabilities: Capabilities,
    pub(super) options: TensorRtOptions,
    pub(super) sizes: Sizes,
    pub(super) budget: Budget,
    pub(super) batch: Batch,
    pub(super) memory: Memory,
    pinned: MappedBuffer,
    /// The token that pads.
    padding: TokenId,
    pub(super) features: Features,
    /// The model's, BF16 `[V, D]`, for a draft head that has none of its own: a plan's cannot be had.
    pub(super) embedding: Option<DeviceBuffer>,
    usual: UsualTimes,
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
        let loaded = Loaded::new(spec, &file, (trt, context), options)?;
        let sizes = loaded.sizes;
        let stream = Stream::new(context)?;
        let kernels = Kernels::load(context, cubins)?;
        let lanes = DeviceLanes::new(context, &stream, sizes.lanes, options.step_limit)?;
        // Rows that nobody has written are multiplied by nothing, which makes nothing of numbers only.
        lanes.clear(&stream)?;
        let memory = Memory::new(&stream, spec, &lanes, &loaded)?;
        let mut backend = Self {
            executions: Executions::new(&loaded.plan, sizes.limits.num_usual_shapes()),
            route: None,
            rows: StepRows::new(context, sizes.rows, (memory.logits, spec.vocab_size), memory.lists)?,
            capabilities: capabilities(context, trt, &file, options, &lanes),
            lanes: TargetLanes::new(lanes),
            stream,
            kernels,
            plan: loaded.plan,
            spec: spec.clone(),
            entry: file.entry.clone(),
            options: options.clone(),
            batch: Batch::new(sizes.limits),
            pinned: MappedBuffer::new(context, sizes.pinned[3], "what a step is about")?,
            padding: 0,
            sizes,
            budget: loaded.budget,
            memory,
            features: Features::default(),
            embedding: None,
            usual: UsualTimes::default(),
        };
        backend.choose_padding()?;
        backend.capture_lists()?;
        Ok(backend)
    }

    /// Runs the usual steps with the first token that may pad.
    fn choose_padding(&mut self) -> Result<()> {
        for token in padding::candidates(self.spec.vocab_size) {
            self.padding = token;
            self.run_usual()?;
            if padding::is_harmless(&self.padding_rows()?, &self.entry) {
                return Ok(());
            }
        }
        Err(padding::refusal(self.spec.vocab_size, self.entry.compute))
    }

    /// What padding has left of keys and values in every lane, the last usual step being of all of them.
    fn padding_rows(&self) -> Result<Vec<u8>> {
        let Some(&shape) = self.sizes.limits.decode_shapes().last() else { return Ok(Vec::new()) };
        let rows = self.memory.first_new_rows(shape, 0)?;
        let num_bytes = rows.iter().map(|(_, num_bytes)| num_bytes).sum();
        let host = MappedBuffer::new(self.stream.context(), num_bytes, "what padding leaves")?;
        self.stream.context().make_current()?;
        let mut at = 0;
        let copied = rows.into_iter().try_for_each(|(address, num_bytes)| {
            at += num_bytes;
            self.stream.fetch_to(address, &host, at - num_bytes, num_bytes)
        });
        captures::wait(&self.stream, Duration::ZERO, self.options.step_limit)?;
        copied?;
        Ok(host.bytes().to_vec())
    }

    /// All decode steps that there are, of every set of lanes and for every length of the cache: run once with nothing to do, which writes rows that do
    /// not count. No answer waits for a capture.
    fn run_usual(&mut self) -> Result<()> {
        let place = self.sizes.limits.decode_logits();
        for shape in self.sizes.limits.decode_shapes() {
            let section = Section { shape, work: Work::Singles, logits_place: place, feature_place: 0 };
            self.usual.expect(&section);
            self.stream.context().make_current()?;
            let put = self.put(&StepPlan::default(), &section, 0);
            captures::wait(&self.stream, Duration::ZERO, self.options.step_limit)?;
            put?;
        }
        Ok(())
    }

    /// What greedy decoding asks of the rows of every set of lanes.
    fn capture_lists(&mut self) -> Result<()> {
        let (place, sets) = (self.sizes.limits.decode_logits(), self.sizes.limits.lane_sets());
        self.rows.make_room(self.sizes.limits.lane_sets().count());
        let mut all = sets.map(|lanes| place..place + lanes.len());
        let put = all.try_for_each(|rows| {
            self.rows.capture_usual(&self.stream, &mut self.kernels, rows.clone())?;
            self.rows.rehearse(&self.stream, rows)
        });
        captures::wait(&self.stream, Duration::ZERO, self.options.step_limit)?;
        put
    }

    /// Writes what `section` is about to `at` in pinned memory and puts it into the stream.
    fn put(&mut self, plan: &StepPlan, section: &Section, at: usize) -> Result<()> {
        let layout = InputLayout::new(section.shape, self.memory.ports.input);
        let bytes = &mut self.pinned.bytes_mut()[at..at + layout.num_bytes];
        let with = Constants { lane_rows: self.entry.lane_rows, padding: self.padding };
        layout.write(section, (plan, self.lanes.book()), with, bytes);
        let mut host = executions::Host {
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
        if let Some(route) = &mut self.route {
            route.run(&self.stream)?;
        }
        self.rows.bring(&self.stream)
    }

    /// Runs the sections and waits for them: the one wait of a step, but for those with more runs of tokens than have room in pinned memory.
    fn run_sections(&mut self, plan: &StepPlan) -> Result<()> {
        let start = Instant::now();
        self.stream.context().make_current()?;
        let put = self.put_all(plan);
        let usual = self.usual.of_all(self.batch.sections());
        // Whatever came of the rest, what is in the stream reads and writes what the next step does.
        let limits = (usual, self.options.step_limit);
        let (found, reading) = self.lanes.read_and_wait(&self.stream, &put, limits)?;
        put?;
        self.usual.learn(self.batch.sections(), reading, found, start.elapsed());
        Ok(())
    }

    /// The lanes, and what they are moved with, of a device that is there.
    fn lanes(&mut self) -> Result<(&mut TargetLanes, Host<'_>)> {
        captures::check_alive(&self.stream)?;
        Ok((&mut self.lanes, Host { stream: &self.stream, kernels: &mut self.kernels }))
    }
}

impl Drop for TensorRtBackend {
    /// A path that was kept last may still be moving: nobody has waited for it.
    fn drop(&mut self) {
        self.stream.drain();
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
        captures::check_alive(&self.stream)?;
        check_plan(plan, self.spec.vocab_size, &self.capabilities, self.lanes.book())?;
        self.batch.lay_out(plan, self.lanes.book())?;
        self.rows.lay_out(plan);
        for idx in 0..plan.segments.len() {
            let first = self.rows.first_row()[idx];
            self.batch.logits_places(plan, idx, |row, place| self.rows.put(first + row, place));
        }
        self.batch.listed(plan, |segments, rows| self.rows.want(segments, rows));
        self.rows.prepare(&self.stream, &mut self.kernels, plan)?;
        self.lead_features(plan)?;
        let ran = self.run_sections(plan);
        self.lanes.end_step(plan, ran)?;
        let features = self.features.of(plan.tokens.len());
        Ok(StepOutput::new(self, self.rows.first_row(), self.spec.vocab_size, features))
    }

    fn capture(&mut self, layer_inputs: &[usize]) -> Result<()> {
        captures::check_alive(&self.stream)?;
        if self.lanes.head().is_some() {
            return Err(EngineError::Input("features are captured for the draft head already".into()));
        }
        let of = (&self.spec, &self.entry);
        self.features = Features::new(self.stream.context(), of, layer_inputs, self.options.max_step_tokens)?;
        Ok(())
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
        self.attach_head(spec, source)
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
        lanes.draft(plan, "tensorrt", &mut host)
    }
}

impl RowSource for TensorRtBackend {
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
