//! The road with NVIDIA's own library, where there is one and a GPU: nothing here is emulated.

use std::path::Path;

use takt_engine::{
    Engine, EngineOptions,
    backend::cuda::{GpuOptions, usable_device},
    engine::BackendKind,
    quant::WeightKind,
    score::score,
};
use takt_engine_builder::{
    BuildError, BuildOptions, build,
    plans::{DevicePlans, PlanOptions, add_plans},
};
use takt_tensorrt::build::PlanFlags;
use takt_tests::{heldout, memory_weights::MemoryWeights};

use crate::{
    conformance::conforms,
    models::{FP8_CACHE, FP8_CACHE_BF16, KINDS, Place, Planned, QUANTIZED, tokens},
    trials::{
        Ground, green, record,
        refit::{Came, every_case},
        refusals, streaming,
    },
};

/// Every 240th line: 10 of 2,400.
const STRIDE: usize = 240;
const CAPACITY: usize = 256;

/// Whether TensorRT and a device are there; says why not.
fn is_there() -> bool {
    let found = takt_tensorrt::probe();
    let missing =
        [found.library.err(), found.parser.err(), usable_device().err().map(|error| error.to_string())];
    let missing: Vec<String> = missing.into_iter().flatten().collect();
    if missing.is_empty() {
        return true;
    }
    let missing = missing.join("; ");
    assert!(std::env::var_os("TAKT_REQUIRE_TENSORRT").is_none(), "{missing}");
    eprintln!("skipped: {missing}");
    false
}

/// Kernels of ours are compiled where the engine has none: with the CUDA folders that `takt` looks into.
fn gpu(folder: &Path) -> GpuOptions {
    let roots = std::env::var_os("TAKT_CUDA_ROOT").unwrap_or_else(|| "/usr/local/cuda".into());
    GpuOptions {
        kernel_cache: Some(folder.join("kernels")),
        cuda_roots: std::env::split_paths(&roots).collect(),
        ..GpuOptions::default()
    }
}

fn options(folder: &Path) -> EngineOptions {
    EngineOptions {
        backend: BackendKind::TensorRt,
        lane_capacity: Some(CAPACITY),
        gpu: gpu(folder),
        ..EngineOptions::default()
    }
}

#[test]
fn the_backend_does_with_nvidias_library_what_every_backend_must() {
    if !is_there() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let mut num_checked = 0;
    for kind in KINDS.into_iter().chain(QUANTIZED).chain([FP8_CACHE, FP8_CACHE_BF16]) {
        let spec = kind.spec();
        let weights = MemoryWeights::random(&spec, kind.weights, WeightKind::Bf16, 1);
        let place = Place::here(&gpu(scratch.path()));
        match Planned::at(place, kind, (spec, weights), PlanFlags::default()) {
            Ok(planned) => conforms(&planned, kind),
            // One of the forms and some formats of weights, as the machine is.
            Err(BuildError::Unsupported(fact)) => {
                println!("{kind:?} is not for this machine: {fact}");
                continue;
            }
            Err(error) => panic!("{kind:?}: {error}"),
        }
        num_checked += 1;
    }
    record(&format!("conformance: {num_checked} kinds of plans"));
    assert!(num_checked > 0, "BF16 weights in form primitives are for every machine");
}

#[test]
fn the_demo_model_answers_and_scores_with_nvidias_library_as_on_the_processor() {
    if !is_there() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let (engine, demo) =
        (scratch.path().join("engine"), Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/takt-demo"));
    // Every TensorRT and every GPU has these; the head would be FP8, which Orin has not.
    let how = BuildOptions { lm_head: Some(WeightKind::Bf16), ..BuildOptions::new(WeightKind::Int4) };
    build(&demo, &engine, &how, &mut |_| {}).unwrap();
    let plans =
        DevicePlans::open(PlanOptions { lane_capacity: Some(CAPACITY), ..PlanOptions::default() }, None)
            .unwrap();
    let report = add_plans(&engine, &plans, None, &mut |_| {}).unwrap();
    println!("TensorRT {} on {}: {:?}", report.tensorrt, report.device, report.warnings);
    for plan in &report.plans {
        let (file, bytes) = (&plan.entry.file, plan.entry.size_bytes);
        println!("{file}: {bytes} bytes in {:.1} s, warnings {:?}", plan.seconds, plan.warnings);
    }
    let mut on_device = Engine::open(&engine, &options(scratch.path())).unwrap();
    let cpu = EngineOptions { lane_capacity: Some(CAPACITY), ..EngineOptions::default() };
    let mut on_cpu = Engine::open(&engine, &cpu).unwrap();

    let text = tokens(on_cpu.backend.spec(), 90);
    let found = score(on_device.backend.as_mut(), &text).unwrap().nll.unwrap();
    let expected = score(on_cpu.backend.as_mut(), &text).unwrap().nll.unwrap();
    println!("mean negative log-likelihood {found}, on the processor {expected}");
    assert!((found - expected).abs() < 2e-2, "{found}, {expected}");

    let lines = heldout::read(&demo.join("eval/heldout.jsonl"), STRIDE).unwrap();
    let text = on_device.text.take().unwrap();
    let tally = heldout::evaluate(on_device.backend.as_mut(), &text, &lines, &mut |_, _, _| {}).unwrap();
    let ((right, all), tensorrt) = (tally.total(), report.tensorrt);
    record(&format!("TensorRT {tensorrt}: the demo model answers {right} of {all} lines right"));
    assert!(tally.share() > 0.9, "{tally:?}");
}

/// Where there is TensorRT.
fn ground() -> Option<Ground> {
    is_there().then(|| Ground::new(gpu, STRIDE, false))
}

#[test]
fn a_plan_with_other_weights_says_what_a_plan_built_of_them_says() {
    let Some(ground) = ground() else { return };
    for (case, came) in every_case(&ground) {
        // Of which constants TensorRT takes no other values is its to say; weights of 16 bits are what refits are for.
        assert!(came != Came::Refused || case.weights != WeightKind::Bf16, "{case:?}: {came:?}");
    }
}

#[test]
fn a_plan_that_streams_says_the_same_with_every_budget() {
    if let Some(ground) = ground() {
        streaming::every_budget(&ground);
    }
}

#[test]
fn a_plan_timed_on_a_part_of_the_gpu_says_there_what_it_says_on_all_of_it() {
    if let Some(ground) = ground() {
        green::on_a_part_of_the_gpu(&ground);
    }
}

#[test]
fn what_cannot_be_a_plan_of_this_machine_is_refused_and_what_can_runs_on() {
    if let Some(ground) = ground() {
        refusals::of_bad_input(&ground);
    }
}
