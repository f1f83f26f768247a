//! Kernels for the boards an engine is built for: they lie in it whole, and a build without a compiler leaves nothing.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use takt_engine::{
    dir::{EngineDir, KERNELS_FOLDER},
    quant::WeightKind,
};
use takt_engine_builder::{BoardKernels, BuildError, BuildOptions, Stage, add_kernels, build};
use takt_kernels_cu::{
    CudaVersion, Target,
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

/// The CUDA folder of 12.6 in `TAKT_CUDA_12_ROOT`; as above without one.
fn cuda_12_root() -> Option<PathBuf> {
    let root = env::var_os("TAKT_CUDA_12_ROOT").map(PathBuf::from);
    if root.is_none() {
        assert!(env::var_os("TAKT_REQUIRE_NVRTC").is_none(), "TAKT_REQUIRE_NVRTC without TAKT_CUDA_12_ROOT");
        eprintln!("partly skipped: no TAKT_CUDA_12_ROOT, so no compiler of CUDA 12.6");
    }
    root
}

/// Every file of an engine with kernels, by its path below the engine.
fn everything(engine: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for (folder, prefix) in [(engine.to_owned(), ""), (engine.join(KERNELS_FOLDER), "kernels/")] {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()) {
            if entry.file_type().unwrap().is_file() {
                let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
                files.insert(name, fs::read(entry.path()).unwrap());
            }
        }
    }
    files
}

/// As a board without a compiler opens them.
fn open(engine: &Path, target: Target) -> Result<KernelSet, takt_kernels_cu::BuildError> {
    open_on(engine, target, None)
}

/// As a board with a driver of this version opens them.
fn open_on(
    engine: &Path,
    target: Target,
    driver: Option<CudaVersion>,
) -> Result<KernelSet, takt_kernels_cu::BuildError> {
    let folders = [Cache::new(engine.join(KERNELS_FOLDER))];
    let places = Places { folders: &folders, compiler: None, driver };
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
    drop(engine);
    if let Some(root) = cuda_12_root() {
        let roots = [roots[0].clone(), root];
        kernels_by_an_older_compiler_come_beside_them(&copy, &roots, &damaged);
    }
}

/// An engine with kernels for Orin by CUDA 13.0, one of which is damaged, gets those by 12.6 besides.
fn kernels_by_an_older_compiler_come_beside_them(copy: &Copy, roots: &[PathBuf], damaged: &Path) {
    let (jetpack_6, jetpack_7) = (CudaVersion::new(12, 6), CudaVersion::new(13, 0));
    let error = open_on(&copy.out(), Target::Orin, Some(jetpack_6)).unwrap_err().to_string();
    assert!(error.contains("--cuda 12.6"), "{error}");
    let others = |files: BTreeMap<String, Vec<u8>>| -> BTreeMap<String, Vec<u8>> {
        files.into_iter().filter(|(name, _)| !name.starts_with(KERNELS_FOLDER)).collect()
    };
    let before = everything(&copy.out());
    let kernels = BoardKernels::open(roots, &[Target::Orin], &[jetpack_6]).unwrap();
    assert_eq!(kernels.warning(), None);

    let stop = AtomicBool::new(false);
    let cancelled =
        add_kernels(&copy.out(), &kernels, Some(&stop), &mut |_| stop.store(true, Ordering::Relaxed));
    assert!(matches!(cancelled, Err(BuildError::Cancelled)));
    assert_eq!(everything(&copy.out()), before);
    assert_eq!(copy.neighbours(), ["engine", "model"]);

    let mut items = 0;
    let report = add_kernels(&copy.out(), &kernels, None, &mut |progress| {
        assert_eq!((progress.stage, progress.done, progress.total), (Stage::Kernels, items, SOURCES.len()));
        assert_eq!(everything(&copy.out()), before, "nothing is touched before all is compiled");
        items += 1;
    });
    assert_eq!(items, SOURCES.len());
    assert_eq!(report.unwrap().compilers, [jetpack_6]);
    assert_eq!(copy.neighbours(), ["engine", "model"]);
    let after = everything(&copy.out());
    assert_eq!(others(after.clone()), others(before.clone()));
    // What held is still there, what was damaged is not.
    assert_eq!(after.len(), before.len() + SOURCES.len() - 1);
    assert!(!damaged.exists());
    let open = |driver| open_on(&copy.out(), Target::Orin, Some(driver)).unwrap().images().len();
    assert_eq!((open(jetpack_6), open(jetpack_7)), (SOURCES.len(), SOURCES.len()));
    EngineDir::open(&copy.out()).unwrap();
}

#[test]
fn an_engine_without_kernels_gets_none_when_nothing_can_be_added() {
    let Some(roots) = cuda_roots() else { return };
    let copy = Copy::of(MODEL);
    copy.build().unwrap();
    let before = engine_bytes(&copy.out());
    let error =
        BoardKernels::open(&roots, &[Target::Orin], &[CudaVersion::new(11, 8)]).unwrap_err().to_string();
    assert!(error.contains("no compiler of CUDA 11.8") && error.contains("TAKT_CUDA_ROOT"), "{error}");
    let kernels = BoardKernels::open(&roots, &[Target::Orin], &[]).unwrap();
    // The source of an engine is none.
    let error =
        add_kernels(&copy.folder(), &kernels, None, &mut |_| panic!("nothing is compiled")).unwrap_err();
    assert!(error.to_string().contains("engine.json"), "{error}");
    let stop = AtomicBool::new(true);
    assert!(add_kernels(&copy.out(), &kernels, Some(&stop), &mut |_| ()).is_err());
    assert_eq!(engine_bytes(&copy.out()), before);
    assert_eq!(copy.neighbours(), ["engine", "model"]);
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
