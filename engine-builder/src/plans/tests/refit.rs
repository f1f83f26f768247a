//! Another engine's plan, given this one's weights.

use std::{
    cell::RefCell,
    fs,
    path::{Path, PathBuf},
    rc::Rc,
};

use takt_engine::{
    dir::{Manifest, PlanEntry, PlanFile, PlanForm, PlanKv},
    quant::WeightKind,
};
use takt_kernels_cu::Target as Gpu;
use takt_tensorrt::{TensorRtError, runtime::Weights, tensor::DataType};
use tempfile::TempDir;

use super::{Compiler, add, fixture, tree};
use crate::{
    BuildError, BuildOptions, PlansReport, Progress, Result, Stage, TimingCacheUse, build,
    export::KvType,
    plans::{DevicePlans, PlanOptions, add_plans, refit::LoadedPlan, weights::ModelWeights},
};

/// What is known of the constants of the models that plans were built of, and what plans are given.
#[derive(Debug, Default)]
pub(super) struct Refits {
    /// Of the last model.
    pub constants: RefCell<Vec<Weights>>,
    /// Names that plans do not take anew.
    pub folded: RefCell<Vec<String>>,
    /// Weights that are none of the model's.
    own: RefCell<Vec<Weights>>,
    pub given: RefCell<Vec<(String, DataType, Vec<u8>)>>,
    /// What fails: `load`, `weights`, `refit`.
    failing: RefCell<&'static str>,
    num_loads: RefCell<usize>,
}

impl Refits {
    pub fn saw(&self, onnx: &Path) {
        *self.constants.borrow_mut() = ModelWeights::open(onnx).unwrap().all();
    }

    fn fails(&self, what: &str) -> takt_tensorrt::Result<()> {
        match *self.failing.borrow() == what {
            true => Err(TensorRtError::Failed { call: "refitting", reason: format!("{what} was to fail") }),
            false => Ok(()),
        }
    }
}

#[derive(Debug)]
struct Loaded(Rc<Refits>);

pub(super) fn load(refits: &Rc<Refits>) -> takt_tensorrt::Result<Box<dyn LoadedPlan>> {
    refits.fails("load")?;
    *refits.num_loads.borrow_mut() += 1;
    Ok(Box::new(Loaded(Rc::clone(refits))))
}

impl LoadedPlan for Loaded {
    fn weights(&self) -> takt_tensorrt::Result<Vec<Weights>> {
        self.0.fails("weights")?;
        let is_taken = |weights: &&Weights| !self.0.folded.borrow().contains(&weights.name);
        Ok(self.0.constants.borrow().iter().filter(is_taken).chain(&*self.0.own.borrow()).cloned().collect())
    }

    fn refit(&mut self, weights: &[(&str, DataType, &[u8])]) -> takt_tensorrt::Result<Box<dyn AsRef<[u8]>>> {
        self.0.fails("refit")?;
        let given = weights.iter().map(|&(name, kind, bytes)| (name.to_owned(), kind, bytes.to_vec()));
        *self.0.given.borrow_mut() = given.collect();
        let hash =
            blake3::hash(&weights.iter().flat_map(|(_, _, bytes)| *bytes).copied().collect::<Vec<u8>>());
        Ok(Box::new(format!("refitted {hash}")))
    }
}

/// An engine of the fixture `source`; of the same model with other weights where it is `tuned`.
fn engine(source: &str, kind: WeightKind, tuned: bool) -> (TempDir, PathBuf) {
    // The last bits of every number: little-endian, of two or four bytes.
    let tune = |_: &str, bytes: &mut [u8]| bytes.iter_mut().step_by(4).for_each(|byte| *byte ^= 0x55);
    engine_with(source, kind, if tuned { &tune } else { &|_, _| {} })
}

/// What is done to a tensor of some name.
pub(super) type Change<'a> = &'a dyn Fn(&str, &mut [u8]);

/// An engine of the fixture `source` whose tensors were changed.
pub(super) fn engine_with(source: &str, kind: WeightKind, change: Change<'_>) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let (checkpoint, path) = (folder.path().join("checkpoint"), folder.path().join("engine"));
    fs::create_dir(&checkpoint).unwrap();
    for entry in fs::read_dir(fixture(source)).unwrap() {
        let from = entry.unwrap().path();
        let mut bytes = fs::read(&from).unwrap();
        if from.extension().is_some_and(|extension| extension == "safetensors") {
            let begin = 8 + usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
            let header: serde_json::Value = serde_json::from_slice(&bytes[8..begin]).unwrap();
            for (name, tensor) in header.as_object().unwrap() {
                let at = |idx: usize| tensor["data_offsets"][idx].as_u64().map(|at| begin + at as usize);
                if let (Some(from), Some(to)) = (at(0), at(1)) {
                    change(name, &mut bytes[from..to]);
                }
            }
        }
        fs::write(checkpoint.join(from.file_name().unwrap()), bytes).unwrap();
    }
    build(&checkpoint, &path, &BuildOptions::new(kind), &mut |_| ()).unwrap();
    (folder, path)
}

pub(super) fn refit(compiler: &Compiler, pattern: &Path, engine: &Path) -> Result<PlansReport> {
    add(engine, &refitting(compiler, pattern)?)
}

fn refitting(compiler: &Compiler, pattern: &Path) -> Result<DevicePlans> {
    DevicePlans::refit_of(Box::new(compiler.clone()), Gpu::Thor, "a device".into(), pattern)
}

pub(super) fn options() -> PlanOptions {
    PlanOptions { is_refittable: true, num_lanes: 3, lane_capacity: Some(64), ..PlanOptions::default() }
}

/// An engine with a plan that takes other weights, and what built it.
fn pattern(kind: WeightKind) -> (TempDir, PathBuf, Compiler, PlanEntry) {
    let (folder, path) = engine("hf/tiny-llama", kind, false);
    let compiler = Compiler::new(10, 16);
    let report = add(&path, &compiler.plans(Gpu::Thor, options()).unwrap()).unwrap();
    let entry = report.plans[0].entry.clone();
    (folder, path, compiler, entry)
}

#[test]
fn a_plan_that_takes_other_weights_has_one_profile_and_notes_what_of_the_model_it_does_not_take() {
    let (_folder, path, compiler, entry) = pattern(WeightKind::Nvfp4);
    assert!(compiler.asked.borrow()[0].is_refittable);
    let profiles = compiler.asked.borrow()[0].profiles.clone();
    assert!(profiles.len() == 1 && profiles[0].name == "any", "{profiles:?}");
    assert_eq!(entry.refittable.as_ref().map(String::len), Some(64));
    assert_eq!(Manifest::read(&path).unwrap().plans.iter().collect::<Vec<_>>(), [&entry]);
    // Other builds of the same are noted as the same, and others are not asked for it.
    let again = add(&path, &compiler.plans(Gpu::Thor, options()).unwrap()).unwrap();
    assert_eq!(again.plans[0].entry.refittable, entry.refittable);
    let num_loads = *compiler.refits.num_loads.borrow();
    let plain = PlanOptions { is_refittable: false, ..options() };
    let report = add(&path, &compiler.plans(Gpu::Thor, plain).unwrap()).unwrap();
    assert_eq!(report.plans[0].entry.refittable, None);
    assert_eq!(*compiler.refits.num_loads.borrow(), num_loads);

    // What TensorRT folded away is said.
    let folded = "model.layers.0.self_attn.q_proj.weight";
    *compiler.refits.folded.borrow_mut() = vec![folded.into()];
    let report = add(&path, &compiler.plans(Gpu::Thor, options()).unwrap()).unwrap();
    let notes = &report.plans[0].warnings;
    assert!(
        notes.iter().any(|note| note.contains(folded) && note.contains("of 1 large constants")),
        "{notes:?}"
    );
    assert_ne!(report.plans[0].entry.refittable, entry.refittable);
}

#[test]
fn an_engine_of_the_same_model_gets_the_plan_with_its_own_weights() {
    for kind in [WeightKind::Bf16, WeightKind::Fp8, WeightKind::Nvfp4] {
        let (_folder, path, compiler, old) = pattern(kind);
        let before = tree(&path);
        let (_tuned, tuned) = engine("hf/tiny-llama", kind, true);
        let num_built = compiler.asked.borrow().len();
        let mut stages = Vec::new();
        let mut seen = |at: Progress<'_>| stages.push((at.stage, at.item.to_owned()));
        let report = add_plans(&tuned, &refitting(&compiler, &path).unwrap(), None, &mut seen).unwrap();
        assert_eq!(compiler.asked.borrow().len(), num_built, "nothing is built");
        assert!(stages.contains(&(Stage::Plans, "decoder: giving it weights".into())), "{stages:?}");
        let [plan] = &report.plans[..] else { panic!("{report:?}") };
        assert_eq!(plan.timing_cache, TimingCacheUse::Refitted);
        let new = &plan.entry;
        let manifest = Manifest::read(&tuned).unwrap();
        assert_eq!(Some(&*new.weights_blake3), manifest.plan_weights(new.role));
        assert_ne!(
            (&new.weights_blake3, &new.blake3, &new.file),
            (&old.weights_blake3, &old.blake3, &old.file)
        );
        let PlanEntry { file, size_bytes, blake3, weights_blake3, .. } = new.clone();
        assert_eq!(*new, PlanEntry { file, size_bytes, blake3, weights_blake3, ..old });
        assert!(PlanFile::open(&tuned, new).unwrap().bytes().starts_with(b"refitted "));
        // All of them, with the bytes of the tuned engine.
        let given = compiler.refits.given.borrow();
        assert_eq!(given.len(), compiler.refits.constants.borrow().len());
        let (_, _, embedding) = given.iter().find(|(name, ..)| name == "model.embed_tokens.weight").unwrap();
        let weights = fs::read(tuned.join("weights.safetensors")).unwrap();
        assert!(weights.windows(embedding.len()).any(|at| at == embedding), "{kind}");
        let original = fs::read(path.join("weights.safetensors")).unwrap();
        assert!(!original.windows(embedding.len()).any(|at| at == embedding), "{kind}");
        assert!(tree(&path) == before, "the other engine is as it was");
        drop(given);
        // And further from there.
        refit(&compiler, &tuned, &path).unwrap();
    }
}

#[test]
fn whatever_of_a_refit_fails_or_ends_the_engine_is_as_it_was() {
    let (_folder, path, compiler, _) = pattern(WeightKind::Nvfp4);
    let (folder, tuned) = engine("hf/tiny-llama", WeightKind::Nvfp4, true);
    for has_plan in [false, true] {
        if has_plan {
            refit(&compiler, &path, &tuned).unwrap();
        }
        let before = tree(folder.path());
        for failing in ["load", "weights", "refit"] {
            *compiler.refits.failing.borrow_mut() = failing;
            let message = refit(&compiler, &path, &tuned).unwrap_err().to_string();
            for words in [&format!("{failing} was to fail"), "plan of the decoder", "--plan-refit-from"] {
                assert!(message.contains(words), "{message}");
            }
            assert!(tree(folder.path()) == before, "{failing}");
        }
        *compiler.refits.failing.borrow_mut() = "";
        let cancelled = std::sync::atomic::AtomicBool::new(false);
        let mut cancel = |at: Progress<'_>| {
            cancelled.fetch_or(at.item.contains("giving it weights"), std::sync::atomic::Ordering::Relaxed);
        };
        let stopped = add_plans(&tuned, &refitting(&compiler, &path).unwrap(), Some(&cancelled), &mut cancel);
        assert!(matches!(stopped, Err(BuildError::Cancelled)), "{stopped:?}");
        assert!(tree(folder.path()) == before);
    }
    // A plan that was damaged is not given anything.
    let plan = path.join(&Manifest::read(&path).unwrap().plans.iter().next().unwrap().file);
    let len = fs::metadata(&plan).unwrap().len() as usize;
    fs::write(&plan, vec![7; len]).unwrap();
    let before = tree(folder.path());
    let message = refit(&compiler, &path, &tuned).unwrap_err().to_string();
    assert!(message.contains("BLAKE3"), "{message}");
    assert!(tree(folder.path()) == before);
}

#[test]
fn what_differs_in_more_than_weights_is_refused_with_what_does() {
    let (_folder, path, compiler, entry) = pattern(WeightKind::Nvfp4);
    let refused = |compiler: &Compiler, engine: &Path, facts: &[&str]| {
        let before = tree(engine);
        let message = refit(compiler, &path, engine).unwrap_err().to_string();
        assert!(facts.iter().all(|fact| message.contains(fact)), "{message}");
        assert!(tree(engine) == before);
    };
    let (_a, bf16) = engine("hf/tiny-llama", WeightKind::Bf16, true);
    refused(&compiler, &bf16, &["layers in bf16", "not layers in nvfp4", "without --plan-refit-from"]);
    let (_b, other) = engine("hf/tiny-qwen3", WeightKind::Nvfp4, false);
    refused(&compiler, &other, &["another architecture", &entry.file]);
    let (_c, tuned) = engine("hf/tiny-llama", WeightKind::Nvfp4, true);

    // A constant of which TensorRT takes no other values: noted when it was built, or found now.
    let folded = "model.layers.1.mlp.up_proj.weight";
    *compiler.refits.folded.borrow_mut() = vec![folded.into()];
    refused(&compiler, &tuned, &["differs in more than the weights it takes", folded]);
    add(&path, &compiler.plans(Gpu::Thor, options()).unwrap()).unwrap();
    refused(&compiler, &tuned, &["differs in more than the weights it takes", folded]);
    // The same weights are no others.
    refit(&compiler, &path, &path).unwrap();
    compiler.refits.folded.borrow_mut().clear();

    add(&path, &compiler.plans(Gpu::Thor, options()).unwrap()).unwrap();
    refit(&compiler, &path, &tuned).unwrap();

    // The layers that a draft head looks at.
    let (_d, drafted) = super::engine(WeightKind::Nvfp4);
    let message = add(&drafted, &refitting(&compiler, &path).unwrap()).unwrap_err().to_string();
    for words in ["the engine has a draft head that looks at layers [", "the plan is for no draft head"] {
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn weights_that_the_model_has_not_are_not_given_and_told_of_when_the_plan_is_built() {
    let (_folder, path, compiler, _) = pattern(WeightKind::Nvfp4);
    let (_tuned, tuned) = engine("hf/tiny-llama", WeightKind::Nvfp4, true);
    *compiler.refits.own.borrow_mut() =
        vec![Weights { name: "tmp_weight_3".into(), data_type: DataType::F32, num_elements: 1 }];
    let report = add(&path, &compiler.plans(Gpu::Thor, options()).unwrap()).unwrap();
    let notes = &report.plans[0].warnings;
    let told =
        |note: &String| note.contains("1 of the weights it takes") && note.contains("\"tmp_weight_3\"");
    assert!(notes.iter().any(told), "{notes:?}");
    refit(&compiler, &path, &tuned).unwrap();
    let num_constants = compiler.refits.constants.borrow().len();
    {
        let given = compiler.refits.given.borrow();
        assert_eq!(given.len(), num_constants);
        assert!(given.iter().all(|(name, ..)| name != "tmp_weight_3"));
        // Constants of integers as well, should TensorRT list them.
        assert!(given.iter().any(|(_, kind, _)| *kind == DataType::I64));
    }

    // One that is listed as another type is not given, and so may not differ.
    let name = "model.layers.0.self_attn.q_proj.weight";
    let other = Weights { name: name.into(), data_type: DataType::F32, num_elements: 1 };
    *compiler.refits.folded.borrow_mut() = vec![name.into()];
    *compiler.refits.own.borrow_mut() = vec![other];
    add(&path, &compiler.plans(Gpu::Thor, options()).unwrap()).unwrap();
    let message = refit(&compiler, &path, &tuned).unwrap_err().to_string();
    assert!(
        message.contains("differs in more than the weights it takes") && message.contains(name),
        "{message}"
    );
    refit(&compiler, &path, &path).unwrap();
    assert_eq!(compiler.refits.given.borrow().len(), num_constants - 1);
}

#[test]
fn where_an_engine_came_from_is_no_difference_and_an_fp8_cache_stays_one() {
    let (_folder, path) = engine("hf/tiny-llama", WeightKind::Bf16, false);
    let compiler = Compiler::new(10, 16);
    let small = PlanOptions { kv: Some(KvType::Fp8), ..options() };
    let report = add(&path, &compiler.plans(Gpu::Thor, small).unwrap()).unwrap();
    assert_eq!(report.plans[0].entry.kv, PlanKv::Fp8);
    let (_tuned, tuned) = engine("hf/tiny-llama", WeightKind::Bf16, false);
    let json = tuned.join("engine.json");
    let mut manifest: serde_json::Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    manifest["spec"]["family"] = "mistral".into();
    fs::write(&json, manifest.to_string()).unwrap();
    let refitted = refit(&compiler, &path, &tuned).unwrap();
    let entry = &refitted.plans[0].entry;
    assert_eq!((entry.kv, entry.form), (PlanKv::Fp8, PlanForm::Primitives));
}

#[test]
fn a_plan_that_streams_or_would_lose_biases_takes_no_other_weights() {
    let compiler = Compiler::new(10, 16);
    let both = PlanOptions { streams_weights: true, ..options() };
    let message = compiler.plans(Gpu::Thor, both).unwrap_err().to_string();
    assert!(message.contains("leave out --plan-refit or --plan-streaming"), "{message}");
    // As an older takt built them.
    let (_folder, path, compiler, _) = pattern(WeightKind::Bf16);
    let json = path.join("engine.json");
    let mut manifest: serde_json::Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    manifest["plans"][0]["streams_weights"] = true.into();
    fs::write(&json, manifest.to_string()).unwrap();
    let message = refitting(&compiler, &path).unwrap_err().to_string();
    assert!(
        message.contains("streamed") && message.contains("--plans-only --plan-refit` builds one"),
        "{message}"
    );

    let (_a, biased) = engine("hf/tiny-qwen2", WeightKind::Bf16, false);
    let (_b, plain) = engine("hf/tiny-llama", WeightKind::Bf16, false);
    let before = tree(&biased);
    let with = |minor, options| Compiler::new(11, minor).plans(Gpu::Thor, options).unwrap();
    let message = add(&biased, &with(3, options())).unwrap_err().to_string();
    for words in ["with biases", "TensorRT 11.3", "use another", "leave out --plan-refit"] {
        assert!(message.contains(words), "{message}");
    }
    assert!(tree(&biased) == before);
    add(&plain, &with(3, options())).unwrap();
    add(&biased, &with(3, PlanOptions { is_refittable: false, ..options() })).unwrap();
    add(&biased, &with(4, options())).unwrap();
}

#[test]
fn a_plan_that_is_built_and_cannot_be_looked_at_is_told_so() {
    let (_folder, path) = engine("hf/tiny-llama", WeightKind::Bf16, false);
    let compiler = Compiler::new(10, 16);
    *compiler.refits.failing.borrow_mut() = "load";
    let message = add(&path, &compiler.plans(Gpu::Thor, options()).unwrap()).unwrap_err().to_string();
    assert!(
        message.contains("TensorRT has built it") && message.contains("leave out --plan-refit"),
        "{message}"
    );
}

#[test]
fn an_engine_without_such_a_plan_for_this_machine_is_refused_with_what_builds_one() {
    let (_folder, path) = engine("hf/tiny-llama", WeightKind::Bf16, false);
    let compiler = Compiler::new(10, 16);
    let refused = |facts: &[&str]| {
        let message = refitting(&compiler, &path).unwrap_err().to_string();
        let command = format!("`takt build {} --tensorrt --plans-only --plan-refit`", path.display());
        assert!(facts.iter().all(|fact| message.contains(fact)) && message.contains(&command), "{message}");
    };
    refused(&["there is none for TensorRT 10.16 on sm_110a"]);
    let plain = PlanOptions { is_refittable: false, ..options() };
    add(&path, &compiler.plans(Gpu::Thor, plain).unwrap()).unwrap();
    refused(&["it takes no other weights"]);
    let older = Compiler::new(10, 15);
    add(&path, &older.plans(Gpu::Thor, options()).unwrap()).unwrap();
    refused(&["it takes no other weights"]);
    let message = refitting(&compiler, Path::new("nowhere")).unwrap_err().to_string();
    assert!(message.contains("does not exist"), "{message}");
}
