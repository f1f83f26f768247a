//! Weights that the device reads where their file is mapped: the same bits as copied ones, checked as they are, and given back.

use std::{fs, path::Path};

use serde_json::Value;
use takt_engine::{
    backend::{
        Backend as _,
        cuda::{CudaBackend, CudaOptions, GpuOptions, GpuWeights},
    },
    dir::{EngineDir, blake3_hex},
    engine::{BackendKind, Engine, EngineOptions},
    kv::{KvKind, LaneId},
    quant::WeightKind,
    weights::WeightSource as _,
};
use takt_engine_builder::BuildOptions;
use takt_kernels_cu::driver::host_memory::HostReach;
use takt_tests::{
    backends::run_slices,
    checkpoint::{build_with, fixtures},
    memory_weights::MemoryWeights,
};
use tempfile::TempDir;

use crate::{
    emulator::driver::{Device, EmulatedDevice},
    models::{emulated, open, options, tokens},
    shipped::cubins,
};

const WEIGHTS: &str = "weights.safetensors";

/// An engine of a small model in a temporary folder.
pub fn engine(weights: WeightKind) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let source = fixtures().join("hf/tiny-qwen3");
    build_with(&source, &folder.path().join("engine"), &BuildOptions::new(weights)).unwrap();
    folder
}

fn open_dir(folder: &TempDir) -> EngineDir {
    EngineDir::open(&folder.path().join("engine")).unwrap()
}

/// Few shapes, so that opening is quick.
fn small(weights: GpuWeights) -> CudaOptions {
    let sizes =
        CudaOptions { num_lanes: 1, max_step_tokens: 16, max_logits_rows: 16, ..options(KvKind::Bf16) };
    CudaOptions { weights, lane_capacity: 64, ..sizes }
}

fn opened(dir: &EngineDir, weights: GpuWeights) -> CudaBackend {
    open(&dir.manifest().spec, dir, &small(weights)).unwrap()
}

fn is_mapped(backend: &CudaBackend) -> bool {
    backend.capabilities().kernels.contains("mapped file")
}

/// Logits of a prompt's tokens, as bits.
fn answer(backend: &mut CudaBackend) -> Vec<Vec<u32>> {
    let tokens = tokens(backend.spec(), 12);
    let rows = run_slices(backend, LaneId(0), &tokens, 5);
    rows.into_iter().map(|row| row.into_iter().map(f32::to_bits).collect()).collect()
}

pub fn orin(test: &'static str) -> EmulatedDevice {
    emulated(test).sm(87)
}

#[track_caller]
pub fn nothing_is_left(device: &Device) {
    let report = device.report();
    assert_eq!(report.leaks(), Vec::<String>::new());
    assert_eq!(report.value("registered_bytes"), 0);
}

/// In every format: the same bits, less memory of the device's own, and the whole file registered as long as the backend is open.
#[test]
fn mapped_weights_answer_with_the_bits_of_copied_ones() {
    orin("mapped::mapped_weights_answer_with_the_bits_of_copied_ones").run(|device| {
        for kind in [WeightKind::Bf16, WeightKind::Fp8, WeightKind::Nvfp4, WeightKind::Int4] {
            let (folder, before) = (engine(kind), device.report().value("device_bytes"));
            let dir = open_dir(&folder);
            let file_bytes = fs::metadata(folder.path().join("engine").join(WEIGHTS)).unwrap().len();
            let mut copied = opened(&dir, GpuWeights::Copied);
            assert!(!is_mapped(&copied));
            let (expected, with_copies) =
                (answer(&mut copied), device.report().value("device_bytes") - before);
            drop(copied);
            nothing_is_left(device);

            let mut mapped = opened(&dir, GpuWeights::Mapped);
            assert!(is_mapped(&mapped), "{kind}");
            let report = device.report();
            assert_eq!(report.value("registered_bytes"), file_bytes);
            let saved = with_copies - (report.value("device_bytes") - before);
            assert!(saved * 10 > file_bytes * 9, "{kind}: {saved} bytes of {file_bytes} are not copied");
            // The backend holds the file open by itself.
            drop(dir);
            drop(folder);
            assert_eq!(answer(&mut mapped), expected, "{kind}");
            drop(mapped);
            nothing_is_left(device);
        }
    });
}

#[test]
fn where_page_tables_are_shared_weights_are_mapped_without_being_asked_for() {
    let test = "mapped::where_page_tables_are_shared_weights_are_mapped_without_being_asked_for";
    emulated(test).sm(110).host_reach(HostReach::PageTables).run(|device| {
        let folder = engine(WeightKind::Nvfp4);
        let dir = open_dir(&folder);
        let expected = answer(&mut opened(&dir, GpuWeights::Copied));
        let mut mapped = opened(&dir, GpuWeights::Auto);
        assert!(is_mapped(&mapped));
        assert_eq!(device.report().calls("cuMemHostRegister_v2"), 0);
        assert_eq!(answer(&mut mapped), expected);
        drop(mapped);
        nothing_is_left(device);
        // Weights of no file are copied.
        let spec = crate::models::spec();
        let model = MemoryWeights::random(&spec, WeightKind::Bf16, WeightKind::Bf16, 1);
        assert!(!is_mapped(&open(&spec, &model, &small(GpuWeights::Auto)).unwrap()));
    });
}

#[test]
fn on_orin_and_on_devices_with_memory_of_their_own_weights_are_copied_unless_asked() {
    let test = "mapped::on_orin_and_on_devices_with_memory_of_their_own_weights_are_copied_unless_asked";
    orin(test).run(|_| {
        let folder = engine(WeightKind::Int4);
        assert!(!is_mapped(&opened(&open_dir(&folder), GpuWeights::Auto)));
    });
}

#[test]
fn a_server_gpu_that_shares_page_tables_has_its_own_memory_all_the_same() {
    let test = "mapped::a_server_gpu_that_shares_page_tables_has_its_own_memory_all_the_same";
    emulated(test).sm(90).host_reach(HostReach::PageTables).run(|_| {
        let folder = engine(WeightKind::Int4);
        let dir = open_dir(&folder);
        assert!(!is_mapped(&opened(&dir, GpuWeights::Auto)));
        assert!(is_mapped(&opened(&dir, GpuWeights::Mapped)));
    });
}

#[test]
fn a_refused_registration_is_no_more_than_a_copy() {
    orin("mapped::a_refused_registration_is_no_more_than_a_copy").run(|device| {
        let folder = engine(WeightKind::Fp8);
        let dir = open_dir(&folder);
        let expected = answer(&mut opened(&dir, GpuWeights::Copied));
        for call in ["cuMemHostRegister_v2", "cuMemHostGetDevicePointer_v2"] {
            device.fail_call(call, 1, 801);
            let mut backend = opened(&dir, GpuWeights::Mapped);
            assert!(!is_mapped(&backend), "{call}");
            assert_eq!(device.report().value("registered_bytes"), 0);
            assert_eq!(answer(&mut backend), expected);
        }
        nothing_is_left(device);
    });
}

#[test]
fn memory_that_runs_out_leaves_nothing_registered() {
    orin("mapped::memory_that_runs_out_leaves_nothing_registered").run(|device| {
        let folder = engine(WeightKind::Nvfp4);
        let (dir, mut num_refused) = (open_dir(&folder), 0);
        for n in 1.. {
            device.fail_allocation(n);
            match open(&dir.manifest().spec, &dir, &small(GpuWeights::Mapped)) {
                // The first is the registration itself.
                Ok(backend) if n == 1 => assert!(!is_mapped(&backend)),
                Ok(_) => break,
                Err(error) => {
                    assert!(error.is_capacity(), "allocation {n}: {error}");
                    num_refused += 1;
                }
            }
            nothing_is_left(device);
        }
        assert!(num_refused >= 5, "only {num_refused} allocations");
    });
}

#[test]
fn after_a_fault_the_file_can_be_mapped_again() {
    orin("mapped::after_a_fault_the_file_can_be_mapped_again").run(|device| {
        let folder = engine(WeightKind::Bf16);
        let dir = open_dir(&folder);
        let mut backend = opened(&dir, GpuWeights::Mapped);
        let expected = answer(&mut backend);
        backend.truncate(LaneId(0), 0).unwrap();
        device.fail_launch(2);
        let mut plan = takt_engine::step::StepPlan::default();
        plan.push(LaneId(0), &[1, 2], takt_engine::step::LogitsWanted::Last);
        backend.run_step(&plan).unwrap_err();
        drop(backend);
        assert_eq!(device.report().value("registered_bytes"), 0);
        // The same mapping: what the lost context registered went with it.
        let mut again = opened(&dir, GpuWeights::Mapped);
        assert!(is_mapped(&again));
        assert_eq!(answer(&mut again), expected);
    });
}

/// Rewrites the weights with a header of 8 bytes more, as earlier versions could write it: nothing begins at a multiple of 16.
fn shift(folder: &Path) {
    let mut bytes = fs::read(folder.join(WEIGHTS)).unwrap();
    let header_len = u64::from_le_bytes(*bytes.first_chunk().unwrap());
    let data_start = 8 + usize::try_from(header_len).unwrap();
    assert_eq!(data_start % 64, 0, "what is written begins aligned");
    bytes[..8].copy_from_slice(&(header_len + 8).to_le_bytes());
    bytes.splice(data_start..data_start, *b"        ");
    let path = folder.join("engine.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let files = manifest["files"].as_array_mut().unwrap();
    let entry = files.iter_mut().find(|file| file["name"] == WEIGHTS).unwrap();
    entry["size_bytes"] = bytes.len().into();
    entry["blake3"] = blake3_hex(&bytes).into();
    fs::write(path, manifest.to_string()).unwrap();
    fs::write(folder.join(WEIGHTS), bytes).unwrap();
}

#[test]
fn tensors_that_begin_where_kernels_cannot_load_them_are_copied() {
    orin("mapped::tensors_that_begin_where_kernels_cannot_load_them_are_copied").run(|device| {
        let folder = engine(WeightKind::Nvfp4);
        let expected = answer(&mut opened(&open_dir(&folder), GpuWeights::Mapped));
        shift(&folder.path().join("engine"));
        let dir = open_dir(&folder);
        assert!(dir.mapping().is_some());
        let mut backend = opened(&dir, GpuWeights::Mapped);
        assert!(!is_mapped(&backend));
        assert_eq!(
            device.report().value("registered_bytes"),
            0,
            "a file that nobody reads is not kept in memory"
        );
        assert_eq!(answer(&mut backend), expected);
        drop(backend);
        nothing_is_left(device);
    });
}

#[test]
fn all_of_a_file_that_is_kept_in_memory_counts() {
    const MIB: u64 = 1 << 20;
    // Less than the driver's share.
    orin("mapped::all_of_a_file_that_is_kept_in_memory_counts").memory_bytes(100 * MIB).run(|device| {
        let folder = engine(WeightKind::Fp8);
        let dir = open_dir(&folder);
        let file_bytes = fs::metadata(folder.path().join("engine").join(WEIGHTS)).unwrap().len();
        let error = open(&dir.manifest().spec, &dir, &small(GpuWeights::Mapped)).unwrap_err();
        assert!(error.to_string().contains(&format!("in the mapped file {file_bytes};")), "{error}");
        nothing_is_left(device);
    });
}

#[test]
fn damaged_weights_are_refused_mapped_too() {
    orin("mapped::damaged_weights_are_refused_mapped_too").run(|device| {
        let folder = engine(WeightKind::Nvfp4);
        let Some(cubins) = cubins() else { return };
        let gpu =
            GpuOptions { weights: GpuWeights::Mapped, kernel_cache: Some(cubins), ..GpuOptions::default() };
        let options = EngineOptions {
            backend: BackendKind::Cuda,
            lane_capacity: Some(32),
            max_step_tokens: 16,
            gpu,
            ..EngineOptions::default()
        };
        let dir = folder.path().join("engine");
        let engine = Engine::open(&dir, &options).unwrap();
        assert!(engine.backend.capabilities().kernels.contains("mapped file"));
        drop(engine);
        let path = dir.join(WEIGHTS);
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).unwrap();
        let error = Engine::open(&dir, &options).unwrap_err().to_string();
        assert!(error.contains("BLAKE3"), "{error}");
        nothing_is_left(device);
    });
}
