//! From an engine directory to answers, as `--backend tensorrt` goes.

use std::path::{Path, PathBuf};

use takt_engine::{
    Engine, EngineOptions,
    backend::cuda::{GpuOptions, GpuShare},
    dir::{Manifest, PlanCompute},
    engine::BackendKind,
    kv::KvKind,
    quant::WeightKind,
};
use takt_engine_builder::{
    BuildOptions, build,
    plans::{DevicePlans, PlanOptions, add_plans},
};
use takt_kernels_cu::Target;
use takt_tests::{checkpoint::fixtures, heldout};

use crate::{
    cubins,
    models::{on_the_stand_in, orin},
};

/// Every 400th line: 6 of 2,400.
const STRIDE: usize = 400;

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/takt-demo")
}

fn options() -> EngineOptions {
    EngineOptions {
        backend: BackendKind::TensorRt,
        max_step_tokens: 64,
        gpu: GpuOptions {
            share: GpuShare::GreenContext { percent: 50 },
            kernel_cache: Some(cubins::folder(Target::Orin)),
            ..GpuOptions::default()
        },
        ..EngineOptions::default()
    }
}

/// Plans for this machine, as `takt build DIR --tensorrt --plans-only` adds them.
fn add(dir: &Path, options: PlanOptions) {
    let plans = DevicePlans::open(options, None).unwrap();
    add_plans(dir, &plans, None, &mut |_| {}).unwrap();
}

#[test]
fn the_demo_model_answers_through_a_plan_as_on_the_processor() {
    let test = "opened::the_demo_model_answers_through_a_plan_as_on_the_processor";
    on_the_stand_in(orin(test), |_, standin, _| {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("engine");
        let how = BuildOptions { lm_head: Some(WeightKind::Bf16), ..BuildOptions::new(WeightKind::Int4) };
        build(&model(), &dir, &how, &mut |_| {}).unwrap();
        let none = Engine::open(&dir, &options()).unwrap_err().to_string();
        assert!(none.contains("there is none at all; `takt build "), "{none}");
        let f16 =
            PlanOptions { lane_capacity: Some(256), compute: PlanCompute::F16, ..PlanOptions::default() };
        add(&dir, f16);

        let mut through_plan = Engine::open(&dir, &options()).unwrap();
        let facts = through_plan.backend.capabilities();
        assert_eq!((facts.backend, facts.kv, facts.lane_capacity), ("tensorrt", KvKind::Bf16, 256));
        assert!(through_plan.draft.is_none());
        let lines = heldout::read(&model().join("eval/heldout.jsonl"), STRIDE).unwrap();
        let text = through_plan.text.take().unwrap();
        let tally =
            heldout::evaluate(through_plan.backend.as_mut(), &text, &lines, &mut |_, _, _| {}).unwrap();
        let mut on_cpu = Engine::open(&dir, &EngineOptions::default()).unwrap();
        let expected = heldout::evaluate(on_cpu.backend.as_mut(), &text, &lines, &mut |_, _, _| {}).unwrap();
        println!("through the plan {tally:?}, on the processor {expected:?}");
        assert_eq!(tally, expected);
        assert!(tally.share() > 0.9);
        drop(through_plan);
        assert_eq!(standin.alive(), [""; 0]);
    });
}

#[test]
fn what_an_engine_cannot_be_opened_with_is_refused_with_what_to_do() {
    let test = "opened::what_an_engine_cannot_be_opened_with_is_refused_with_what_to_do";
    on_the_stand_in(orin(test), |_, _, _| {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("engine");
        build(&fixtures().join("hf/tiny-llama"), &dir, &BuildOptions::new(WeightKind::Bf16), &mut |_| {})
            .unwrap();
        let refused = |options: EngineOptions, part: &str| {
            let error = Engine::open(&dir, &options).unwrap_err().to_string();
            assert!(error.contains(part), "{part:?} not in {error}");
        };
        refused(options(), "no plan for TensorRT");
        let int8 = EngineOptions { kv: Some(KvKind::Int8), ..options() };
        refused(int8, "a plan's cache has the 16 bits of its products, or is fp8");
        add(&dir, PlanOptions { num_lanes: 1, lane_capacity: Some(64), ..PlanOptions::default() });
        refused(EngineOptions { num_lanes: 2, ..options() }, "--plan-lanes 2");
        refused(EngineOptions { lane_capacity: Some(65), ..options() }, "--plan-context 65");
        refused(EngineOptions { kv: Some(KvKind::Fp8), ..options() }, "--plan-kv fp8");
        Engine::open(&dir, &options()).unwrap();
        // A plan that is used is looked at whole.
        let entry = Manifest::read(&dir).unwrap().plans[0].clone();
        let path = dir.join(&entry.file);
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        refused(options(), "BLAKE3 is ");
        Engine::open(&dir, &EngineOptions::default()).unwrap();
        std::fs::write(&path, &bytes[..last]).unwrap();
        refused(options(), "--plans-only");
    });
}
