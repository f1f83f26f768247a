//! A draft head beside the model: it reads along what the target commits, and drafts a level at a time, all on the device.
//!
//! | module | concept |
//! |---|---|
//! | [`model`] | the head's tensors in device memory |
//! | [`shape`] | the few shapes of reading and drafting, each captured once |
//! | [`sizes`] | how large everything of a head is |
//! | [`input`] | what they are about, as it travels to the device |
//! | [`workspace`] | everything a head writes besides keys and values, features that wait included |
//! | [`needs`] | what it takes of memory, and whether that fits |
//! | [`forward`] | reading and drafting as lists of launches: pure functions |
//! | [`follow`] | which features go where with a step, and what is read of them |
//! | [`level`] | one level of drafting, and what comes back of it |
//! | [`target_lanes`] | its target's lanes with it, for every backend on a GPU |
//!
//! A step's graph leaves the features of its tokens where the head looks for them; a second graph behind it reads those that are due, within the
//! same wait. Features, hidden rows, keys and values stay on the device: of a level tokens, logits and log-sum-exps of the likeliest come back.

mod follow;
mod forward;
mod input;
mod level;
mod model;
mod needs;
mod shape;
mod sizes;
mod target_lanes;
mod workspace;

use std::collections::BTreeMap;

use takt_kernels_cu::{
    driver::{
        memory::{DeviceBuffer, MappedBuffer},
        module::Kernels,
        stream::Stream,
    },
    launch::{DeviceAddress, Launch},
};

use super::{captures::Captures, lanes::DeviceLanes, options::CudaOptions};
use crate::{
    Result, TokenId,
    draft::{DraftBook, DraftFacts, DraftSource, DraftSpec, MAX_PLAN_ROWS, MAX_TOP_K, SavedLane},
    kv::{LaneId, SnapshotId},
};
use forward::Forward;
use input::{LevelInput, ReadInput};
use model::DraftModel;
pub(in crate::backend) use needs::HeadNeeds;
use shape::{LevelShape, ReadShape};
pub(super) use sizes::HeadSizes;
pub(in crate::backend) use target_lanes::TargetLanes;
use workspace::Workspace;

/// What the target lends to its head.
pub(in crate::backend) struct Host<'a> {
    pub stream: &'a Stream,
    pub kernels: &'a mut Kernels,
}

/// Where a step leaves the features of its tokens for a head: whatever computes it.
pub(in crate::backend) trait FeatureRows {
    /// Features of `token` of the step's plan are wanted in row `row` of [`CudaDraft::features`]; those of others are not.
    fn put_feature_row(&mut self, token: usize, row: usize);
}

/// How a head is set up beside its target.
#[derive(Debug, Clone, Copy)]
pub(in crate::backend) struct DraftSetup<'a> {
    pub options: &'a CudaOptions,
    /// Multiprocessors that our kernels run on.
    pub num_sms: usize,
    /// The target's, BF16 `[V, H]`.
    pub embedding: DeviceAddress,
    /// Of the target's lanes.
    pub kv_bytes: u64,
    /// Of the target's weights.
    pub weight_bytes: u64,
}

/// An attached head. Fields are given back in their order: graphs before the buffers they name.
#[derive(Debug)]
pub(in crate::backend) struct CudaDraft {
    reads: Captures<ReadShape>,
    levels: Captures<LevelShape>,
    spec: DraftSpec,
    model: DraftModel,
    embedding: DeviceAddress,
    lanes: DeviceLanes,
    book: DraftBook,
    /// By lane: where the first row that waits has its features; the others follow around the lane's slots.
    first_slot: Vec<usize>,
    snapshots: BTreeMap<SnapshotId, Snapshot>,
    read_input: ReadInput,
    level_input: LevelInput,
    workspace: Workspace,
    _workspace_buffer: DeviceBuffer,
    output: MappedBuffer,
    /// Once somebody has asked for logits.
    logits: Option<MappedBuffer>,
    tokens: Vec<TokenId>,
    log_probs: Vec<f32>,
    /// What was laid out to be read, until it is.
    reading: Option<ReadShape>,
    options: CudaOptions,
    num_sms: usize,
    max_read_rows: usize,
}

/// A lane's state, kept; nothing but facts of one that was not read whole.
#[derive(Debug)]
struct Snapshot {
    saved: SavedLane,
    kv: Option<SnapshotId>,
    /// Features of the rows that wait.
    features: Option<DeviceBuffer>,
}

impl CudaDraft {
    /// Copies the head of `spec`, which was validated against its target, to the device, or has it read where its file is mapped, as the target's
    /// options say, allocates everything it needs, and captures what rounds usually meet.
    pub fn new(
        spec: &DraftSpec,
        source: &dyn DraftSource,
        setup: &DraftSetup<'_>,
        host: &mut Host<'_>,
    ) -> Result<Self> {
        let (context, stream) = (host.stream.context(), host.stream);
        let file = DraftModel::file(context, spec, source, setup.options.weights)?;
        HeadNeeds::with_file(spec, source, setup, file.as_ref())?.check(host, setup)?;
        let sizes = HeadSizes::of(spec, setup.options, setup.num_sms)?;
        let options = CudaOptions { lane_capacity: sizes.capacity, ..setup.options.clone() };
        let num_lanes = options.num_lanes;
        let model = DraftModel::load(stream, spec, source, sizes.capacity, file)?;
        let lanes = DeviceLanes::new(context, stream, sizes.lanes, options.step_limit)?;
        let buffer = DeviceBuffer::new(context, sizes.workspace_bytes, "the draft head's workspace")?;
        stream.zero(&buffer)?;
        let workspace = sizes.workspace.at(buffer.address())?;
        let mut draft = Self {
            reads: Captures::default(),
            levels: Captures::default(),
            embedding: model.tensors.embedding.unwrap_or(setup.embedding),
            lanes,
            book: DraftBook::new(num_lanes, sizes.max_positions, spec.vocab_size, sizes.max_read_rows),
            first_slot: vec![0; num_lanes],
            snapshots: BTreeMap::new(),
            read_input: ReadInput::new(context, sizes.max_read_rows, workspace.read_input)?,
            level_input: LevelInput::new(context, num_lanes, workspace.level_input)?,
            workspace,
            _workspace_buffer: buffer,
            output: MappedBuffer::new(context, sizes.output_bytes, "a draft head's proposals")?,
            logits: None,
            tokens: vec![0; MAX_PLAN_ROWS * MAX_TOP_K],
            log_probs: vec![0.0; MAX_PLAN_ROWS * MAX_TOP_K],
            reading: None,
            num_sms: setup.num_sms,
            max_read_rows: sizes.max_read_rows,
            spec: spec.clone(),
            model,
            options,
        };
        // What cannot be launched is told now, not in the middle of an answer.
        draft.forward().level(&draft.level_input.addresses()?, LevelShape::largest(1, MAX_PLAN_ROWS))?;
        ReadShape::usual(draft.max_read_rows).try_for_each(|shape| draft.capture_read(shape, host))?;
        let usual = LevelShape::usual(num_lanes, spec.draft_vocab_size);
        usual.into_iter().try_for_each(|shape| draft.capture_level(shape, host))?;
        Ok(draft)
    }

    fn forward(&self) -> Forward<'_> {
        Forward {
            spec: &self.spec,
            tensors: &self.model.tensors,
            lanes: &self.lanes,
            workspace: self.workspace,
            embedding: self.embedding,
            capacity: self.options.lane_capacity,
            num_sms: self.num_sms,
        }
    }

    /// Captures the graph that reads rows of `shape`, unless it is there.
    fn capture_read(&mut self, shape: ReadShape, host: &mut Host<'_>) -> Result<()> {
        if self.reads.contains(shape) {
            return Ok(());
        }
        let launches = self.forward().read(&self.read_input.addresses(shape)?, shape)?;
        prepare(&launches, host)?;
        let (input, kernels) = (&self.read_input, &mut *host.kernels);
        let graph = host.stream.capture(|stream| {
            input.send(stream, shape)?;
            launches.iter().try_for_each(|launch| stream.launch(kernels, launch))
        })?;
        self.reads.insert(shape, graph);
        Ok(())
    }

    /// Captures the graph of a level of `shape`, unless it is there.
    fn capture_level(&mut self, shape: LevelShape, host: &mut Host<'_>) -> Result<()> {
        if self.levels.contains(shape) {
            return Ok(());
        }
        let row_bytes = self.spec.draft_vocab_size * size_of::<f32>();
        if shape.has_logits && self.logits.is_none() {
            let num_bytes = MAX_PLAN_ROWS * row_bytes;
            self.logits = Some(MappedBuffer::new(host.stream.context(), num_bytes, "a draft head's logits")?);
        }
        let launches = self.forward().level(&self.level_input.addresses()?, shape)?;
        prepare(&launches, host)?;
        let (input, kernels, workspace) = (&self.level_input, &mut *host.kernels, &self.workspace);
        let graph = host.stream.capture(|stream| {
            input.send(stream, shape)?;
            launches.iter().try_for_each(|launch| stream.launch(kernels, launch))?;
            stream.fetch(workspace.output, &self.output, workspace::output_bytes(shape))?;
            match self.logits.as_ref().filter(|_| shape.has_logits) {
                Some(logits) => stream.fetch(workspace.logits, logits, shape.num_rows * row_bytes),
                None => Ok(()),
            }
        })?;
        self.levels.insert(shape, graph);
        Ok(())
    }

    pub fn facts(&self) -> &DraftFacts {
        self.book.facts()
    }

    /// Bytes of its lanes.
    pub fn kv_bytes(&self) -> u64 {
        self.lanes.num_bytes()
    }

    /// Where a step's graph puts features, each in the row that its input names.
    pub fn features(&self) -> DeviceAddress {
        self.workspace.features
    }

    pub fn follow(&mut self, lane: LaneId, follows: bool, committed_len: usize) {
        self.book.follow(lane, follows, committed_len);
    }

    /// What it was to read in `lane` was perhaps not read.
    pub fn go_cold(&mut self, lane: LaneId) {
        self.book.go_cold(lane);
    }

    /// Whether it has read all of `lane`, so that it can draft after it.
    pub fn is_warm(&self, lane: LaneId, committed_len: usize) -> bool {
        self.book.is_warm(lane, committed_len)
    }
}

/// Kernels are looked up before a capture, which does not permit it.
fn prepare(launches: &[Launch], host: &mut Host<'_>) -> Result<()> {
    host.stream.context().make_current()?;
    Ok(launches.iter().try_for_each(|launch| host.kernels.prepare(launch))?)
}
