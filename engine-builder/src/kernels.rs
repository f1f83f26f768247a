//! `kernels/`: CUDA kernels compiled for the boards an engine is built for, so that those boards need no compiler to start.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use takt_engine::dir::{KERNELS_FOLDER, Manifest};
use takt_kernels_cu::{
    CudaVersion, Target,
    cache::Cache,
    compiler::{self, Compiler, CompilerVersion},
    kernel_set::{KernelSet, Places},
    source::{SOURCES, Source},
};

use crate::{
    BuildError, Progress, Result, Stage,
    report::KernelReport,
    staging::{hidden_sibling, io_error, sync_folder},
};

/// A CUDA driver of version 12, as on JetPack 6, takes no cubin of this compiler or a newer one.
const CUDA_OF_JETPACK_7: u32 = 13;

/// Kernels to be compiled into an engine: for which boards, and by which compilers. Made before the build, so that a machine without a
/// compiler, or with one that does not know a board, is told at once and not after the weights were quantized.
#[derive(Debug)]
pub struct BoardKernels {
    compilers: Vec<Compiler>,
    /// Boards, oldest first, each with its compilers, oldest first.
    boards: Vec<(Target, Vec<usize>)>,
}

impl BoardKernels {
    /// Opens the compilers of the CUDA folders `cuda_roots` for `targets`; one that is named twice is one.
    ///
    /// Each board's kernels are compiled by the compilers of `versions` that know it. Where none is named: by the newest of each major version
    /// of CUDA that is there, since drivers take no cubins of a later major version than their own.
    ///
    /// # Errors
    /// [`BuildError::Kernels`]: no compiler there, with what to install; none of a version that is asked for, or none that knows a target.
    pub fn open(cuda_roots: &[PathBuf], targets: &[Target], versions: &[CudaVersion]) -> Result<Self> {
        let compilers = compiler::open_all(cuda_roots)?;
        let found: Vec<CompilerVersion> = compilers.iter().map(Compiler::version).collect();
        if let Some(&asked) = versions.iter().find(|&asked| !found.iter().any(|it| it.cuda() == *asked)) {
            let found = found.iter().map(CompilerVersion::cuda).collect();
            return Err(takt_kernels_cu::BuildError::OtherCompilers { asked, found }.into());
        }
        let mut targets = targets.to_vec();
        targets.sort_unstable();
        targets.dedup();
        let mut boards = Vec::new();
        for target in targets {
            let known: Vec<bool> = compilers.iter().map(|compiler| compiler.knows(target)).collect();
            let chosen = chosen(&found, &known, versions);
            if chosen.is_empty() {
                let is_asked = |version: &&CompilerVersion| is_asked(version.cuda(), versions);
                let newest = found.iter().filter(is_asked).max().or(found.iter().max());
                let version =
                    newest.copied().unwrap_or(CompilerVersion { major: 0, minor: 0, library_bytes: 0 });
                return Err(takt_kernels_cu::BuildError::UnknownTarget { version, target }.into());
            }
            boards.push((target, chosen));
        }
        Ok(Self { compilers, boards })
    }

    /// The boards, oldest first.
    #[must_use]
    pub fn targets(&self) -> Vec<Target> {
        self.boards.iter().map(|(target, _)| *target).collect()
    }

    /// Compiles every source for every board into `folder`, which nobody else sees yet.
    pub(crate) fn compile_into(
        &self,
        folder: &Path,
        cancelled: Option<&AtomicBool>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<KernelReport> {
        let cache = Cache::new(folder);
        let jobs = self.jobs();
        let (total, mut bytes) = (jobs.len(), 0);
        for (done, (target, compiler, source)) in jobs.into_iter().enumerate() {
            check(cancelled)?;
            let version = compiler.version();
            let item = format!("{}.cu for {target}, CUDA {version}", source.name);
            progress(Progress { stage: Stage::Kernels, item: &item, done, total, bytes });
            cache.store(source, version, &compiler.compile(source, target)?.image)?;
            bytes = folder_bytes(cache.folder())?;
        }
        self.check_whole(&cache)?;
        Ok(KernelReport { targets: self.targets(), compilers: self.versions(), num_files: total, bytes })
    }

    fn jobs(&self) -> Vec<(Target, &Compiler, &'static Source)> {
        let of_board = |(target, chosen): &(Target, Vec<usize>)| {
            let target = *target;
            let compilers: Vec<&Compiler> = chosen.iter().map(|&idx| &self.compilers[idx]).collect();
            let of_compiler = move |compiler| SOURCES.iter().map(move |source| (target, compiler, source));
            compilers.into_iter().flat_map(of_compiler).collect::<Vec<_>>()
        };
        self.boards.iter().flat_map(of_board).collect()
    }

    /// That every board's kernels are in `cache`, for the drivers of each of its compilers: what is published is what a board without a compiler
    /// would open.
    fn check_whole(&self, cache: &Cache) -> Result<()> {
        let folders = std::slice::from_ref(cache);
        for (target, chosen) in &self.boards {
            for &idx in chosen {
                let driver = Some(self.compilers[idx].version().cuda());
                KernelSet::open(*target, Places { folders, compiler: None, driver }, |_| ())?;
            }
        }
        Ok(())
    }

    /// The compilers that are used, oldest first.
    fn versions(&self) -> Vec<CudaVersion> {
        let used = self.boards.iter().flat_map(|(_, chosen)| chosen);
        let mut versions: Vec<_> = used.map(|&idx| self.compilers[idx].version().cuda()).collect();
        versions.sort_unstable();
        versions.dedup();
        versions
    }

    /// What the user should know about boards that will not take what these compilers make.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        let (_, chosen) = self.boards.iter().find(|(target, _)| *target == Target::Orin)?;
        let versions: Vec<_> = chosen.iter().map(|&idx| self.compilers[idx].version().cuda()).collect();
        older_driver_warning(&versions)
    }
}

/// Compiles `kernels` into the engine directory `engine`, which stays as it is otherwise. Kernels that are there already stay, but those for
/// the same boards that are damaged or of other sources.
///
/// Nothing of the engine is touched before all is compiled. The files then take their places one by one; as each is whole and holds or does not
/// by itself, a node that opens the engine meanwhile finds every kernel that was there before.
///
/// # Errors
/// [`BuildError::Engine`] for a folder that is no engine directory; [`BuildError::Source`] for one that is mounted, before anything is compiled;
/// those of compiling; [`BuildError::Io`].
pub fn add_kernels(
    engine: &Path,
    kernels: &BoardKernels,
    cancelled: Option<&AtomicBool>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<KernelReport> {
    Manifest::read(engine)?;
    // A link to an engine is one; what is beside the link need not be beside the engine.
    let engine = fs::canonicalize(engine).map_err(|e| io_error("read", engine, e))?;
    let (Some(parent), Some(name)) = (engine.parent(), engine.file_name()) else {
        let fact = "has nothing beside it: expected an engine directory that lies in a folder".into();
        return Err(BuildError::Source { path: engine, fact });
    };
    let staging = hidden_sibling(parent, &name.to_string_lossy(), "kernels")?;
    let (made, folder) = (staging.path().join(KERNELS_FOLDER), engine.join(KERNELS_FOLDER));
    let target = if folder.exists() { &folder } else { &engine };
    if is_elsewhere(staging.path(), target)? {
        let fact = format!(
            "is a file system of its own, and kernels are compiled in {parent:?} and moved: expected both on one; add them where the folder is not mounted, or to a copy of the engine, and mount that"
        );
        return Err(BuildError::Source { path: target.clone(), fact });
    }
    let report = kernels.compile_into(&made, cancelled, progress)?;
    check(cancelled)?;
    sync_folder(&made)?;
    publish(&made, &folder)?;
    drop_stale(&folder, &kernels.targets())?;
    sync_folder(&folder)?;
    sync_folder(&engine)?;
    Ok(report)
}

/// Whether nothing can be moved from the folder `from` to the folder `to`: other devices, or other mounts of one.
pub(crate) fn is_elsewhere(from: &Path, to: &Path) -> Result<bool> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        let device =
            |path: &Path| fs::metadata(path).map(|facts| facts.dev()).map_err(|e| io_error("read", path, e));
        if device(from)? != device(to)? {
            return Ok(true);
        }
    }
    // Nothing is there to be moved; the kernel compares mounts before it finds that out.
    let moved = fs::rename(from.join("nothing"), to.join("nothing"));
    Ok(moved.is_err_and(|e| e.kind() == ErrorKind::CrossesDevices))
}

/// Moves what is in `made` to `folder`.
fn publish(made: &Path, folder: &Path) -> Result<()> {
    if !folder.exists() {
        return fs::rename(made, folder).map_err(|e| io_error("rename", folder, e));
    }
    for entry in fs::read_dir(made).map_err(|e| io_error("read", made, e))? {
        let name = entry.map_err(|e| io_error("read", made, e))?.file_name();
        let to = folder.join(&name);
        fs::rename(made.join(&name), &to).map_err(|e| io_error("rename", &to, e))?;
    }
    Ok(())
}

/// Removes cubins for `targets` that do not hold: nobody would load them.
fn drop_stale(folder: &Path, targets: &[Target]) -> Result<()> {
    let cache = Cache::new(folder);
    for &target in targets {
        for source in SOURCES {
            let versions = cache.versions(source, target).into_iter();
            for version in versions.filter(|version| cache.load(source, target, *version).is_none()) {
                let path = cache.path(source, target, version);
                fs::remove_file(&path).map_err(|e| io_error("remove", &path, e))?;
            }
        }
    }
    Ok(())
}

/// Of compilers, `found`, those to use for a board that only some, `known`, know: all of the versions that are asked for, or else the newest of
/// each major version; oldest first.
fn chosen(found: &[CompilerVersion], known: &[bool], asked: &[CudaVersion]) -> Vec<usize> {
    let newest_of = |same: &dyn Fn(CudaVersion) -> bool| {
        let fits = |&idx: &usize| known[idx] && same(found[idx].cuda());
        (0..found.len()).filter(fits).max_by_key(|&idx| found[idx])
    };
    let mut chosen: Vec<usize> = if asked.is_empty() {
        let majors = found.iter().map(|version| version.major);
        majors.filter_map(|major| newest_of(&|version| version.major == major)).collect()
    } else {
        asked.iter().filter_map(|&asked| newest_of(&|version| version == asked)).collect()
    };
    chosen.sort_unstable_by_key(|&idx| found[idx]);
    chosen.dedup();
    chosen
}

fn is_asked(version: CudaVersion, asked: &[CudaVersion]) -> bool {
    asked.is_empty() || asked.contains(&version)
}

/// For an Orin whose kernels are by `versions`.
fn older_driver_warning(versions: &[CudaVersion]) -> Option<String> {
    let newest = versions.iter().max()?;
    versions.iter().all(|version| version.major >= CUDA_OF_JETPACK_7).then(|| {
        format!(
            "the kernels for {} are of CUDA {newest}: an Orin with JetPack 6 does not take them; for it, build with CUDA 12.6",
            Target::Orin
        )
    })
}

fn check(cancelled: Option<&AtomicBool>) -> Result<()> {
    match cancelled {
        Some(flag) if flag.load(Ordering::Relaxed) => Err(BuildError::Cancelled),
        _ => Ok(()),
    }
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

    fn version(major: u32, minor: u32) -> CompilerVersion {
        CompilerVersion { major, minor, library_bytes: 1 }
    }

    #[test]
    fn a_board_gets_the_newest_compiler_of_each_major_version_that_knows_it() {
        let found = [version(13, 0), version(12, 6), version(12, 9), version(13, 2)];
        assert_eq!(chosen(&found, &[true; 4], &[]), [2, 3]);
        assert_eq!(chosen(&found, &[true, true, false, false], &[]), [1, 0]);
        assert_eq!(chosen(&found, &[true, false, false, false], &[]), [0]);
        assert!(chosen(&found, &[false; 4], &[]).is_empty());
        let asked = |versions: &[(u32, u32)]| -> Vec<CudaVersion> {
            versions.iter().map(|&(major, minor)| CudaVersion::new(major, minor)).collect()
        };
        assert_eq!(chosen(&found, &[true; 4], &asked(&[(13, 0), (12, 6), (13, 0)])), [1, 0]);
        // A board that one of them does not know has the others'.
        assert_eq!(chosen(&found, &[true, false, false, true], &asked(&[(13, 0), (12, 6)])), [0]);
        assert!(chosen(&found, &[true, false, true, true], &asked(&[(12, 6)])).is_empty());
    }

    #[test]
    fn an_orin_is_warned_of_compilers_that_are_all_newer_than_its_driver() {
        let (older, newer) = (CudaVersion::new(12, 6), CudaVersion::new(13, 0));
        let warned = older_driver_warning(&[newer]);
        assert!(warned.is_some_and(|text| text.contains("sm_87") && text.contains("12.6")));
        assert_eq!(older_driver_warning(&[older]), None);
        assert_eq!(older_driver_warning(&[older, newer]), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn kernels_that_would_have_to_move_to_another_file_system_are_refused_at_once() {
        use crate::{BuildOptions, build};
        use takt_engine::quant::WeightKind;
        let (folder, Ok(other)) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm")) else {
            return;
        };
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/hf/tiny-llama");
        let engine = folder.path().join("engine");
        build(&source, &engine, &BuildOptions::new(WeightKind::Bf16), &mut |_| ()).unwrap();
        assert!(!is_elsewhere(folder.path(), &engine).unwrap());
        if !is_elsewhere(folder.path(), other.path()).unwrap() {
            return;
        }
        std::os::unix::fs::symlink(other.path(), engine.join(KERNELS_FOLDER)).unwrap();
        let none = BoardKernels { compilers: Vec::new(), boards: Vec::new() };
        let error = add_kernels(&engine, &none, None, &mut |_| ()).unwrap_err().to_string();
        assert!(error.contains("kernels\": is a file system of its own"), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(fs::read_dir(other.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_without_a_compiler_is_told_with_what_to_install() {
        let empty = tempfile::tempdir().unwrap();
        let roots = [empty.path().to_owned()];
        let error = BoardKernels::open(&roots, &[Target::Orin], &[]).unwrap_err().to_string();
        assert!(error.contains("no CUDA compiler") && error.contains("install"), "{error}");
    }
}
