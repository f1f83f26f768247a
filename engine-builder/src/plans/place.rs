//! Where plans are built, and how they get into the engine.
//!
//! Everything is made in a hidden folder below `plans/`, so that it is on the file system that it is to stay on. Names of plans hold part of their
//! hash, so a new plan never takes the place of one that `engine.json` names: it appears beside it, then the manifest is exchanged by one rename, then
//! the old one goes.

use std::{
    fs::{self, File, TryLockError},
    io::Write as _,
    path::{Path, PathBuf},
};

use takt_engine::dir::{MANIFEST_FILE, Manifest, PLANS_FOLDER, PLANS_SCHEMA_VERSION, PlanEntry};
use tempfile::TempDir;

use crate::{
    BuildError, Result,
    kernels::is_elsewhere,
    staging::{io_error, sync_folder},
};

/// What the hidden folder's name begins with.
const STAGING_PREFIX: &str = ".building-";

/// A hidden folder in an engine's `plans/`; dropping it leaves nothing. Nobody else adds plans to the engine meanwhile.
#[derive(Debug)]
pub(super) struct Place {
    /// Declared in the order of their removal.
    staging: TempDir,
    folder: PlansFolder,
    engine: PathBuf,
    /// Of the engine's folder, until this is dropped.
    _lock: File,
}

impl Place {
    pub(super) fn open(engine: &Path) -> Result<Self> {
        let engine = fs::canonicalize(engine).map_err(|e| io_error("read", engine, e))?;
        let lock = lock(&engine)?;
        let folder = PlansFolder::open(engine.join(PLANS_FOLDER))?;
        remove_leftovers(&folder.path, &Manifest::read(&engine)?)?;
        let staging = tempfile::Builder::new()
            .prefix(STAGING_PREFIX)
            .tempdir_in(&folder.path)
            .map_err(|e| io_error("create", &folder.path, e))?;
        if is_elsewhere(staging.path(), &engine)? {
            let fact = "is a file system of its own, and engine.json is exchanged together with plans: expected both on one".into();
            return Err(BuildError::Source { path: folder.path.clone(), fact });
        }
        Ok(Self { staging, folder, engine, _lock: lock })
    }

    /// The engine directory.
    pub(super) fn engine(&self) -> &Path {
        &self.engine
    }

    /// The hidden folder.
    pub(super) fn staging(&self) -> &Path {
        self.staging.path()
    }

    /// The engine's folder of plans.
    pub(super) fn folder(&self) -> &Path {
        &self.folder.path
    }

    /// Writes a plan into the hidden folder, under the last part of its name, and flushes it to the disk.
    pub(super) fn write(&self, entry: &PlanEntry, plan: &[u8]) -> Result<()> {
        write_flushed(&self.staged(entry), plan)
    }

    /// Puts the plans of `entries` into the engine, whose manifest was `before` when they were begun. Gives what the user should know.
    pub(super) fn publish(self, before: Manifest, entries: Vec<PlanEntry>) -> Result<Vec<String>> {
        if Manifest::read(&self.engine)? != before {
            let fact = "was changed while its plans were built; build them again".into();
            return Err(BuildError::Source { path: self.engine.join(MANIFEST_FILE), fact });
        }
        let after = with_plans(&before, &entries);
        let manifest = self.staging().join(MANIFEST_FILE);
        write_flushed(&manifest, &after.to_json()?)?;
        // What is published is what the runtime would read.
        if Manifest::read(self.staging())? != after {
            let fact = "is read otherwise than it was written; nothing was changed".into();
            return Err(BuildError::Source { path: manifest, fact });
        }
        let target = self.engine.join(MANIFEST_FILE);
        let facts = fs::metadata(&target).map_err(|e| io_error("read", &target, e))?;
        fs::set_permissions(&manifest, facts.permissions()).map_err(|e| io_error("write", &manifest, e))?;
        let mut moved = Moved::default();
        for entry in &entries {
            let path = self.engine.join(&entry.file);
            fs::rename(self.staged(entry), &path).map_err(|e| io_error("rename", &path, e))?;
            // Of the same bytes as one that was there: it stays, whatever comes.
            if before.plans.iter().all(|plan| plan.file != entry.file) {
                moved.0.push(path);
            }
        }
        sync_folder(&self.folder.path)?;
        fs::rename(&manifest, &target).map_err(|e| io_error("rename", &target, e))?;
        moved.0.clear();
        sync_folder(&self.engine)?;
        Ok(remove_replaced(&self.engine, &before, &after))
    }

    fn staged(&self, entry: &PlanEntry) -> PathBuf {
        self.staging().join(Path::new(&entry.file).file_name().unwrap_or_default())
    }
}

/// One process at a time: each exchanges the manifest that it has read.
fn lock(engine: &Path) -> Result<File> {
    let folder = File::open(engine).map_err(|e| io_error("read", engine, e))?;
    match folder.try_lock() {
        // File systems without locks are those of one machine's one user.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(folder),
        Err(TryLockError::WouldBlock) => {
            let fact = "another takt is building plans for this engine; wait until it is done".into();
            Err(BuildError::Source { path: engine.into(), fact })
        }
    }
}

/// `plans/`, removed again when it was made here and nothing came into it.
#[derive(Debug)]
struct PlansFolder {
    path: PathBuf,
    is_new: bool,
}

impl PlansFolder {
    fn open(path: PathBuf) -> Result<Self> {
        match fs::create_dir(&path) {
            Ok(()) => Ok(Self { path, is_new: true }),
            Err(_) if path.is_dir() => Ok(Self { path, is_new: false }),
            Err(e) => Err(io_error("create", &path, e)),
        }
    }
}

impl Drop for PlansFolder {
    fn drop(&mut self) {
        if self.is_new {
            // Fails, as it should, when plans are in it.
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// Plans that the manifest does not name yet: removed unless it came to that.
#[derive(Debug, Default)]
struct Moved(Vec<PathBuf>);

impl Drop for Moved {
    fn drop(&mut self) {
        for path in &self.0 {
            // Best effort: the error that counts is the one that led here.
            let _ = fs::remove_file(path);
        }
    }
}

/// What processes that were killed left behind, gigabytes at times: hidden folders, and plans that the manifest does not name, not yet or no more.
/// Whoever holds the lock is alone.
fn remove_leftovers(folder: &Path, manifest: &Manifest) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(|e| io_error("read", folder, e))? {
        let entry = entry.map_err(|e| io_error("read", folder, e))?;
        let (name, path) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
        let is_plan = name.starts_with("trt-") && name.ends_with(".plan");
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if is_plan && is_file && !manifest.plans.names(&format!("{PLANS_FOLDER}/{name}")) {
            fs::remove_file(&path).map_err(|e| io_error("remove", &path, e))?;
        }
        if name.starts_with(STAGING_PREFIX) {
            fs::remove_dir_all(&path).map_err(|e| io_error("remove", &path, e))?;
        }
    }
    Ok(())
}

/// The manifest with `entries` in the place of those for the same TensorRT, GPU and model.
fn with_plans(before: &Manifest, entries: &[PlanEntry]) -> Manifest {
    let mut after = before.clone();
    after.schema_version = PLANS_SCHEMA_VERSION;
    after.plans.replace(entries);
    after
}

/// Removes files that only the manifest before named. One that is in use stays with its users.
fn remove_replaced(engine: &Path, before: &Manifest, after: &Manifest) -> Vec<String> {
    let gone = before.plans.iter().filter(|old| after.plans.iter().all(|plan| plan.file != old.file));
    let removed = gone.map(|old| engine.join(&old.file));
    let note = |path: PathBuf| match fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Some(format!("the plan {path:?} is replaced, and cannot be removed: {e}"))
        }
        _ => None,
    };
    removed.filter_map(note).collect()
}

fn write_flushed(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = File::create_new(path).map_err(|e| io_error("create", path, e))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|e| io_error("write", path, e))
}
