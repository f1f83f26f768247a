//! An engine as ONNX models, for TensorRT or any runtime of the standard: explicit cache, weights in the engine's own quantized bytes.
//!
//! 1. `target`: who reads them, and what that reader takes. `options`: what is wanted.
//! 2. `graph`, `port`, `data_file`: a graph under construction; its large constants in a file beside it, streamed from the mapped engine.
//! 3. `writer`: what the parts are written with. `linear`, `norm`, `rotary`, `mask`, `attention`, `activation`, `kv`: those parts.
//! 4. `plan`: what will be written, checked first. `layer`, `decoder`, `draft`: the equations of [`DecoderSpec`] and of [`takt_engine::draft::DraftSpec`], in their order.
//! 5. `contract`: names, shapes, types and profiles of all inputs and outputs, for whoever builds plans.
//!
//! Matrix products are in one type of 16 bits, and so is the cache, or it has 8; the residual stream, norms, rotations, gates and logits are in 32.

mod activation;
mod attention;
mod contract;
mod data_file;
mod decoder;
mod draft;
mod graph;
mod kv;
mod layer;
mod linear;
mod mask;
mod norm;
mod options;
mod plan;
mod port;
mod rotary;
mod target;
mod tensors;
mod writer;

use std::path::Path;

use takt_engine::{
    dir::{EngineDir, Quantization, WEIGHTS_FILE},
    draft::{DraftManifest, DraftSource},
    spec::DecoderSpec,
    weights::WeightSource,
};

pub use contract::{CONTRACT_FILE, CONTRACT_VERSION, Contract, Model, Profile, ProfileInput};
pub use kv::KvType;
pub(crate) use kv::{WantedCache, cache_note, choose_cache};
pub use options::{Activations, Compute, ExportOptions, Variant};
pub use port::{Dim, ElementType, Port};
pub use target::{Form, NamedWeights, Runtime, Target, TensorRtVersion};

use plan::Plan;
pub(crate) use plan::check_formats;

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
    pub draft: Option<(&'a DraftManifest, &'a dyn DraftSource)>,
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
    let contract = plan.write(&staging, progress)?;
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
