//! The shipped demo model with its head beside the plan: speculation changes no answer, and saves the steps it saves on the processor.

use std::path::{Path, PathBuf};

use takt_eagle_spec::tree::TreeShape;
use takt_engine::{
    EngineError, EngineOptions, Result,
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
    checkpoint::fixtures,
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

fn open(dir: &EngineDir, max_bytes: Option<u64>) -> Result<TensorRtBackend> {
    let options = TensorRtOptions {
        num_lanes: 2,
        max_step_tokens: 66,
        max_logits_rows: 66,
        num_snapshots: 3,
        max_bytes,
        ..options()
    };
    let device = device::probe().unwrap().remove(0);
    let (context, _) = Context::open(&device, options.share).unwrap();
    let mut plans = dir.manifest().plans.iter();
    let entry = plans.find(|plan| plan.role == PlanRole::Decoder).unwrap();
    let file = PlanFile::open(dir.path(), entry).unwrap();
    let plan = SerializedPlan { entry, bytes: file.bytes(), weight_bytes_per_step: 1 };
    let (trt, image) = (TensorRt::open().unwrap(), image());
    TensorRtBackend::new(&dir.manifest().spec, plan, (&trt, &context), [&image[..]], &options)
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
        let mut backend = open(&dir, None).unwrap();
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

/// A small model with its head, and a plan for two lanes.
fn build_small(path: &Path) -> EngineDir {
    let folder = fixtures().join("eagle3/tiny-llama-midlayer");
    let draft = Some(DraftOptions { folder: &folder, prompts: None, measures: false });
    let how = BuildOptions { draft, ..BuildOptions::new(WeightKind::Bf16) };
    build(&fixtures().join("hf/tiny-llama"), path, &how, &mut |_| {}).unwrap();
    let how = PlanOptions { num_lanes: 2, lane_capacity: Some(64), ..PlanOptions::default() };
    add_plans(path, &DevicePlans::open(how, None).unwrap(), None, &mut |_| {}).unwrap();
    EngineDir::open(path).unwrap()
}

/// The number behind `name` in a refusal.
fn number(said: &str, name: &str) -> u64 {
    let at = said.find(name).unwrap_or_else(|| panic!("{name:?} in {said}")) + name.len();
    let digits: String = said[at..].trim_start().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("a number behind {name:?} in {said}"))
}

fn refusal(refused: Result<()>) -> String {
    let error = refused.unwrap_err();
    assert!(matches!(error, EngineError::Capacity(_)), "{error:?}");
    error.to_string()
}

#[test]
fn a_memory_budget_counts_the_head_and_the_embedding_copied_for_it_to_the_byte() {
    let test = "head::a_memory_budget_counts_the_head_and_the_embedding_copied_for_it_to_the_byte";
    on_the_stand_in(EmulatedDevice::new(test).all_kernels(), |device, standin, _| {
        let scratch = tempfile::tempdir().unwrap();
        let dir = build_small(&scratch.path().join("engine"));
        let head = dir.draft().unwrap();
        let attach = |backend: &mut TensorRtBackend| backend.attach_draft(&head.manifest().spec, head);
        let embed = |backend: &mut TensorRtBackend| backend.set_embedding(dir.embedding().unwrap());
        let total = |said: &str| number(said, "the engine takes");

        let without = refusal(open(&dir, Some(1)).map(drop));
        assert!(!without.contains("head"), "{without}");
        let plan = total(&without);
        let mut tight = open(&dir, Some(plan)).unwrap();
        let with_embedding = refusal(embed(&mut tight));
        let spec = &dir.manifest().spec;
        let embedding = (spec.vocab_size * spec.hidden_size * 2) as u64;
        assert_eq!(number(&with_embedding, "embedding for the draft head"), embedding);
        assert_eq!(total(&with_embedding), plan + embedding);
        assert!(with_embedding.contains("use no draft head, fewer lanes"), "{with_embedding}");
        assert!(
            attach(&mut tight).unwrap_err().to_string().contains("which was not loaded"),
            "none was copied"
        );
        drop(tight);

        let mut tight = open(&dir, Some(plan + embedding)).unwrap();
        embed(&mut tight).unwrap();
        let allocated = |name| device.report().value(name);
        let before = allocated("device_allocations");
        let with_head = refusal(attach(&mut tight));
        assert_eq!(allocated("device_allocations"), before, "what is past the budget is not begun");
        drop(tight);
        let (_, heads) = with_head.split_once("draft head: ").unwrap();
        let part = |name| number(heads, name);
        let device_bytes = part("weights") + part("KV cache") + part("workspace");
        let all = embedding + device_bytes + part("snapshots") + part("pinned");
        assert_eq!(part("embedding"), embedding);
        assert_eq!(total(&with_head), plan + all);
        // Three of them, each of a lane and of eight tokens whose features wait.
        let features = head.manifest().spec.features_len() as u64 * 4;
        assert_eq!(part("snapshots"), 3 * (part("KV cache") / 2 + 8 * features));

        let mut short = open(&dir, Some(total(&with_head) - 1)).unwrap();
        embed(&mut short).unwrap();
        assert_eq!(total(&refusal(attach(&mut short))), total(&with_head));
        drop(short);
        let mut enough = open(&dir, Some(total(&with_head))).unwrap();
        embed(&mut enough).unwrap();
        let before = ["device_bytes", "host_bytes"].map(allocated);
        attach(&mut enough).unwrap();
        let after = ["device_bytes", "host_bytes"].map(allocated);
        // What is counted is what is taken, but for addresses of the cache's planes and rows to move.
        for ((before, after), counted) in before.iter().zip(after).zip([device_bytes, part("pinned")]) {
            let taken = after - before;
            assert!((counted..counted + 1024).contains(&taken), "{taken} bytes taken, {counted} counted");
        }
        drop(enough);
        assert_eq!(standin.alive(), [""; 0]);
    });
}
