//! The engine directory: the only contract between builder and runtime.
//!
//! ```text
//! engine.json            manifest: schema version, decoder, number formats, every file with size and BLAKE3
//! weights.safetensors    exactly the tensors of `layout::expected_tensors`, written in that order
//! generation.json        end tokens, template strings, sampling defaults
//! tokenizer.json  chat_template.jinja        optional
//! draft/draft.json  draft/weights.safetensors     optional: an EAGLE-3 head
//! kernels/<source>.<target>.….cubin      optional: kernels for the boards named at build time; not looked into here
//! plans/<TensorRT>-<GPU>.plan     optional: TensorRT plans, described in the manifest; read and checked where they are used (`PlanFile`)
//! costs/                             reserved for later parts; not looked into here
//! ```
//!
//! Architecture invariant: an [`EngineDir`] exists only after everything in it was checked (sizes, hashes, header, every
//! tensor's shape and type, finiteness), so that reading from it cannot fail for reasons of content. An [`UncheckedDir`] is
//! one whose contents are being looked at: it may be packed meanwhile, and what was packed counts when they held.

mod contents;
mod draft;
mod finite;
mod layout;
mod manifest;
mod plan_file;
mod plan_list;
mod plans;
mod unchecked;
mod verify;
mod weights;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use memmap2::Mmap;

pub use draft::DraftDir;
pub use layout::{
    MatrixPart, Part, Role, StoredTensor, TENSOR_ALIGNMENT, TokensPart, VectorPart, expected_tensors,
    lay_out, parts,
};
pub use manifest::{FileEntry, MANIFEST_FILE, Manifest, PLANS_SCHEMA_VERSION, Quantization, SCHEMA_VERSION};
pub use plan_file::{PlanCheck, PlanFile};
pub use plan_list::{ForeignPlan, PlanList};
pub use plans::{PlanActivations, PlanCompute, PlanEntry, PlanForm, PlanKv, PlanRole, PlanVersion};
pub(crate) use unchecked::UncheckedDir;
pub use verify::{FileCheck, blake3_hex};
pub use weights::safetensors_header;

use crate::{
    EngineError, Result,
    quant::{MatrixView, WeightKind},
    text::GenerationDefaults,
    weights::ReadWatch,
};
use weights::Weights;

/// Quantized tensors.
pub const WEIGHTS_FILE: &str = "weights.safetensors";
/// Hugging Face tokenizer; absent when the model is only scored by token ids.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// Jinja source of the chat template.
pub const CHAT_TEMPLATE_FILE: &str = "chat_template.jinja";
/// See [`GenerationDefaults`].
pub const GENERATION_FILE: &str = GenerationDefaults::FILE;
/// Sub-folders that later parts of the project fill; whatever is in them does not concern the base model.
pub const RESERVED_FOLDERS: [&str; 4] = ["draft", KERNELS_FOLDER, PLANS_FOLDER, "costs"];
/// Sealed cubins for the boards the engine was built for. Not listed in the manifest: a damaged one is compiled again where a GPU needs it, and
/// concerns nobody else.
pub const KERNELS_FOLDER: &str = "kernels";
/// TensorRT plans, described in [`Manifest::plans`].
pub const PLANS_FOLDER: &str = "plans";

/// An opened engine directory: validated whole, weights memory-mapped.
#[derive(Debug)]
pub struct EngineDir {
    path: PathBuf,
    manifest: Manifest,
    generation: GenerationDefaults,
    weights: Weights,
    draft: Option<DraftDir>,
}

impl EngineDir {
    /// Opens `path` and checks everything: the manifest, that there are exactly the listed files with their sizes and BLAKE3,
    /// the safetensors header, every tensor's name, shape, type and place, and that all scales and values are finite.
    ///
    /// The files must not be changed while the result lives: weights are mapped, not copied.
    ///
    /// # Errors
    /// [`EngineError::Corrupt`] with the offending file and the first fact that does not hold; [`EngineError::Io`].
    pub fn open(path: &Path) -> Result<Self> {
        UncheckedDir::open(path)?.into_checked()
    }

    /// Checks all that [`Self::open`] checks but the contents of files (hashes, values), so nothing large is read: for the
    /// builder, which has just written and hashed them.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn check_structure(path: &Path) -> Result<()> {
        let manifest = Manifest::read(path)?;
        verify::check_listing(path, &manifest)?;
        GenerationDefaults::read(&path.join(GENERATION_FILE))?;
        Weights::map(&path.join(WEIGHTS_FILE), parts(&manifest.spec, &manifest.quantization))?;
        DraftDir::open(path, &manifest).map(drop)
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The validated manifest.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// End tokens, template strings and sampling defaults.
    #[must_use]
    pub fn generation(&self) -> &GenerationDefaults {
        &self.generation
    }

    /// The weights of a linear layer, `[out, in]`; `name` without `.weight`: `model.layers.0.mlp.up_proj`.
    ///
    /// # Errors
    /// [`EngineError::Tensor`] when the engine has no such matrix.
    pub fn matrix(&self, name: &str) -> Result<MatrixView<'_>> {
        self.weights.matrix(name)
    }

    /// A norm's weights or a bias, by full name: `model.norm.weight`, `model.layers.0.self_attn.q_proj.bias`.
    ///
    /// # Errors
    /// [`EngineError::Tensor`] when the engine has no such vector.
    pub fn vector(&self, name: &str) -> Result<Vec<f32>> {
        self.weights.vector(name)
    }

    /// The embedding, bf16 `[vocab_size, hidden_size]`.
    ///
    /// # Errors
    /// Never for an opened engine; typed so that callers need no proof.
    pub fn embedding(&self) -> Result<MatrixView<'_>> {
        self.matrix(layout::EMBEDDING)
    }

    /// The output head `[vocab_size, hidden_size]`: the embedding itself when tied and kept in bf16.
    ///
    /// # Errors
    /// Never for an opened engine; typed so that callers need no proof.
    pub fn lm_head(&self) -> Result<MatrixView<'_>> {
        let head_is_embedding =
            self.manifest.spec.tied_embeddings && self.manifest.quantization.lm_head == WeightKind::Bf16;
        self.matrix(if head_is_embedding { layout::EMBEDDING } else { layout::LM_HEAD })
    }

    /// `tokenizer.json`, when the engine has one.
    #[must_use]
    pub fn tokenizer_path(&self) -> Option<PathBuf> {
        self.listed(TOKENIZER_FILE)
    }

    /// `chat_template.jinja`, when the engine has one.
    #[must_use]
    pub fn chat_template_path(&self) -> Option<PathBuf> {
        self.listed(CHAT_TEMPLATE_FILE)
    }

    /// The draft head, when the engine has one.
    #[must_use]
    pub fn draft(&self) -> Option<&DraftDir> {
        self.draft.as_ref()
    }

    /// Size of the mapped weights file.
    #[must_use]
    pub fn weight_file_bytes(&self) -> u64 {
        self.weights.file_bytes().len() as u64
    }

    /// Checks what of the weights is read and has not been checked, and gives back the memory behind what has been read.
    pub(crate) fn watch(&self) -> &dyn ReadWatch {
        &self.weights
    }

    /// The weights' file as it is mapped.
    pub(crate) fn mapping(&self) -> Arc<Mmap> {
        self.weights.mapping()
    }

    fn listed(&self, name: &str) -> Option<PathBuf> {
        self.manifest.file(name).map(|_| self.path.join(name))
    }
}

/// "corrupt engine PATH: fact".
fn corrupt(path: &Path, fact: impl Into<String>) -> EngineError {
    EngineError::Corrupt { path: path.to_path_buf(), fact: fact.into() }
}

fn io_error(path: &Path, source: std::io::Error) -> EngineError {
    EngineError::Io { path: path.to_path_buf(), source }
}

/// Reads a small text file whole, refusing anything above `max_bytes` before reading it.
fn read_small(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    let facts = std::fs::metadata(path).map_err(|e| io_error(path, e))?;
    if !facts.is_file() {
        return Err(corrupt(path, "is not a regular file"));
    }
    if facts.len() > max_bytes {
        return Err(corrupt(path, format!("{} bytes, expected at most {max_bytes}", facts.len())));
    }
    std::fs::read(path).map_err(|e| io_error(path, e))
}
