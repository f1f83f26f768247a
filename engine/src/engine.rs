//! An engine directory, opened and ready to run.

use std::{path::Path, str::FromStr, thread};

use takt_kernels_cu::driver::context::Share;

use crate::{
    EngineError, Result,
    backend::{
        Backend,
        cpu::{ActivationArithmetic, CpuBackend, CpuOptions},
        cuda::{self, CudaOptions, GpuOptions, GpuWeights},
        tensorrt::{self, TensorRtOptions},
    },
    dir::{EngineDir, Manifest, UncheckedDir},
    draft::DraftManifest,
    kv::KvKind,
    memory::EngineMemory,
    spec::DecoderSpec,
    text::Text,
    weights::WeightSource,
};

/// Most tokens of a lane when the caller names no capacity: models are made for up to 131,072 tokens, whose cache would
/// take gigabytes that a robot's dialogue never uses.
pub const DEFAULT_LANE_CAPACITY: usize = 4096;
/// Most tokens of one step when the caller names none: enough rows to use every loaded weight well.
pub const DEFAULT_STEP_TOKENS: usize = 256;
/// Logits rows of one step at least: what scoring works with, and trees without a draft head.
const MIN_LOGITS_ROWS: usize = 16;
/// Nodes of the trees of one step beyond one a lane, where there is a draft head.
pub const MAX_TREE_NODES: usize = 64;

/// Which backend runs the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BackendKind {
    /// The processor's cores: nothing else has been tried on real hardware yet.
    #[default]
    Auto,
    /// The processor's cores.
    Cpu,
    /// NVIDIA GPUs through our kernels.
    Cuda,
    /// NVIDIA GPUs through TensorRT plans.
    TensorRt,
}

impl BackendKind {
    /// Whether it is one of those that run on a GPU.
    #[must_use]
    pub fn is_gpu(self) -> bool {
        matches!(self, Self::Cuda | Self::TensorRt)
    }
}

impl FromStr for BackendKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda),
            "tensorrt" => Ok(Self::TensorRt),
            _ => Err(format!("unknown backend {text:?}: expected auto, cpu, cuda or tensorrt")),
        }
    }
}

/// How an engine is opened; the default suits one request at a time.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Which backend.
    pub backend: BackendKind,
    /// Threads that compute, the caller's included; `None` for one a core.
    pub threads: Option<usize>,
    /// Lanes that can advance together.
    pub num_lanes: usize,
    /// Tokens one lane holds; `None` for the model's context, at most [`DEFAULT_LANE_CAPACITY`].
    pub lane_capacity: Option<usize>,
    /// KV cache format; `None` for the one recorded in the engine.
    pub kv: Option<KvKind>,
    /// The CPU's arithmetic in linear layers.
    pub arithmetic: ActivationArithmetic,
    /// Most tokens of one step.
    pub max_step_tokens: usize,
    /// Most bytes the KV cache may take; `None` for what the system gives.
    pub max_kv_bytes: Option<u64>,
    /// Load the engine's draft head, where it has one.
    pub speculation: bool,
    /// Most bytes that weights, lanes, snapshots and workspace may take together; `None` for what the system gives.
    pub max_bytes: Option<u64>,
    /// Prefix snapshots that will be kept, for `max_bytes`.
    pub num_snapshots: usize,
    /// How a GPU is used, where one is.
    pub gpu: GpuOptions,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            backend: BackendKind::Auto,
            threads: None,
            num_lanes: 1,
            lane_capacity: None,
            kv: None,
            arithmetic: ActivationArithmetic::Auto,
            max_step_tokens: DEFAULT_STEP_TOKENS,
            max_kv_bytes: None,
            speculation: true,
            max_bytes: None,
            num_snapshots: 0,
            gpu: GpuOptions::default(),
        }
    }
}

impl EngineOptions {
    /// What the CPU backend gets for a model with a draft head in use: a tree's nodes all want logits.
    pub(crate) fn with_draft_rows(&self, mut cpu_options: CpuOptions) -> CpuOptions {
        let num_rows = (self.num_lanes + MAX_TREE_NODES).min(cpu_options.max_step_tokens);
        cpu_options.max_logits_rows = cpu_options.max_logits_rows.max(num_rows);
        cpu_options
    }

    /// What the CUDA backend gets where the CPU backend gets `cpu_options`. Trees are verified without a draft head too.
    pub(crate) fn cuda_options(&self, cpu_options: &CpuOptions, share: Share) -> CudaOptions {
        let cpu_options = self.with_draft_rows(cpu_options.clone());
        CudaOptions {
            share,
            weights: self.gpu.weights,
            num_lanes: cpu_options.num_lanes,
            lane_capacity: cpu_options.lane_capacity,
            kv: cpu_options.kv,
            max_step_tokens: cpu_options.max_step_tokens,
            max_logits_rows: cpu_options.max_logits_rows.min(cpu_options.max_step_tokens),
            max_kv_bytes: cpu_options.max_kv_bytes,
            step_limit: self.gpu.step_limit,
        }
    }

    /// What the TensorRT backend gets. Lanes are as long as the plan's where no capacity is named.
    fn tensorrt_options(&self, share: Share) -> TensorRtOptions {
        let most_rows = (self.num_lanes + MAX_TREE_NODES).max(MIN_LOGITS_ROWS);
        TensorRtOptions {
            share,
            num_lanes: self.num_lanes,
            lane_capacity: self.lane_capacity,
            max_step_tokens: self.max_step_tokens,
            max_logits_rows: most_rows.min(self.max_step_tokens),
            max_kv_bytes: self.max_kv_bytes,
            max_bytes: self.max_bytes,
            num_snapshots: self.num_snapshots,
            step_limit: self.gpu.step_limit,
        }
    }

    /// What the CPU backend gets for a model whose engine records `kv`.
    #[must_use]
    pub fn cpu_options(&self, spec: &DecoderSpec, kv: KvKind) -> CpuOptions {
        let num_cores = || std::thread::available_parallelism().map_or(1, |cores| cores.get());
        CpuOptions {
            num_threads: self.threads.unwrap_or_else(num_cores),
            num_lanes: self.num_lanes,
            lane_capacity: self.lane_capacity.unwrap_or(spec.max_context.min(DEFAULT_LANE_CAPACITY)),
            kv: self.kv.unwrap_or(kv),
            arithmetic: self.arithmetic,
            max_step_tokens: self.max_step_tokens,
            max_logits_rows: self.num_lanes.max(MIN_LOGITS_ROWS),
            max_kv_bytes: self.max_kv_bytes,
        }
    }
}

/// A validated engine directory with the backend that runs it.
pub struct Engine {
    /// What the engine is.
    pub manifest: Manifest,
    /// Tokenizer and chat template; `None` when the engine has none and is only scored by token ids.
    pub text: Option<Text>,
    /// The draft head in use; `None` when the engine has none, or was opened without speculation.
    pub draft: Option<DraftManifest>,
    /// What runs it.
    pub backend: Box<dyn Backend>,
}

impl Engine {
    /// Opens the engine directory `path`, validates all of it and loads it into a backend.
    ///
    /// # Errors
    /// [`EngineError::Corrupt`] or [`EngineError::Io`] for the directory, [`EngineError::Unsupported`] for a backend that this
    /// build or machine lacks, [`EngineError::Capacity`] when it exceeds the memory allowed or the lanes do not fit, [`EngineError::Input`] for an option out of range.
    pub fn open(path: &Path, options: &EngineOptions) -> Result<Self> {
        let dir = UncheckedDir::open(path)?;
        let engine = Self::load(&dir, options);
        // Whatever went wrong with damaged contents, the damage is what to tell of.
        dir.check()?;
        engine
    }

    /// The engine of a directory whose contents are checked meanwhile, or have still to be.
    fn load(unchecked: &UncheckedDir, options: &EngineOptions) -> Result<Self> {
        let dir = unchecked.contents();
        // A tokenizer of 150,000 pieces takes a third of a second, on one thread.
        thread::scope(|scope| {
            let text = thread::Builder::new()
                .name("takt-text".into())
                .spawn_scoped(scope, || open_text(dir))
                .map_err(|e| EngineError::Backend(format!("no thread to read the tokenizer: {e}")))?;
            let loaded = Self::load_backend(dir, unchecked, options);
            let text =
                text.join().map_err(|_| EngineError::Backend("reading the tokenizer failed".into()))??;
            let (draft, backend) = loaded?;
            // A backend owns packed copies, or holds the mapping itself.
            Ok(Self { manifest: dir.manifest().clone(), text, draft, backend })
        })
    }

    fn load_backend(
        dir: &EngineDir,
        unchecked: &UncheckedDir,
        options: &EngineOptions,
    ) -> Result<(Option<DraftManifest>, Box<dyn Backend>)> {
        if options.backend == BackendKind::TensorRt {
            return load_plan(dir, options);
        }
        let manifest = dir.manifest();
        let mut cpu_options = options.cpu_options(&manifest.spec, manifest.quantization.kv);
        let on_gpu = options.backend == BackendKind::Cuda;
        let draft = dir.draft().filter(|_| options.speculation);
        if draft.is_some() {
            cpu_options = options.with_draft_rows(cpu_options);
        }
        if let Some(max_bytes) = options.max_bytes {
            let draft = draft.map(|draft| draft.manifest());
            EngineMemory::of(&manifest.spec, &manifest.quantization, draft, options)?
                .check(max_bytes, options)?;
        }
        let mut backend: Box<dyn Backend> = if on_gpu {
            let cuda_options = |share| options.cuda_options(&cpu_options, share);
            Box::new(cuda::open(&manifest.spec, unchecked, Some(dir.path()), &options.gpu, cuda_options)?)
        } else {
            Box::new(CpuBackend::new(&manifest.spec, unchecked, &cpu_options)?)
        };
        if let Some(draft) = draft {
            backend.attach_draft(&draft.manifest().spec, draft)?;
        }
        Ok((draft.map(|draft| draft.manifest().clone()), backend))
    }
}

/// The plan of an engine, which says what it computes with and what its cache holds.
fn load_plan(dir: &EngineDir, options: &EngineOptions) -> Result<(Option<DraftManifest>, Box<dyn Backend>)> {
    if options.kv == Some(KvKind::Int8) {
        return Err(EngineError::Unsupported(
            "an int8 KV cache with TensorRT: a plan's cache has the 16 bits of its products, or is fp8; leave --kv out, or use --backend cuda".into(),
        ));
    }
    if options.gpu.weights == GpuWeights::Mapped {
        tracing::warn!(
            "weights are not read in their mapped file: a TensorRT plan has its own, which are copied"
        );
    }
    let head = dir.draft().filter(|_| options.speculation);
    let asked = tensorrt::Asked { head: head.is_some(), kv: options.kv };
    let mut backend = tensorrt::open(dir, &options.gpu, asked, |share| options.tensorrt_options(share))?;
    let (recorded, has) = (dir.manifest().quantization.kv, backend.capabilities().kv);
    if options.kv.is_none() && recorded != has {
        tracing::warn!("the engine asks for a {recorded} KV cache, the TensorRT plan's is {has}");
    }
    let Some(head) = head else { return Ok((None, Box::new(backend))) };
    let manifest = head.manifest();
    if !backend.puts_out(&manifest.spec.captured) {
        tracing::warn!(
            "the plan was built without the engine's draft head, which goes unused; build it again with `takt build DIR --tensorrt --plans-only`"
        );
        return Ok((None, Box::new(backend)));
    }
    if !manifest.spec.own_embedding {
        backend.set_embedding(dir.embedding()?)?;
    }
    backend.attach_draft(&manifest.spec, head)?;
    Ok((Some(manifest.clone()), Box::new(backend)))
}

fn open_text(dir: &EngineDir) -> Result<Option<Text>> {
    let text = Text::open(dir.path())?;
    if let Some(text) = &text {
        text.check_vocab_size(dir.manifest().spec.vocab_size)?;
    }
    Ok(text)
}

/// A backend for weights that are in no engine directory, as [`RandomWeights`](crate::shapes::RandomWeights); their cache is BF16 unless `options`
/// say otherwise.
///
/// # Errors
/// As [`Engine::open`], without those of a directory.
pub fn open_weights(
    spec: &DecoderSpec,
    source: &dyn WeightSource,
    options: &EngineOptions,
) -> Result<Box<dyn Backend>> {
    if options.backend == BackendKind::TensorRt {
        return Err(EngineError::Unsupported(
            "tensorrt runs plans, which are built of engine directories; give one, or use `cpu` or `cuda`"
                .into(),
        ));
    }
    let cpu_options = options.cpu_options(spec, KvKind::Bf16);
    if options.backend != BackendKind::Cuda {
        return Ok(Box::new(CpuBackend::new(spec, source, &cpu_options)?));
    }
    let cuda_options = |share| options.cuda_options(&cpu_options, share);
    Ok(Box::new(cuda::open(spec, source, None, &options.gpu, cuda_options)?))
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let capabilities = self.backend.capabilities();
        f.debug_struct("Engine")
            .field("manifest", &self.manifest)
            .field("backend", capabilities)
            .finish_non_exhaustive()
    }
}
