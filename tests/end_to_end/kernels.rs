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
    let cuda = &built["kernels"]["cuda"];
    assert!(cuda.as_array().is_some_and(|versions| !versions.is_empty()), "{cuda}");
    assert_eq!(
        kernels(),
        serde_json::json!([{"target": "sm_87", "files": num_files, "missing": [], "cuda": cuda}])
    );
    // Cut by a byte: the engine is intact, and the board will compile that one source.
    let of_accept = |path: &std::path::PathBuf| path.display().to_string().contains("accept.");
    let mut files =
        fs::read_dir(folder.path().join("engine/kernels")).unwrap().map(|entry| entry.unwrap().path());
    let accept = files.find(of_accept).unwrap();
    let bytes = fs::read(&accept).unwrap();
    fs::write(&accept, &bytes[1..]).unwrap();
    assert_eq!(
        kernels(),
        serde_json::json!([{"target": "sm_87", "files": num_files - 1, "missing": ["accept"], "cuda": []}])
    );
    assert!(succeed(["inspect", &dir]).contains("accept"));

    // Kernels alone, into the engine that is there.
    let again = takt_with_cuda(&root, &["build", &dir, "--kernels-only", "--for", "sm_87", "--json"]);
    assert!(again.status.success(), "{}", stderr(&again));
    let added: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!((&added["kernels"], &added["engine"]), (&built["kernels"], &serde_json::json!(dir)));
    assert_eq!(kernels()[0]["missing"], serde_json::json!([]));
}

#[test]
fn kernels_alone_take_an_engine_and_boards_that_are_known_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().display().to_string();
    let refused = |args: &[&str], code: i32, said: &str| {
        let output = takt_with_cuda(&empty, args);
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {message}");
        assert!(message.contains(said), "{args:?}: {message}");
    };
    refused(&["build", "engine", "--kernels-only"], 2, "--for");
    refused(&["build", "engine", "--kernels-only", "--for", "sm_86"], 2, "sm_110a");
    refused(
        &["build", "engine", "--kernels-only", "--for", "sm_87", "-o", "other"],
        2,
        "cannot be used with",
    );
    refused(
        &["build", "engine", "--kernels-only", "--for", "sm_87", "--weights", "int4"],
        2,
        "cannot be used with",
    );
    refused(&["build", "engine", "--kernels-only", "--for", "sm_87", "--cuda", "12"], 2, "as 12.6 or 13.0");
    refused(&["build", "engine", "-o", "other", "--cuda", "12.6"], 2, "--for");
    refused(&["build", "source", "--for", "sm_87"], 2, "--output");
    refused(&["build", "engine", "--kernels-only", "--for", "sm_87"], 1, "no CUDA compiler");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
