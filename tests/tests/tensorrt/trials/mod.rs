//! What is tried with every TensorRT there is: `rehearsal` does it on the stand-in, `real` with NVIDIA's own.
//!
//! A body knows neither. It builds engines and their plans as the command line does, opens them, and has held-out lines answered by the demo model,
//! whose answers are decided: what says the same there runs the same weights.

pub mod green;
pub mod refit;
pub mod refusals;
pub mod streaming;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use takt_engine::{
    Engine, EngineOptions, Result, TokenId,
    backend::cuda::{GpuOptions, GpuShare},
    dir::{Manifest, PlanEntry},
    engine::BackendKind,
    quant::WeightKind,
    sequence::SequenceOptions,
};
use takt_engine_builder::{
    BuildOptions, PlansReport, build,
    plans::{DevicePlans, PlanOptions, add_plans},
};
use takt_tests::{
    heldout,
    speculated::{Method, answer},
};
use tempfile::TempDir;

/// Tokens that a lane holds.
const CAPACITY: usize = 256;
/// Longer than any answer.
const MAX_TOKENS: usize = 48;

/// A machine on which something is tried, and a folder for it.
pub struct Ground {
    /// Where kernels of ours are.
    gpu: GpuOptions,
    /// Of 2,400 held-out lines every so many'th is asked.
    stride: usize,
    /// Whether every plan computes what any other of the same model does, to the bit. NVIDIA's may choose other kernels.
    pub is_exact: bool,
    scratch: TempDir,
}

/// Answers, a list of tokens for each line.
pub type Answers = Vec<Vec<TokenId>>;

impl Ground {
    /// `gpu` is told the folder.
    pub fn new(gpu: impl FnOnce(&Path) -> GpuOptions, stride: usize, is_exact: bool) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let gpu = GpuOptions { step_limit: Duration::from_secs(60), ..gpu(scratch.path()) };
        Self { gpu, stride, is_exact, scratch }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// The engine `name` of a checkpoint, with an output head that every TensorRT and every GPU takes.
    pub fn engine(&self, name: &str, checkpoint: &Path, weights: WeightKind) -> PathBuf {
        let dir = self.path(name);
        let how = BuildOptions { lm_head: Some(WeightKind::Bf16), ..BuildOptions::new(weights) };
        build(checkpoint, &dir, &how, &mut |_| {}).unwrap();
        dir
    }

    /// What plans are built with, and what TensorRT measured for others: of the same measurements it makes the same choices.
    pub fn plans(&self, options: PlanOptions) -> takt_engine_builder::Result<DevicePlans> {
        let options = PlanOptions { num_lanes: 1, lane_capacity: Some(CAPACITY), ..options };
        DevicePlans::open(options, Some(self.path("measurements")))
    }

    /// The plan that `plans` adds to the engine `dir`.
    pub fn add(&self, dir: &Path, plans: &DevicePlans) -> takt_engine_builder::Result<PlanEntry> {
        let PlansReport { plans, warnings, .. } = add_plans(dir, plans, None, &mut |_| {})?;
        for plan in &plans {
            println!("{}: {:.1} s, {:?} {warnings:?}", plan.entry.file, plan.seconds, plan.warnings);
        }
        Ok(plans[0].entry.clone())
    }

    /// Opens `dir` on its plan, as `change` would have it.
    pub fn open(&self, dir: &Path, change: impl FnOnce(&mut EngineOptions)) -> Result<Engine> {
        let gpu = GpuOptions { share: GpuShare::Priority, ..self.gpu.clone() };
        let mut options = EngineOptions { backend: BackendKind::TensorRt, gpu, ..EngineOptions::default() };
        change(&mut options);
        Engine::open(dir, &options)
    }

    /// What `engine` says to held-out lines.
    pub fn answers(&self, mut engine: Engine) -> Answers {
        let eos_token_ids = engine.manifest.eos_token_ids.clone();
        let options =
            SequenceOptions { max_tokens: Some(MAX_TOKENS), eos_token_ids, ..SequenceOptions::default() };
        let text = engine.text.take().unwrap();
        let lines = heldout::read(&demo().join("eval/heldout.jsonl"), self.stride).unwrap();
        let said = |line: &heldout::Line| {
            let prompt = heldout::prompt(&text, line).unwrap();
            answer(engine.backend.as_mut(), &prompt, &options, Method::Plain).unwrap().tokens
        };
        lines.iter().map(said).collect()
    }

    /// What the processor says to them.
    pub fn answers_of_the_processor(&self, dir: &Path) -> Answers {
        let options = EngineOptions {
            backend: BackendKind::Cpu,
            lane_capacity: Some(CAPACITY),
            ..EngineOptions::default()
        };
        self.answers(Engine::open(dir, &options).unwrap())
    }

    /// That two computations of one model answer alike: each line where they are the same to the bit, else all but one in ten.
    #[track_caller]
    pub fn assert_alike(&self, found: &Answers, expected: &Answers, what: &str) {
        let num_equal = found.iter().zip(expected).filter(|(found, expected)| found == expected).count();
        let num_least = if self.is_exact { expected.len() } else { (expected.len() * 9).div_ceil(10) };
        assert!(
            found.len() == expected.len() && num_equal >= num_least,
            "{what}: {num_equal} of {} answers are the same: {found:?}, expected {expected:?}",
            expected.len()
        );
    }
}

/// The shipped model.
pub fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/takt-demo")
}

/// The only plan of an engine.
pub fn entry(dir: &Path) -> PlanEntry {
    let plans = Manifest::read(dir).unwrap().plans;
    assert_eq!(plans.len(), 1);
    plans[0].clone()
}

/// Says of the only plan of an engine what `edit` makes of it, as a `takt` that built such a one would have.
pub fn relabel(dir: &Path, edit: impl FnOnce(&mut serde_json::Value)) {
    let (path, file) = (dir.join("engine.json"), dir.join(entry(dir).file));
    let mut manifest: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let plan = &mut manifest["plans"][0];
    edit(plan);
    // A name without a hash may be of any bytes, a name of another machine is that machine's.
    let word = |name: &str| plan[name].as_str().unwrap().to_owned();
    let name = format!("plans/trt-{}-{}.plan", word("tensorrt"), word("sm"));
    fs::rename(file, dir.join(&name)).unwrap();
    plan["file"] = name.into();
    fs::write(path, manifest.to_string()).unwrap();
}

/// For people, and for `gpu-check`, which keeps such lines with its numbers.
pub fn record(fact: &str) {
    println!("recorded: {fact}");
}

/// The number behind `name` in a refusal.
#[track_caller]
pub fn number(said: &str, name: &str) -> u64 {
    let at = said.find(name).unwrap_or_else(|| panic!("{name:?} in {said}")) + name.len();
    let digits: String = said[at..].trim_start().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("a number behind {name:?} in {said}"))
}
