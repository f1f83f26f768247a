//! Checkpoint → engine directory.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use takt_engine::{
    dir::{
        CHAT_TEMPLATE_FILE, EngineDir, FileEntry, GENERATION_FILE, KERNELS_FOLDER, MANIFEST_FILE, Manifest,
        Part, PlanEntry, PlanList, Quantization, SCHEMA_VERSION, TOKENIZER_FILE, WEIGHTS_FILE,
        expected_tensors, parts,
    },
    kv::KvKind,
    quant::WeightKind,
    spec::DecoderSpec,
};

use crate::{
    BuildError, Result,
    checkpoint::{Checkpoint, TensorSource},
    draft::{Added, DraftOptions, add_draft, draft_warnings},
    kernels::BoardKernels,
    plans::{self, DevicePlans, add_plans},
    quantize::{source_name, write_part},
    report::{BuildReport, TensorError},
    source,
    staging::{Kind, Staging},
    text_files::write_text_files,
    write::{WeightsFile, file_entry},
};

/// What to make of a checkpoint.
#[derive(Debug, Clone, Copy)]
pub struct BuildOptions<'a> {
    /// Format of the decoder layers' linear weights.
    pub weights: WeightKind,
    /// Format of the output head; by default bf16 for bf16 weights and for plans of a GPU that has no 8-bit floats, otherwise fp8.
    pub lm_head: Option<WeightKind>,
    /// KV cache format recorded in the engine; bf16 by default.
    pub kv: Option<KvKind>,
    /// Longest context the engine promises, in tokens; at most the model's own, which is the default.
    pub max_context: Option<usize>,
    /// A draft head to add.
    pub draft: Option<DraftOptions<'a>>,
    /// CUDA kernels to compile into it.
    pub kernels: Option<&'a BoardKernels>,
    /// TensorRT plans to build into it, for this device.
    pub plans: Option<&'a DevicePlans>,
    /// Replace an engine that is already there.
    pub force: bool,
    /// Set by another thread to stop the build at the next tensor or kernel source.
    pub cancelled: Option<&'a AtomicBool>,
}

impl BuildOptions<'_> {
    /// Defaults for a weight format.
    #[must_use]
    pub fn new(weights: WeightKind) -> Self {
        Self {
            weights,
            lm_head: None,
            kv: None,
            max_context: None,
            draft: None,
            kernels: None,
            plans: None,
            force: false,
            cancelled: None,
        }
    }

    /// The engine's number formats.
    #[must_use]
    pub fn quantization(&self) -> Quantization {
        let takes_fp8 = self.plans.is_none_or(|plans| plans.takes(WeightKind::Fp8));
        let default_head =
            if self.weights == WeightKind::Bf16 || !takes_fp8 { WeightKind::Bf16 } else { WeightKind::Fp8 };
        Quantization {
            weights: self.weights,
            lm_head: self.lm_head.unwrap_or(default_head),
            kv: self.kv.unwrap_or(KvKind::Bf16),
        }
    }

    pub(crate) fn check_cancelled(&self) -> Result<()> {
        match self.cancelled {
            Some(flag) if flag.load(Ordering::Relaxed) => Err(BuildError::Cancelled),
            _ => Ok(()),
        }
    }
}

/// What a build is working through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The sources of the kernels, for each target; reported before each is compiled, which takes seconds.
    Kernels,
    /// The tensors of a checkpoint; reported after each.
    Tensors,
    /// Constants of the ONNX models that plans are built from; reported after each.
    Models,
    /// TensorRT's phases, which nest; reported at each step of each.
    Plans,
}

/// How far a build is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// What the items are.
    pub stage: Stage,
    /// The tensor just written; the source about to be compiled, with its target; the phase of TensorRT, with the one it is part of.
    pub item: &'a str,
    /// Items of the stage done so far.
    pub done: usize,
    /// Items of the stage in all.
    pub total: usize,
    /// Bytes the stage has written so far.
    pub bytes: u64,
}

/// Builds the engine directory `out` from `source`: a Hugging Face folder, an `.onnx` file or a folder with `model.onnx`.
///
/// Memory stays bounded by the largest tensor (its F32 copy and its quantized form). The same source and options give the
/// same bytes. `out` appears whole, by a rename, or not at all.
///
/// # Errors
/// [`BuildError`]; nothing is left behind, and an engine that was at `out` is still there.
pub fn build(
    source: &Path,
    out: &Path,
    options: &BuildOptions<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<BuildReport> {
    let (checkpoint, source_kind) = source::open(source)?;
    build_checkpoint(checkpoint, source_kind, out, options, progress)
}

/// Builds from an opened checkpoint; `source_kind` is recorded in the manifest.
///
/// # Errors
/// As [`build`].
pub fn build_checkpoint(
    checkpoint: Checkpoint,
    source_kind: &str,
    out: &Path,
    options: &BuildOptions<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<BuildReport> {
    let Checkpoint { spec, tensors, text } = checkpoint;
    let spec = with_context(spec, options.max_context)?;
    let quantization = options.quantization();
    let plan = Plan::new(&spec, &quantization, &*tensors)?;
    options.plans.map_or(Ok(()), |plans| plans.check(&spec, &quantization))?;
    let dropped = options.force.then(|| dropped_plans(out, options.plans)).flatten();
    let staging = Staging::start(out, Kind::Engine, options.force)?;
    if options.plans.is_some() {
        plans::check_room_with_engine(staging.path(), plan.num_bytes())?;
    }
    // Before the weights: a bad tokenizer should not cost the time of quantizing them.
    let mut warnings = write_text_files(&staging, &text, &spec)?;
    // Nor should kernels that do not compile.
    let kernels = options.kernels.map(|kernels| {
        let folder = staging.path().join(KERNELS_FOLDER);
        kernels.compile_into(&folder, options.cancelled, progress)
    });
    let kernels = kernels.transpose()?;
    warnings.extend(options.kernels.and_then(BoardKernels::warning));
    // And a head of another model not the time of this one's.
    let added = options.draft.map(|draft| {
        let mut report = |item: &str, done, total, bytes| {
            progress(Progress { stage: Stage::Tensors, item, done, total, bytes });
        };
        add_draft(draft.folder, &spec, options, &staging, &mut report)
    });
    let added = added.transpose()?;
    let losses = plan.write_weights(&staging.path().join(WEIGHTS_FILE), &*tensors, options, progress)?;
    let files = list_files(staging.path())?;
    let mut manifest = Manifest {
        schema_version: SCHEMA_VERSION,
        builder_version: env!("CARGO_PKG_VERSION").into(),
        source: source_kind.into(),
        spec: spec.clone(),
        quantization,
        eos_token_ids: text.eos_token_ids.clone(),
        files,
        plans: PlanList::default(),
    };
    let mut json = manifest.to_json()?;
    staging.write(MANIFEST_FILE, &json)?;
    let draft = match added {
        Some(added) if options.draft.is_some_and(|draft| draft.measures) => {
            let item = "trying the draft head";
            progress(Progress { stage: Stage::Tensors, item, done: 1, total: 1, bytes: 0 });
            let report = added.choose_reading(options, &staging)?;
            manifest.files = list_files(staging.path())?;
            json = manifest.to_json()?;
            staging.replace(MANIFEST_FILE, &json)?;
            Some(report)
        }
        added => added.map(Added::keep_reading),
    };
    warnings.extend(draft.iter().flat_map(|draft| draft_warnings(&draft.manifest, &manifest)));
    // What is published is what the runtime would open; the contents were hashed a moment ago.
    EngineDir::check_structure(staging.path())?;
    options.check_cancelled()?;
    let built = options.plans.map(|plans| add_plans(staging.path(), plans, options.cancelled, progress));
    let plans = built.transpose()?;
    warnings.extend(dropped);
    staging.commit()?;
    Ok(BuildReport {
        engine_bytes: manifest.total_bytes() + json.len() as u64,
        num_parameters: plan.num_parameters(),
        spec,
        quantization,
        tensors: losses,
        draft,
        kernels,
        plans,
        warnings,
    })
}

/// What the user should know of an engine at `out` that is about to be replaced: its plans go with it.
fn dropped_plans(out: &Path, built: Option<&DevicePlans>) -> Option<String> {
    let old = Manifest::read(out).ok()?.plans;
    let is_built = |plan: &PlanEntry| built.is_some_and(|built| built.is_for(plan));
    let gone: Vec<&str> = old.iter().filter(|plan| !is_built(plan)).map(|plan| plan.file.as_str()).collect();
    (!gone.is_empty()).then(|| {
        format!(
            "TensorRT plans of the engine that was there are gone with it: {}; on their devices, takt build {} --tensorrt --plans-only builds new ones",
            gone.join(", "),
            out.display()
        )
    })
}

fn with_context(mut spec: DecoderSpec, max_context: Option<usize>) -> Result<DecoderSpec> {
    if let Some(wanted) = max_context {
        let made_for = spec.max_context;
        if wanted == 0 || wanted > made_for {
            let fact = format!("a context of {wanted} tokens: the model was made for 1 to {made_for}");
            return Err(BuildError::Unsupported(fact));
        }
        spec.max_context = wanted;
    }
    spec.validate()?;
    Ok(spec)
}

/// The files of a finished engine but the manifest, sorted by name.
fn list_files(folder: &Path) -> Result<Vec<FileEntry>> {
    let mut names = vec![CHAT_TEMPLATE_FILE, GENERATION_FILE, TOKENIZER_FILE, WEIGHTS_FILE];
    names.extend(Added::FILES);
    names.sort_unstable();
    names.into_iter().filter(|name| folder.join(name).exists()).map(|name| file_entry(folder, name)).collect()
}

/// What will be written, checked before anything is.
struct Plan {
    parts: Vec<Part>,
    /// The checkpoint's tensor for each part.
    sources: Vec<String>,
    stored: Vec<takt_engine::dir::StoredTensor>,
    tied: bool,
}

impl Plan {
    fn new(spec: &DecoderSpec, quantization: &Quantization, tensors: &dyn TensorSource) -> Result<Self> {
        let parts = parts(spec, quantization);
        let sources: Vec<String> = parts.iter().map(|part| source_name(part, spec.tied_embeddings)).collect();
        if let Some(name) = sources.iter().find(|name| !tensors.contains(name)) {
            let fact = "is missing from the checkpoint".into();
            return Err(BuildError::Tensor { name: name.clone(), fact });
        }
        let stored = expected_tensors(spec, quantization)?;
        Ok(Self { parts, sources, stored, tied: spec.tied_embeddings })
    }

    fn write_weights(
        &self,
        path: &Path,
        tensors: &dyn TensorSource,
        options: &BuildOptions<'_>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Vec<TensorError>> {
        let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
        let mut weights = WeightsFile::create(path, self.stored.clone())?;
        let mut losses = Vec::new();
        for (idx, (part, source)) in self.parts.iter().zip(&self.sources).enumerate() {
            options.check_cancelled()?;
            losses.extend(write_part(part, source, tensors, &mut weights, num_threads)?);
            let (done, total, bytes) = (idx + 1, self.parts.len(), weights.bytes_written());
            progress(Progress { stage: Stage::Tensors, item: source, done, total, bytes });
        }
        weights.finish()?;
        Ok(losses)
    }

    /// Of the file of weights.
    fn num_bytes(&self) -> u64 {
        self.stored.iter().map(|tensor| tensor.byte_len as u64).sum()
    }

    fn num_parameters(&self) -> u64 {
        let count = |part: &Part| match part {
            Part::Vector(part) => part.len as u64,
            Part::Tokens(_) => 0,
            Part::Matrix(part) if self.tied && part.name == "lm_head" => 0,
            Part::Matrix(part) => part.num_rows as u64 * part.num_cols as u64,
        };
        self.parts.iter().map(count).sum()
    }
}
