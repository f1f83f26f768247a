//! Draft heads on the device.

mod anything;
mod failures;
mod following;
mod golden;
mod levels;
mod mapped;
pub mod speculation;

pub use speculation::build_demo;

use std::path::Path;

use takt_engine::{
    backend::{
        Backend,
        cpu::{ActivationArithmetic, CpuBackend},
        cuda::{CudaBackend, CudaOptions},
    },
    dir::EngineDir,
    kv::{KvKind, LaneId},
    step::{LogitsWanted, StepPlan},
};
use takt_tests::{
    backends,
    checkpoint::fixtures,
    eagle::{HEADS, build_with},
};

use crate::models::{self, options};

pub const A: LaneId = LaneId(0);
pub const B: LaneId = LaneId(1);
pub const C: LaneId = LaneId(2);

/// An engine with a head, in a folder of its own.
pub struct Fixture {
    _folder: tempfile::TempDir,
    pub dir: EngineDir,
}

impl Fixture {
    /// Of [`HEADS`].
    pub fn new(idx: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (head, target) = HEADS[idx];
        let path = folder.path().join("engine");
        build_with(&fixtures().join("eagle3").join(head), target, &path);
        Self { dir: EngineDir::open(&path).unwrap(), _folder: folder }
    }

    /// On the device, with its head.
    pub fn with_head(&self, options: &CudaOptions) -> CudaBackend {
        let mut backend = self.without_head(options);
        attach(&mut backend, &self.dir).unwrap();
        backend
    }

    /// On the device, without it.
    pub fn without_head(&self, options: &CudaOptions) -> CudaBackend {
        models::open(&self.dir.manifest().spec, &self.dir, options).unwrap()
    }
}

pub fn attach(backend: &mut dyn Backend, dir: &EngineDir) -> takt_engine::Result<()> {
    let head = dir.draft().unwrap();
    backend.attach_draft(&head.manifest().spec, head)
}

/// The engine at `path` on the device with its head.
pub fn open_at(path: &Path, kv: KvKind) -> CudaBackend {
    let dir = EngineDir::open(path).unwrap();
    let mut backend = models::open(&dir.manifest().spec, &dir, &options(kv)).unwrap();
    attach(&mut backend, &dir).unwrap();
    backend
}

/// The same on the processor, in F32.
pub fn on_cpu(dir: &EngineDir, kv: KvKind) -> CpuBackend {
    let options = backends::options(kv, ActivationArithmetic::F32);
    let mut backend = CpuBackend::new(&dir.manifest().spec, dir, &options).unwrap();
    attach(&mut backend, dir).unwrap();
    backend
}

/// One step of `tokens` behind what is in `lane`, with the last one's logits.
pub fn step(backend: &mut dyn Backend, lane: LaneId, tokens: &[u32]) {
    let mut plan = StepPlan::default();
    plan.push(lane, tokens, LogitsWanted::Last);
    backend.run_step(&plan).unwrap();
}

/// One tree behind what is in `lane`.
pub fn step_tree(backend: &mut dyn Backend, lane: LaneId, tokens: &[u32], parents: &[usize]) {
    let mut plan = StepPlan::default();
    plan.push_tree(lane, tokens, parents);
    backend.run_step(&plan).unwrap();
}
