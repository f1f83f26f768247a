//! Opening an engine takes little more memory than the open engine.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test reports by panicking")]

use std::{fs, path::Path};

use safetensors::Dtype;
use sha2::{Digest as _, Sha256};
use takt_engine::{
    dir::{
        EngineDir, FileEntry, GENERATION_FILE, MANIFEST_FILE, Manifest, Quantization, SCHEMA_VERSION,
        WEIGHTS_FILE, expected_tensors, safetensors_header, sha256_hex,
    },
    engine::{Engine, EngineOptions},
    kv::KvKind,
    memory::peak_rss_bytes,
    quant::WeightKind,
    shapes::decoder_spec,
    spec::DecoderSpec,
};

/// What is neither weights nor KV rows: buffers of a step, threads, pieces of 4 MiB that a thread has not given back yet.
const ALLOWANCE_BYTES: u64 = 16 << 20;

// One test alone in its binary: the peak is the process's.
#[test]
fn opening_an_engine_takes_little_more_than_the_engine() {
    let before = peak_rss_bytes().unwrap();
    // The most memory the process had while `run` ran, beyond what it began with.
    let taken_by = |run: &dyn Fn() -> u64| {
        fs::write("/proc/self/clear_refs", "5").unwrap(); // the peak is from now on
        let held = run();
        (held, peak_rss_bytes().unwrap().saturating_sub(before))
    };
    // Embedding and head by themselves; one matrix for both; and most of it in layers.
    let engines = [
        (WeightKind::Fp8, WeightKind::Fp8, 3),
        (WeightKind::Nvfp4, WeightKind::Bf16, 6),
        (WeightKind::Nvfp4, WeightKind::Nvfp4, 8),
    ]
    .map(|(weights, lm_head, num_layers)| {
        (Quantization { weights, lm_head, kv: KvKind::Bf16 }, num_layers, tempfile::tempdir().unwrap())
    });
    for (quantization, num_layers, dir) in &engines {
        write_engine(dir.path(), &spec_of(*num_layers), *quantization);
        let (file_bytes, taken) = taken_by(&|| EngineDir::open(dir.path()).unwrap().weight_file_bytes());
        assert!(file_bytes > 60 << 20, "too small to tell: {file_bytes}");
        assert!(taken <= ALLOWANCE_BYTES, "{quantization:?}: {taken} bytes to check {file_bytes}");
    }
    for (quantization, _, dir) in &engines {
        for threads in [1, 4] {
            let options = EngineOptions { threads: Some(threads), ..EngineOptions::default() };
            let (held, taken) = taken_by(&|| {
                let engine = Engine::open(dir.path(), &options).unwrap();
                engine.manifest.total_bytes() + engine.backend.capabilities().kv_bytes
            });
            let ratio = taken as f64 / held as f64;
            eprintln!("{quantization:?}, {threads} threads: {taken} bytes of {held}: {ratio:.3}");
            assert!(taken * 100 <= held * 115 + ALLOWANCE_BYTES * 100, "more than 1.15 and the allowance");
        }
    }
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
            sha256: sha256_hex(generation),
        }],
    };
    manifest.files.push(write_weights(dir, spec, &quantization));
    fs::write(dir.join(MANIFEST_FILE), manifest.to_json().unwrap()).unwrap();
}

fn write_weights(dir: &Path, spec: &DecoderSpec, quantization: &Quantization) -> FileEntry {
    use std::io::Write as _;
    let tensors = expected_tensors(spec, quantization).unwrap();
    let mut file = fs::File::create(dir.join(WEIGHTS_FILE)).unwrap();
    let (mut hash, mut size_bytes) = (Sha256::new(), 0);
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
    let sha256 = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    FileEntry { name: WEIGHTS_FILE.into(), size_bytes, sha256 }
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
