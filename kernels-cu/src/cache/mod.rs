//! Cubins on disk, so that a board compiles each source once, and one without a compiler starts with what was compiled for it.
//!
//! A file `<source>.<target>.nvrtc-<version>.cubin` is the cubin, readable by any tool, and 32 bytes behind it: SHA-256 over the
//! [content hash](Source::content_hash) of the source, the file's name and the cubin. So a file that was damaged, cut, renamed, or
//! made from another source, is found out and made again.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
};

use sha2::{Digest, Sha256};

use crate::{
    BuildError, CudaVersion, Result, Target,
    compiler::{Compiler, CompilerVersion},
    image::Image,
    source::Source,
};

/// Length of the seal behind a cubin.
const SEAL_LEN: usize = 32;

/// A folder of cubins.
#[derive(Debug, Clone)]
pub struct Cache {
    folder: PathBuf,
}

/// Where a cubin came from.
#[derive(Debug)]
pub enum Origin {
    /// It was in the folder.
    Found,
    /// It was compiled, and stored for the next time.
    Compiled,
    /// It was compiled, and could not be stored: the next start will compile it again.
    NotStored(BuildError),
}

/// A cubin from the cache.
#[derive(Debug)]
pub struct Cached {
    /// The cubin.
    pub image: Image,
    /// Where it came from.
    pub origin: Origin,
}

impl Cache {
    /// The cache in `folder`, which is made when the first cubin is stored.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The cubin of `source` for `target` as `compiler` makes it: from the folder, else compiled and stored.
    ///
    /// # Errors
    /// Those of [`Compiler::compile`]. A folder that cannot be read or written is none: see [`Origin`].
    pub fn build(&self, compiler: &Compiler, source: &Source, target: Target) -> Result<Cached> {
        let compile = || Ok(compiler.compile(source, target)?.image);
        self.build_with(source, target, compiler.version(), compile)
    }

    /// The cubin of `source` for `target` by whichever compiler made one, the newest first: for a board without a compiler. Only those that a
    /// driver of CUDA `driver` takes; all of them for `None`.
    #[must_use]
    pub fn find(&self, source: &Source, target: Target, driver: Option<CudaVersion>) -> Option<Image> {
        let takes =
            |version: &CompilerVersion| driver.is_none_or(|driver| driver.takes_cubins_of(version.cuda()));
        let versions = self.versions(source, target);
        versions.into_iter().rev().filter(takes).find_map(|version| self.load(source, target, version))
    }

    /// The compilers that files of `source` for `target` are of, oldest first; whether the files hold is not looked at.
    #[must_use]
    pub fn versions(&self, source: &Source, target: Target) -> Vec<CompilerVersion> {
        let prefix = format!("{}.{target}.nvrtc-", source.name);
        let entries = fs::read_dir(&self.folder).into_iter().flatten();
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let version = |name: String| name.strip_prefix(&prefix)?.strip_suffix(".cubin")?.parse().ok();
        let mut versions: Vec<CompilerVersion> = names.filter_map(version).collect();
        versions.sort_unstable();
        versions
    }

    /// Where the cubin that the compiler of `version` makes of `source` lies.
    #[must_use]
    pub fn path(&self, source: &Source, target: Target, version: CompilerVersion) -> PathBuf {
        self.folder.join(file_name(source, target, version))
    }

    /// Stores `image`, made from `source` by the compiler of `version`: readers see the whole file or none.
    ///
    /// # Errors
    /// The folder cannot be made or written.
    pub fn store(&self, source: &Source, version: CompilerVersion, image: &Image) -> Result<()> {
        let name = file_name(source, image.target(), version);
        let seal = seal(source, image.target(), &name, image.bytes());
        let path = self.folder.join(&name);
        self.write(&name, &[image.bytes(), &seal]).map_err(|error| BuildError::Io { path, error })
    }

    fn build_with(
        &self,
        source: &Source,
        target: Target,
        version: CompilerVersion,
        compile: impl FnOnce() -> Result<Image>,
    ) -> Result<Cached> {
        if let Some(image) = self.load(source, target, version) {
            return Ok(Cached { image, origin: Origin::Found });
        }
        let image = compile()?;
        let origin = match self.store(source, version, &image) {
            Ok(()) => Origin::Compiled,
            Err(error) => Origin::NotStored(error),
        };
        Ok(Cached { image, origin })
    }

    /// The cubin that the compiler of `version` made, if it is in the folder and whole.
    #[must_use]
    pub fn load(&self, source: &Source, target: Target, version: CompilerVersion) -> Option<Image> {
        let name = file_name(source, target, version);
        let mut bytes = fs::read(self.folder.join(&name)).ok()?;
        let found = bytes.split_off(bytes.len().checked_sub(SEAL_LEN)?);
        if found != seal(source, target, &name, &bytes) {
            return None;
        }
        Image::parse(bytes, target).ok()
    }

    /// Writes beside the final name and renames, so that two processes can do it at once.
    fn write(&self, name: &str, parts: &[&[u8]]) -> io::Result<()> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        fs::create_dir_all(&self.folder)?;
        let unique = COUNTER.fetch_add(1, Ordering::Relaxed);
        let temporary = self.folder.join(format!(".{name}.{}.{unique}", process::id()));
        let written =
            write_all(&temporary, parts).and_then(|()| fs::rename(&temporary, self.folder.join(name)));
        if written.is_err() {
            // Nothing is lost if it stays; the error that led here says more.
            drop(fs::remove_file(&temporary));
        }
        written
    }
}

fn write_all(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let mut file = fs::File::create(path)?;
    for part in parts {
        file.write_all(part)?;
    }
    // Before the rename: a file with the final name is whole even after power was cut.
    file.sync_all()
}

fn file_name(source: &Source, target: Target, version: CompilerVersion) -> String {
    format!("{}.{target}.nvrtc-{}.cubin", source.name, version.key())
}

fn seal(source: &Source, target: Target, name: &str, cubin: &[u8]) -> [u8; SEAL_LEN] {
    let mut hash = Sha256::new();
    hash.update(source.content_hash(target));
    hash.update(name.as_bytes());
    hash.update(cubin);
    hash.finalize().into()
}

#[cfg(test)]
mod tests;
