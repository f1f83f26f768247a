//! `takt build --tensorrt` and `takt inspect` of plans.

#[cfg(feature = "tensorrt")]
#[path = "../tests/tensorrt/cubins.rs"]
mod cubins;
#[cfg(feature = "tensorrt")]
mod kinds;
#[cfg(feature = "tensorrt")]
mod machine;
#[cfg(feature = "tensorrt")]
mod plans;
#[cfg(feature = "tensorrt")]
mod run;
#[cfg(feature = "tensorrt")]
mod share;

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use takt_engine::dir::blake3_hex;

use crate::harness::*;

/// The engine of the other suites with a plan that the manifest describes.
struct WithPlan {
    _folder: tempfile::TempDir,
    engine: PathBuf,
}

const PLAN: &str = "plans/trt-10.16-sm_110a.plan";

impl WithPlan {
    fn new() -> Self {
        let folder = copy_of(Path::new(engine()));
        let engine = folder.path().to_owned();
        fs::create_dir(engine.join("plans")).unwrap();
        fs::write(engine.join(PLAN), "what TensorRT wrote").unwrap();
        let made = Self { _folder: folder, engine };
        let listed = made.manifest()["files"].as_array().unwrap().clone();
        let weights = listed.iter().find(|file| file["name"] == "weights.safetensors").unwrap();
        made.edit(|manifest| {
            manifest["plans"] = json!([{
                "file": PLAN, "size_bytes": 19, "blake3": blake3_hex(b"what TensorRT wrote"), "role": "decoder",
                "tensorrt": "10.16", "sm": "sm_110a", "device": "NVIDIA Thor sm_110 20 SMs",
                "weights_blake3": weights["blake3"], "form": "operators", "compute": "bf16", "num_lanes": 2,
                "lane_capacity": 64, "lane_rows": 129, "max_prefill": 64, "max_tree": 65,
            }]);
        });
        made
    }

    fn path(&self) -> &str {
        self.engine.to_str().unwrap()
    }

    fn manifest(&self) -> Value {
        serde_json::from_slice(&fs::read(self.engine.join("engine.json")).unwrap()).unwrap()
    }

    fn edit(&self, edit: impl FnOnce(&mut Value)) {
        let mut manifest = self.manifest();
        edit(&mut manifest);
        fs::write(self.engine.join("engine.json"), manifest.to_string()).unwrap();
    }

    fn inspected(&self) -> Value {
        succeed_json(["inspect", self.path(), "--json"])["plans"][0].clone()
    }

    /// Of a plan that is damaged, which `takt inspect` fails for.
    fn fault(&self) -> String {
        let output = takt(["inspect", self.path(), "--json"]);
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        let facts: Value = serde_json::from_slice(&output.stdout).unwrap();
        let plan = &facts["plans"][0];
        assert!(facts["valid"] == false && plan["intact"] == false && plan["runs_here"] == false, "{plan}");
        plan["fault"].as_str().unwrap().to_owned()
    }
}

#[test]
fn options_of_plans_want_each_other() {
    for (args, words) in [
        (vec!["build", "a", "--plans-only"], vec!["--tensorrt"]),
        (vec!["build", "a", "--tensorrt"], vec!["--output"]),
        (vec!["build", "a", "--tensorrt", "--plans-only", "-o", "b"], vec!["cannot be used with"]),
        (vec!["build", "a", "--tensorrt", "--plans-only", "--weights", "int4"], vec!["cannot be used with"]),
        (vec!["build", "a", "--tensorrt", "--plans-only", "--for", "sm_87"], vec!["cannot be used with"]),
        (vec!["build", "a", "-o", "b", "--plan-lanes", "4"], vec!["--tensorrt"]),
        (vec!["build", "a", "-o", "b", "--plan-refit"], vec!["--tensorrt"]),
        (
            vec!["build", "a", "--tensorrt", "--plans-only", "--plan-refit-from", "b", "--plan-lanes", "2"],
            vec!["cannot be used with"],
        ),
        (
            vec!["build", "a", "--tensorrt", "--plans-only", "--plan-refit-from", "b", "--plan-kv", "plain"],
            vec!["cannot be used with"],
        ),
        (vec!["build", "a", "-o", "b", "--plan-sm-share", "50"], vec!["--tensorrt"]),
        (vec!["build", "a", "-o", "b", "--tensorrt", "--plan-sm-share", "0"], vec!["1..=100"]),
        (vec!["build", "a", "-o", "b", "--tensorrt", "--plan-sm-share", "101"], vec!["1..=100"]),
        (
            vec!["build", "a", "-o", "b", "--tensorrt", "--plan-sm-share", "half"],
            vec!["--plan-sm-share <PERCENT>"],
        ),
        (vec!["build", "a", "-o", "b", "--tensorrt", "--plan-dtype", "f32"], vec!["bf16 or f16"]),
        (vec!["build", "a", "-o", "b", "--plan-activations", "plain"], vec!["--tensorrt"]),
        (
            vec!["build", "a", "-o", "b", "--tensorrt", "--plan-activations", "fp8"],
            vec!["plain or quantized"],
        ),
        (vec!["build", "a", "-o", "b", "--tensorrt", "--plan-form", "onnx"], vec!["operators or primitives"]),
        (vec!["build", "a", "-o", "b", "--tensorrt", "--plan-kv", "int8"], vec!["plain or fp8"]),
        (vec!["build", "a", "-o", "b", "--plan-kv", "fp8"], vec!["--tensorrt"]),
        (vec!["build", "a", "-o", "b", "--tensorrt", "--plan-effort", "6"], vec!["0..=5"]),
        (vec!["build", "a", "-o", "b", "--tensorrt", "--plan-workspace", "2T"], vec!["512M"]),
    ] {
        fail(args, 2, &words);
    }
}

#[test]
fn without_tensorrt_a_build_fails_before_the_source_is_read() {
    if cfg!(feature = "tensorrt") {
        return eprintln!("skipped: built with the feature tensorrt");
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("made/engine").display().to_string();
    let words = ["built without TensorRT"];
    fail(["build", "no/such/source", "-o", &out, "--tensorrt"], 1, &words);
    fail(["build", "no/such/engine", "--tensorrt", "--plans-only"], 1, &words);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn inspect_tells_plans_and_whether_they_are_whole() {
    let made = WithPlan::new();
    let found = made.inspected();
    assert_eq!((&found["intact"], &found["fault"]), (&json!(true), &Value::Null));
    assert_eq!(
        (&found["file"], &found["tensorrt"], &found["lane_capacity"]),
        (&json!(PLAN), &json!("10.16"), &json!(64))
    );
    // There is neither a GPU nor its TensorRT here; it says which is missing.
    assert!(found["runs_here"] == false && found["obstacle"].as_str().is_some_and(|text| !text.is_empty()));
    let text = succeed(["inspect", made.path()]);
    assert!(text.contains("TensorRT plans") && text.contains("2 lanes of 64 tokens, bf16"), "{text}");

    // Whoever runs the engine on the processor never reads a damaged plan.
    fs::write(made.engine.join(PLAN), "what TensorRT wr0te").unwrap();
    assert!(made.fault().contains("BLAKE3"));
    fs::write(made.engine.join(PLAN), "short").unwrap();
    assert!(made.fault().contains("5 bytes, expected 19"));
    fs::remove_file(made.engine.join(PLAN)).unwrap();
    assert!(made.fault().contains("missing"));
    succeed(["score", made.path(), "--token-ids", "1,2,3"]);
}

#[test]
fn a_plan_of_other_weights_is_stale_and_an_entry_that_does_not_hold_is_not_understood() {
    let made = WithPlan::new();
    made.edit(|manifest| manifest["plans"][0]["weights_blake3"] = json!("0".repeat(64)));
    let found = made.inspected();
    assert!(found["intact"] == true && found["stale"] == true && found["runs_here"] == false, "{found}");
    assert!(found["obstacle"].as_str().unwrap().contains("other weights"), "{found}");
    for (key, value, words) in [
        ("file", json!("../trt-10.16-sm_110a.plan"), "make it"),
        ("tensorrt", json!("10"), "two numbers"),
        ("sm", json!("sm_87"), "plans/trt-10.16-sm_87.plan"),
        ("lane_rows", json!(100), "rows for tokens and trees"),
        ("num_lanes", json!(0), "size of 0"),
        ("role", json!("critic"), "unknown variant"),
    ] {
        let made = WithPlan::new();
        made.edit(|manifest| manifest["plans"][0][key] = value);
        let found = made.inspected();
        let reason = found["not_understood"].as_str().unwrap();
        assert!(reason.contains(words) && found["runs_here"] == false, "{found}");
        assert!(succeed(["inspect", made.path()]).contains("not understood by this takt"));
        succeed(["score", made.path(), "--token-ids", "1,2,3"]);
    }
}
