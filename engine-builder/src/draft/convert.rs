//! A published head, quantized into an engine under construction.

use std::path::Path;

use takt_engine::{
    EngineError,
    dir::{DraftDir, EngineDir, Manifest, lay_out},
    draft::{DRAFT_MANIFEST_FILE, DRAFT_SCHEMA_VERSION, DRAFT_WEIGHTS_FILE, DraftManifest, TARGET_TOKENS},
    text::Text,
};

use super::{
    PublishedHead,
    canary::choose_reading,
    prompts::{PROMPTS_FILE, canary_prompts},
};
use crate::{
    Result,
    build::BuildOptions,
    quantize::{source_name, write_part},
    report::{DraftReport, TensorError},
    staging::Staging,
    write::WeightsFile,
};

/// A head that is to become part of an engine: written, not yet read in the best way.
pub(crate) struct Added {
    head: PublishedHead,
    manifest: DraftManifest,
    losses: Vec<TensorError>,
}

/// Writes the head in `folder` below `staging`, as the files suggest it is to be read.
///
/// # Errors
/// [`crate::BuildError`] naming what does not hold: a head that is damaged, incomplete or another target's.
pub(crate) fn add_draft(
    folder: &Path,
    engine: &takt_engine::spec::DecoderSpec,
    options: &BuildOptions<'_>,
    staging: &Staging,
    progress: &mut dyn FnMut(&str, usize, usize, u64),
) -> Result<Added> {
    let head = PublishedHead::open(folder)?;
    let reading = head.readings(engine.num_layers)?.into_iter().next();
    let reading = reading.ok_or_else(|| EngineError::Backend("no reading of the draft head".into()))?;
    let spec = head.spec(reading);
    spec.validate(engine)?;
    let manifest = DraftManifest {
        schema_version: DRAFT_SCHEMA_VERSION,
        spec,
        weights: options.weights,
        // Nothing exact depends on it: what it proposes is verified.
        lm_head: options.weights,
        record: None,
    };
    staging.create_folder("draft")?;
    let losses = write_weights(&head, &manifest, options, staging, progress)?;
    staging.write(DRAFT_MANIFEST_FILE, &to_json(&manifest)?)?;
    Ok(Added { head, manifest, losses })
}

fn write_weights(
    head: &PublishedHead,
    manifest: &DraftManifest,
    options: &BuildOptions<'_>,
    staging: &Staging,
    progress: &mut dyn FnMut(&str, usize, usize, u64),
) -> Result<Vec<TensorError>> {
    let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let stored = lay_out(&DraftDir::parts(manifest))?;
    let parts = manifest.spec.parts(manifest.weights, manifest.lm_head);
    let mut weights = WeightsFile::create(&staging.path().join(DRAFT_WEIGHTS_FILE), stored)?;
    let mut losses = Vec::new();
    for (idx, part) in parts.iter().enumerate() {
        options.check_cancelled()?;
        let name = source_name(part, false);
        losses.extend(write_part(part, &name, &head.tensors, &mut weights, num_threads)?);
        progress(&name, idx + 1, parts.len(), weights.bytes_written());
    }
    let targets: Vec<u8> = head.targets().iter().flat_map(|token| token.to_le_bytes()).collect();
    weights.write(TARGET_TOKENS, &targets)?;
    weights.finish()?;
    Ok(losses)
}

impl Added {
    /// Files it brings, by their names in the engine.
    pub(crate) const FILES: [&'static str; 2] = [DRAFT_MANIFEST_FILE, DRAFT_WEIGHTS_FILE];

    /// Tries every reading on the engine at `staging`, whose manifest is written, and writes down the best with its record. The caller then
    /// lists the files anew.
    ///
    /// # Errors
    /// Whatever the engine reports, and a file of prompts that does not hold.
    pub(crate) fn choose_reading(
        mut self,
        options: &BuildOptions<'_>,
        staging: &Staging,
    ) -> Result<DraftReport> {
        let Some(draft) = options.draft else {
            return Err(EngineError::Backend("no draft head".into()).into());
        };
        let dir = EngineDir::open(staging.path())?;
        let text = Text::open(staging.path())?;
        let own = draft.folder.join(PROMPTS_FILE);
        let file = draft.prompts.or_else(|| own.exists().then_some(&*own));
        let prompts = canary_prompts(file, text.as_ref(), dir.manifest().spec.vocab_size)?;
        let readings = self.head.readings(dir.manifest().spec.num_layers)?;
        let (reading, record) = choose_reading(&dir, &readings, |reading| self.head.spec(reading), &prompts)?;
        self.manifest.spec = self.head.spec(reading);
        self.manifest.record = Some(record);
        drop(dir);
        staging.replace(DRAFT_MANIFEST_FILE, &to_json(&self.manifest)?)?;
        let differs = readings.first() != Some(&reading);
        Ok(DraftReport { manifest: self.manifest, tensors: self.losses, differs })
    }

    /// Keeps the reading that the files suggest, unmeasured.
    pub(crate) fn keep_reading(self) -> DraftReport {
        DraftReport { manifest: self.manifest, tensors: self.losses, differs: false }
    }
}

/// Tokens a round below which a head is of no use.
const USELESS_LEN: f32 = 1.1;

/// What the user should know of a head that will speed up less than hoped for.
pub(crate) fn draft_warnings(manifest: &DraftManifest, engine: &Manifest) -> Vec<String> {
    let (positions, context) = (manifest.spec.max_positions, engine.spec.max_context);
    let is_short = (positions < context).then(|| {
        format!(
            "the draft head was trained for {positions} positions, the model for {context}: beyond {positions} tokens answers come without \
             speculation"
        )
    });
    let accept_len = manifest.record.as_ref().map(|record| record.accept_len);
    let is_useless = accept_len.filter(|len| *len < USELESS_LEN).map(|len| {
        format!(
            "what the draft head proposes is hardly ever accepted ({len:.2} tokens a round): is it for this model? Answers are right, but no \
             faster"
        )
    });
    is_short.into_iter().chain(is_useless).collect()
}

fn to_json(manifest: &DraftManifest) -> Result<Vec<u8>> {
    let mut json = serde_json::to_vec_pretty(manifest)
        .map_err(|e| EngineError::Input(format!("the draft manifest cannot be written as JSON: {e}")))?;
    json.push(b'\n');
    Ok(json)
}

/// How a head is to be added.
#[derive(Debug, Clone, Copy)]
pub struct DraftOptions<'a> {
    /// Its folder: `config.json` and `model.safetensors`.
    pub folder: &'a Path,
    /// Prompts of the canary, `{"system": …, "user": …}` a line; by default those beside the head, or built-in ones.
    pub prompts: Option<&'a Path>,
    /// Whether to run the canary. Without it the files are read as they suggest, and there is no record to notice a collapse by.
    pub measures: bool,
}
