//! What an engine is told to take of a GPU is what it takes.

use takt_engine::{
    backend::{
        Backend as _,
        cuda::{CudaBackend, CudaOptions, GpuShare},
    },
    dir::EngineDir,
    engine::{BackendKind, EngineOptions},
    kv::KvKind,
    memory::EngineMemory,
};
use takt_kernels_cu::driver::context::Share;

use crate::{
    draft::{Fixture, attach},
    emulator::driver::Device,
    models::{self, emulated, options},
};

const PERCENT: u8 = 50;
const NUM_SMS: u32 = 132;

/// Twice the same: as an engine is opened, and what its backend gets.
fn both(kv: KvKind, num_lanes: usize) -> (EngineOptions, CudaOptions) {
    let engine = EngineOptions {
        backend: BackendKind::Cuda,
        num_lanes,
        lane_capacity: Some(200),
        kv: Some(kv),
        max_step_tokens: 96,
        num_snapshots: 3,
        ..EngineOptions::default()
    };
    assert_eq!(engine.gpu.share, GpuShare::GreenContext { percent: PERCENT });
    let share = Share::GreenContext { num_sms: NUM_SMS * u32::from(PERCENT) / 100 };
    let max_logits_rows = num_lanes + takt_engine::engine::MAX_TREE_NODES;
    (engine, CudaOptions { share, num_lanes, max_logits_rows, ..options(kv) })
}

/// Bytes of memory that the device and pinned pages of it hold.
fn held(device: &Device) -> u64 {
    let report = device.report();
    report.value("device_bytes") + report.value("host_bytes")
}

fn told(dir: &EngineDir, options: &EngineOptions) -> EngineMemory {
    let (manifest, draft) = (dir.manifest(), dir.draft().map(|draft| draft.manifest()));
    EngineMemory::of(&manifest.spec, &manifest.quantization, draft, options).unwrap()
}

/// All but snapshots, which come and go.
fn without_snapshots(memory: EngineMemory) -> u64 {
    memory.total_bytes() - memory.snapshot_bytes
}

#[track_caller]
fn is_all(told: u64, taken: u64) {
    // The end of an allocation is not rounded up.
    assert!(told >= taken && told - taken < 4096, "{told} told, {taken} taken");
}

fn snapshot_of(backend: &mut CudaBackend, device: &Device) -> u64 {
    let before = held(device);
    let tokens = models::tokens(backend.spec(), 40);
    takt_tests::backends::run_slices(backend, takt_engine::kv::LaneId(0), &tokens, 40);
    let id = backend.save_snapshot(takt_engine::kv::LaneId(0), 40).unwrap();
    let taken = held(device) - before;
    backend.drop_snapshot(id);
    taken
}

#[test]
fn what_is_told_before_is_what_the_model_and_its_head_take() {
    emulated("memory::what_is_told_before_is_what_the_model_and_its_head_take").run(|device| {
        for (idx, kv, num_lanes) in [(0, KvKind::Bf16, 1), (1, KvKind::Int8, 3)] {
            let (fixture, before) = (Fixture::new(idx), held(device));
            let (options, cuda_options) = both(kv, num_lanes);
            let mut backend = fixture.without_head(&cuda_options);
            let alone = told(&fixture.dir, &EngineOptions { speculation: false, ..options.clone() });
            is_all(without_snapshots(alone), held(device) - before);
            assert_eq!(alone.kv_bytes, backend.capabilities().kv_bytes);
            let (of_40, of_200) = (snapshot_of(&mut backend, device), alone.snapshot_bytes / 3);
            assert!(
                (of_200 / 6..of_200 / 4).contains(&of_40),
                "{of_40} taken, of a whole lane {of_200} told"
            );

            attach(&mut backend, &fixture.dir).unwrap();
            let with_head = told(&fixture.dir, &options);
            is_all(without_snapshots(with_head), held(device) - before);
            assert_eq!(with_head.kv_bytes, backend.capabilities().kv_bytes, "the head's lanes are told, too");
            assert!(with_head.kv_bytes > alone.kv_bytes && with_head.weight_bytes > alone.weight_bytes);
        }
    });
}

#[test]
fn a_budget_refuses_by_the_gpus_numbers_before_anything_is_taken() {
    emulated("memory::a_budget_refuses_by_the_gpus_numbers_before_anything_is_taken").run(|device| {
        let (fixture, (options, _)) = (Fixture::new(0), both(KvKind::Bf16, 1));
        let needed = told(&fixture.dir, &options).total_bytes();
        let cpu = told(&fixture.dir, &EngineOptions { backend: BackendKind::Cpu, ..options.clone() });
        assert_ne!(cpu.total_bytes(), needed);
        let open = |max_bytes| {
            let options = EngineOptions { max_bytes: Some(max_bytes), ..options.clone() };
            takt_engine::engine::Engine::open(fixture.dir.path(), &options)
        };
        let error = open(needed - 1).unwrap_err();
        assert!(error.is_capacity() && error.to_string().contains("the memory budget is"), "{error}");
        assert_eq!(device.report().calls("cuMemAlloc_v2"), 0);
        // What stops it then, if anything, is not the budget: kernels may be missing here.
        if let Err(error) = open(needed) {
            assert!(!error.is_capacity(), "{error}");
        }
    });
}

#[test]
fn without_a_gpu_at_hand_the_most_is_told() {
    let (fixture, (options, _)) = (Fixture::new(0), both(KvKind::Bf16, 2));
    let most = told(&fixture.dir, &options);
    assert!(most.workspace_bytes > 0);
    emulated("memory::without_a_gpu_at_hand_the_most_is_told").run(|_| {
        assert!(told(&fixture.dir, &options).workspace_bytes <= most.workspace_bytes);
    });
}
