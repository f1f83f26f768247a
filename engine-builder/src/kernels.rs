//! `kernels/`: CUDA kernels compiled for the boards an engine is built for, so that those boards need no compiler to start.

use std::{fs, path::Path};

use takt_engine::dir::KERNELS_FOLDER;
use takt_kernels_cu::{
    Target,
    cache::Cache,
    compiler::{Compiler, CompilerVersion},
    kernel_set::{KernelSet, Places},
    source::SOURCES,
};

use crate::{BuildOptions, Progress, Result, Stage, report::KernelReport, staging::io_error};

/// A CUDA driver of version 12, as on JetPack 6, takes no cubin of this compiler or a newer one.
const CUDA_OF_JETPACK_7: u32 = 13;

/// Kernels to be compiled into an engine: for which boards, and by which compiler. Made before the build, so that a machine without a
/// compiler, or with one that does not know a board, is told at once and not after the weights were quantized.
#[derive(Debug)]
pub struct BoardKernels {
    compiler: Compiler,
    /// Oldest first, each once.
    targets: Vec<Target>,
}

impl BoardKernels {
    /// Opens the compiler of the CUDA folder `cuda_root` for `targets`; one that is named twice is one.
    ///
    /// # Errors
    /// [`BuildError::Kernels`](crate::BuildError::Kernels): no compiler there, with what to install; a target it does not know.
    pub fn open(cuda_root: &Path, targets: &[Target]) -> Result<Self> {
        let compiler = Compiler::open(cuda_root)?;
        if let Some(&target) = targets.iter().find(|&&target| !compiler.knows(target)) {
            let version = compiler.version();
            return Err(takt_kernels_cu::BuildError::UnknownTarget { version, target }.into());
        }
        let mut targets = targets.to_vec();
        targets.sort_unstable();
        targets.dedup();
        Ok(Self { compiler, targets })
    }

    /// The boards, oldest first.
    #[must_use]
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// Compiles every source for every target into `engine`, which nobody else sees yet.
    pub(crate) fn compile_into(
        &self,
        engine: &Path,
        options: &BuildOptions<'_>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<KernelReport> {
        let cache = Cache::new(engine.join(KERNELS_FOLDER));
        let version = self.compiler.version();
        let jobs = self.targets.iter().flat_map(|&target| SOURCES.iter().map(move |source| (target, source)));
        let (total, mut bytes) = (self.targets.len() * SOURCES.len(), 0);
        for (done, (target, source)) in jobs.enumerate() {
            options.check_cancelled()?;
            let item = format!("{}.cu for {target}", source.name);
            progress(Progress { stage: Stage::Kernels, item: &item, done, total, bytes });
            cache.store(source, version, &self.compiler.compile(source, target)?.image)?;
            bytes = folder_bytes(cache.folder())?;
        }
        // What is published is what a board without a compiler would open.
        let places = Places { folders: &[cache], compiler: None };
        for &target in &self.targets {
            KernelSet::open(target, places, |_| ())?;
        }
        Ok(KernelReport { targets: self.targets.clone(), compiler: version, num_files: total, bytes })
    }

    /// What the user should know about boards that will not take what this compiler makes.
    pub(crate) fn warning(&self) -> Option<String> {
        older_driver_warning(&self.targets, self.compiler.version())
    }
}

fn older_driver_warning(targets: &[Target], version: CompilerVersion) -> Option<String> {
    let is_too_new = targets.contains(&Target::Orin) && version.major >= CUDA_OF_JETPACK_7;
    is_too_new.then(|| {
        format!(
            "the kernels for {} are of CUDA {version}: an Orin with JetPack 6 does not take them; for it, build with CUDA 12.6",
            Target::Orin
        )
    })
}

fn folder_bytes(folder: &Path) -> Result<u64> {
    let read = |e| io_error("read", folder, e);
    fs::read_dir(folder)
        .map_err(read)?
        .map(|entry| entry.and_then(|entry| Ok(entry.metadata()?.len())).map_err(read))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_orin_is_warned_of_a_compiler_newer_than_its_driver() {
        let version = |major| CompilerVersion { major, minor: 0, library_bytes: 1 };
        let warned = older_driver_warning(&[Target::Orin, Target::Thor], version(13));
        assert!(warned.is_some_and(|text| text.contains("sm_87") && text.contains("12.6")));
        assert_eq!(older_driver_warning(&[Target::Orin], version(12)), None);
        assert_eq!(older_driver_warning(&[Target::Thor], version(13)), None);
    }

    #[test]
    fn a_folder_without_a_compiler_is_told_with_what_to_install() {
        let empty = tempfile::tempdir().unwrap();
        let error = BoardKernels::open(empty.path(), &[Target::Orin]).unwrap_err().to_string();
        assert!(error.contains("no CUDA compiler") && error.contains("install"), "{error}");
    }
}
