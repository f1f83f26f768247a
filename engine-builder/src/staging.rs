//! An engine, or an export of one, appears whole or not at all: everything is written into a hidden sibling folder, flushed, and renamed.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
};

use takt_engine::dir::{
    CHAT_TEMPLATE_FILE, GENERATION_FILE, MANIFEST_FILE, RESERVED_FOLDERS, TOKENIZER_FILE, WEIGHTS_FILE,
};
use tempfile::TempDir;

use crate::{
    BuildError, Result,
    export::{CONTRACT_FILE, EXPORT_FILES},
};

/// What lies where the folder shall appear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Existing {
    Nothing,
    /// One of the same kind, which may be replaced.
    Same,
}

/// What is being made, and by what one that is there already is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An engine directory.
    Engine,
    /// ONNX models for TensorRT, made from an engine.
    Export,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Engine => "engine",
            Self::Export => "export",
        }
    }

    fn manifest(self) -> &'static str {
        match self {
            Self::Engine => MANIFEST_FILE,
            Self::Export => CONTRACT_FILE,
        }
    }

    /// Whether it may hold an entry of this name.
    fn may_hold(self, name: &str) -> bool {
        match self {
            Self::Engine => {
                let files =
                    [MANIFEST_FILE, WEIGHTS_FILE, TOKENIZER_FILE, CHAT_TEMPLATE_FILE, GENERATION_FILE];
                files.contains(&name) || RESERVED_FOLDERS.contains(&name)
            }
            Self::Export => EXPORT_FILES.contains(&name),
        }
    }
}

/// A folder under construction; dropping it removes it.
#[derive(Debug)]
pub(crate) struct Staging {
    folder: TempDir,
    /// Declared after `folder`: the folder is removed first.
    parents: CreatedParents,
    target: PathBuf,
    kind: Kind,
    existing: Existing,
}

impl Staging {
    /// Starts a folder beside `target`. One of the same kind that is already there is only replaced with `force`; anything else never.
    pub(crate) fn start(target: &Path, kind: Kind, force: bool) -> Result<Self> {
        let existing = existing(target, kind, force)?;
        let (Some(name), Some(parent)) = (target.file_name(), target.parent()) else {
            let fact = format!("is no place for an {}: expected a path that ends in a name", kind.name());
            return Err(refused(target, &fact));
        };
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let parents = CreatedParents::create(parent)?;
        let folder = hidden_sibling(parent, &name.to_string_lossy(), "building")?;
        Ok(Self { folder, parents, target: target.into(), kind, existing })
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a small file and flushes it to the disk.
    pub(crate) fn write(&self, name: &str, contents: &[u8]) -> Result<()> {
        let path = self.path().join(name);
        let mut file = File::create_new(&path).map_err(|e| io_error("create", &path, e))?;
        file.write_all(contents).and_then(|()| file.sync_all()).map_err(|e| io_error("write", &path, e))
    }

    /// Writes a small file anew.
    pub(crate) fn replace(&self, name: &str, contents: &[u8]) -> Result<()> {
        let path = self.path().join(name);
        fs::remove_file(&path).map_err(|e| io_error("replace", &path, e))?;
        self.write(name, contents)
    }

    /// Makes a folder inside.
    pub(crate) fn create_folder(&self, name: &str) -> Result<()> {
        let path = self.path().join(name);
        fs::create_dir(&path).map_err(|e| io_error("create", &path, e))
    }

    /// Puts the finished engine in its place. On failure the engine that was there before is still there.
    pub(crate) fn commit(self) -> Result<()> {
        for folder in
            RESERVED_FOLDERS.map(|name| self.path().join(name)).iter().filter(|folder| folder.exists())
        {
            sync_folder(folder)?;
        }
        sync_folder(self.path())?;
        let parent = self.path().parent().unwrap_or(Path::new(".")).to_path_buf();
        // What was there may have changed while we were building.
        let replaced = match existing(&self.target, self.kind, self.existing == Existing::Same)? {
            Existing::Nothing => None,
            Existing::Same => Some(move_away(&parent, &self.target)?),
        };
        if let Err(e) = fs::rename(self.path(), &self.target) {
            if let Some(old) = &replaced {
                // Best effort: the error that counts is the one above.
                let _ = fs::rename(old.path().join(OLD_ENGINE), &self.target);
            }
            return Err(io_error("rename", &self.target, e));
        }
        // The folder has moved: there is nothing left to clean up under its old name.
        let _ = self.folder.keep();
        self.parents.keep();
        sync_folder(&parent)
    }
}

/// Folders that had to be made above the engine, outermost first; those still empty are removed when this is dropped.
#[derive(Debug)]
struct CreatedParents(Vec<PathBuf>);

impl CreatedParents {
    fn create(parent: &Path) -> Result<Self> {
        let missing =
            parent.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists());
        let mut created = Self(missing.map(Path::to_path_buf).collect());
        created.0.reverse();
        fs::create_dir_all(parent).map_err(|e| io_error("create", parent, e))?;
        Ok(created)
    }

    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for CreatedParents {
    fn drop(&mut self) {
        for folder in self.0.iter().rev() {
            // Fails when somebody else put something there meanwhile, which then stays.
            let _ = fs::remove_dir(folder);
        }
    }
}

/// Name of the replaced engine inside its own hidden folder.
const OLD_ENGINE: &str = "engine";

/// Moves the old engine into a hidden folder that is deleted when the result is dropped.
fn move_away(parent: &Path, target: &Path) -> Result<TempDir> {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let away = hidden_sibling(parent, &name, "old")?;
    fs::rename(target, away.path().join(OLD_ENGINE)).map_err(|e| io_error("rename", target, e))?;
    Ok(away)
}

pub(crate) fn hidden_sibling(parent: &Path, name: &str, what: &str) -> Result<TempDir> {
    let prefix = format!(".{name}.{what}-");
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix);
    #[cfg(unix)]
    {
        // Not tempfile's 0700: the folder becomes the engine, and the umask decides who reads it.
        use std::os::unix::fs::PermissionsExt as _;
        builder.permissions(fs::Permissions::from_mode(0o777));
    }
    builder.tempdir_in(parent).map_err(|e| io_error("create", parent, e))
}

fn existing(target: &Path, kind: Kind, force: bool) -> Result<Existing> {
    let facts = match fs::symlink_metadata(target) {
        Ok(facts) => facts,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Existing::Nothing),
        Err(e) => return Err(io_error("read", target, e)),
    };
    if facts.is_symlink() {
        return Err(refused(target, "is a symbolic link; name the folder itself"));
    }
    if !facts.is_dir() {
        return Err(refused(target, "exists and is not a folder; choose another name"));
    }
    if fs::read_dir(target).map_err(|e| io_error("read", target, e))?.next().is_none() {
        return Ok(Existing::Nothing);
    }
    if !looks_like(kind, target)? {
        let fact = format!("exists and is not an {} directory, so it is never replaced", kind.name());
        return Err(refused(target, &fact));
    }
    if !force {
        return Err(refused(target, &format!("is an {} already; --force replaces it", kind.name())));
    }
    Ok(Existing::Same)
}

/// Whether `folder` has the manifest of its kind and nothing that kind does not have: a damaged engine may be replaced, somebody's
/// other files may not.
fn looks_like(kind: Kind, folder: &Path) -> Result<bool> {
    let mut has_manifest = false;
    for entry in fs::read_dir(folder).map_err(|e| io_error("read", folder, e))? {
        let name = entry.map_err(|e| io_error("read", folder, e))?.file_name();
        let name = name.to_string_lossy();
        has_manifest |= name == kind.manifest();
        if !kind.may_hold(&name) {
            return Ok(false);
        }
    }
    Ok(has_manifest)
}

/// Flushes a folder's entries, so that a power cut after the rename finds the whole engine.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|file| file.sync_all()).map_err(|e| io_error("flush", folder, e))
}

fn refused(path: &Path, fact: &str) -> BuildError {
    BuildError::Source { path: path.into(), fact: fact.into() }
}

pub(crate) fn io_error(action: &'static str, path: &Path, source: std::io::Error) -> BuildError {
    BuildError::Io { action, path: path.into(), source }
}
