//! Plans by the binary, on an emulated GPU and with a stand-in for TensorRT: what is built, built again, refused, and left as it was.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::machine::Machine;
use crate::{harness::*, standin::Built};

/// Every file below a folder with its bytes.
fn tree(folder: &Path) -> Vec<(PathBuf, Option<Vec<u8>>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let inner = if path.is_dir() { tree(&path) } else { Vec::new() };
        let bytes = (!path.is_dir()).then(|| fs::read(&path).unwrap());
        found.push((path, bytes));
        found.extend(inner);
    }
    found.sort();
    found
}

#[test]
fn plans_are_built_into_an_engine_that_is_there_and_inspect_says_that_they_run_here() {
    let Some(machine) = Machine::new() else { return };
    let engine = machine.engine();
    let args = ["build", &engine, "--tensorrt", "--plans-only", "--plan-lanes", "2", "--json"];
    let built = machine.succeed(&args);
    let plans = built["plans"]["plans"].as_array().unwrap();
    assert_eq!(built["plans"]["sm"], "sm_110a");
    // The engine's head runs beside it, by kernels that are no plan.
    assert_eq!((plans.len(), &plans[0]["role"]), (1, &json!("decoder")));
    assert_eq!((&plans[0]["lanes"], &plans[0]["timing_cache"]), (&json!(2), &json!("new")));
    let names = |plan: &Value| {
        plan["profiles"].as_array().unwrap().iter().map(|it| it["name"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(names(&plans[0]), ["prefill", "decode", "verify"]);
    assert_eq!(plans[0]["profiles"][1]["inputs"]["input_ids"]["max"], json!([2, 1]));
    let inspected = machine.succeed(&["inspect", &engine, "--json"]);
    assert_eq!(inspected["plans"].as_array().unwrap().len(), 1);
    for plan in inspected["plans"].as_array().unwrap() {
        assert_eq!((&plan["intact"], &plan["runs_here"]), (&json!(true), &json!(true)), "{plan}");
    }

    // Again: with what was measured, in the place of the others.
    let again = machine.succeed(&args);
    assert_eq!(again["plans"]["plans"][0]["timing_cache"], "used");
    assert_eq!(fs::read_dir(Path::new(&engine).join("plans")).unwrap().count(), 1);
    let text = machine.takt(&args[..args.len() - 1], &[]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("2 lanes of") && text.contains("with earlier measurements"), "{text}");
}

#[test]
fn a_plan_with_a_cache_of_8_bits_is_built_and_told_of() {
    let Some(machine) = Machine::new() else { return };
    let engine = machine.engine();
    let args = ["build", &engine, "--tensorrt", "--plans-only", "--plan-kv", "fp8", "--json"];
    let built = machine.succeed(&args);
    let plan = &built["plans"]["plans"][0];
    assert_eq!((&plan["kv"], &plan["form"]), (&json!("fp8"), &json!("primitives")));
    let inspected = machine.succeed(&["inspect", &engine, "--json"]);
    assert_eq!(inspected["plans"][0]["kv"], "fp8");
    let text = String::from_utf8(machine.takt(&["inspect", &engine], &[]).stdout).unwrap();
    assert!(text.contains("fp8 cache"), "{text}");
    let asked = ["generate", &engine, "--prompt", "status", "--backend", "tensorrt", "--kv", "bf16"];
    machine.fail(&asked, &[], &["has a fp8 KV cache, bf16 is asked for", "--plan-kv plain"]);
    let operators =
        ["build", &engine, "--tensorrt", "--plans-only", "--plan-kv", "fp8", "--plan-form", "operators"];
    // TensorRT has such a form from 10.15 on.
    let words = if machine.version < (10, 15, 0) {
        "plans of form operators"
    } else {
        "an fp8 cache in form operators"
    };
    machine.fail(&operators, &[], &[words]);
}

#[test]
fn an_engine_comes_with_its_plans_or_not_at_all() {
    let Some(machine) = Machine::new() else { return };
    let (source, dir) = (fixture("hf/tiny-llama").display().to_string(), machine.path("made/engine"));
    let args = ["build", &source, "-o", &dir, "--weights", "bf16", "--tensorrt", "--json"];
    machine.fail(&args, &[("STANDIN_FAIL", "IBuilder::buildSerializedNetwork:1")], &["plan of the decoder"]);
    assert!(!Path::new(&machine.path("made")).exists());
    let built = machine.succeed(&args);
    assert_eq!(built["plans"]["plans"].as_array().unwrap().len(), 1);
    assert_eq!(machine.succeed(&["inspect", &dir, "--json"])["plans"][0]["intact"], true);
    assert_eq!(fs::read_dir(machine.path("made")).unwrap().count(), 1);
}

#[test]
fn whatever_of_tensorrt_fails_the_engine_is_as_it_was() {
    let Some(machine) = Machine::new() else { return };
    let engine = machine.engine();
    let before = tree(Path::new(&engine));
    let args = ["build", &engine, "--tensorrt", "--plans-only"];
    for (what, words) in [
        ("IBuilder::createNetworkV2:1", &["plan of the decoder"][..]),
        ("IBuilder::createBuilderConfig:1", &["plan of the decoder"]),
        ("IBuilder::createOptimizationProfile:2", &["plan of the decoder"]),
        ("IParser::parseFromFile:1", &["plan of the decoder"]),
        (
            "IBuilder::buildSerializedNetwork:1",
            &["plan of the decoder", "takt export ENGINE -o DIR --for tensorrt-"],
        ),
        ("IBuilder::buildSerializedNetwork:1:oom", &["out of memory", "--plan-workspace"]),
        ("IBuilder::buildSerializedNetwork:1:silent", &["plan of the decoder"]),
    ] {
        machine.fail(&args, &[("STANDIN_FAIL", what)], words);
        assert!(tree(Path::new(&engine)) == before, "{what}");
    }
    // An operator that this TensorRT lacks is named.
    machine.fail(&args, &[("STANDIN_REFUSE", "MatMul")], &["MatMul", "plan of the decoder"]);
    assert!(tree(Path::new(&engine)) == before);
}

#[test]
fn an_interrupt_ends_a_build_in_the_midst_of_tensorrts_work_and_leaves_the_engine_as_it_was() {
    let Some(machine) = Machine::new() else { return };
    let engine = machine.engine();
    let before = tree(Path::new(&engine));
    let record = machine.path("record");
    let mut command = Command::new(env!("CARGO_BIN_EXE_takt"));
    command.args(["build", &engine, "--tensorrt", "--plans-only"]).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).env("RUST_LOG", "takt_node=info");
    machine.lend(&mut command);
    let child = command.env("STANDIN_ENDLESS", "1").env("STANDIN_RECORD", &record).spawn().unwrap();
    let patience = Instant::now() + Duration::from_secs(60);
    let is_building =
        || fs::read_to_string(&record).is_ok_and(|calls| calls.contains("IBuilder::buildSerializedNetwork("));
    while !is_building() {
        assert!(Instant::now() < patience, "TensorRT was not asked to build");
        thread::sleep(Duration::from_millis(5));
    }
    // The ONNX models are there while TensorRT works.
    assert!(fs::read_dir(Path::new(&engine).join("plans")).unwrap().count() == 1);
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("cancelled; the engine is as it was"), "{message}");
    assert!(message.contains("TensorRT, decoder: "), "without a terminal phases are logged: {message}");
    assert!(tree(Path::new(&engine)) == before);
}

#[test]
fn what_the_machine_lacks_is_told_before_the_source_is_read() {
    let Some(machine) = Machine::new() else { return };
    let dir = machine.path("made/engine");
    let args = ["build", "no/such/source", "-o", &dir, "--tensorrt"];
    let other = format!("{}.0.0", machine.version.0 + 1);
    machine.fail(&args, &[("STANDIN_VERSION", &other)], &[&other, "build takt on this machine"]);
    // No GPU: the driver is not found without its folder.
    let standin = Built::get().unwrap();
    let alone = standin.folder.display().to_string();
    machine.fail(&args, &[("LD_LIBRARY_PATH", &alone)], &["driver"]);
    // A library without its parser.
    let folder = machine.folder.path().join("no parser");
    fs::create_dir(&folder).unwrap();
    fs::copy(standin.folder.join(standin.infer_name()), folder.join(standin.infer_name())).unwrap();
    let path = folder.display().to_string();
    machine.fail(&args, &[("LD_LIBRARY_PATH", &path)], &["ONNX parser", "libnvonnxparser", "apt install"]);
    // No library at all.
    let empty = machine.path("empty");
    let words = ["cannot be opened", "apt install libnvinfer"];
    machine.fail(&args, &[("LD_LIBRARY_PATH", &empty)], &words);
    assert!(!Path::new(&machine.path("made")).exists());
}
