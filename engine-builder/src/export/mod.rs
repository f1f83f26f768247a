//! An engine as ONNX models, for TensorRT or any runtime of the standard: explicit cache, weights in the engine's own quantized bytes.
//!
//! 1. [`target`]: who reads them, and what that reader takes. [`options`]: what is wanted.
//! 2. [`graph`], [`data_file`]: a graph under construction; its large constants in a file beside it, streamed from the mapped engine.
//! 3. [`writer`]: what the parts are written with. [`linear`], [`norm`], [`rotary`], [`mask`], [`attention`], [`activation`]: those parts.
//! 4. [`layer`], [`decoder`], [`draft`]: the equations of [`DecoderSpec`] and of [`takt_engine::draft::DraftSpec`], in their order.
//! 5. [`contract`]: names, shapes, types and profiles of all inputs and outputs, for whoever builds plans.
//!
//! Matrix products are in one type of 16 bits; the residual stream, norms, rotations, gates and logits are in 32.

mod activation;
mod attention;
mod contract;
mod data_file;
mod decoder;
mod draft;
mod graph;
mod layer;
mod linear;
mod mask;
mod norm;
mod options;
mod rotary;
mod target;
mod tensors;
mod writer;

use std::path::Path;

use takt_engine::{
    dir::{EngineDir, Part, Quantization, WEIGHTS_FILE, parts},
    draft::DraftManifest,
    engine::DEFAULT_LANE_CAPACITY,
    quant::WeightKind,
    spec::DecoderSpec,
    weights::WeightSource,
};

pub use contract::{CONTRACT_FILE, CONTRACT_VERSION, Contract, Model, Profile, ProfileInput};
pub use graph::{Dim, ElementType, Port};
pub use options::{Activations, Compute, ExportOptions, Variant};
pub use target::{Form, Runtime, Target, TensorRtVersion};

use contract::{Extents, ModelFacts};
use data_file::DataFile;
use decoder::DecoderInputs;
use draft::draft_capacity;
use graph::{Graph, Placed};
use tensors::{DraftTensors, EMBEDDING, TargetTensors, Tensors};
use writer::{Report, Writer};

use crate::{
    BuildError, Result,
    staging::{Kind, Staging},
};

/// The target's file.
pub const MODEL_FILE: &str = "model.onnx";
/// Its data.
pub const MODEL_DATA_FILE: &str = "model.onnx.data";
/// The draft head's file.
pub const DRAFT_FILE: &str = "draft.onnx";
/// Its data.
pub const DRAFT_DATA_FILE: &str = "draft.onnx.data";
/// Everything an export may hold.
pub(crate) const EXPORT_FILES: [&str; 5] =
    [CONTRACT_FILE, MODEL_FILE, MODEL_DATA_FILE, DRAFT_FILE, DRAFT_DATA_FILE];

/// How far an export is: a tensor has been written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExportProgress<'a> {
    /// The model it is part of.
    pub file: &'a str,
    /// The tensor.
    pub item: &'a str,
    /// Tensors of the model so far.
    pub done: usize,
    /// In all.
    pub total: usize,
    /// Bytes of the model's data so far.
    pub bytes: u64,
}

/// What was written.
#[derive(Debug, Clone)]
pub struct ExportReport {
    /// `export.json`.
    pub contract: Contract,
    /// Bytes of all files.
    pub total_bytes: u64,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Writes the engine directory `engine` as ONNX models into the folder `out`.
///
/// Weights are copied from the mapped engine, a megabyte at a time. The same engine and options give the same bytes. `out` appears whole, by a
/// rename, or not at all.
///
/// # Errors
/// [`BuildError::Unsupported`] for what the target does not take, saying what it does; [`BuildError::Engine`] for an engine that does not hold;
/// [`BuildError::Io`]; [`BuildError::Cancelled`]. Nothing is left behind, and an export that was at `out` is still there.
pub fn export(
    engine: &Path,
    out: &Path,
    options: &ExportOptions<'_>,
    progress: &mut dyn FnMut(ExportProgress<'_>),
) -> Result<ExportReport> {
    let engine = EngineDir::open(engine)?;
    let manifest = engine.manifest();
    let source = Source {
        spec: &manifest.spec,
        quantization: manifest.quantization,
        weights: &engine,
        draft: engine.draft().map(|draft| (draft.manifest(), draft as _)),
        weights_hash: manifest.file(WEIGHTS_FILE).map(|entry| entry.blake3.clone()),
    };
    export_source(&source, out, options, progress)
}

/// What is exported: a description with its weights, and perhaps a head.
#[derive(Clone)]
pub struct Source<'a> {
    /// The decoder.
    pub spec: &'a DecoderSpec,
    /// Its formats.
    pub quantization: Quantization,
    /// Its weights.
    pub weights: &'a dyn WeightSource,
    /// A head and its weights.
    pub draft: Option<(&'a DraftManifest, &'a dyn takt_engine::draft::DraftSource)>,
    /// What tells these weights from others.
    pub weights_hash: Option<String>,
}

impl std::fmt::Debug for Source<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (family, has_draft) = (&self.spec.family, self.draft.is_some());
        f.debug_struct("Source")
            .field("family", family)
            .field("has_draft", &has_draft)
            .finish_non_exhaustive()
    }
}

/// [`export`] of weights from anywhere.
///
/// # Errors
/// As [`export`].
pub fn export_source(
    source: &Source<'_>,
    out: &Path,
    options: &ExportOptions<'_>,
    progress: &mut dyn FnMut(ExportProgress<'_>),
) -> Result<ExportReport> {
    let plan = Plan::new(source, options)?;
    let staging = Staging::start(out, Kind::Export, options.force)?;
    let (decoder, embedding) = plan.write_decoder(&staging, progress)?;
    let mut models = vec![decoder];
    if plan.variant == Variant::Eagle3 {
        models.extend(plan.write_draft(&staging, embedding, progress)?);
    }
    let contract = Contract {
        schema_version: CONTRACT_VERSION,
        exporter_version: env!("CARGO_PKG_VERSION").into(),
        engine_weights: source.weights_hash.clone(),
        target: options.target,
        form: plan.form,
        compute: options.compute,
        activations: options.activations,
        quantization: source.quantization,
        variant: plan.variant,
        capacity: plan.capacity,
        models,
    };
    let mut json = serde_json::to_vec_pretty(&contract)
        .map_err(|e| BuildError::Unsupported(format!("the contract cannot be written as JSON: {e}")))?;
    json.push(b'\n');
    staging.write(CONTRACT_FILE, &json)?;
    let total_bytes = folder_bytes(staging.path());
    staging.commit()?;
    Ok(ExportReport { contract, total_bytes, warnings: plan.warnings() })
}

fn folder_bytes(folder: &Path) -> u64 {
    let len = |name: &str| std::fs::metadata(folder.join(name)).map_or(0, |facts| facts.len());
    EXPORT_FILES.into_iter().map(len).sum()
}

/// What will be written, checked before anything is.
struct Plan<'a> {
    source: &'a Source<'a>,
    options: &'a ExportOptions<'a>,
    form: Form,
    variant: Variant,
    capacity: usize,
}

impl<'a> Plan<'a> {
    fn new(source: &'a Source<'a>, options: &'a ExportOptions<'a>) -> Result<Self> {
        source.spec.validate()?;
        let form = options.form.unwrap_or_else(|| options.target.newest_form());
        options.target.check_form(form)?;
        options.target.check_weights(source.quantization.weights, "decoder layers", "--weights")?;
        options.target.check_weights(source.quantization.lm_head, "the output head", "--lm-head")?;
        let default = if source.draft.is_some() { Variant::Eagle3 } else { Variant::Plain };
        let variant = options.variant.unwrap_or(default);
        if let Some((draft, _)) = source.draft.filter(|_| variant == Variant::Eagle3) {
            draft.spec.validate(source.spec)?;
            options.target.check_weights(draft.weights, "the draft head's layer", "--weights")?;
            options.target.check_weights(draft.lm_head, "the draft head's output head", "--weights")?;
        }
        if options.activations == Activations::Quantized
            && source.quantization.weights == WeightKind::Nvfp4
            && !options.target.is_tensorrt()
        {
            return Err(BuildError::Unsupported(format!(
                "NVFP4 activations for {}: the standard has no operator that finds their scales; use a TensorRT target, or plain activations",
                options.target
            )));
        }
        let made_for = source.spec.max_context;
        let capacity = options.max_context.unwrap_or(made_for.min(DEFAULT_LANE_CAPACITY));
        if capacity == 0 || capacity > made_for {
            let fact = format!("a context of {capacity} tokens: the model was made for 1 to {made_for}");
            return Err(BuildError::Unsupported(fact));
        }
        if options.num_lanes == Some(0) {
            return Err(BuildError::Unsupported("0 lanes: at least 1 is needed".into()));
        }
        Ok(Self { source, options, form, variant, capacity })
    }

    /// The model, and where its embedding lies.
    fn write_decoder(
        &self,
        staging: &Staging,
        progress: &mut dyn FnMut(ExportProgress<'_>),
    ) -> Result<(Model, Option<Placed>)> {
        let (source, quantization) = (self.source, self.source.quantization);
        let inputs = DecoderInputs {
            quantization,
            variant: self.variant,
            captured: source
                .draft
                .filter(|_| self.variant == Variant::Eagle3)
                .map(|(draft, _)| draft.spec.captured),
            hidden_states: self.options.hidden_states,
        };
        let tensors = TargetTensors(source.weights);
        let facts = ModelFacts {
            role: "decoder",
            file: MODEL_FILE,
            data_file: MODEL_DATA_FILE,
            opset: self.form.opset(&[quantization.weights, quantization.lm_head]),
            lm_head: quantization.lm_head,
            num_layers: source.spec.num_layers,
        };
        let mut writer = self.writer(staging, source.spec, &tensors, &facts, progress)?;
        writer.capacity = self.capacity;
        writer.head_is_embedding = source.spec.tied_embeddings && quantization.lm_head == WeightKind::Bf16;
        writer.report.total = num_constants(&parts(source.spec, &quantization));
        writer.decoder(&inputs)?;
        let embedding = writer.graph.placed(&format!("{EMBEDDING}.weight"));
        Ok((self.finish(staging, writer, &facts)?, embedding))
    }

    fn write_draft(
        &self,
        staging: &Staging,
        embedding: Option<Placed>,
        progress: &mut dyn FnMut(ExportProgress<'_>),
    ) -> Result<Option<Model>> {
        let Some((manifest, head)) = self.source.draft else { return Ok(None) };
        let spec = manifest.spec.layer();
        let tensors =
            DraftTensors { head, target: self.source.weights, own_embedding: manifest.spec.own_embedding };
        let facts = ModelFacts {
            role: "draft",
            file: DRAFT_FILE,
            data_file: DRAFT_DATA_FILE,
            opset: self.form.opset(&[manifest.weights, manifest.lm_head]),
            lm_head: manifest.lm_head,
            num_layers: 1,
        };
        let mut writer = self.writer(staging, &spec, &tensors, &facts, progress)?;
        writer.capacity = draft_capacity(self.capacity);
        writer.embedding_beside = embedding.filter(|_| !manifest.spec.own_embedding);
        writer.report.total = num_constants(&manifest.spec.parts(manifest.weights, manifest.lm_head));
        writer.draft_head(&manifest.spec, manifest.weights)?;
        self.finish(staging, writer, &facts).map(Some)
    }

    fn writer<'w>(
        &'w self,
        staging: &Staging,
        spec: &'w DecoderSpec,
        tensors: &'w dyn Tensors,
        facts: &ModelFacts,
        progress: &'w mut dyn FnMut(ExportProgress<'_>),
    ) -> Result<Writer<'w>> {
        let data = DataFile::create(&staging.path().join(facts.data_file))?;
        let report =
            Report { file: facts.file, done: 0, total: 0, cancelled: self.options.cancelled, progress };
        Ok(Writer {
            graph: Graph::new(data, facts.data_file),
            tensors,
            spec,
            target: self.options.target,
            form: self.form,
            compute: self.options.compute,
            activations: self.options.activations,
            capacity: 0,
            head_is_embedding: false,
            embedding_beside: None,
            report,
        })
    }

    fn finish(&self, staging: &Staging, writer: Writer<'_>, facts: &ModelFacts) -> Result<Model> {
        let extents = Extents {
            num_lanes: self.options.num_lanes.unwrap_or(1),
            capacity: writer.capacity,
            form: self.form,
            has_trees: self.variant == Variant::Eagle3,
        };
        let properties = [
            ("takt.role", facts.role.to_owned()),
            ("takt.target", self.options.target.to_string()),
            ("takt.contract", format!("{CONTRACT_FILE}, version {CONTRACT_VERSION}")),
        ];
        let finished = writer.graph.finish(facts.opset, &properties)?;
        staging.write(facts.file, &finished.model)?;
        Ok(Model::new(facts, finished, extents))
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let (kv, compute) = (self.source.quantization.kv, self.options.compute.name());
        if kv.name() != compute && kv != takt_engine::kv::KvKind::Bf16 {
            warnings.push(format!("the engine's cache is {kv}; the models' is {compute}, TensorRT's cache updates take no other types"));
        }
        let quantized = matches!(self.source.quantization.weights, WeightKind::Fp8 | WeightKind::Nvfp4);
        if self.options.activations == Activations::Quantized && !quantized {
            let kind = self.source.quantization.weights;
            warnings.push(format!(
                "{kind} weights are multiplied with plain activations: only fp8 and nvfp4 have quantized ones"
            ));
        }
        warnings
    }
}

/// Large tensors of `parts` as they are written, and the two rotary tables.
fn num_constants(parts: &[Part]) -> usize {
    let tensors_of = |part: &Part| match part {
        Part::Matrix(part) if part.kind == WeightKind::Bf16 => 1,
        Part::Matrix(_) => 2,
        Part::Vector(_) | Part::Tokens(_) => 0,
    };
    2 + parts.iter().map(tensors_of).sum::<usize>()
}
