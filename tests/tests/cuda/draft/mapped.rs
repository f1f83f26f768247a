//! A head's weights that the device reads where their file is mapped: the bits of copied ones, held and given back as a model's are.

use std::fs;

use takt_engine::{
    backend::{
        Backend as _,
        cuda::{CudaBackend, CudaOptions, GpuOptions, GpuWeights},
    },
    dir::EngineDir,
    draft::DRAFT_WEIGHTS_FILE,
    engine::{BackendKind, Engine, EngineOptions},
    kv::KvKind,
    step::{LogitsWanted, StepPlan},
};
use takt_kernels_cu::driver::host_memory::HostReach;
use takt_tests::eagle::{chain_logits, read};

use super::{A, Fixture, attach};
use crate::{
    emulator::driver::Device,
    mapped::{nothing_is_left, orin},
    models::{emulated, options},
    shipped::cubins,
};

const WEIGHTS: &str = "weights.safetensors";

/// Few shapes, so that opening is quick.
fn small(weights: GpuWeights) -> CudaOptions {
    let sizes =
        CudaOptions { num_lanes: 1, max_step_tokens: 16, max_logits_rows: 16, ..options(KvKind::Bf16) };
    CudaOptions { weights, lane_capacity: 64, ..sizes }
}

/// Logits of a chain after a text, as bits.
fn proposals(backend: &mut CudaBackend) -> Vec<Vec<u32>> {
    read(backend, &[5, 6, 7, 8, 9, 10, 11], 16);
    let rows = chain_logits(backend, A, &[7, 12, 13]);
    rows.into_iter().map(|row| row.into_iter().map(f32::to_bits).collect()).collect()
}

fn file_bytes(dir: &EngineDir, name: &str) -> u64 {
    fs::metadata(dir.path().join(name)).unwrap().len()
}

fn registered(device: &Device) -> u64 {
    device.report().value("registered_bytes")
}

/// What attaching the head took of the device's own memory.
fn attached(fixture: &Fixture, weights: GpuWeights, device: &Device) -> (CudaBackend, u64) {
    let mut backend = fixture.without_head(&small(weights));
    let before = device.report().value("device_bytes");
    attach(&mut backend, &fixture.dir).unwrap();
    (backend, device.report().value("device_bytes") - before)
}

#[test]
fn a_mapped_head_proposes_with_the_bits_of_a_copied_one() {
    orin("draft::mapped::a_mapped_head_proposes_with_the_bits_of_a_copied_one").run(|device| {
        for idx in [0, 1] {
            let fixture = Fixture::new(idx);
            let files = [WEIGHTS, DRAFT_WEIGHTS_FILE].map(|name| file_bytes(&fixture.dir, name));
            let (mut copied, with_copies) = attached(&fixture, GpuWeights::Copied, device);
            let expected = proposals(&mut copied);
            drop(copied);
            nothing_is_left(device);

            let (mut mapped, without) = attached(&fixture, GpuWeights::Mapped, device);
            assert_eq!(registered(device), files.iter().sum::<u64>(), "both files, whole");
            let saved = with_copies - without;
            assert!(saved * 10 > files[1] * 8, "{saved} bytes of {} are not copied", files[1]);
            // The backend holds the files open by itself.
            drop(fixture);
            assert_eq!(proposals(&mut mapped), expected);
            drop(mapped);
            nothing_is_left(device);
        }
    });
}

#[test]
fn where_page_tables_are_shared_a_head_is_mapped_without_being_asked_for() {
    let test = "draft::mapped::where_page_tables_are_shared_a_head_is_mapped_without_being_asked_for";
    emulated(test).sm(110).host_reach(HostReach::PageTables).run(|device| {
        let fixture = Fixture::new(0);
        let (mut copied, with_copies) = attached(&fixture, GpuWeights::Copied, device);
        let expected = proposals(&mut copied);
        let (mut mapped, without) = attached(&fixture, GpuWeights::Auto, device);
        assert!(without < with_copies, "{without} bytes, {with_copies} with copies");
        assert_eq!(device.report().calls("cuMemHostRegister_v2"), 0);
        assert_eq!(proposals(&mut mapped), expected);
    });
}

#[test]
fn a_head_whose_file_is_refused_is_copied_beside_a_mapped_model() {
    orin("draft::mapped::a_head_whose_file_is_refused_is_copied_beside_a_mapped_model").run(|device| {
        let fixture = Fixture::new(0);
        let (mut copied, with_copies) = attached(&fixture, GpuWeights::Copied, device);
        let expected = proposals(&mut copied);
        drop(copied);
        for call in ["cuMemHostRegister_v2", "cuMemHostGetDevicePointer_v2"] {
            let mut backend = fixture.without_head(&small(GpuWeights::Mapped));
            let of_model = registered(device);
            let before = device.report().value("device_bytes");
            device.fail_call(call, 1, 801);
            attach(&mut backend, &fixture.dir).unwrap();
            assert_eq!(registered(device), of_model, "{call}");
            assert_eq!(device.report().value("device_bytes") - before, with_copies);
            assert_eq!(proposals(&mut backend), expected);
        }
        nothing_is_left(device);
    });
}

#[test]
fn memory_that_runs_out_leaves_nothing_of_a_head_registered() {
    orin("draft::mapped::memory_that_runs_out_leaves_nothing_of_a_head_registered").run(|device| {
        let (fixture, mut num_refused) = (Fixture::new(0), 0);
        let mut backend = fixture.without_head(&small(GpuWeights::Mapped));
        let of_model = registered(device);
        for n in 1.. {
            device.fail_allocation(n);
            match attach(&mut backend, &fixture.dir) {
                // The first is the registration itself.
                Ok(()) if n == 1 => assert_eq!(registered(device), of_model),
                Ok(()) => break,
                Err(error) => {
                    assert!(error.is_capacity(), "allocation {n}: {error}");
                    num_refused += 1;
                    // One that was attached before stays: it was copied.
                    assert_eq!(registered(device), of_model, "allocation {n}");
                }
            }
        }
        assert!(num_refused >= 5, "only {num_refused} allocations");
        drop(backend);
        nothing_is_left(device);
    });
}

#[test]
fn after_a_fault_a_heads_file_can_be_mapped_again() {
    orin("draft::mapped::after_a_fault_a_heads_file_can_be_mapped_again").run(|device| {
        let fixture = Fixture::new(0);
        let (mut backend, _) = attached(&fixture, GpuWeights::Mapped, device);
        let (expected, both) = (proposals(&mut backend), registered(device));
        backend.truncate(A, 0).unwrap();
        device.fail_launch(2);
        let mut plan = StepPlan::default();
        plan.push(A, &[1, 2], LogitsWanted::Last);
        backend.run_step(&plan).unwrap_err();
        drop(backend);
        assert_eq!(registered(device), 0);
        let (mut again, _) = attached(&fixture, GpuWeights::Mapped, device);
        assert_eq!(registered(device), both);
        assert_eq!(proposals(&mut again), expected);
    });
}

#[test]
fn a_damaged_heads_file_is_refused_mapped_too() {
    orin("draft::mapped::a_damaged_heads_file_is_refused_mapped_too").run(|device| {
        let (fixture, Some(cubins)) = (Fixture::new(0), cubins()) else { return };
        let gpu =
            GpuOptions { weights: GpuWeights::Mapped, kernel_cache: Some(cubins), ..GpuOptions::default() };
        let options = EngineOptions {
            backend: BackendKind::Cuda,
            lane_capacity: Some(32),
            max_step_tokens: 16,
            gpu,
            ..EngineOptions::default()
        };
        let engine = Engine::open(fixture.dir.path(), &options).unwrap();
        let files = [WEIGHTS, DRAFT_WEIGHTS_FILE].map(|name| file_bytes(&fixture.dir, name));
        assert_eq!(registered(device), files.iter().sum::<u64>());
        drop(engine);
        let path = fixture.dir.path().join(DRAFT_WEIGHTS_FILE);
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).unwrap();
        let error = Engine::open(fixture.dir.path(), &options).unwrap_err().to_string();
        assert!(error.contains("BLAKE3") && error.contains("draft"), "{error}");
        nothing_is_left(device);
    });
}
