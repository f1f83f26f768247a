//! The CPU backend: one model, its lanes and its threads.

use std::{ops::Range, str::FromStr};

use super::{
    activations::Arithmetic,
    arena::{Arena, AttentionTasks, StepLimits},
    draft::{CpuDraft, DraftSetup, Host},
    forward::Forward,
    kernels::Isa,
    model::Model,
    pool::ThreadPool,
    rope::RopeTable,
    vectors::Vectors,
};
use crate::{
    EngineError, Result,
    backend::{Backend, Capabilities, limits::Sizes, no_draft, no_row, plan_check::check_plan},
    draft::{DraftFacts, DraftOutput, DraftPlan, DraftSource, DraftSpec},
    kv::{KvKind, KvLanes, LaneId, SnapshotId},
    quant::WeightKind,
    rows::{FetchPermit, Likeliest, RowSource},
    spec::DecoderSpec,
    step::{StepOutput, StepPlan},
    weights::WeightSource,
};

/// How weights meet activations, as a caller asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ActivationArithmetic {
    /// Integer for 4-bit weights where the machine has fast integer scalar products, F32 otherwise.
    #[default]
    Auto,
    /// F32 activations: closest to the reference.
    F32,
    /// 8-bit activations against 4-bit weights: fastest.
    Int8,
}

impl FromStr for ActivationArithmetic {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "int8" => Ok(Self::Int8),
            _ => Err(format!("unknown activation arithmetic {text:?}: expected auto, f32 or int8")),
        }
    }
}

impl ActivationArithmetic {
    fn resolve(self, weights: WeightKind, isa: Isa) -> Arithmetic {
        let is_4_bit = matches!(weights, WeightKind::Nvfp4 | WeightKind::Int4);
        match self {
            Self::F32 => Arithmetic::F32,
            Self::Int8 => Arithmetic::Int8,
            Self::Auto if is_4_bit && has_integer_dot(isa) => Arithmetic::Int8,
            Self::Auto => Arithmetic::F32,
        }
    }
}

fn has_integer_dot(isa: Isa) -> bool {
    ["avx512-vnni", "avx2-vnni", "avx2", "neon-dotprod", "neon-i8mm"].contains(&isa.name())
}

/// How a [`CpuBackend`] is set up.
#[derive(Debug, Clone)]
pub struct CpuOptions {
    /// Threads that compute, the caller's included.
    pub num_threads: usize,
    /// Lanes that can advance together.
    pub num_lanes: usize,
    /// Tokens one lane holds.
    pub lane_capacity: usize,
    /// KV cache format.
    pub kv: KvKind,
    /// Arithmetic of the linear layers.
    pub arithmetic: ActivationArithmetic,
    /// Most tokens of one plan.
    pub max_step_tokens: usize,
    /// Most logits rows of one plan.
    pub max_logits_rows: usize,
    /// Most bytes the lanes may take; `None` for what the system gives.
    pub max_kv_bytes: Option<u64>,
}

/// Runs a model on this machine's cores.
#[derive(Debug)]
pub struct CpuBackend {
    spec: DecoderSpec,
    capabilities: Capabilities,
    model: Model,
    rope: RopeTable,
    pool: ThreadPool,
    vectors: Vectors,
    lanes: KvLanes,
    arena: Arena,
    arithmetic: ActivationArithmetic,
    max_kv_bytes: Option<u64>,
    draft: Option<CpuDraft>,
}

impl CpuBackend {
    /// Loads and packs the weights of `spec` from `source`, allocates the lanes and everything a step needs.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] or [`EngineError::Tensor`] for a model that does not hold, [`EngineError::Capacity`] when
    /// the lanes do not fit, [`EngineError::Input`] for an option of 0.
    pub fn new(spec: &DecoderSpec, source: &dyn WeightSource, options: &CpuOptions) -> Result<Self> {
        spec.validate()?;
        options.validate(spec)?;
        let lanes =
            KvLanes::new(spec, options.kv, options.num_lanes, options.lane_capacity, options.max_kv_bytes)?;
        let model = Model::load(spec, source, options.num_threads)?;
        let isa = Isa::detect();
        let arithmetic = options.arithmetic.resolve(model.weight_kind(), isa);
        let limits = StepLimits {
            max_tokens: options.max_step_tokens,
            max_logits_rows: options.max_logits_rows,
            num_lanes: options.num_lanes,
        };
        Ok(Self {
            capabilities: options.capabilities(
                &model,
                &lanes,
                format!("{isa}, {} activations", arithmetic.name()),
            ),
            rope: RopeTable::new(&spec.rope, options.lane_capacity),
            pool: ThreadPool::new(options.num_threads)?,
            vectors: Vectors::detect(),
            arena: Arena::new(spec, limits, arithmetic).with_largest(options.num_threads),
            spec: spec.clone(),
            model,
            lanes,
            arithmetic: options.arithmetic,
            max_kv_bytes: options.max_kv_bytes,
            draft: None,
        })
    }
}

impl CpuOptions {
    pub(crate) fn validate(&self, spec: &DecoderSpec) -> Result<()> {
        let sizes = Sizes {
            num_lanes: self.num_lanes,
            lane_capacity: self.lane_capacity,
            max_step_tokens: self.max_step_tokens,
            max_logits_rows: self.max_logits_rows,
        };
        sizes.check(spec)
    }

    fn capabilities(&self, model: &Model, lanes: &KvLanes, kernels: String) -> Capabilities {
        Capabilities {
            backend: "cpu",
            device: format!("cpu-{}", std::env::consts::ARCH),
            kernels,
            num_lanes: self.num_lanes,
            lane_capacity: self.lane_capacity,
            max_step_tokens: self.max_step_tokens,
            max_logits_rows: self.max_logits_rows,
            num_threads: self.num_threads,
            multiprocessors: None,
            kv: self.kv,
            weight_bytes_per_step: model.bytes_per_step(),
            kv_bytes: lanes.num_bytes(),
        }
    }
}

impl Backend for CpuBackend {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    fn run_step(&mut self, plan: &StepPlan) -> Result<StepOutput<'_>> {
        check_plan(plan, self.spec.vocab_size, &self.capabilities, self.lanes.book())?;
        self.arena.lay_out(plan, &self.lanes, AttentionTasks::block_len(&self.spec));
        let forward = Forward { spec: &self.spec, rope: &self.rope, pool: &self.pool, vectors: self.vectors };
        forward.run(&self.model, &plan.tokens, &mut self.arena, &mut self.lanes);
        if let Some(draft) = &mut self.draft {
            let embed = |token, out: &mut [f32]| self.model.embed(token, out);
            let host = Host { pool: &self.pool, vectors: self.vectors, embed: &embed };
            draft.follow_step(plan, &self.arena.features, |lane| self.lanes.committed_len(lane), host);
        }
        for segment in &plan.segments {
            if segment.is_tree {
                self.lanes.note_tree(segment.lane, &plan.parents[segment.tokens.clone()]);
            } else {
                self.lanes.commit(segment.lane, segment.tokens.len());
            }
        }
        let feature_len = plan.tokens.len() * self.arena.captured.len() * self.spec.hidden_size;
        let features = &self.arena.features[..feature_len];
        Ok(StepOutput::new(self, &self.arena.first_row, self.spec.vocab_size, features))
    }

    fn capture(&mut self, layer_inputs: &[usize]) -> Result<()> {
        if self.draft.is_some() {
            return Err(EngineError::Input("features are captured for the draft head already".into()));
        }
        let num_layers = self.spec.num_layers;
        if let Some(layer) = layer_inputs.iter().find(|&&layer| layer > num_layers) {
            return Err(EngineError::Input(format!(
                "features at the input of layer {layer}, the model has {num_layers} layers: expected 0..={num_layers}"
            )));
        }
        let len = self.capabilities.max_step_tokens * layer_inputs.len() * self.spec.hidden_size;
        self.arena.captured = layer_inputs.to_vec();
        self.arena.features = vec![0.0; len];
        Ok(())
    }

    fn keep(&mut self, lane: LaneId, path: &[usize]) -> Result<()> {
        self.lanes.keep(lane, path)?;
        if let Some(draft) = &mut self.draft {
            let embed = |token, out: &mut [f32]| self.model.embed(token, out);
            let host = Host { pool: &self.pool, vectors: self.vectors, embed: &embed };
            draft.keep(lane, path, &self.arena.features, host);
        }
        Ok(())
    }

    fn committed_len(&self, lane: LaneId) -> usize {
        self.lanes.committed_len(lane)
    }

    fn truncate(&mut self, lane: LaneId, len: usize) -> Result<()> {
        self.lanes.truncate(lane, len)?;
        if let Some(draft) = &mut self.draft {
            draft.truncate(lane, len);
        }
        Ok(())
    }

    fn save_snapshot(&mut self, lane: LaneId, len: usize) -> Result<SnapshotId> {
        let snapshot = self.lanes.save_snapshot(lane, len)?;
        if let Some(draft) = &mut self.draft
            && let Err(error) = draft.save_snapshot(lane, len, snapshot)
        {
            self.lanes.drop_snapshot(snapshot);
            return Err(error);
        }
        Ok(snapshot)
    }

    fn restore_snapshot(&mut self, lane: LaneId, snapshot: SnapshotId) -> Result<()> {
        self.lanes.restore_snapshot(lane, snapshot)?;
        self.draft.as_mut().map_or(Ok(()), |draft| draft.restore_snapshot(lane, snapshot))
    }

    fn drop_snapshot(&mut self, snapshot: SnapshotId) {
        self.lanes.drop_snapshot(snapshot);
        if let Some(draft) = &mut self.draft {
            draft.drop_snapshot(snapshot);
        }
    }

    fn attach_draft(&mut self, spec: &DraftSpec, source: &dyn DraftSource) -> Result<()> {
        spec.validate(&self.spec)?;
        let Capabilities { num_lanes, lane_capacity, kv, .. } = self.capabilities;
        let max_kv_bytes = self.max_kv_bytes.map(|most| most.saturating_sub(self.lanes.num_bytes()));
        let setup = DraftSetup { num_lanes, lane_capacity, kv, max_kv_bytes };
        let arithmetic = self.arithmetic;
        let draft = CpuDraft::new(spec, source, setup, |weights| arithmetic.resolve(weights, Isa::detect()))?;
        (0..num_lanes).try_for_each(|lane| self.lanes.truncate(LaneId(lane), 0))?;
        self.capabilities.kv_bytes = self.lanes.num_bytes() + draft.kv_bytes();
        self.draft = None;
        self.capture(&spec.captured)?;
        self.draft = Some(draft);
        Ok(())
    }

    fn draft_facts(&self) -> Option<&DraftFacts> {
        self.draft.as_ref().map(CpuDraft::facts)
    }

    fn follow(&mut self, lane: LaneId, follows: bool) {
        let committed_len = self.lanes.committed_len(lane);
        if let Some(draft) = &mut self.draft {
            draft.follow(lane, follows, committed_len);
        }
    }

    fn can_draft(&self, lane: LaneId) -> bool {
        self.draft.as_ref().is_some_and(|draft| draft.is_warm(lane, self.lanes.committed_len(lane)))
    }

    fn draft(&mut self, plan: &DraftPlan) -> Result<DraftOutput<'_>> {
        let Some(draft) = &mut self.draft else { return Err(no_draft("cpu")) };
        let embed = |token, out: &mut [f32]| self.model.embed(token, out);
        let host = Host { pool: &self.pool, vectors: self.vectors, embed: &embed };
        draft.draft(plan, |lane| self.lanes.committed_len(lane), host)
    }
}

/// Every row is here, whole; so no list is worth more than the largest logit, which is found anyway.
impl RowSource for CpuBackend {
    fn here(&self, rows: Range<usize>) -> Option<&[f32]> {
        let vocab_size = self.spec.vocab_size;
        let computed = &self.arena.logits[..self.arena.logits_tokens.len() * vocab_size];
        computed.get(rows.start * vocab_size..rows.end * vocab_size)
    }

    fn list(&self, row: usize) -> Option<Likeliest<'_>> {
        self.arena.largest.row(row)
    }

    fn fetch(&self, row: usize, _: FetchPermit) -> Result<&[f32]> {
        self.here(row..row + 1).ok_or_else(|| no_row(row, self.arena.logits_tokens.len()))
    }
}
