//! An engine directory before its contents were looked at.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use super::{DraftDir, EngineDir, GENERATION_FILE, Manifest, WEIGHTS_FILE, parts, verify, weights::Weights};
use crate::{Result, text::GenerationDefaults};

/// An engine directory that has the right files, sizes and tensors, whose hashes and values are still to be checked.
///
/// A loader that reads through [`EngineDir::watch`] has each piece of the weights checked just before it packs it; what it did not read is
/// checked at the end.
#[derive(Debug)]
pub(crate) struct UncheckedDir {
    dir: EngineDir,
    is_checked: AtomicBool,
}

impl UncheckedDir {
    /// Opens `path` and checks all of it but the contents of its large files.
    ///
    /// # Errors
    /// As [`EngineDir::open`].
    pub fn open(path: &Path) -> Result<Self> {
        let manifest = Manifest::read(path)?;
        verify::check_listing(path, &manifest)?;
        let generation = GenerationDefaults::read(&path.join(GENERATION_FILE))?;
        let weights = Weights::map(&path.join(WEIGHTS_FILE), parts(&manifest.spec, &manifest.quantization))?;
        let draft = DraftDir::open(path, &manifest)?;
        let dir = EngineDir { path: path.to_path_buf(), manifest, generation, weights, draft };
        Ok(Self { dir, is_checked: AtomicBool::new(false) })
    }

    /// Checks what [`Self::open`] left: every file's hash, and that all scales and values are finite. Done once, it is not done again.
    ///
    /// # Errors
    /// As [`EngineDir::open`].
    pub fn check(&self) -> Result<()> {
        if self.is_checked.load(Ordering::Relaxed) {
            return Ok(());
        }
        let EngineDir { path, manifest, weights, draft, .. } = &self.dir;
        verify::check_contents(path, manifest, weights, draft.as_ref())?;
        self.is_checked.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// The engine directory, once its contents have been found to hold.
    ///
    /// # Errors
    /// As [`EngineDir::open`].
    pub fn into_checked(self) -> Result<EngineDir> {
        self.check()?;
        Ok(self.dir)
    }

    /// What may be wrong yet: for what comes to nothing when [`Self::check`] fails.
    pub(crate) fn contents(&self) -> &EngineDir {
        &self.dir
    }
}
