//! Kernels for the boards an engine is built for: they lie in it whole, and a build without a compiler leaves nothing.

use std::{
    env, fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use takt_engine::{
    dir::{EngineDir, KERNELS_FOLDER},
    quant::WeightKind,
};
use takt_engine_builder::{BoardKernels, BuildError, BuildOptions, Stage, build};
use takt_kernels_cu::{
    Target,
    cache::Cache,
    kernel_set::{KernelSet, Places},
    source::SOURCES,
};
use takt_tests::checkpoint::{CheckpointCopy as Copy, engine_bytes};

const MODEL: &str = "families/llama-linear";

/// The CUDA folders in `TAKT_CUDA_ROOT`; without one the test says so and passes, unless `TAKT_REQUIRE_NVRTC=1`.
fn cuda_roots() -> Option<Vec<PathBuf>> {
    let root = env::var_os("TAKT_CUDA_ROOT").map(|roots| env::split_paths(&roots).collect());
    if root.is_none() {
        assert!(env::var_os("TAKT_REQUIRE_NVRTC").is_none(), "TAKT_REQUIRE_NVRTC without TAKT_CUDA_ROOT");
        eprintln!("skipped: no TAKT_CUDA_ROOT, so no CUDA compiler");
    }
    root
}

/// As a board without a compiler opens them.
fn open(engine: &Path, target: Target) -> Result<KernelSet, takt_kernels_cu::BuildError> {
    let folders = [Cache::new(engine.join(KERNELS_FOLDER))];
    let places = Places { folders: &folders, compiler: None, driver: None };
    KernelSet::open(target, places, |_| panic!("nothing can be compiled")).map(|(kernels, _)| kernels)
}

#[test]
fn kernels_for_a_board_land_in_the_engine_and_need_no_compiler_again() {
    let Some(roots) = cuda_roots() else { return };
    let copy = Copy::of(MODEL);
    let kernels = BoardKernels::open(&roots[..1], &[Target::Orin, Target::Orin], &[]).unwrap();
    assert_eq!(kernels.targets(), [Target::Orin]);
    let options = BuildOptions { kernels: Some(&kernels), ..BuildOptions::new(WeightKind::Bf16) };
    let mut compiled = Vec::new();
    let report = build(&copy.folder(), &copy.out(), &options, &mut |progress| {
        if progress.stage == Stage::Kernels {
            compiled.push(progress.item.to_owned());
        }
    });
    let found = report.unwrap().kernels.unwrap();
    let expected: Vec<String> = SOURCES
        .iter()
        .map(|source| format!("{}.cu for sm_87, CUDA {}", source.name, found.compilers[0]))
        .collect();
    assert_eq!(compiled, expected);

    let folder = copy.out().join(KERNELS_FOLDER);
    let lengths: Vec<u64> =
        fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).collect();
    assert_eq!((found.num_files, found.bytes), (lengths.len(), lengths.iter().sum()));
    assert_eq!((found.targets.as_slice(), lengths.len()), ([Target::Orin].as_slice(), SOURCES.len()));
    assert_eq!(open(&copy.out(), Target::Orin).unwrap().images().len(), SOURCES.len());
    assert!(open(&copy.out(), Target::Thor).is_err());

    // NVRTC puts the number of its process into some names, with which no two builds would give the same bytes.
    let process = format!("_{}", std::process::id());
    for entry in fs::read_dir(&folder).unwrap() {
        let (path, process) = (entry.unwrap().path(), process.as_bytes());
        let is_named = fs::read(&path).unwrap().windows(process.len()).any(|bytes| bytes == process);
        assert!(!is_named, "{path:?} names the process that made it");
    }

    // A damaged one is missed by whoever needs it, and by nobody else.
    let damaged = fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&damaged).unwrap();
    bytes[100] ^= 1;
    fs::write(&damaged, bytes).unwrap();
    let message = open(&copy.out(), Target::Orin).unwrap_err().to_string();
    let name = damaged.file_name().unwrap().to_str().unwrap().split_once('.').unwrap().0;
    assert!(message.contains(name), "{message}");
    let engine = EngineDir::open(&copy.out()).unwrap();
    assert!(engine.manifest().files.iter().all(|file| !file.name.starts_with(KERNELS_FOLDER)));
}

#[test]
fn a_build_cancelled_between_two_kernels_keeps_the_old_engine_and_leaves_nothing_else() {
    let Some(roots) = cuda_roots() else { return };
    let copy = Copy::of(MODEL);
    copy.build().unwrap();
    let before = engine_bytes(&copy.out());
    let (kernels, stop) =
        (BoardKernels::open(&roots[..1], &[Target::Orin], &[]).unwrap(), AtomicBool::new(false));
    let options = BuildOptions {
        kernels: Some(&kernels),
        force: true,
        cancelled: Some(&stop),
        ..BuildOptions::new(WeightKind::Bf16)
    };
    let mut last = None;
    let result = build(&copy.folder(), &copy.out(), &options, &mut |progress| {
        last = Some((progress.stage, progress.done));
        stop.store(true, Ordering::Relaxed);
    });
    assert!(matches!(result, Err(BuildError::Cancelled)));
    assert_eq!(last, Some((Stage::Kernels, 0)));
    assert_eq!(engine_bytes(&copy.out()), before);
    assert_eq!(copy.neighbours(), ["engine", "model"]);
}
