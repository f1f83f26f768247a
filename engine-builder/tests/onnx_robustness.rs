//! Damaged, hostile and merely different ONNX files: an error that says what is wrong, never a panic.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use takt_engine_builder::onnx;

fn fixture() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/onnx/tiny-llama-ortgenai-fp32")
}

/// A folder with `model` as model.onnx and the fixture's external data.
fn folder_with(model: &[u8]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("model.onnx"), model).unwrap();
    fs::copy(fixture().join("model.onnx.data"), folder.path().join("model.onnx.data")).unwrap();
    folder
}

fn model() -> Vec<u8> {
    fs::read(fixture().join("model.onnx")).unwrap()
}

fn error(path: &Path) -> String {
    onnx::open(path).expect_err("an error").to_string()
}

/// `bytes` with every `from` replaced by `to`, of the same length so that the protobuf stays whole.
fn replaced(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut bytes = bytes.to_vec();
    let mut found = 0;
    for at in 0..=bytes.len() - from.len() {
        if bytes[at..].starts_with(from.as_bytes()) {
            bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
            found += 1;
        }
    }
    assert!(found > 0, "{from} is not in the model");
    bytes
}

#[test]
fn the_copied_fixture_opens() {
    onnx::open(folder_with(&model()).path()).unwrap();
}

#[test]
fn an_unknown_operator_is_named_with_its_node() {
    let folder = folder_with(&replaced(&model(), "Sigmoid", "Sigmoyd"));
    let error = error(folder.path());
    assert!(error.contains("Sigmoyd") && error.contains("/model/layers.0/mlp/act_fn/"), "{error}");
}

#[test]
fn another_activation_is_refused_with_the_operators_found() {
    // A known operator in the wrong place: `Softmax` has as many letters as `Sigmoid`.
    let folder = folder_with(&replaced(&model(), "Sigmoid", "Softmax"));
    let error = error(folder.path());
    assert!(error.contains("silu(gate) · up") && error.contains("Softmax"), "{error}");
}

#[test]
fn a_missing_external_file_is_named() {
    let folder = folder_with(&model());
    fs::remove_file(folder.path().join("model.onnx.data")).unwrap();
    assert!(error(folder.path()).contains("model.onnx.data"));
}

#[test]
fn a_truncated_external_file_is_refused_before_anything_is_read() {
    let folder = folder_with(&model());
    let file = fs::OpenOptions::new().write(true).open(folder.path().join("model.onnx.data")).unwrap();
    file.set_len(1_000_000).unwrap();
    let error = error(folder.path());
    assert!(error.contains("has 1000000 bytes") && error.contains("truncated"), "{error}");
}

#[test]
fn external_data_outside_the_models_folder_is_refused() {
    for location in ["../../etc/passwd", "/etc/init.d/ssh"] {
        let folder = folder_with(&replaced(&model(), "model.onnx.data", &format!("{location:/<15}")[..15]));
        let error = error(folder.path());
        assert!(error.contains("only files inside the model's folder"), "{error}");
    }
}

#[test]
fn missing_files_and_folders_say_what_was_expected() {
    let empty = tempfile::tempdir().unwrap();
    assert!(error(empty.path()).contains("without model.onnx"));
    assert!(error(&empty.path().join("nothing.onnx")).contains("no such file"));
}

#[test]
fn every_truncation_of_the_model_is_an_error() {
    let (bytes, folder) = (model(), folder_with(&model()));
    for len in (0..bytes.len()).step_by(997) {
        fs::write(folder.path().join("model.onnx"), &bytes[..len]).unwrap();
        error(folder.path());
    }
}

#[test]
fn flipped_bytes_never_panic() {
    let (bytes, folder) = (model(), folder_with(&model()));
    let mut state = 0x1234_5678_9abc_def1_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut refused = 0;
    for _ in 0..400 {
        let mut damaged = bytes.clone();
        for _ in 0..=next() % 3 {
            let at = (next() % damaged.len() as u64) as usize;
            damaged[at] ^= 1 << (next() % 8);
        }
        fs::write(folder.path().join("model.onnx"), &damaged).unwrap();
        refused += u32::from(onnx::open(folder.path()).is_err());
    }
    assert!(refused > 100, "only {refused} of 400 damaged files were refused");
}

#[test]
fn garbage_is_not_an_onnx_model() {
    let folder = folder_with(&[0xff; 4096]);
    assert!(error(folder.path()).contains("not an ONNX model"));
    let folder = folder_with(b"");
    assert!(error(folder.path()).contains("without a graph"));
}
