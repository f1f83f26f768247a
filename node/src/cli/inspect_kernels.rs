//! Which boards an engine has kernels for. The manifest does not list them: each cubin is sealed, and one that does not hold is compiled again.

use std::{fs, path::Path};

use serde_json::{Value, json};
use takt_engine::dir::KERNELS_FOLDER;
use takt_kernels_cu::{Target, cache::Cache, source::SOURCES};

use super::paint;

/// What an engine has for one target.
pub(super) struct InspectedKernels {
    target: Target,
    /// Sources whose cubin is there and whole.
    num_files: usize,
    /// Sources whose cubin is not there, damaged, or made from another version's text.
    missing: Vec<&'static str>,
}

/// Every target that any file of the engine is for, oldest first.
pub(super) fn inspect_kernels(engine: &Path) -> Vec<InspectedKernels> {
    let cache = Cache::new(engine.join(KERNELS_FOLDER));
    let entries = fs::read_dir(cache.folder()).into_iter().flatten().flatten();
    let names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let is_named = |target: &Target| names.iter().any(|name| name.contains(&format!(".{target}.")));
    let inspect = |target| {
        let absent = SOURCES.iter().filter(|source| cache.find(source, target).is_none());
        let missing: Vec<&str> = absent.map(|source| source.name).collect();
        InspectedKernels { target, num_files: SOURCES.len() - missing.len(), missing }
    };
    Target::ALL.into_iter().filter(is_named).map(inspect).collect()
}

pub(super) fn kernels_json(kernels: &[InspectedKernels]) -> Value {
    let one = |kernels: &InspectedKernels| json!({ "target": kernels.target.name(), "files": kernels.num_files, "missing": kernels.missing });
    kernels.iter().map(one).collect()
}

/// Nothing where there are no kernels.
pub(super) fn kernels_text(kernels: &[InspectedKernels]) -> String {
    if kernels.is_empty() {
        return String::new();
    }
    let line = |kernels: &InspectedKernels| {
        let (mark, note) = match kernels.missing.as_slice() {
            [] => (paint::green("✓"), String::new()),
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
