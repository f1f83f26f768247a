//! Engines on drivers older than the newest kernels: Orin with JetPack 6, servers that stay with a driver for years.

use std::{env, fs, path::Path};

use takt_engine::{
    Result,
    backend::cuda::{GpuOptions, GpuShare},
    engine::{BackendKind, Engine, EngineOptions},
    kv::LaneId,
    quant::WeightKind,
};
use takt_kernels_cu::{CudaVersion, Target, cache::Cache, source::SOURCES};
use takt_tests::backends::run_slices;

use crate::{
    mapped::engine,
    models::{emulated, tokens},
    shipped::cubins,
};

/// Orin's kernels by CUDA 12.6, as `cargo run -p xtask -- kernels --compiler 12.6 --target sm_87` keeps them, are in `folder`.
fn has_older_kernels(folder: &Path) -> bool {
    let (cache, driver) = (Cache::new(folder), Some(CudaVersion::new(12, 6)));
    let is_there = SOURCES.iter().all(|source| cache.find(source, Target::Orin, driver).is_some());
    if !is_there {
        assert!(env::var_os("TAKT_REQUIRE_CUBINS").is_none(), "no cubins by CUDA 12.6");
        eprintln!("skipped: no cubins by CUDA 12.6 of these sources");
    }
    is_there
}

fn open(engine: &Path, cubins: &Path) -> Result<Engine> {
    let gpu = GpuOptions {
        share: GpuShare::GreenContext { percent: 50 },
        kernel_cache: Some(cubins.to_owned()),
        ..GpuOptions::default()
    };
    Engine::open(
        engine,
        &EngineOptions {
            backend: BackendKind::Cuda,
            lane_capacity: Some(32),
            max_step_tokens: 16,
            gpu,
            ..EngineOptions::default()
        },
    )
}

fn answer(engine: &mut Engine) -> Vec<Vec<f32>> {
    let backend = engine.backend.as_mut();
    let tokens = tokens(backend.spec(), 9);
    run_slices(backend, LaneId(0), &tokens, 4)
}

/// The emulated driver refuses cubins of CUDA 13 when it plays one of 12: that the engine answers says which were taken.
#[test]
fn jetpack_6_takes_the_kernels_of_its_own_cuda_and_says_what_to_do_where_there_are_none() {
    let test =
        "older_drivers::jetpack_6_takes_the_kernels_of_its_own_cuda_and_says_what_to_do_where_there_are_none";
    emulated(test).sm(87).cuda(12, 6).run(|device| {
        let Some(cubins) = cubins().filter(|folder| has_older_kernels(folder)) else { return };
        let folder = engine(WeightKind::Nvfp4);
        let dir = folder.path().join("engine");
        let mut opened = open(&dir, &cubins).unwrap();
        assert!(opened.backend.capabilities().kernels.contains("8 of 16"), "a green context's share");
        let rows = answer(&mut opened);
        assert!(rows.len() == 9 && rows.iter().flatten().all(|logit| logit.is_finite()));
        drop(opened);
        assert_eq!(device.report().leaks(), Vec::<String>::new());

        let newer = folder.path().join("newer");
        fs::create_dir(&newer).unwrap();
        for entry in fs::read_dir(&cubins).unwrap().map(|entry| entry.unwrap()) {
            if entry.file_name().to_str().unwrap().contains("nvrtc-13.") {
                fs::copy(entry.path(), newer.join(entry.file_name())).unwrap();
            }
        }
        let error = open(&dir, &newer).unwrap_err().to_string();
        for part in
            ["sm_87", "driver of CUDA 12.6", "there is CUDA 13.", "--kernels-only --for sm_87 --cuda 12.6"]
        {
            assert!(error.contains(part), "{part} in {error}");
        }
    });
}

#[test]
fn cuda_12_4_answers_without_a_green_context() {
    emulated("older_drivers::cuda_12_4_answers_without_a_green_context").sm(87).cuda(12, 4).run(|device| {
        let Some(cubins) = cubins().filter(|folder| has_older_kernels(folder)) else { return };
        let folder = engine(WeightKind::Int4);
        let mut opened = open(&folder.path().join("engine"), &cubins).unwrap();
        assert!(opened.backend.capabilities().kernels.contains("16 of 16"));
        assert_eq!(answer(&mut opened).len(), 9);
        drop(opened);
        assert_eq!(device.report().leaks(), Vec::<String>::new());
    });
}

#[test]
fn a_driver_that_is_too_old_is_refused_with_both_versions() {
    emulated("older_drivers::a_driver_that_is_too_old_is_refused_with_both_versions").cuda(11, 8).run(|_| {
        let folder = engine(WeightKind::Int4);
        let error = open(&folder.path().join("engine"), folder.path()).unwrap_err().to_string();
        assert!(error.contains("CUDA 11.8") && error.contains("expected 12.0"), "{error}");
    });
}
