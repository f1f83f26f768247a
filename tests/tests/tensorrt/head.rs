//! The shipped demo model with its head beside the plan: speculation changes no answer, and saves the steps it saves on the processor.

use std::path::{Path, PathBuf};

use takt_eagle_spec::tree::TreeShape;
use takt_engine::{
    EngineOptions,
    backend::{
        Backend,
        tensorrt::{SerializedPlan, TensorRtBackend, TensorRtOptions},
    },
    dir::{EngineDir, PlanCompute, PlanFile, PlanRole},
    engine::Engine,
    kv::{KvKind, LaneId},
    quant::WeightKind,
    sequence::SequenceOptions,
    step::{LogitsWanted, StepPlan},
    text::Text,
};
use takt_engine_builder::{
    BuildOptions, build,
    draft::DraftOptions,
    plans::{DevicePlans, PlanOptions, add_plans},
};
use takt_kernels_cu::driver::{context::Context, device};
use takt_tensorrt::TensorRt;
use takt_tests::{
    heldout,
    speculated::{Method, Speculated, answer},
};

use crate::{
    emulator::driver::EmulatedDevice,
    models::{image, on_the_stand_in, options},
};

/// Every 800th line: 3 of 2,400.
const STRIDE: usize = 800;

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/takt-demo")
}

/// The demo model with its head and a plan for two lanes, in FP8.
fn build_demo(path: &Path) -> EngineDir {
    let draft = Some(DraftOptions { folder: &model().join("eagle3"), prompts: None, measures: false });
    build(&model(), path, &BuildOptions { draft, ..BuildOptions::new(WeightKind::Fp8) }, &mut |_| {})
        .unwrap();
    let how = PlanOptions {
        num_lanes: 2,
        lane_capacity: Some(256),
        compute: PlanCompute::F16,
        ..PlanOptions::default()
    };
    add_plans(path, &DevicePlans::open(how, None).unwrap(), None, &mut |_| {}).unwrap();
    EngineDir::open(path).unwrap()
}

fn open(dir: &EngineDir) -> TensorRtBackend {
    let options = TensorRtOptions { num_lanes: 2, max_step_tokens: 66, max_logits_rows: 66, ..options() };
    let device = device::probe().unwrap().remove(0);
    let (context, _) = Context::open(&device, options.share).unwrap();
    let mut plans = dir.manifest().plans.iter();
    let entry = plans.find(|plan| plan.role == PlanRole::Decoder).unwrap();
    let file = PlanFile::open(dir.path(), entry).unwrap();
    let plan = SerializedPlan { entry, bytes: file.bytes(), weight_bytes_per_step: 1 };
    let (trt, image) = (TensorRt::open().unwrap(), image());
    TensorRtBackend::new(&dir.manifest().spec, plan, (&trt, &context), [&image[..]], &options).unwrap()
}

fn answers(backend: &mut dyn Backend, dir: &EngineDir, method: Method) -> Vec<Speculated> {
    let text = Text::open(dir.path()).unwrap().unwrap();
    let eos_token_ids = dir.manifest().eos_token_ids.clone();
    let options = SequenceOptions { max_tokens: Some(40), eos_token_ids, ..SequenceOptions::default() };
    let lines = heldout::read(&model().join("eval/heldout.jsonl"), STRIDE).unwrap();
    let prompts = lines.iter().map(|line| heldout::prompt(&text, line).unwrap());
    prompts.map(|prompt| answer(backend, &prompt, &options, method).unwrap()).collect()
}

fn rounds(answers: &[Speculated]) -> usize {
    answers.iter().map(|one| one.num_rounds).sum()
}

fn tokens(answers: &[Speculated]) -> Vec<&[u32]> {
    answers.iter().map(|one| &one.tokens[..]).collect()
}

#[test]
fn the_demo_models_head_saves_most_steps_and_changes_no_answer() {
    let test = "head::the_demo_models_head_saves_most_steps_and_changes_no_answer";
    on_the_stand_in(EmulatedDevice::new(test).all_kernels(), |device, standin, _| {
        let scratch = tempfile::tempdir().unwrap();
        let dir = build_demo(&scratch.path().join("engine"));
        let mut backend = open(&dir);
        let head = dir.draft().unwrap();
        let borrowed = backend.attach_draft(&head.manifest().spec, head).unwrap_err().to_string();
        assert!(borrowed.contains("borrows the model's embedding"), "{borrowed}");
        backend.set_embedding(dir.embedding().unwrap()).unwrap();
        backend.attach_draft(&head.manifest().spec, head).unwrap();
        assert!(backend.capture(&[0]).is_err(), "the head has the features");
        // A lane beside it that the head reads along, too, so that sections have lanes between.
        backend.follow(LaneId(1), true);
        let mut plan = StepPlan::default();
        plan.push(LaneId(1), &[5, 6, 7], LogitsWanted::None);
        backend.run_step(&plan).unwrap();

        let cpu_options =
            EngineOptions { lane_capacity: Some(256), kv: Some(KvKind::Bf16), ..EngineOptions::default() };
        let mut on_cpu = Engine::open(dir.path(), &cpu_options).unwrap();
        let plain = answers(&mut backend, &dir, Method::Plain);
        let expected = answers(on_cpu.backend.as_mut(), &dir, Method::Plain);
        assert_eq!(tokens(&plain), tokens(&expected), "plain, on the processor");
        for shape in [TreeShape::chain(5), TreeShape { top_k: 4, num_levels: 5, num_nodes: 16 }] {
            let found = answers(&mut backend, &dir, Method::Head(shape));
            assert_eq!(tokens(&found), tokens(&plain), "{shape:?}");
            let on_cpu = rounds(&answers(on_cpu.backend.as_mut(), &dir, Method::Head(shape)));
            let (found, plain) = (rounds(&found), rounds(&plain));
            println!("{shape:?}: {found} rounds, {on_cpu} on the processor, {plain} plain");
            assert!(found * 3 < plain, "{shape:?}: {found} of {plain}");
            assert!(found <= on_cpu + 3, "{shape:?}: {found}, {on_cpu} on the processor");
        }
        assert!(backend.can_draft(LaneId(1)), "it has read the other lane along");
        // What is saved of a lane is drafted after as before.
        let snapshot = backend.save_snapshot(LaneId(1), 3).unwrap();
        backend.truncate(LaneId(1), 0).unwrap();
        backend.restore_snapshot(LaneId(1), snapshot).unwrap();
        assert!(backend.can_draft(LaneId(1)));
        backend.drop_snapshot(snapshot);
        drop(backend);
        assert_eq!(standin.alive(), [""; 0]);
        assert_eq!(device.report().leaks(), Vec::<String>::new());
    });
}
