//! The shipped demo model, opened as `--backend cuda` opens it.

use std::{
    env,
    path::{Path, PathBuf},
};

use takt_engine::{
    Engine, EngineOptions,
    backend::cuda::{GpuOptions, GpuShare},
    engine::BackendKind,
    quant::WeightKind,
};
use takt_engine_builder::{BuildOptions, build};
use takt_kernels_cu::{Target, cache::Cache, source::SOURCES};
use takt_tests::heldout;

use crate::{
    emulator::device::is_required,
    models::{emulated, kernel_places, on_device},
};

/// Every 200th line: 12 of 2,400.
const STRIDE: usize = 200;

/// Cubins as `cargo run -p xtask -- kernels` keeps them, or none. The emulated device loads them as a device does, and runs its own.
pub fn cubins() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../cuda/cubins");
    let cache = Cache::new(&folder);
    if SOURCES.iter().all(|source| cache.find(source, Target::Orin, None).is_some()) {
        return Some(folder);
    }
    assert!(env::var_os("TAKT_REQUIRE_CUBINS").is_none(), "no cubins: run `cargo run -p xtask -- kernels`");
    eprintln!("skipped: no cubins of these sources; `cargo run -p xtask -- kernels` makes them");
    None
}

fn options() -> EngineOptions {
    EngineOptions {
        backend: BackendKind::Cuda,
        lane_capacity: Some(256),
        max_step_tokens: 64,
        gpu: GpuOptions { share: GpuShare::GreenContext { percent: 50 }, ..GpuOptions::default() },
        ..EngineOptions::default()
    }
}

/// The demo model in NVFP4.
pub fn build_demo(dir: &Path) {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/takt-demo");
    build(&model, dir, &BuildOptions::new(WeightKind::Nvfp4), &mut |_| {}).unwrap();
}

#[test]
fn the_demo_model_answers_on_the_device_as_on_the_processor() {
    on_device("shipped::the_demo_model_answers_on_the_device_as_on_the_processor").sm(87).run(|_| {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("engine");
        let own = is_required().then(kernel_places);
        let emulated = || Some(GpuOptions { kernel_cache: Some(cubins()?), ..GpuOptions::default() });
        let Some(gpu) = own.or_else(emulated) else { return };
        build_demo(&dir);
        let gpu = GpuOptions { share: options().gpu.share, ..gpu };
        let mut on_device = Engine::open(&dir, &EngineOptions { gpu, ..options() }).unwrap();
        assert_eq!(on_device.backend.capabilities().backend, "cuda");
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/takt-demo");
        let lines = heldout::read(&model.join("eval/heldout.jsonl"), STRIDE).unwrap();
        let text = on_device.text.take().unwrap();
        let tally = heldout::evaluate(on_device.backend.as_mut(), &text, &lines, &mut |_, _, _| {}).unwrap();
        let mut on_cpu = Engine::open(&dir, &EngineOptions::default()).unwrap();
        let expected = heldout::evaluate(on_cpu.backend.as_mut(), &text, &lines, &mut |_, _, _| {}).unwrap();
        println!("on the device {tally:?}, on the processor {expected:?}");
        assert_eq!(tally, expected);
        assert!(tally.share() > 0.9);
    });
}

#[test]
fn the_demo_models_head_is_in_use_on_the_device_unless_it_is_not_wanted() {
    let test = "shipped::the_demo_models_head_is_in_use_on_the_device_unless_it_is_not_wanted";
    emulated(test).sm(87).run(|device| {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("engine");
        let Some(cubins) = cubins() else { return };
        crate::draft::build_demo(&dir);
        let gpu = GpuOptions { kernel_cache: Some(cubins), ..options().gpu };
        let opened = |speculation| {
            Engine::open(&dir, &EngineOptions { speculation, gpu: gpu.clone(), ..options() }).unwrap()
        };
        let with_head = opened(true);
        assert_eq!(with_head.backend.capabilities().backend, "cuda");
        let record = with_head.draft.as_ref().unwrap();
        let facts = with_head.backend.draft_facts().unwrap();
        assert_eq!(facts.max_positions, record.spec.max_positions.min(256));
        drop(with_head);
        let without = opened(false);
        assert!(without.draft.is_none() && without.backend.draft_facts().is_none());
        drop(without);
        assert_eq!(device.report().leaks(), Vec::<String>::new());
    });
}

#[test]
fn without_kernels_the_engine_says_what_is_missing_and_for_which_board() {
    let test = "shipped::without_kernels_the_engine_says_what_is_missing_and_for_which_board";
    emulated(test).sm(87).run(|device| {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("engine");
        build_demo(&dir);
        let error = Engine::open(&dir, &options()).unwrap_err().to_string();
        assert!(error.contains("no kernels for sm_87") && error.contains("linear"), "{error}");
        let nowhere = GpuOptions { cuda_roots: vec![scratch.path().to_owned()], ..GpuOptions::default() };
        let error = Engine::open(&dir, &EngineOptions { gpu: nowhere, ..options() }).unwrap_err().to_string();
        assert!(error.contains("no CUDA compiler under"), "{error}");
        assert_eq!(device.report().leaks(), Vec::<String>::new());
    });
}

#[test]
fn a_machine_without_a_driver_says_so() {
    if is_required() {
        return eprintln!("skipped: this machine has one");
    }
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("engine");
    build_demo(&dir);
    match Engine::open(&dir, &options()) {
        Ok(_) => panic!("an engine without kernels was opened"),
        Err(error) => {
            let error = error.to_string();
            let known = ["no NVIDIA driver", "finds no device", "no kernels for", "supports CUDA"];
            assert!(known.iter().any(|part| error.contains(part)), "{error}");
        }
    }
}
