//! `takt export`: models and their contract, or what to do instead.

use std::fs;

use crate::harness::*;

#[test]
fn an_engine_is_exported_with_its_contract() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("export").display().to_string();
    let made = succeed_json([
        "export",
        engine(),
        "-o",
        &out,
        "--for",
        "tensorrt-10.13,sm_87",
        "--json",
        "--lanes",
        "2",
    ]);
    let contract: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.path().join("export/export.json")).unwrap()).unwrap();
    assert_eq!(made["contract"], contract);
    assert_eq!(
        (&contract["form"], &contract["target"]),
        (&"primitives".into(), &"tensorrt-10.13,sm_87".into())
    );
    let bytes: u64 = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert_eq!(made["bytes"], bytes);
    let text = succeed([
        "export",
        engine(),
        "-o",
        &out,
        "--for",
        "tensorrt-10.16,sm_110a",
        "--kv",
        "fp8",
        "--force",
    ]);
    assert!(text.contains("primitives for") && text.contains("fp8 cache of"), "{text}");
    let text = succeed(["export", engine(), "-o", &out, "--for", "onnx", "--force"]);
    assert!(text.contains("model.onnx") && text.contains("operators for onnx"), "{text}");
}

#[test]
fn exports_that_cannot_be_are_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("export").display().to_string();
    fail(["export", "no/such/engine", "-o", &out], 1, &["does not exist", "takt build"]);
    fail(
        ["export", engine(), "-o", &out, "--for", "tensorrt-10.13", "--form", "operators"],
        1,
        &["10.15", "--form primitives"],
    );
    fail(
        ["export", engine(), "-o", &out, "--for", "tensorrt-10.3,sm_87", "--kv", "fp8"],
        1,
        &["an fp8 cache", "from sm_89 on"],
    );
    fail(["export", engine(), "-o", &out, "--kv", "int8"], 2, &["plain or fp8"]);
    fail(["export", engine(), "-o", &out, "--for", "trt"], 2, &["tensorrt-10.16"]);
    fail(["export", engine(), "-o", &out, "--for", "onnx,orin"], 2, &["sm_87 (Orin)"]);
    fail(["export", engine(), "-o", &out, "--max-context", "99999999"], 1, &["the model was made for"]);
    fail(["export", engine(), "-o", engine(), "--force"], 1, &["never replaced"]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "something was left behind");
}
