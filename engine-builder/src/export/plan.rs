//! What will be written, checked before anything is: the target's model, then its head's.

use takt_engine::{
    dir::{Part, Quantization, parts},
    draft::DraftManifest,
    engine::DEFAULT_LANE_CAPACITY,
    quant::WeightKind,
    spec::DecoderSpec,
};

use super::{
    DRAFT_DATA_FILE, DRAFT_FILE, ExportProgress, MODEL_DATA_FILE, MODEL_FILE, Source,
    contract::{CONTRACT_FILE, CONTRACT_VERSION, Contract, Extents, Model, ModelFacts, NOTES},
    data_file::DataFile,
    decoder::DecoderInputs,
    draft::draft_capacity,
    graph::{Graph, Placed},
    kv::{KvType, WantedCache, cache_note, choose_cache},
    linear::check_int4,
    options::{Activations, ExportOptions, Variant},
    target::{Form, NamedWeights},
    tensors::{DraftTensors, EMBEDDING, TargetTensors, Tensors},
    writer::{Report, Writer},
};
use crate::{BuildError, Result, staging::Staging};

/// What will be written, checked before anything is.
pub(super) struct Plan<'a> {
    source: &'a Source<'a>,
    options: &'a ExportOptions<'a>,
    form: Form,
    kv: KvType,
    variant: Variant,
    capacity: usize,
}

fn wanted_cache(source: &Source<'_>, options: &ExportOptions<'_>) -> WantedCache {
    WantedCache { kv: options.kv, form: options.form, of_engine: source.quantization.kv }
}

impl<'a> Plan<'a> {
    /// Checks that all of it can be.
    pub(super) fn new(source: &'a Source<'a>, options: &'a ExportOptions<'a>) -> Result<Self> {
        source.spec.validate()?;
        let wanted = wanted_cache(source, options);
        let (form, kv) = choose_cache(&options.target, options.target.newest_form(), wanted)?;
        options.target.check_form(form)?;
        let default = if source.draft.is_some() { Variant::Eagle3 } else { Variant::Plain };
        let variant = options.variant.unwrap_or(default);
        let writes_draft = variant == Variant::Eagle3 && !options.decoder_only;
        let draft = source.draft.map(|(draft, _)| draft).filter(|_| writes_draft);
        check_formats(source.spec, &source.quantization, draft, options)?;
        let made_for = source.spec.max_context;
        let context = options.max_context.unwrap_or(made_for.min(DEFAULT_LANE_CAPACITY));
        if context == 0 || context > made_for {
            let fact = format!("a context of {context} tokens: the model was made for 1 to {made_for}");
            return Err(BuildError::Unsupported(fact));
        }
        let capacity = context.saturating_add(options.padding_rows);
        if options.num_lanes == Some(0) {
            return Err(BuildError::Unsupported("0 lanes: at least 1 is needed".into()));
        }
        Ok(Self { source, options, form, kv, variant, capacity })
    }

    /// Writes all models into the folder, and says what they are.
    pub(super) fn write(
        &self,
        staging: &Staging,
        progress: &mut dyn FnMut(ExportProgress<'_>),
    ) -> Result<Contract> {
        let (decoder, embedding) = self.write_decoder(staging, progress)?;
        let mut models = vec![decoder];
        if self.variant == Variant::Eagle3 && !self.options.decoder_only {
            models.extend(self.write_draft(staging, embedding, progress)?);
        }
        Ok(Contract {
            schema_version: CONTRACT_VERSION,
            exporter_version: env!("CARGO_PKG_VERSION").into(),
            engine_weights: self.source.weights_hash.clone(),
            target: self.options.target,
            form: self.form,
            compute: self.options.compute,
            kv: self.kv,
            activations: self.options.activations,
            quantization: self.source.quantization,
            variant: self.variant,
            capacity: self.capacity,
            notes: NOTES,
            models,
        })
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
        (writer.capacity, writer.kv) = (self.capacity, self.kv);
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
            kv: KvType::Plain,
            cache_scales: Vec::new(),
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
        let scales = writer.cache_scales;
        let finished = writer.graph.finish(facts.opset, &properties)?;
        staging.write(facts.file, &finished.model)?;
        Ok(Model::new(facts, finished, scales, extents))
    }

    /// What the user should know.
    pub(super) fn warnings(&self) -> Vec<String> {
        let wanted = wanted_cache(self.source, self.options);
        let mut warnings = Vec::from_iter(cache_note(&self.options.target, (self.form, self.kv), wanted));
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

/// Checks that the target takes the weights of a model, and of its head, in their formats.
pub(crate) fn check_formats(
    spec: &DecoderSpec,
    quantization: &Quantization,
    draft: Option<&DraftManifest>,
    options: &ExportOptions<'_>,
) -> Result<()> {
    let weights = |kind, what, option| NamedWeights { kind, what, option };
    let mut kinds = vec![
        weights(quantization.weights, "decoder layers", "--weights"),
        weights(quantization.lm_head, "the output head", "--lm-head"),
    ];
    if let Some(draft) = draft {
        draft.spec.validate(spec)?;
        check_columns(options, &draft.spec.parts(draft.weights, draft.lm_head))?;
        kinds.push(weights(draft.weights, "the draft head's layer", "--weights"));
        kinds.push(weights(draft.lm_head, "the draft head's output head", "--weights"));
    }
    check_columns(options, &parts(spec, quantization))?;
    options.target.check_weights(&kinds)?;
    for NamedWeights { kind, what, .. } in kinds {
        let finds_scales = kind == WeightKind::Nvfp4 && options.activations == Activations::Quantized;
        if finds_scales && !options.target.is_tensorrt() {
            return Err(BuildError::Unsupported(format!(
                "NVFP4 activations of {what} for {}: the standard has no operator that finds their scales; use a TensorRT target, or plain activations",
                options.target
            )));
        }
    }
    Ok(())
}

/// Checks that the target multiplies with every matrix as it is stored.
fn check_columns(options: &ExportOptions<'_>, parts: &[Part]) -> Result<()> {
    parts.iter().try_for_each(|part| match part {
        Part::Matrix(part) if part.kind == WeightKind::Int4 => {
            check_int4(&options.target, &part.name, part.num_cols)
        }
        _ => Ok(()),
    })
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
