//! The draft head of an engine directory.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use memmap2::Mmap;

use super::{FileEntry, Manifest, Part, TokensPart, corrupt, read_small, weights::Weights};
use crate::{
    Result, TokenId,
    draft::{
        DRAFT_MANIFEST_FILE, DRAFT_SCHEMA_VERSION, DRAFT_WEIGHTS_FILE, DraftManifest, DraftSource,
        TARGET_TOKENS,
    },
    quant::MatrixView,
    weights::ReadWatch,
};

/// Largest manifest that is read at all; a real one is a kilobyte.
const MAX_MANIFEST_BYTES: u64 = 1 << 20;

/// A head, validated with the engine it belongs to, its weights memory-mapped.
#[derive(Debug)]
pub struct DraftDir {
    path: PathBuf,
    manifest: DraftManifest,
    weights: Weights,
}

impl DraftDir {
    /// The head of the engine at `dir`; `None` when its manifest lists none.
    pub(super) fn open(dir: &Path, engine: &Manifest) -> Result<Option<Self>> {
        if engine.file(DRAFT_MANIFEST_FILE).is_none() {
            return Ok(None);
        }
        let (manifest_path, path) = (dir.join(DRAFT_MANIFEST_FILE), dir.join(DRAFT_WEIGHTS_FILE));
        if engine.file(DRAFT_WEIGHTS_FILE).is_none() {
            return Err(corrupt(&path, "is not among the listed files, though the head's manifest is"));
        }
        let json = read_small(&manifest_path, MAX_MANIFEST_BYTES)?;
        let manifest: DraftManifest = serde_json::from_slice(&json).map_err(|e| {
            corrupt(&manifest_path, format!("not a draft head's manifest of this version: {e}"))
        })?;
        if manifest.schema_version != DRAFT_SCHEMA_VERSION {
            let found = manifest.schema_version;
            let fact =
                format!("schema version {found}, expected {DRAFT_SCHEMA_VERSION}: build the engine again");
            return Err(corrupt(&manifest_path, fact));
        }
        manifest.spec.validate(&engine.spec).map_err(|e| corrupt(&manifest_path, e.to_string()))?;
        let weights = Weights::map(&path, Self::parts(&manifest))?;
        let draft = Self { path, manifest, weights };
        let vocab_size = engine.spec.vocab_size;
        if let Some(token) = draft.target_tokens()?.iter().find(|&&token| token as usize >= vocab_size) {
            let fact = format!("proposes token {token}, the target has {vocab_size}");
            return Err(corrupt(&draft.path, fact));
        }
        let checked = draft.manifest.record.iter().flat_map(|record| &record.check.prompt);
        if let Some(token) = checked.into_iter().find(|&&token| token as usize >= vocab_size) {
            let fact = format!("the record's prompt has token {token}, the target has {vocab_size}");
            return Err(corrupt(&manifest_path, fact));
        }
        Ok(Some(draft))
    }

    /// The tensors of a head's file.
    #[must_use]
    pub fn parts(manifest: &DraftManifest) -> Vec<Part> {
        let mut parts = manifest.spec.parts(manifest.weights, manifest.lm_head);
        let len = manifest.spec.draft_vocab_size;
        parts.push(Part::Tokens(TokensPart { name: TARGET_TOKENS.into(), len }));
        parts
    }

    /// Checks the file's hash, which is `entry`'s, and its values.
    pub(super) fn check(&self, entry: &FileEntry) -> Result<()> {
        self.weights.check(&self.path, entry)
    }

    /// What it is.
    #[must_use]
    pub fn manifest(&self) -> &DraftManifest {
        &self.manifest
    }
}

impl DraftSource for DraftDir {
    fn matrix(&self, name: &str) -> Result<MatrixView<'_>> {
        self.weights.matrix(name)
    }

    fn vector(&self, name: &str) -> Result<Vec<f32>> {
        self.weights.vector(name)
    }

    fn target_tokens(&self) -> Result<Vec<TokenId>> {
        self.weights.tokens(TARGET_TOKENS)
    }

    fn watch(&self) -> &dyn ReadWatch {
        &self.weights
    }

    fn mapping(&self) -> Option<Arc<Mmap>> {
        Some(self.weights.mapping())
    }
}
