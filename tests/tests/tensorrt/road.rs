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
    dir::{Manifest, PlanCompute, PlanKv},
    engine::BackendKind,
    kv::KvKind,
    quant::WeightKind,
    score::score,
    sequence::SequenceOptions,
    text::SpecialTokens,
};
use takt_engine_builder::{
    BuildOptions, build,
    export::{Form, KvType},
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
    models::{SOURCES, form_here, on_the_stand_in, tokens},
    standin::Standin,
};

/// Every 240th line: 10 of 2,400.
const STRIDE: usize = 240;
/// Tokens that plans' lanes hold, where the model was made for more.
const CAPACITY: usize = 256;
const NUM_LANES: usize = 2;

/// An engine with a plan, in a folder of its own.
struct Road {
    folder: tempfile::TempDir,
}

impl Road {
    /// From a checkpoint to plans, in the newest form unless another is asked for.
    fn build(checkpoint: &Path, kind: WeightKind, compute: PlanCompute, form: Option<Form>) -> Self {
        let road = Self { folder: tempfile::tempdir().unwrap() };
        build(checkpoint, &road.engine(), &BuildOptions::new(kind), &mut |_| {}).unwrap();
        road.add_plans(compute, form);
        road
    }

    fn add_plans(&self, compute: PlanCompute, form: Option<Form>) {
        let options = PlanOptions {
            num_lanes: NUM_LANES,
            lane_capacity: Some(self.capacity()),
            compute,
            form,
            ..PlanOptions::default()
        };
        let plans = DevicePlans::open(options, None).unwrap();
        let report = add_plans(&self.engine(), &plans, None, &mut |_| {}).unwrap();
        assert_eq!((report.sm.as_str(), report.plans.len()), ("sm_110a", 1));
    }

    fn capacity(&self) -> usize {
        CAPACITY.min(Manifest::read(&self.engine()).unwrap().spec.max_context)
    }

    fn engine(&self) -> PathBuf {
        self.folder.path().join("engine")
    }

    fn options() -> EngineOptions {
        let gpu = GpuOptions {
            kernel_cache: Some(cubins::folder(Target::Thor)),
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
        let engine = Engine::open(&self.engine(), &Self::options()).unwrap();
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
    on_the_stand_in(EmulatedDevice::new(test).kernels(&SOURCES).sm(110), |device, standin, executor| {
        body(standin, executor);
        assert_eq!(standin.alive(), [""; 0]);
        assert_eq!(device.report().leaks(), [""; 0]);
    });
}

/// Whether the TensorRT of this test takes 4-bit floats.
fn has_nvfp4() -> bool {
    let version = takt_tensorrt::TensorRt::open().unwrap().version();
    (version.major, version.minor) >= (10, 8)
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
    let test = "road::the_demo_model_answers_through_its_plan_as_on_the_processor";
    answers_as_on_the_processor(test, STRIDE, None);
}

/// What JetPack 6 has, whatever TensorRT is here.
#[test]
fn the_demo_model_answers_through_a_plan_without_newer_operators_as_on_the_processor() {
    let test = "road::the_demo_model_answers_through_a_plan_without_newer_operators_as_on_the_processor";
    answers_as_on_the_processor(test, 2 * STRIDE, Some(Form::Primitives));
}

fn answers_as_on_the_processor(test: &'static str, stride: usize, form: Option<Form>) {
    on_thor(test, |_, executor| {
        // NVFP4 takes TensorRT 10.8.
        let kind = if has_nvfp4() { WeightKind::Nvfp4 } else { WeightKind::Int4 };
        let road = Road::build(&demo(), kind, PlanCompute::Bf16, form);
        let lines = heldout::read(&demo().join("eval/heldout.jsonl"), stride).unwrap();
        let (found, tally) = answers(&mut road.open(), &lines);
        let (expected, _) = answers(&mut road.on_cpu(), &lines);
        assert_eq!(found, expected);
        assert!(tally.share() > 0.9, "{tally:?}");
        // Prompts in slices of their own, then a token a time: the plan was run, and nothing else.
        let is_decode = |shape: &[usize]| shape.get(1) == Some(&1);
        let runs = executor.take_executions();
        let shapes = runs.iter().filter_map(|run| run.inputs.iter().find(|input| input.0 == "input_ids"));
        let (decodes, prefills): (Vec<_>, Vec<_>) = shapes.partition(|input| is_decode(&input.1));
        assert!(decodes.len() > 10 * prefills.len() && prefills.len() >= lines.len(), "{}", prefills.len());
    });
}

#[test]
fn every_checkpoint_scores_a_text_through_its_plan_as_on_the_processor() {
    on_thor("road::every_checkpoint_scores_a_text_through_its_plan_as_on_the_processor", |_, _| {
        let primitives = Some(Form::Primitives);
        for (source, kind, compute, form, bound) in [
            ("hf/tiny-llama", WeightKind::Bf16, PlanCompute::F16, None, 2e-3),
            ("hf/tiny-llama", WeightKind::Bf16, PlanCompute::F16, primitives, 2e-3),
            ("hf/tiny-qwen2", WeightKind::Fp8, PlanCompute::F16, None, 2e-3),
            ("hf/tiny-qwen3", WeightKind::Nvfp4, PlanCompute::Bf16, None, 5e-3),
            ("hf/tiny-qwen3", WeightKind::Bf16, PlanCompute::Bf16, primitives, 5e-3),
            ("families/mistral-window", WeightKind::Bf16, PlanCompute::F16, None, 2e-3),
            ("families/mistral-window", WeightKind::Bf16, PlanCompute::F16, primitives, 2e-3),
        ] {
            if kind == WeightKind::Nvfp4 && !has_nvfp4() {
                continue;
            }
            // Summed in another order its 37.3 nats are 2.2e-3 off.
            let in_primitives = form_here(form.unwrap_or(Form::Operators)) == Form::Primitives;
            let bound = if kind == WeightKind::Fp8 && in_primitives { 4e-3 } else { bound };
            let road = Road::build(&fixtures().join(source), kind, compute, form);
            let mut engine = road.open();
            let tokens = tokens(engine.backend.spec(), 90);
            let found = score(engine.backend.as_mut(), &tokens).unwrap().nll.unwrap();
            let expected = score(road.on_cpu().backend.as_mut(), &tokens).unwrap().nll.unwrap();
            println!("{source} {kind} {form:?}: {found}, on the processor {expected}");
            assert!((found - expected).abs() < bound, "{source} {kind}: {found}, {expected}");
        }
    });
}

/// An engine whose own cache is E4M3, in plans of the form that can have such a one: by itself, and where it is asked for.
#[test]
fn an_engine_with_a_cache_of_8_bits_gets_a_plan_with_one_and_scores_as_on_the_processor() {
    let test = "road::an_engine_with_a_cache_of_8_bits_gets_a_plan_with_one_and_scores_as_on_the_processor";
    on_thor(test, |_, _| {
        let road = Road { folder: tempfile::tempdir().unwrap() };
        let how = BuildOptions { kv: Some(KvKind::Fp8), ..BuildOptions::new(WeightKind::Fp8) };
        build(&demo(), &road.engine(), &how, &mut |_| {}).unwrap();
        let plans = |form, kv| {
            let capacity = Some(road.capacity());
            let options = PlanOptions {
                num_lanes: NUM_LANES,
                lane_capacity: capacity,
                form,
                kv,
                ..PlanOptions::default()
            };
            let report =
                add_plans(&road.engine(), &DevicePlans::open(options, None).unwrap(), None, &mut |_| {})
                    .unwrap();
            (report.plans[0].entry.kv, report.warnings.join("; "))
        };
        let lines = heldout::read(&demo().join("eval/heldout.jsonl"), 2 * STRIDE).unwrap();
        let expected = answers(&mut road.on_cpu(), &lines).0;
        let mut lanes = Vec::new();
        for (form, kv, has, said) in [
            (None, Some(KvType::Plain), PlanKv::Plain, ""),
            (Some(Form::Primitives), None, PlanKv::Fp8, ""),
            (None, Some(KvType::Fp8), PlanKv::Fp8, ""),
        ] {
            assert_eq!(plans(form, kv), (has, said.into()));
            let mut engine = road.open();
            let facts = engine.backend.capabilities().clone();
            assert_eq!(facts.kv, has.kind());
            lanes.push(facts.kv_bytes);
            assert_eq!(answers(&mut engine, &lines).0, expected);
        }
        // Rows are a multiple of 16 rather than 8: not quite half.
        assert!(lanes[1] == lanes[2] && lanes[1] * 2 <= lanes[0] + lanes[0] / 20, "{lanes:?}");
        let asked = EngineOptions { kv: Some(KvKind::Fp8), ..Road::options() };
        assert_eq!(Engine::open(&road.engine(), &asked).unwrap().backend.capabilities().kv, KvKind::Fp8);
        let other = road.refusal(&EngineOptions { kv: Some(KvKind::Bf16), ..Road::options() });
        assert!(other.contains("has a fp8 KV cache") && other.contains("--plan-kv plain"), "{other}");
        if form_here(Form::Operators) == Form::Operators {
            let (has, said) = plans(None, None);
            assert_eq!(has, PlanKv::Plain);
            assert!(said.contains("the engine's cache is fp8") && said.contains("primitives has"), "{said}");
        }
    });
}

#[test]
fn proposals_change_no_answer() {
    proposals("road::proposals_change_no_answer", None);
}

#[test]
fn proposals_change_no_answer_of_a_plan_without_newer_operators() {
    proposals("road::proposals_change_no_answer_of_a_plan_without_newer_operators", Some(Form::Primitives));
}

fn proposals(test: &'static str, form: Option<Form>) {
    on_thor(test, |_, executor| {
        let road = Road::build(&demo(), WeightKind::Int4, PlanCompute::F16, form);
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
fn a_plan_is_for_one_release_and_another_can_take_its_place() {
    on_thor("road::a_plan_is_for_one_release_and_another_can_take_its_place", |standin, _| {
        let road = Road::build(&fixtures().join("hf/tiny-llama"), WeightKind::Bf16, PlanCompute::F16, None);
        let usual = Road::options();
        let kernels = GpuOptions { kernel_cache: None, ..usual.gpu.clone() };
        let error = road.refusal(&EngineOptions { gpu: kernels, ..usual.clone() });
        assert!(error.contains("no kernels for sm_110a") && error.contains("kv_append"), "{error}");
        let (major, minor, patch) = standin.built().version;
        let say = |minor| standin.set_version(major as i32, minor as i32, patch as i32);
        say(minor + 1);
        let error = road.refusal(&usual);
        let there = format!("there are plans for TensorRT {major}.{minor} on sm_110a");
        assert!(error.contains(&there) && error.contains("--tensorrt --plans-only"), "{error}");
        road.add_plans(PlanCompute::Bf16, None);
        road.open();
        say(minor);
        road.open();
        // In the place of the first, whose file is not there any more.
        road.add_plans(PlanCompute::Bf16, None);
        road.open();
        let plans = Manifest::read(&road.engine()).unwrap().plans;
        let files =
            fs::read_dir(road.engine().join("plans")).unwrap().map(|entry| entry.unwrap().file_name());
        let (mut files, mut named): (Vec<_>, Vec<_>) = (
            files.collect(),
            plans.iter().map(|plan| plan.file.rsplit('/').next().unwrap().into()).collect(),
        );
        files.sort();
        named.sort();
        assert_eq!((files, plans.len()), (named, 2));
    });
}
