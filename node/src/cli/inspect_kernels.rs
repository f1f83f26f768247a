//! Which boards an engine has kernels for. The manifest does not list them: each cubin is sealed, and one that does not hold is compiled again.

use std::{fs, path::Path};

use serde_json::{Value, json};
use takt_engine::dir::KERNELS_FOLDER;
use takt_kernels_cu::{CudaVersion, Target, cache::Cache, compiler::CompilerVersion, source::SOURCES};

use super::paint;

/// What an engine has for one target.
pub(super) struct InspectedKernels {
    target: Target,
    /// Sources whose cubin is there and whole.
    num_files: usize,
    /// Sources whose cubin is not there, damaged, or made from another version's text.
    missing: Vec<&'static str>,
    /// Compilers whose cubins of every source are there and whole, oldest first: which drivers take them.
    cuda: Vec<CudaVersion>,
}

/// Every target that any file of the engine is for, oldest first.
pub(super) fn inspect_kernels(engine: &Path) -> Vec<InspectedKernels> {
    let cache = Cache::new(engine.join(KERNELS_FOLDER));
    let entries = fs::read_dir(cache.folder()).into_iter().flatten().flatten();
    let names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let is_named = |target: &Target| names.iter().any(|name| name.contains(&format!(".{target}.")));
    let inspect = |target| {
        let absent = SOURCES.iter().filter(|source| cache.find(source, target, None).is_none());
        let missing: Vec<&str> = absent.map(|source| source.name).collect();
        InspectedKernels {
            target,
            num_files: SOURCES.len() - missing.len(),
            missing,
            cuda: whole(&cache, target),
        }
    };
    Target::ALL.into_iter().filter(is_named).map(inspect).collect()
}

/// The compilers that made a whole cubin of every source.
fn whole(cache: &Cache, target: Target) -> Vec<CudaVersion> {
    let versions = SOURCES.first().map(|source| cache.versions(source, target)).unwrap_or_default();
    let is_whole = |version: &CompilerVersion| {
        SOURCES.iter().all(|source| cache.load(source, target, *version).is_some())
    };
    versions.into_iter().filter(is_whole).map(|version| version.cuda()).collect()
}

pub(super) fn kernels_json(kernels: &[InspectedKernels]) -> Value {
    let one = |kernels: &InspectedKernels| {
        let cuda: Vec<String> = kernels.cuda.iter().map(CudaVersion::to_string).collect();
        json!({ "target": kernels.target.name(), "files": kernels.num_files, "missing": kernels.missing, "cuda": cuda })
    };
    kernels.iter().map(one).collect()
}

/// `  CUDA 12.6, 13.0`; nothing where no compiler made all of them.
fn by_which(cuda: &[CudaVersion]) -> String {
    let names: Vec<String> = cuda.iter().map(CudaVersion::to_string).collect();
    if names.is_empty() {
        String::new()
    } else {
        format!("  {}", paint::dim(&format!("CUDA {}", names.join(", "))))
    }
}

/// Nothing where there are no kernels.
pub(super) fn kernels_text(kernels: &[InspectedKernels]) -> String {
    if kernels.is_empty() {
        return String::new();
    }
    let line = |kernels: &InspectedKernels| {
        let (mark, note) = match kernels.missing.as_slice() {
            [] => (paint::green("✓"), by_which(&kernels.cuda)),
            missing => {
                let what = format!("missing, damaged or of another version: {}", missing.join(", "));
                (paint::red("✗"), format!("  {}", paint::red(&what)))
            }
        };
        format!("  {mark} {:<8} {:>2} files{note}\n", kernels.target.name(), kernels.num_files)
    };
    let lines: String = kernels.iter().map(line).collect();
    format!("\n{}\n{lines}", paint::bold("CUDA kernels"))
}
