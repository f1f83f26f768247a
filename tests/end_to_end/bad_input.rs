//! Bad checkpoints and damaged engines: a clear error, and nothing left behind.

use std::{ffi::OsStr, fs, path::Path};

use serde_json::{Value, json};

use crate::harness::*;

/// Reads a safetensors file into its header and data, lets `change` work on both, and writes it back.
fn edit_safetensors(path: &Path, change: impl FnOnce(&mut Value, &mut Vec<u8>)) {
    let bytes = fs::read(path).unwrap();
    let header_len = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let mut data = bytes[8 + header_len..].to_vec();
    change(&mut header, &mut data);
    let header = serde_json::to_vec(&header).unwrap();
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header);
    out.extend(data);
    fs::write(path, out).unwrap();
}

fn edit_config(folder: &Path, change: impl FnOnce(&mut Value)) {
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    fs::write(&path, serde_json::to_vec(&config).unwrap()).unwrap();
}

/// How a checkpoint is broken, and a word the error must hold.
type Fault = (&'static str, fn(&Path), &'static str);

const CHECKPOINT_FAULTS: [Fault; 8] = [
    (
        "truncated",
        |folder| {
            let path = folder.join("model.safetensors");
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        },
        "model.safetensors",
    ),
    (
        "shuffled offsets",
        |folder| {
            edit_safetensors(&folder.join("model.safetensors"), |header, _| {
                let (large, small) = ("model.embed_tokens.weight", "model.norm.weight");
                let swapped = header[large]["data_offsets"].take();
                header[large]["data_offsets"] = header[small]["data_offsets"].take();
                header[small]["data_offsets"] = swapped;
            })
        },
        "",
    ),
    (
        "missing shard",
        |folder| {
            fs::remove_file(folder.join("model.safetensors")).unwrap();
            let index = json!({"metadata": {}, "weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}});
            fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
        },
        "model-00001-of-00002.safetensors",
    ),
    ("no weights", |folder| fs::remove_file(folder.join("model.safetensors")).unwrap(), ""),
    ("wrong shape", |folder| edit_config(folder, |config| config["intermediate_size"] = json!(64)), "mlp"),
    (
        "NaN",
        |folder| {
            edit_safetensors(&folder.join("model.safetensors"), |header, data| {
                let offsets = header["model.layers.0.mlp.up_proj.weight"]["data_offsets"].as_array().unwrap();
                let start = usize::try_from(offsets[0].as_u64().unwrap()).unwrap();
                data[start..start + 2].copy_from_slice(&[0xc0, 0x7f]);
            })
        },
        "up_proj",
    ),
    (
        "unknown architecture",
        |folder| {
            edit_config(folder, |config| {
                config["architectures"] = json!(["WhisperForConditionalGeneration"]);
                config["model_type"] = json!("whisper");
            })
        },
        "hisper",
    ),
    ("broken config", |folder| fs::write(folder.join("config.json"), "{").unwrap(), "config.json"),
];

#[test]
fn a_bad_checkpoint_is_refused_and_leaves_nothing_behind() {
    for (name, break_it, word) in CHECKPOINT_FAULTS {
        let (source, out) = (copy_of(&fixture("hf/tiny-llama")), tempfile::tempdir().unwrap());
        break_it(source.path());
        let dir = out.path().join("engine");
        let output = takt([OsStr::new("build"), source.path().as_ref(), "-o".as_ref(), dir.as_ref()]);
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{name}: {message}");
        assert!(message.starts_with("error: ") && message.contains(word), "{name}: {message}");
        assert!(!message.contains("panicked"), "{name}: {message}");
        let left: Vec<_> = fs::read_dir(out.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.is_empty(), "{name} left {left:?}");
    }
    fail(["build", "no/such/folder", "-o", "no/such/engine"], 1, &["no/such/folder"]);
}

#[test]
fn an_existing_engine_is_replaced_only_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("engine").display().to_string();
    let source = fixture("hf/tiny-qwen3").display().to_string();
    succeed(["build", &source, "-o", &dir]);
    fail(["build", &source, "-o", &dir], 1, &["--force"]);
    succeed(["build", &source, "-o", &dir, "--force", "--weights", "int4"]);
    assert_eq!(succeed_json(["inspect", &dir, "--json"])["quantization"]["weights"], "int4");
}

#[test]
fn without_a_tokenizer_token_ids_can_be_scored_and_text_says_why_not() {
    // A Hugging Face folder without one is an incomplete download …
    let (source, out) = (copy_of(&fixture("hf/tiny-llama")), tempfile::tempdir().unwrap());
    let dir = out.path().join("engine").display().to_string();
    fs::remove_file(source.path().join("tokenizer.json")).unwrap();
    fail(["build", &source.path().display().to_string(), "-o", &dir], 1, &["tokenizer.json"]);
    // … an ONNX file alone is a whole model.
    let onnx = source.path().join("decoder.onnx");
    fs::copy(fixture("onnx/tiny-llama-torch-opset18.onnx"), &onnx).unwrap();
    fs::remove_file(source.path().join("tokenizer_config.json")).unwrap();
    succeed(["build", &onnx.display().to_string(), "-o", &dir]);
    succeed(["score", &dir, "--token-ids", "1,2,3", "--json"]);
    fail(["score", &dir, "--text", "hello"], 1, &["tokenizer"]);
    fail(["generate", &dir, "--prompt", "hello"], 1, &["tokenizer.json"]);
    fail(["serve", "--engine", &dir], 1, &["tokenizer.json"]);
}

/// How an engine is damaged, and a word the error must hold.
type Damage = (fn(&Path), &'static str);

#[test]
fn a_damaged_engine_is_refused_by_every_command() {
    let faults: [Damage; 4] = [
        (
            |dir| {
                let path = dir.join("weights.safetensors");
                let mut bytes = fs::read(&path).unwrap();
                let last = bytes.len() - 1;
                bytes[last] ^= 1;
                fs::write(&path, bytes).unwrap();
            },
            "BLAKE3",
        ),
        (
            |dir| {
                let path = dir.join("weights.safetensors");
                let bytes = fs::read(&path).unwrap();
                fs::write(&path, &bytes[..bytes.len() - 7]).unwrap();
            },
            "bytes",
        ),
        (|dir| fs::write(dir.join("engine.json"), "{}").unwrap(), "engine.json"),
        (|dir| fs::remove_file(dir.join("tokenizer.json")).unwrap(), "missing"),
    ];
    for (damage, word) in faults {
        let copy = copy_of(Path::new(engine()));
        damage(copy.path());
        let dir = copy.path().display().to_string();
        fail(["inspect", &dir], 1, &[word]);
        fail(["score", &dir, "--token-ids", "1,2"], 1, &[word]);
        fail(["generate", &dir, "--prompt", "hello"], 1, &[word]);
        fail(["bench", &dir], 1, &[word]);
    }
    let empty = tempfile::tempdir().unwrap();
    fail(["inspect", &empty.path().display().to_string()], 1, &["takt build"]);
}

#[test]
fn a_deadline_beyond_the_clock_is_none_at_all() {
    let far = [
        "generate",
        engine(),
        "--prompt",
        "x",
        "--max-tokens",
        "2",
        "--deadline",
        "9223372036854775807s",
        "--json",
    ];
    assert_eq!(succeed_json(far)["status"], "complete");
    assert_eq!(succeed_json(far.into_iter().chain(["--choice", "a"]))["text"], "a");
}
