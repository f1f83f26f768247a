//! Whole builds by a compiler that is none: what gets into an engine.

mod faults;
mod refit;
mod refit_scales;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    rc::Rc,
};

use takt_engine::{
    dir::{EngineDir, Manifest, PlanActivations, PlanCompute, PlanFile, PlanForm, PlanKv, PlanRole},
    kv::KvKind,
    quant::WeightKind,
    spec::DecoderSpec,
};
use takt_kernels_cu::Target as Gpu;
use takt_tensorrt::{
    TensorRtError, Version,
    build::{BuildProgress, PlanRequest},
};
use tempfile::TempDir;

use super::{
    compiler::{Compiled, PlanCompiler},
    refit::LoadedPlan,
    *,
};
use crate::{
    BuildOptions, Progress, Stage, build,
    draft::DraftOptions,
    export::{Form, KvType},
    report::TimingCacheUse,
};

/// What a compiler does instead of a plan.
type Mishap = Box<dyn Fn(&PlanRequest<'_>) -> Option<TensorRtError>>;

/// A compiler whose plans are the names and shapes it was asked for.
#[derive(Clone)]
struct Compiler {
    version: Version,
    headers: Version,
    /// Told before each plan, with how many there were.
    mishap: Rc<RefCell<Option<Mishap>>>,
    asked: Rc<RefCell<Vec<Asked>>>,
    /// Goes into every plan, so that two of one model may differ.
    salt: Rc<RefCell<u8>>,
    refits: Rc<refit::Refits>,
}

/// What a plan was asked with.
#[derive(Debug, Clone)]
struct Asked {
    onnx: PathBuf,
    data_bytes: u64,
    profiles: Vec<takt_tensorrt::build::Profile>,
    timing_cache: Vec<u8>,
    /// The model's file.
    model: Vec<u8>,
    is_refittable: bool,
}

impl std::fmt::Debug for Compiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a compiler of {}", self.version)
    }
}

impl PlanCompiler for Compiler {
    fn version(&self) -> Version {
        self.version
    }

    fn header_version(&self) -> Version {
        self.headers
    }

    fn build(
        &self,
        request: &PlanRequest<'_>,
        progress: &mut dyn FnMut(BuildProgress<'_>) -> ControlFlow<()>,
    ) -> takt_tensorrt::Result<Compiled> {
        for (phase, parent, done) in
            [("Building", None, 0), ("Tactics", Some("Building"), 1), ("Building", None, 1)]
        {
            if progress(BuildProgress { phase, parent, done, total: 1 }).is_break() {
                return Err(TensorRtError::Cancelled);
            }
        }
        if let Some(error) = self.mishap.borrow().as_ref().and_then(|mishap| mishap(request)) {
            return Err(error);
        }
        let data = request.onnx.with_extension("onnx.data");
        self.asked.borrow_mut().push(Asked {
            onnx: request.onnx.into(),
            data_bytes: fs::metadata(data).unwrap().len(),
            profiles: request.profiles.to_vec(),
            timing_cache: request.timing_cache.to_vec(),
            model: fs::read(request.onnx).unwrap(),
            is_refittable: request.flags.refittable,
        });
        if request.flags.refittable {
            self.refits.saw(request.onnx);
        }
        let salt = *self.salt.borrow();
        Ok(Compiled {
            plan: Box::new(format!("{salt} {:?} {:?}", request.onnx.file_name(), request.profiles)),
            timing_cache: [request.timing_cache, b"+"].concat(),
            used_timing_cache: request.timing_cache.starts_with(b"+"),
            warnings: (0..50).map(|idx| format!("layer {}", idx / 2)).collect(),
        })
    }

    fn load(&self, plan: &[u8]) -> takt_tensorrt::Result<Box<dyn LoadedPlan>> {
        assert!(!plan.is_empty());
        refit::load(&self.refits)
    }
}

impl Compiler {
    fn new(major: u32, minor: u32) -> Self {
        Self {
            version: Version { major, minor, patch: 1 },
            headers: Version { major, minor, patch: 0 },
            mishap: Rc::default(),
            asked: Rc::default(),
            salt: Rc::default(),
            refits: Rc::default(),
        }
    }

    fn plans(&self, gpu: Gpu, options: PlanOptions) -> Result<DevicePlans> {
        DevicePlans::of(Box::new(self.clone()), gpu, format!("a device with {gpu}"), options, None)
    }

    fn fails(&self, mishap: impl Fn(&PlanRequest<'_>) -> Option<TensorRtError> + 'static) {
        *self.mishap.borrow_mut() = Some(Box::new(mishap));
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

/// An engine with a draft head, in a folder of its own.
fn engine(kind: WeightKind) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("engine");
    let head = fixture("eagle3/tiny-llama-midlayer");
    let draft = DraftOptions { folder: &head, prompts: None, measures: false };
    let options = BuildOptions { draft: Some(draft), ..BuildOptions::new(kind) };
    build(&fixture("hf/tiny-llama"), &path, &options, &mut |_| ()).unwrap();
    (folder, path)
}

/// Every file below a folder with its bytes, and every folder.
fn tree(folder: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(tree(&path));
            found.insert(path, None);
        } else {
            found.insert(path.clone(), Some(fs::read(&path).unwrap()));
        }
    }
    found
}

fn add(engine: &Path, plans: &DevicePlans) -> Result<PlansReport> {
    add_plans(engine, plans, None, &mut |_| ())
}

#[test]
fn a_decoder_gets_a_plan_that_the_manifest_describes_and_nothing_else_changes() {
    let (folder, engine) = engine(WeightKind::Bf16);
    let before = tree(folder.path());
    let compiler = Compiler::new(10, 16);
    let options = PlanOptions { num_lanes: 3, lane_capacity: Some(100), ..PlanOptions::default() };
    let plans = compiler.plans(Gpu::Thor, options).unwrap();
    let stages = RefCell::new(Vec::new());
    let mut seen = |at: Progress<'_>| stages.borrow_mut().push((at.stage, at.item.to_owned()));
    let report = add_plans(&engine, &plans, None, &mut seen).unwrap();

    let manifest = Manifest::read(&engine).unwrap();
    let entries: Vec<_> = report.plans.iter().map(|plan| plan.entry.clone()).collect();
    let decoder = manifest.plan(entries[0].tensorrt, "sm_110a", PlanRole::Decoder).unwrap();
    // The backend runs the head by its own kernels.
    assert_eq!(entries, std::slice::from_ref(decoder));
    let shape = |plan: &takt_engine::dir::PlanEntry| {
        (plan.num_lanes, plan.lane_capacity, plan.lane_rows, plan.max_prefill, plan.max_tree)
    };
    assert_eq!(shape(decoder), (3, 100, 168, 100, 65));
    assert_eq!((decoder.form, decoder.compute), (PlanForm::Operators, PlanCompute::Bf16));
    let dir = EngineDir::open(&engine).unwrap();
    assert_eq!(decoder.captured, dir.draft().unwrap().manifest().spec.captured);
    for plan in &entries {
        assert_eq!(PlanFile::open(&engine, plan).unwrap().bytes().len() as u64, plan.size_bytes);
        assert!(plan.file.starts_with("plans/trt-10.16-sm_110a") && plan.device == "a device with sm_110a");
    }
    assert!(manifest.check_plans(&engine).iter().all(|check| check.outcome.is_ok()));

    let asked = compiler.asked.borrow();
    assert!(asked.iter().all(|asked| asked.data_bytes > 10_000 && !asked.onnx.exists()), "{asked:?}");
    let names: Vec<_> = asked[0].profiles.iter().map(|it| it.name.as_str()).collect();
    assert_eq!((asked.len(), names), (1, vec!["prefill", "decode", "verify"]));
    let ports = &asked[0].profiles[2].inputs;
    let (_, mask) = ports.iter().find(|(name, _)| name == "attention_mask").unwrap();
    assert_eq!((&mask.min, &mask.max), (&vec![1, 1, 1], &vec![3, 65, 168]));
    let (_, cache) = ports.iter().find(|(name, _)| name == "past_key_values.0.key").unwrap();
    assert_eq!((cache.max[0], cache.max[2]), (3, 168));

    assert_eq!(report.plans[0].warnings.len(), 21);
    assert_eq!(report.plans[0].warnings[20], "and 5 more warnings of TensorRT");
    let stages = stages.into_inner();
    let mut models = stages.iter().filter(|(stage, _)| *stage == Stage::Models).peekable();
    assert!(
        models.peek().is_some() && models.all(|(_, item)| item.starts_with("model.onnx: ")),
        "{stages:?}"
    );
    assert!(stages.contains(&(Stage::Plans, "decoder: Building: Tactics".into())), "{stages:?}");
    let mut after = tree(folder.path());
    after.retain(|path, _| !path.starts_with(engine.join("plans")) && !path.ends_with("engine.json"));
    assert!(after.iter().all(|(path, bytes)| before[path] == *bytes) && after.len() + 1 == before.len());
    assert_eq!(fs::read_dir(engine.join("plans")).unwrap().count(), 1);
}

#[test]
fn an_older_tensorrt_gets_primitives_and_an_engine_without_a_head_one_plan() {
    let folder = tempfile::tempdir().unwrap();
    let engine = folder.path().join("engine");
    build(&fixture("families/qwen2-window"), &engine, &BuildOptions::new(WeightKind::Bf16), &mut |_| ())
        .unwrap();
    let compiler = Compiler::new(10, 3);
    let options = PlanOptions { compute: PlanCompute::F16, ..PlanOptions::default() };
    let report = add(&engine, &compiler.plans(Gpu::Orin, options).unwrap()).unwrap();
    let [plan] = &report.plans[..] else { panic!("{report:?}") };
    let context = Manifest::read(&engine).unwrap().spec.max_context;
    assert_eq!((plan.entry.form, plan.entry.compute), (PlanForm::Primitives, PlanCompute::F16));
    // The rows for padding are beyond what the model was made for.
    let rows = (context + 65).next_multiple_of(8);
    assert_eq!((plan.entry.lane_capacity, plan.entry.lane_rows), (context, rows));
    let (_, past) = plan.profiles[1].inputs.iter().find(|(name, _)| name == "past_key_values.0.key").unwrap();
    assert_eq!((past.min[2], past.max[2]), (rows, rows));
    assert!(plan.profiles[1].inputs.iter().any(|(name, _)| name == "kv_positions"));
}

/// An engine whose cache is FP8 gets plans that have one where they can, and a note where not.
#[test]
fn a_cache_of_8_bits_is_asked_for_or_the_engines_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("engine");
    let how = BuildOptions { kv: Some(KvKind::Fp8), ..BuildOptions::new(WeightKind::Bf16) };
    build(&fixture("hf/tiny-llama"), &path, &how, &mut |_| ()).unwrap();
    let usual = PlanOptions { lane_capacity: Some(100), ..PlanOptions::default() };
    let made = |compiler: Compiler, gpu, options| {
        let report = add(&path, &compiler.plans(gpu, options).unwrap()).unwrap();
        let entry = report.plans[0].entry.clone();
        assert_eq!(
            entry.kv,
            Manifest::read(&path).unwrap().plan(entry.tensorrt, &entry.sm, entry.role).unwrap().kv
        );
        (entry.form, entry.kv, entry.lane_rows, report.warnings.join("; "))
    };
    let primitives = Some(Form::Primitives);
    // 100 tokens and 65 rows for padding: a multiple of 16 rows, or of 8.
    let fp8 = (PlanForm::Primitives, PlanKv::Fp8, 176, String::new());
    assert_eq!(made(Compiler::new(10, 13), Gpu::Thor, usual), fp8);
    assert_eq!(made(Compiler::new(10, 16), Gpu::Thor, PlanOptions { form: primitives, ..usual }), fp8);
    assert_eq!(made(Compiler::new(10, 16), Gpu::Thor, PlanOptions { kv: Some(KvType::Fp8), ..usual }), fp8);
    let plain = PlanOptions { kv: Some(KvType::Plain), ..usual };
    let without = (PlanForm::Operators, PlanKv::Plain, 168, String::new());
    assert_eq!(made(Compiler::new(10, 16), Gpu::Thor, plain), without);
    let (form, kv, _, note) = made(Compiler::new(10, 16), Gpu::Thor, usual);
    assert_eq!((form, kv), (PlanForm::Operators, PlanKv::Plain));
    assert!(note.contains("the engine's cache is fp8") && note.contains("form primitives"), "{note}");
    let (form, kv, _, note) = made(Compiler::new(10, 3), Gpu::Orin, usual);
    assert_eq!((form, kv), (PlanForm::Primitives, PlanKv::Plain));
    assert!(note.contains("from sm_89 on"), "{note}");
}

#[test]
fn a_newer_tensorrt_that_is_called_through_older_headers_gets_primitives() {
    let (_folder, engine) = engine(WeightKind::Bf16);
    let form = |headers: u32| {
        let compiler =
            Compiler { headers: Version { major: 10, minor: headers, patch: 0 }, ..Compiler::new(10, 16) };
        let report = add(&engine, &compiler.plans(Gpu::Thor, PlanOptions::default()).unwrap()).unwrap();
        report.plans.iter().map(|plan| plan.entry.form).collect::<Vec<_>>()
    };
    assert_eq!(form(13), [PlanForm::Primitives]);
    assert_eq!(form(15), [PlanForm::Operators]);
}

#[test]
fn quantized_activations_are_in_the_model_where_they_are_asked_for_and_recorded() {
    let operators = |asked: &Asked| {
        let named = |name: &str| asked.model.windows(name.len()).any(|at| at == name.as_bytes());
        // Its length is before a name in a file: `DequantizeLinear` is of weights, too.
        [named("\x0eQuantizeLinear"), named("TRT_FP4DynamicQuantize")]
    };
    for (kind, activations, expected) in [
        (WeightKind::Fp8, PlanActivations::Plain, [false, false]),
        (WeightKind::Fp8, PlanActivations::Quantized, [true, false]),
        (WeightKind::Nvfp4, PlanActivations::Plain, [false, false]),
        // Whose output head is FP8.
        (WeightKind::Nvfp4, PlanActivations::Quantized, [true, true]),
    ] {
        let (_folder, engine) = engine(kind);
        let compiler = Compiler::new(10, 16);
        let options = PlanOptions { activations, ..PlanOptions::default() };
        let report = add(&engine, &compiler.plans(Gpu::Thor, options).unwrap()).unwrap();
        assert_eq!(report.plans[0].entry.activations, activations);
        assert_eq!(operators(&compiler.asked.borrow()[0]), expected, "{kind} {activations:?}");
        let json = fs::read_to_string(engine.join("engine.json")).unwrap();
        assert_eq!(json.contains("\"activations\""), activations == PlanActivations::Quantized, "{json}");
    }
}

#[test]
fn building_again_replaces_plans_for_the_same_machine_and_leaves_others() {
    let (_folder, engine) = engine(WeightKind::Bf16);
    let (here, there) = (Compiler::new(10, 16), Compiler::new(10, 13));
    let options = PlanOptions::default();
    add(&engine, &there.plans(Gpu::Thor, options).unwrap()).unwrap();
    let first = add(&engine, &here.plans(Gpu::Thor, options).unwrap()).unwrap();
    // The same bytes again are the same files.
    let second = add(&engine, &here.plans(Gpu::Thor, options).unwrap()).unwrap();
    assert_eq!(first.plans[0].entry, second.plans[0].entry);
    *here.salt.borrow_mut() = 1;
    let third = add(&engine, &here.plans(Gpu::Thor, options).unwrap()).unwrap();
    let manifest = Manifest::read(&engine).unwrap();
    assert_eq!(manifest.plans.len(), 2);
    assert_eq!(fs::read_dir(engine.join("plans")).unwrap().count(), 2);
    assert!(manifest.check_plans(&engine).iter().all(|check| check.outcome.is_ok()));
    let [old, new] = [&second, &third].map(|report| &report.plans[0].entry);
    assert!(old.file != new.file && manifest.plans.contains(new) && !manifest.plans.contains(old));
    assert!(manifest.plans.is_sorted_by(|a, b| a.file < b.file));
}

#[test]
fn what_was_measured_is_used_the_next_time_and_a_damaged_one_is_a_note() {
    let (folder, engine) = engine(WeightKind::Bf16);
    let timings = folder.path().join("cache");
    let compiler = Compiler::new(10, 16);
    let plans = DevicePlans::of(
        Box::new(compiler.clone()),
        Gpu::Thor,
        "Thor".into(),
        PlanOptions::default(),
        Some(timings.clone()),
    )
    .unwrap();
    let uses = |report: &PlansReport| report.plans.iter().map(|plan| plan.timing_cache).collect::<Vec<_>>();
    let first = add(&engine, &plans).unwrap();
    assert_eq!(uses(&first), [TimingCacheUse::New]);
    let second = add(&engine, &plans).unwrap();
    assert_eq!(uses(&second), [TimingCacheUse::Used]);
    let given: Vec<_> = compiler.asked.borrow().iter().map(|asked| asked.timing_cache.len()).collect();
    assert_eq!(given, [0, 1]);
    let file = fs::read_dir(&timings).unwrap().next().unwrap().unwrap().path();
    fs::write(&file, "rubbish").unwrap();
    let third = add(&engine, &plans).unwrap();
    assert_eq!(uses(&third), [TimingCacheUse::New]);
    assert!(third.plans[0].warnings[0].contains("are damaged"), "{:?}", third.plans[0].warnings);
    assert_eq!(compiler.asked.borrow()[2].timing_cache.len(), 0);
}

#[test]
fn an_engine_is_built_with_its_plans_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let (out, source) = (folder.path().join("engine"), fixture("hf/tiny-llama"));
    let compiler = Compiler::new(10, 16);
    let plans = compiler.plans(Gpu::Thor, PlanOptions::default()).unwrap();
    let options = BuildOptions { plans: Some(&plans), ..BuildOptions::new(WeightKind::Bf16) };
    compiler.fails(|_| Some(TensorRtError::Failed { call: "build", reason: "no tactic".into() }));
    build(&source, &out, &options, &mut |_| ()).unwrap_err();
    assert!(tree(folder.path()).is_empty());
    compiler.mishap.borrow_mut().take();
    let report = build(&source, &out, &options, &mut |_| ()).unwrap();
    assert!(report.plans.is_some_and(|plans| plans.plans.len() == 1) && report.warnings.is_empty());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    let manifest = Manifest::read(&out).unwrap();
    assert!(manifest.check_plans(&out).iter().all(|check| check.outcome.is_ok()));
    EngineDir::open(&out).unwrap();

    // An engine of other weights has none of its plans, and says so.
    let before = tree(folder.path());
    compiler.fails(|_| Some(TensorRtError::Failed { call: "build", reason: "no tactic".into() }));
    build(&source, &out, &BuildOptions { force: true, ..options }, &mut |_| ()).unwrap_err();
    assert!(tree(folder.path()) == before);
    let plain = BuildOptions { force: true, ..BuildOptions::new(WeightKind::Nvfp4) };
    let report = build(&source, &out, &plain, &mut |_| ()).unwrap();
    let note = report.warnings.iter().find(|note| note.contains("are gone with it")).unwrap();
    assert!(note.contains(&manifest.plans[0].file) && note.contains("--plans-only"), "{note}");
    assert!(Manifest::read(&out).unwrap().plans.is_empty() && !out.join("plans").exists());

    // Formats are refused before a tensor is quantized.
    let old = Compiler::new(10, 7);
    let plans = old.plans(Gpu::Thor, PlanOptions::default()).unwrap();
    let options = BuildOptions { plans: Some(&plans), ..BuildOptions::new(WeightKind::Nvfp4) };
    let mut num_steps = 0;
    let error = build(&source, &folder.path().join("other"), &options, &mut |_| num_steps += 1).unwrap_err();
    assert!(error.to_string().contains("10.8") && num_steps == 0, "{error}");
}

#[test]
fn an_fp8_cache_that_nobody_asked_for_is_left_out_where_heads_are_of_no_whole_words() {
    let (_folder, engine) = engine(WeightKind::Bf16);
    let spec = DecoderSpec { head_dim: 8, ..Manifest::read(&engine).unwrap().spec };
    let usual = PlanOptions { form: Some(Form::Primitives), ..PlanOptions::default() };
    let plans = |options| Compiler::new(10, 16).plans(Gpu::Thor, options).unwrap();
    let own = plans(usual);
    assert_eq!(own.export_options(&spec, KvKind::Fp8).unwrap().kv, Some(KvType::Plain));
    let note = own.cache_note(&spec, KvKind::Fp8).unwrap().unwrap();
    assert!(note.contains("the engine's cache is fp8") && note.contains("heads have 8"), "{note}");
    let asked = plans(PlanOptions { kv: Some(KvType::Fp8), ..usual });
    let message = asked.export_options(&spec, KvKind::Bf16).unwrap_err().to_string();
    assert!(message.contains("heads of 8") && message.contains("--plan-kv plain"), "{message}");
}

#[test]
fn an_engine_that_is_built_with_plans_has_by_default_an_output_head_that_they_take() {
    let folder = tempfile::tempdir().unwrap();
    let source = fixture("hf/tiny-qwen2");
    for (gpu, expected) in [(Gpu::Orin, WeightKind::Bf16), (Gpu::Thor, WeightKind::Fp8)] {
        let plans = Compiler::new(10, 3).plans(gpu, PlanOptions::default()).unwrap();
        let options = BuildOptions { plans: Some(&plans), ..BuildOptions::new(WeightKind::Int4) };
        let out = folder.path().join(gpu.name());
        build(&source, &out, &options, &mut |_| ()).unwrap();
        assert_eq!(Manifest::read(&out).unwrap().quantization.lm_head, expected, "{gpu}");
        let asked = BuildOptions { lm_head: Some(WeightKind::Fp8), force: true, ..options };
        let outcome = build(&source, &out, &asked, &mut |_| ()).map(drop).map_err(|error| error.to_string());
        assert_eq!(outcome.is_ok(), gpu == Gpu::Thor, "{outcome:?}");
        assert!(outcome.err().is_none_or(|told| told.contains("--lm-head int4 or bf16")));
    }
}
