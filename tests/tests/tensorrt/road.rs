//! The whole road: a checkpoint becomes an engine, the engine's own export plans in it, and `--backend tensorrt` opens it.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use takt_eagle_spec::tree::TreeShape;
use takt_engine::{
    Engine, EngineOptions,
    backend::{cpu::ActivationArithmetic, cuda::GpuOptions},
    dir::{Manifest, PlanCompute},
    engine::BackendKind,
    quant::WeightKind,
    score::score,
    sequence::SequenceOptions,
    text::SpecialTokens,
};
use takt_engine_builder::{
    BuildOptions, build,
    plans::{DevicePlans, PlanOptions, add_plans},
};
use takt_kernels_cu::Target;
use takt_tests::{
    checkpoint::fixtures,
    heldout,
    onnx_run::executor::Executor,
    speculated::{Method, answer},
};

use crate::{
    cubins,
    emulator::driver::EmulatedDevice,
    models::{computing, tokens},
    standin::Standin,
};

/// Every 240th line: 10 of 2,400.
const STRIDE: usize = 240;
/// Tokens that plans' lanes hold: with the rows for padding the fixtures' narrow lanes are multiples of 256 bytes, as several beside each other must be.
const CAPACITY: usize = 255;
const NUM_LANES: usize = 2;

/// An engine with a plan, in a folder of its own.
struct Road {
    folder: tempfile::TempDir,
}

impl Road {
    /// From a checkpoint to plans.
    fn build(checkpoint: &Path, kind: WeightKind, compute: PlanCompute) -> Self {
        let road = Self { folder: tempfile::tempdir().unwrap() };
        build(checkpoint, &road.engine(), &BuildOptions::new(kind), &mut |_| {}).unwrap();
        road.add_plans(compute);
        cubins::store(&road.cubins(), Target::Thor);
        road
    }

    fn add_plans(&self, compute: PlanCompute) {
        let options = PlanOptions {
            num_lanes: NUM_LANES,
            lane_capacity: Some(self.capacity()),
            compute,
            ..PlanOptions::default()
        };
        let plans = DevicePlans::open(options, None).unwrap();
        let report = add_plans(&self.engine(), &plans, None, &mut |_| {}).unwrap();
        assert_eq!((report.sm.as_str(), report.plans.len()), ("sm_110a", 1));
    }

    fn capacity(&self) -> usize {
        CAPACITY.min(Manifest::read(&self.engine()).unwrap().spec.max_context - 1)
    }

    fn engine(&self) -> PathBuf {
        self.folder.path().join("engine")
    }

    fn cubins(&self) -> PathBuf {
        self.folder.path().join("cubins")
    }

    fn options(&self) -> EngineOptions {
        let gpu = GpuOptions {
            kernel_cache: Some(self.cubins()),
            step_limit: Duration::from_secs(60),
            ..GpuOptions::default()
        };
        EngineOptions {
            backend: BackendKind::TensorRt,
            num_lanes: NUM_LANES,
            gpu,
            ..EngineOptions::default()
        }
    }

    fn open(&self) -> Engine {
        let engine = Engine::open(&self.engine(), &self.options()).unwrap();
        assert_eq!(engine.backend.capabilities().backend, "tensorrt");
        engine
    }

    /// What an engine says when it is not opened.
    fn refusal(&self, options: &EngineOptions) -> String {
        match Engine::open(&self.engine(), options) {
            Ok(_) => panic!("it was opened"),
            Err(error) => error.to_string(),
        }
    }

    /// In 32-bit arithmetic.
    fn on_cpu(&self) -> Engine {
        let arithmetic = ActivationArithmetic::F32;
        let options =
            EngineOptions { arithmetic, lane_capacity: Some(self.capacity()), ..EngineOptions::default() };
        Engine::open(&self.engine(), &options).unwrap()
    }
}

/// A Thor with TensorRT; the body runs in a process of its own.
fn on_thor(test: &'static str, body: impl FnOnce(&Standin, &'static Executor)) {
    if crate::standin::Built::get().is_none() {
        return;
    }
    let device = EmulatedDevice::new(test).kernels(&["kv_append.cu", "kv_compact.cu", "logits.cu"]).sm(110);
    device.limit(Duration::from_secs(300)).run(|device| {
        let standin = Standin::load().unwrap();
        let executor = computing(&standin);
        body(&standin, executor);
        assert_eq!(standin.faults(), [""; 0]);
        assert_eq!(standin.alive(), [""; 0]);
        assert_eq!(device.report().leaks(), [""; 0]);
    });
}

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/takt-demo")
}

/// Answers to held-out sentences, and how many are right.
fn answers(engine: &mut Engine, lines: &[heldout::Line]) -> (Vec<String>, heldout::Tally) {
    let (text, mut said) = (engine.text.take().unwrap(), Vec::new());
    let mut hear = |_: &heldout::Line, answer: &str, _: bool| said.push(answer.to_owned());
    let tally = heldout::evaluate(engine.backend.as_mut(), &text, lines, &mut hear).unwrap();
    (said, tally)
}

#[test]
fn the_demo_model_answers_through_its_plan_as_on_the_processor() {
    on_thor("road::the_demo_model_answers_through_its_plan_as_on_the_processor", |_, executor| {
        let road = Road::build(&demo(), WeightKind::Nvfp4, PlanCompute::Bf16);
        let lines = heldout::read(&demo().join("eval/heldout.jsonl"), STRIDE).unwrap();
        let (found, tally) = answers(&mut road.open(), &lines);
        let (expected, _) = answers(&mut road.on_cpu(), &lines);
        assert_eq!(found, expected);
        assert!(tally.share() > 0.9, "{tally:?}");
        // Prompts in slices of their own, then a token a time: the plan was run, and nothing else.
        let is_decode = |shape: &[usize]| shape == [1, 1];
        let runs = executor.take_executions();
        let shapes = runs.iter().filter_map(|run| run.inputs.iter().find(|input| input.0 == "input_ids"));
        let (decodes, prefills): (Vec<_>, Vec<_>) = shapes.partition(|input| is_decode(&input.1));
        assert!(decodes.len() > 10 * prefills.len() && prefills.len() >= lines.len(), "{}", prefills.len());
    });
}

#[test]
fn every_checkpoint_scores_a_text_through_its_plan_as_on_the_processor() {
    on_thor("road::every_checkpoint_scores_a_text_through_its_plan_as_on_the_processor", |_, _| {
        for (source, kind, compute, bound) in [
            ("hf/tiny-llama", WeightKind::Bf16, PlanCompute::F16, 2e-3),
            ("hf/tiny-qwen2", WeightKind::Fp8, PlanCompute::F16, 2e-3),
            ("hf/tiny-qwen3", WeightKind::Nvfp4, PlanCompute::Bf16, 5e-3),
            ("families/mistral-window", WeightKind::Bf16, PlanCompute::F16, 2e-3),
        ] {
            let road = Road::build(&fixtures().join(source), kind, compute);
            let mut engine = road.open();
            let tokens = tokens(engine.backend.spec(), 90);
            let found = score(engine.backend.as_mut(), &tokens).unwrap().nll.unwrap();
            let expected = score(road.on_cpu().backend.as_mut(), &tokens).unwrap().nll.unwrap();
            println!("{source} {kind}: {found}, on the processor {expected}");
            assert!((found - expected).abs() < bound, "{source} {kind}: {found}, {expected}");
        }
    });
}

#[test]
fn proposals_change_no_answer() {
    on_thor("road::proposals_change_no_answer", |_, executor| {
        let road = Road::build(&demo(), WeightKind::Int4, PlanCompute::F16);
        let mut engine = road.open();
        let text = "go to the kitchen, then go to the kitchen, then go to the";
        let prompt = engine.text.as_ref().unwrap().encode(text, SpecialTokens::Add).unwrap();
        let options = SequenceOptions { max_tokens: Some(40), ..SequenceOptions::default() };
        let mut say = |method| answer(engine.backend.as_mut(), &prompt, &options, method).unwrap();
        let plain = say(Method::Plain);
        executor.take_executions();
        let looked_up = say(Method::Lookup(TreeShape { top_k: 2, num_levels: 6, num_nodes: 12 }));
        assert_eq!(looked_up.tokens, plain.tokens);
        assert!(looked_up.num_accepted > 0, "{looked_up:?}");
        let is_tree = |(name, shape): &(String, Vec<usize>)| name == "input_ids" && shape[1] > 1;
        let num_trees =
            executor.take_executions().iter().filter(|run| run.inputs.iter().any(is_tree)).count();
        assert!(num_trees > 1, "{num_trees}");
    });
}

#[test]
fn plans_that_are_not_for_the_machine_or_not_whole_are_refused_with_what_to_do() {
    let test = "road::plans_that_are_not_for_the_machine_or_not_whole_are_refused_with_what_to_do";
    on_thor(test, |standin, _| {
        let road = Road::build(&fixtures().join("hf/tiny-llama"), WeightKind::Bf16, PlanCompute::F16);
        let usual = road.options();
        let error = road.refusal(&EngineOptions { num_lanes: 3, ..usual.clone() });
        assert!(error.contains("2 lanes, 3 are asked for") && error.contains("--plan-lanes 3"), "{error}");
        let error = road.refusal(&EngineOptions { lane_capacity: Some(300), ..usual.clone() });
        assert!(error.contains("of 255 tokens, 300") && error.contains("--plan-context 300"), "{error}");
        let kernels = GpuOptions { kernel_cache: None, ..usual.gpu.clone() };
        let error = road.refusal(&EngineOptions { gpu: kernels, ..usual.clone() });
        assert!(error.contains("no kernels for sm_110a") && error.contains("kv_append"), "{error}");
        let version = standin.built().version;
        standin.set_version(version.0 as i32, version.1 as i32 + 1, 0);
        let error = road.refusal(&usual);
        assert!(
            error.contains("no plan for TensorRT") && error.contains("--tensorrt --plans-only"),
            "{error}"
        );
        standin.set_version(version.0 as i32, version.1 as i32, version.2 as i32);
        let manifest = Manifest::read(&road.engine()).unwrap();
        let plan = road.engine().join(&manifest.plans[0].file);
        let whole = fs::read(&plan).unwrap();
        let mut damaged = whole.clone();
        damaged[whole.len() / 2] ^= 1;
        fs::write(&plan, &damaged).unwrap();
        let error = road.refusal(&usual);
        assert!(error.contains("BLAKE3") && error.contains("build it again"), "{error}");
        fs::write(&plan, &whole[..whole.len() - 1]).unwrap();
        let error = road.refusal(&usual);
        assert!(error.contains(&format!("{} bytes", whole.len() - 1)), "{error}");
        fs::write(&plan, &whole).unwrap();
        road.open();
        road.add_plans(PlanCompute::Bf16);
        road.open();
    });
}
