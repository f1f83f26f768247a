//! `engine.json`: what the engine is and which files belong to it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{
    CHAT_TEMPLATE_FILE, GENERATION_FILE, PlanList, RESERVED_FOLDERS, TOKENIZER_FILE, WEIGHTS_FILE, corrupt,
    layout, read_small,
};
use crate::{EngineError, Result, TokenId, kv::KvKind, quant::WeightKind, spec::DecoderSpec};

/// The manifest's file name.
pub const MANIFEST_FILE: &str = "engine.json";
/// The schema of an engine without TensorRT plans, which takts read that know of none.
pub const SCHEMA_VERSION: u32 = 2;
/// The schema of one with plans, and the newest that is read.
pub const PLANS_SCHEMA_VERSION: u32 = 3;
/// Largest manifest that is read at all; a real one is a few kilobytes.
const MAX_MANIFEST_BYTES: u64 = 4 << 20;

/// `engine.json`. Deterministic: the same checkpoint and options give the same bytes (no times, no paths of the builder's machine).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`SCHEMA_VERSION`], or with plans [`PLANS_SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Version of the builder, for people.
    pub builder_version: String,
    /// Kind of checkpoint it was built from, for people: `huggingface`, `onnx`.
    pub source: String,
    /// The architecture.
    pub spec: DecoderSpec,
    /// Number formats.
    pub quantization: Quantization,
    /// Tokens that end an answer.
    pub eos_token_ids: Vec<TokenId>,
    /// Every file of the engine but this one, sorted by name.
    pub files: Vec<FileEntry>,
    /// TensorRT plans, sorted by file.
    #[serde(default, skip_serializing_if = "PlanList::has_none")]
    pub plans: PlanList,
}

/// Number formats of an engine. Embeddings are always bf16, norms and biases always F32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantization {
    /// The decoder layers' linear weights.
    pub weights: WeightKind,
    /// The output head.
    pub lm_head: WeightKind,
    /// KV cache unless the caller of the runtime says otherwise.
    pub kv: KvKind,
}

/// One file of the engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Path inside the engine directory, with `/`.
    pub name: String,
    /// Size.
    pub size_bytes: u64,
    /// BLAKE3, 64 lower-case hexadecimal digits.
    pub blake3: String,
}

impl Manifest {
    /// Reads and validates `dir/engine.json`; the other files are not touched.
    ///
    /// # Errors
    /// [`EngineError::Corrupt`] when `dir` is no engine or the manifest does not hold; [`EngineError::Io`].
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST_FILE);
        if !dir.is_dir() {
            let fact = if dir.exists() { "is not a directory" } else { "does not exist" };
            return Err(corrupt(dir, format!("{fact}; an engine directory is made by `takt build`")));
        }
        if !path.exists() {
            return Err(corrupt(
                dir,
                "has no engine.json, so it is not an engine; make one with `takt build`",
            ));
        }
        let mut manifest = Self::parse(&path, &read_small(&path, MAX_MANIFEST_BYTES)?)?;
        manifest.validate(&path)?;
        manifest.plans.check_layers(manifest.spec.num_layers);
        Ok(manifest)
    }

    /// The manifest as the bytes of `engine.json`.
    ///
    /// # Errors
    /// [`EngineError::Input`] when a number cannot be written as JSON.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        let mut json = serde_json::to_vec_pretty(self)
            .map_err(|e| EngineError::Input(format!("the manifest cannot be written as JSON: {e}")))?;
        json.push(b'\n');
        Ok(json)
    }

    /// The entry of file `name`.
    #[must_use]
    pub fn file(&self, name: &str) -> Option<&FileEntry> {
        self.files.iter().find(|entry| entry.name == name)
    }

    /// Bytes of all files but the manifest.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, entry| sum.saturating_add(entry.size_bytes))
    }

    fn parse(path: &Path, json: &[u8]) -> Result<Self> {
        /// Read first: a newer schema must be named as such, not as an unknown field.
        #[derive(Deserialize)]
        struct Version {
            schema_version: u32,
        }
        let not_json = |e: serde_json::Error| corrupt(path, format!("not a manifest of this version: {e}"));
        let version: Version = serde_json::from_slice(json).map_err(not_json)?;
        if !(SCHEMA_VERSION..=PLANS_SCHEMA_VERSION).contains(&version.schema_version) {
            let hint = if version.schema_version > PLANS_SCHEMA_VERSION {
                "written by a newer builder: update takt"
            } else {
                "no longer read: build the engine again"
            };
            let found = version.schema_version;
            return Err(corrupt(
                path,
                format!(
                    "schema version {found}, expected {SCHEMA_VERSION} or {PLANS_SCHEMA_VERSION}; {hint}"
                ),
            ));
        }
        serde_json::from_slice(json).map_err(not_json)
    }

    fn validate(&self, path: &Path) -> Result<()> {
        self.spec.validate().map_err(|e| corrupt(path, e.to_string()))?;
        layout::expected_tensors(&self.spec, &self.quantization).map_err(|e| corrupt(path, e.to_string()))?;
        if let Some(id) = self.eos_token_ids.iter().find(|&&id| id as usize >= self.spec.vocab_size) {
            let vocab_size = self.spec.vocab_size;
            return Err(corrupt(path, format!("end token {id} outside the vocabulary of {vocab_size}")));
        }
        for (idx, entry) in self.files.iter().enumerate() {
            validate_entry(path, entry)?;
            if self.files[..idx].iter().any(|earlier| earlier.name == entry.name) {
                return Err(corrupt(path, format!("file {:?} is listed twice", entry.name)));
            }
        }
        for required in [WEIGHTS_FILE, GENERATION_FILE] {
            if self.file(required).is_none() {
                return Err(corrupt(path, format!("{required} is not among the listed files")));
            }
        }
        Ok(())
    }
}

fn validate_entry(path: &Path, entry: &FileEntry) -> Result<()> {
    let name = &entry.name;
    let known = [WEIGHTS_FILE, GENERATION_FILE, TOKENIZER_FILE, CHAT_TEMPLATE_FILE].contains(&name.as_str());
    if !known && !is_reserved_path(name) {
        return Err(corrupt(path, format!("file name {name:?} is not one an engine has")));
    }
    if !is_blake3(&entry.blake3) {
        return Err(corrupt(path, format!("BLAKE3 of {name:?} is not 64 lower-case hexadecimal digits")));
    }
    Ok(())
}

/// Whether `text` is 64 lower-case hexadecimal digits.
pub(super) fn is_blake3(text: &str) -> bool {
    let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    text.len() == 64 && text.bytes().all(lower_hex)
}

/// Whether `name` is `folder/file…` below a reserved folder, without any way out of it.
fn is_reserved_path(name: &str) -> bool {
    let mut steps = name.split('/');
    let in_reserved = steps.next().is_some_and(|first| RESERVED_FOLDERS.contains(&first));
    let mut num_below = 0;
    let all_plain = steps.all(|step| {
        num_below += 1;
        let plain_char = |c: char| c.is_ascii_alphanumeric() || "._-+".contains(c);
        !step.is_empty() && step != "." && step != ".." && step.chars().all(plain_char)
    });
    in_reserved && all_plain && num_below > 0
}
