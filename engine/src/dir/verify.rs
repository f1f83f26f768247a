//! The files of an engine directory: exactly those listed, with the listed sizes and hashes.

use std::{fs, path::Path};

use blake3::Hash;

use super::{
    DraftDir, FileEntry, MANIFEST_FILE, Manifest, RESERVED_FOLDERS, WEIGHTS_FILE, corrupt, io_error,
    weights::{self, Weights},
};
use crate::{Result, draft::DRAFT_WEIGHTS_FILE};

/// Whether one listed file is what the manifest says.
#[derive(Debug)]
pub struct FileCheck {
    /// The manifest's entry.
    pub entry: FileEntry,
    /// `Ok` when size and hash hold.
    pub outcome: Result<()>,
}

impl Manifest {
    /// Checks size and BLAKE3 of every listed file below `dir`, without stopping at the first that fails.
    #[must_use]
    pub fn check_files(&self, dir: &Path) -> Vec<FileCheck> {
        let check = |entry: &FileEntry| {
            let outcome = check_size(dir, entry).and_then(|()| check_mapped_hash(dir, entry));
            FileCheck { entry: entry.clone(), outcome }
        };
        self.files.iter().map(check).collect()
    }
}

/// BLAKE3 of `bytes` as 64 lower-case hexadecimal digits.
#[must_use]
pub fn blake3_hex(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// Checks that the directory holds the listed files with their sizes and nothing else but the reserved folders.
pub(super) fn check_listing(dir: &Path, manifest: &Manifest) -> Result<()> {
    for entry in &manifest.files {
        check_size(dir, entry)?;
    }
    for found in fs::read_dir(dir).map_err(|e| io_error(dir, e))? {
        let found = found.map_err(|e| io_error(dir, e))?;
        let name = found.file_name();
        let name = name.to_string_lossy();
        let reserved = RESERVED_FOLDERS.contains(&&*name) && found.path().is_dir();
        if name != MANIFEST_FILE && manifest.file(&name).is_none() && !reserved {
            return Err(corrupt(dir, format!("holds {name:?}, which the manifest does not list; remove it")));
        }
    }
    Ok(())
}

/// Checks the hash of every listed file and the values of all tensors; weights come mapped already.
pub(super) fn check_contents(
    dir: &Path,
    manifest: &Manifest,
    weights: &Weights,
    draft: Option<&DraftDir>,
) -> Result<()> {
    manifest.files.iter().try_for_each(|entry| match draft {
        _ if entry.name == WEIGHTS_FILE => weights.check(&dir.join(WEIGHTS_FILE), entry),
        Some(draft) if entry.name == DRAFT_WEIGHTS_FILE => draft.check(entry),
        _ => check_mapped_hash(dir, entry),
    })
}

pub(super) fn check_size(dir: &Path, entry: &FileEntry) -> Result<()> {
    let path = dir.join(&entry.name);
    let facts = match fs::metadata(&path) {
        Ok(facts) => facts,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(corrupt(&path, "is listed in engine.json but missing"));
        }
        Err(e) => return Err(io_error(&path, e)),
    };
    if !facts.is_file() {
        return Err(corrupt(&path, "is not a regular file"));
    }
    if facts.len() != entry.size_bytes {
        let (found, expected) = (facts.len(), entry.size_bytes);
        return Err(corrupt(&path, format!("{found} bytes, expected {expected}: truncated or changed")));
    }
    Ok(())
}

fn check_mapped_hash(dir: &Path, entry: &FileEntry) -> Result<()> {
    let path = dir.join(&entry.name);
    // Mapping an empty file fails on some systems.
    if entry.size_bytes == 0 {
        return compare_hash(&path, entry, blake3::hash(&[]));
    }
    compare_hash(&path, entry, blake3::hash(&weights::map_file(&path)?))
}

/// Whether `hash` is what `entry` tells of the file at `path`.
pub(super) fn compare_hash(path: &Path, entry: &FileEntry, hash: Hash) -> Result<()> {
    let (found, expected) = (hash.to_hex(), &entry.blake3);
    if found.as_str() == expected {
        return Ok(());
    }
    Err(corrupt(
        path,
        format!("BLAKE3 is {found}, expected {expected}: the file was changed; build it again"),
    ))
}
