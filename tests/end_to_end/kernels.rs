//! `takt build --for`: kernels for a board, or at once what is missing to make them.

use std::{
    env, fs,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

use crate::harness::*;

/// Runs the binary with the CUDA folder in `root` alone.
fn takt_with_cuda(root: &str, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_takt"));
    command.args(args).env("TAKT_CUDA_ROOT", root).env_remove("RUST_LOG").stdin(Stdio::null());
    command.output().unwrap()
}

#[test]
fn without_a_compiler_a_build_for_a_board_fails_before_the_source_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().display().to_string();
    let dir = folder.path().join("made/engine").display().to_string();
    let output = takt_with_cuda(&empty, &["build", "no/such/source", "-o", &dir, "--for", "sm_87"]);
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("no CUDA compiler") && message.contains("install"), "{message}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn an_engine_built_for_a_board_says_so() {
    let Ok(root) = env::var("TAKT_CUDA_ROOT") else {
        assert!(env::var_os("TAKT_REQUIRE_NVRTC").is_none(), "TAKT_REQUIRE_NVRTC without TAKT_CUDA_ROOT");
        return eprintln!("skipped: no TAKT_CUDA_ROOT, so no CUDA compiler");
    };
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("engine").display().to_string();
    let source = fixture("hf/tiny-llama").display().to_string();
    let output = takt_with_cuda(&root, &["build", &source, "-o", &dir, "--for", "sm_87,sm_87", "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let built: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(built["kernels"]["targets"], serde_json::json!(["sm_87"]));
    let num_files = built["kernels"]["files"].as_u64().unwrap();
    assert!(num_files > 0 && built["kernels"]["bytes"].as_u64().unwrap() > num_files);

    let kernels = || succeed_json(["inspect", &dir, "--json"])["kernels"].clone();
    assert_eq!(kernels(), serde_json::json!([{"target": "sm_87", "files": num_files, "missing": []}]));
    // Cut by a byte: the engine is intact, and the board will compile that one source.
    let of_accept = |path: &std::path::PathBuf| path.display().to_string().contains("accept.");
    let mut files =
        fs::read_dir(folder.path().join("engine/kernels")).unwrap().map(|entry| entry.unwrap().path());
    let accept = files.find(of_accept).unwrap();
    let bytes = fs::read(&accept).unwrap();
    fs::write(&accept, &bytes[1..]).unwrap();
    assert_eq!(
        kernels(),
        serde_json::json!([{"target": "sm_87", "files": num_files - 1, "missing": ["accept"]}])
    );
    assert!(succeed(["inspect", &dir]).contains("accept"));
}
