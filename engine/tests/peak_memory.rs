//! Opening an engine takes little more memory than the open engine.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test reports by panicking")]

use std::{env, fs, path::Path, process::Command};

use safetensors::Dtype;
use takt_engine::{
    dir::{
        EngineDir, FileEntry, GENERATION_FILE, MANIFEST_FILE, Manifest, Quantization, SCHEMA_VERSION,
        WEIGHTS_FILE, blake3_hex, expected_tensors, safetensors_header,
    },
    engine::{Engine, EngineOptions},
    kv::KvKind,
    memory::peak_rss_bytes,
    quant::WeightKind,
    shapes::decoder_spec,
    spec::DecoderSpec,
};

/// What is neither weights nor KV rows: buffers of a step, threads, pieces of 4 MiB that a thread has not given back yet.
const ALLOWANCE_BYTES: u64 = 8 << 20;

/// Set for a process of one measurement: the engine directory, and threads, 0 of which open the directory alone.
const CASE: &str = "TAKT_TEST_PEAK_CASE";

#[test]
fn opening_an_engine_takes_little_more_than_the_engine() {
    if let Ok(case) = env::var(CASE) {
        return measure(&case);
    }
    // Embedding and head by themselves; one matrix for both; and most of it in layers.
    for (weights, lm_head, num_layers) in [
        (WeightKind::Fp8, WeightKind::Fp8, 3),
        (WeightKind::Nvfp4, WeightKind::Bf16, 6),
        (WeightKind::Nvfp4, WeightKind::Nvfp4, 8),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let quantization = Quantization { weights, lm_head, kv: KvKind::Bf16 };
        write_engine(dir.path(), &spec_of(num_layers), quantization);
        for threads in [0, 1, 4] {
            let [taken, held] = peak_of(dir.path(), threads);
            eprintln!("{weights}, head {lm_head}, {threads} threads: {taken} bytes for {held}");
            if threads == 0 {
                assert!(held > 60 << 20, "too small to tell");
                assert!(taken <= ALLOWANCE_BYTES, "checking a file takes no memory of its size");
            } else {
                let most = held * 115 / 100 + ALLOWANCE_BYTES;
                assert!(taken <= most, "{:.3}", taken as f64 / held as f64);
            }
        }
    }
}

/// Bytes at the peak, and of engine and KV cache, in a process of its own: what an allocator keeps of an engine before is not counted.
fn peak_of(dir: &Path, threads: usize) -> [u64; 2] {
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", "opening_an_engine_takes_little_more_than_the_engine", "--nocapture"])
        .env(CASE, format!("{threads} {}", dir.display()))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let found = text.split_once("peak ").and_then(|(_, found)| found.split_once(" of "));
    let (taken, held) = found.unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)));
    [taken, held.lines().next().unwrap()].map(|number| number.parse().unwrap())
}

fn measure(case: &str) {
    let (threads, dir) = case.split_once(' ').unwrap();
    let (threads, dir) = (threads.parse().unwrap(), Path::new(dir));
    let before = peak_rss_bytes().unwrap();
    let held = if threads == 0 {
        EngineDir::open(dir).unwrap().weight_file_bytes()
    } else {
        let options = EngineOptions { threads: Some(threads), ..EngineOptions::default() };
        let engine = Engine::open(dir, &options).unwrap();
        engine.manifest.total_bytes() + engine.backend.capabilities().kv_bytes
    };
    println!("peak {} of {held}", peak_rss_bytes().unwrap() - before);
}

fn spec_of(num_layers: usize) -> DecoderSpec {
    DecoderSpec { num_layers, vocab_size: 24_000, max_context: 512, ..decoder_spec("qwen3-0.6b").unwrap() }
}

/// An engine of random weights, written piece by piece so that writing it takes no memory.
fn write_engine(dir: &Path, spec: &DecoderSpec, quantization: Quantization) {
    let generation = br#"{"eos_token_ids": []}"#;
    fs::write(dir.join(GENERATION_FILE), generation).unwrap();
    let mut manifest = Manifest {
        schema_version: SCHEMA_VERSION,
        builder_version: "0".into(),
        source: "random".into(),
        spec: spec.clone(),
        quantization,
        eos_token_ids: Vec::new(),
        files: vec![FileEntry {
            name: GENERATION_FILE.into(),
            size_bytes: generation.len() as u64,
            blake3: blake3_hex(generation),
        }],
        plans: Default::default(),
    };
    manifest.files.push(write_weights(dir, spec, &quantization));
    fs::write(dir.join(MANIFEST_FILE), manifest.to_json().unwrap()).unwrap();
}

fn write_weights(dir: &Path, spec: &DecoderSpec, quantization: &Quantization) -> FileEntry {
    use std::io::Write as _;
    let tensors = expected_tensors(spec, quantization).unwrap();
    let mut file = fs::File::create(dir.join(WEIGHTS_FILE)).unwrap();
    let (mut hash, mut size_bytes) = (blake3::Hasher::new(), 0);
    let mut put = |bytes: &[u8]| {
        file.write_all(bytes).unwrap();
        hash.update(bytes);
        size_bytes += bytes.len() as u64;
    };
    put(&safetensors_header(&tensors));
    for tensor in &tensors {
        let piece = piece_of(tensor.dtype);
        let mut left = tensor.byte_len;
        while left > 0 {
            let len = left.min(piece.len());
            put(&piece[..len]);
            left -= len;
        }
    }
    FileEntry { name: WEIGHTS_FILE.into(), size_bytes, blake3: hash.finalize().to_hex().to_string() }
}

/// 64 KiB of small values.
fn piece_of(dtype: Dtype) -> Vec<u8> {
    let value: &[u8] = match dtype {
        Dtype::F32 => &0.01f32.to_le_bytes(),
        Dtype::BF16 => &[0x91, 0x3c, 0xa7, 0xbc],
        _ => &[0x31, 0x3a, 0x35, 0x2c],
    };
    value.iter().copied().cycle().take(64 << 10).collect()
}
