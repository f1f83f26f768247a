//! The shipped model as an engine, built once and kept in the user's cache.

use std::{
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

use takt_engine::{
    dir::{Manifest, blake3_hex},
    quant::WeightKind,
};
use takt_engine_builder::{BuildOptions, Progress, build, draft::DraftOptions};

use super::DemoError;

const MODEL: &str = "models/takt-demo";
/// Its draft head, inside its folder.
const HEAD: &str = "eagle3";

/// A demo engine ready to be served.
#[derive(Debug)]
pub struct PreparedEngine {
    /// Engine directory.
    pub dir: PathBuf,
    /// What it is.
    pub manifest: Manifest,
    /// How long building took; `None` when it had been built before.
    pub built_in: Option<Duration>,
}

/// The shipped model's folder: below the current directory or one above it, or beside the running program.
///
/// # Errors
/// [`DemoError::NoModel`] with what to do: `otherwise` is what the command does without it.
pub fn find_model(otherwise: &str) -> Result<PathBuf, DemoError> {
    let program = std::env::current_exe().ok();
    let here = std::env::current_dir().ok();
    find_from(here.iter().chain(&program), otherwise)
}

fn find_from<'a>(starts: impl Iterator<Item = &'a PathBuf>, otherwise: &str) -> Result<PathBuf, DemoError> {
    let found = starts
        .flat_map(|start| start.ancestors().map(|folder| folder.join(MODEL)))
        .find(|folder| folder.join("config.json").is_file());
    found.ok_or_else(|| {
        DemoError::NoModel(format!(
            "the demo model {MODEL} is neither below this directory nor beside the program: run `cargo run --release -- demo` \
             in a clone of the repository, or {otherwise}"
        ))
    })
}

/// Builds `model` as NVFP4 below `cache`, unless the same model has been built by this version before.
///
/// # Errors
/// [`DemoError::Build`], or [`DemoError::NoModel`] when the model cannot be read.
pub fn prepare_engine(
    model: &Path,
    cache: &Path,
    cancelled: &AtomicBool,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<PreparedEngine, DemoError> {
    let dir = cache.join(format!("takt-demo-{}", &fingerprint(model)?[..16]));
    if let Ok(manifest) = Manifest::read(&dir)
        && manifest.check_files(&dir).iter().all(|check| check.outcome.is_ok())
    {
        return Ok(PreparedEngine { dir, manifest, built_in: None });
    }
    std::fs::create_dir_all(cache)
        .map_err(|error| DemoError::NoModel(format!("cannot create {}: {error}", cache.display())))?;
    let started = Instant::now();
    let head = model.join(HEAD);
    let draft = head.join("config.json").is_file().then_some(DraftOptions {
        folder: &head,
        prompts: None,
        measures: true,
    });
    let options = BuildOptions {
        draft,
        force: true,
        cancelled: Some(cancelled),
        ..BuildOptions::new(WeightKind::Nvfp4)
    };
    build(model, &dir, &options, progress)?;
    let manifest = Manifest::read(&dir).map_err(takt_engine_builder::BuildError::from)?;
    Ok(PreparedEngine { dir, manifest, built_in: Some(started.elapsed()) })
}

/// BLAKE3 over the builder's version and the names and contents of the model's files.
fn fingerprint(model: &Path) -> Result<String, DemoError> {
    let failed = |path: &Path, error: std::io::Error| {
        DemoError::NoModel(format!("{} cannot be read: {error}", path.display()))
    };
    let kinds = ["json", "jsonl", "safetensors", "jinja"];
    let is_read = |path: &PathBuf| path.extension().is_some_and(|kind| kinds.iter().any(|k| kind == *k));
    let files = |folder: &Path| -> Result<Vec<PathBuf>, DemoError> {
        let entries = std::fs::read_dir(folder).map_err(|error| failed(folder, error))?;
        Ok(entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_read).collect())
    };
    let mut paths: Vec<PathBuf> = files(model)?;
    if model.join(HEAD).is_dir() {
        paths.extend(files(&model.join(HEAD))?);
    }
    paths.sort();
    let mut digests = env!("CARGO_PKG_VERSION").to_owned();
    for path in paths {
        let bytes = std::fs::read(&path).map_err(|error| failed(&path, error))?;
        digests += &format!("\n{} {}", path.display(), blake3_hex(&bytes));
    }
    Ok(blake3_hex(digests.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_is_found_from_below_and_where_there_is_none_the_command_says_what_it_takes_instead() {
        let root = tempfile::tempdir().unwrap();
        let start = root.path().join("deep/down");
        let find = || find_from(std::iter::once(&start), "name the engine");
        let told = find().unwrap_err().to_string();
        assert!(told.contains(MODEL) && told.ends_with("or name the engine"), "{told}");
        let model = root.path().join(MODEL);
        std::fs::create_dir_all(&model).unwrap();
        std::fs::write(model.join("config.json"), "{}").unwrap();
        assert_eq!(find().unwrap(), model);
    }
}
