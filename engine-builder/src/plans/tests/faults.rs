//! What fails, is refused or cancelled leaves an engine as it was.

use std::{
    cell::RefCell,
    fs,
    path::{Path, PathBuf},
    rc::Rc,
    sync::atomic::{AtomicBool, Ordering},
};

use takt_engine::{dir::PlanActivations, quant::WeightKind};
use takt_kernels_cu::Target as Gpu;
use takt_tensorrt::TensorRtError;

use super::{Compiler, add, engine, tree};
use crate::{
    BuildError, Progress,
    export::{Form, KvType},
    plans::{PlanOptions, add_plans, place},
};

#[test]
fn whatever_fails_the_engine_is_as_it_was() {
    let (folder, engine) = engine(WeightKind::Bf16);
    let compiler = Compiler::new(10, 16);
    let plans = compiler.plans(Gpu::Thor, PlanOptions::default()).unwrap();
    for with_plans_before in [false, true] {
        if with_plans_before {
            *compiler.mishap.borrow_mut() = None;
            add(&engine, &plans).unwrap();
            *compiler.salt.borrow_mut() = 1;
        }
        let before = tree(folder.path());
        let fails = |facts: &[&str]| {
            let message = add(&engine, &plans).unwrap_err().to_string();
            assert!(facts.iter().all(|fact| message.contains(fact)), "{message}");
            assert!(tree(folder.path()) == before, "{message}");
        };
        let refused = || TensorRtError::Failed { call: "parse", reason: "node 7 (TensorScatter)".into() };
        compiler.fails(move |_| Some(refused()));
        fails(&[
            "plan of the decoder",
            "node 7 (TensorScatter)",
            "--plan-form primitives",
            "`takt export ENGINE -o DIR --for tensorrt-10.16,sm_110 --form operators --dtype bf16 --activations plain --kv plain --variant eagle3`",
        ]);
        compiler.fails(|_| {
            Some(TensorRtError::OutOfMemory { call: "buildSerializedNetwork", reason: "1 GiB".into() })
        });
        fails(&["out of memory: 1 GiB", "--plan-workspace", "--plan-lanes", "--plan-context"]);
        compiler.fails(|_| Some(TensorRtError::Missing("no library".into())));
        fails(&["no library"]);
        compiler.fails(|_| Some(TensorRtError::Cancelled));
        fails(&["cancelled"]);

        // Somebody changed the engine meanwhile.
        let manifest = engine.join("engine.json");
        let original = fs::read(&manifest).unwrap();
        let (path, changed) = (manifest.clone(), String::from_utf8(original.clone()).unwrap());
        compiler.fails(move |_| {
            fs::write(&path, changed.replacen("\"builder_version\": \"", "\"builder_version\": \"9", 1))
                .unwrap();
            None
        });
        let message = add(&engine, &plans).unwrap_err().to_string();
        assert!(message.contains("was changed while its plans were built"), "{message}");
        fs::write(&manifest, &original).unwrap();
        assert!(tree(folder.path()) == before);

        // A name is taken by what cannot be replaced.
        let taken = Rc::new(RefCell::new(PathBuf::new()));
        compiler.mishap.borrow_mut().take();
        let known = {
            let copy = tempfile::tempdir().unwrap();
            copy_tree(&engine, &copy.path().join("engine"));
            add(&copy.path().join("engine"), &plans).unwrap().plans[0].entry.file.clone()
        };
        *taken.borrow_mut() = engine.join(&known);
        let wanted = Rc::clone(&taken);
        compiler.fails(move |_| {
            fs::create_dir_all(wanted.borrow().join("in the way")).unwrap();
            None
        });
        let message = add(&engine, &plans).unwrap_err().to_string();
        assert!(message.contains("cannot rename"), "{message}");
        fs::remove_dir_all(&*taken.borrow()).unwrap();
        if !with_plans_before {
            fs::remove_dir(engine.join("plans")).unwrap();
        }
        assert!(tree(folder.path()) == before);
    }
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_tree(&path, &target)
        } else {
            fs::copy(&path, target).unwrap();
        }
    }
}

#[test]
fn a_build_that_is_cancelled_at_any_step_leaves_nothing() {
    let (folder, engine) = engine(WeightKind::Bf16);
    let compiler = Compiler::new(10, 16);
    let plans = compiler.plans(Gpu::Thor, PlanOptions::default()).unwrap();
    let before = tree(folder.path());
    let mut num_steps = 0;
    add_plans(&engine, &plans, None, &mut |_| num_steps += 1).unwrap();
    fs::remove_dir_all(&engine).unwrap();
    for (path, bytes) in &before {
        if bytes.is_none() {
            fs::create_dir_all(path).unwrap()
        }
    }
    before.iter().for_each(|(path, bytes)| bytes.iter().for_each(|bytes| fs::write(path, bytes).unwrap()));
    assert!(num_steps > 20, "{num_steps}");
    for stop_at in (0..num_steps).step_by(3).chain([num_steps - 1]) {
        let (flag, mut step) = (AtomicBool::new(false), 0);
        let mut count = |_: Progress<'_>| {
            flag.fetch_or(step == stop_at, Ordering::Relaxed);
            step += 1;
        };
        let stopped = add_plans(&engine, &plans, Some(&flag), &mut count);
        assert!(matches!(stopped, Err(BuildError::Cancelled)), "at {stop_at}: {stopped:?}");
        assert!(tree(folder.path()) == before, "at {stop_at}");
    }
}

#[test]
fn what_the_machine_does_not_take_is_refused_before_anything_is_done() {
    let refused = |compiler: &Compiler, gpu, engine: &Path, options, facts: &[&str]| {
        let before = tree(engine);
        let message = add(engine, &compiler.plans(gpu, options).unwrap()).unwrap_err().to_string();
        assert!(facts.iter().all(|fact| message.contains(fact)), "{message}");
        assert!(compiler.asked.borrow().is_empty() && tree(engine) == before, "{message}");
    };
    let (_a, nvfp4) = engine(WeightKind::Nvfp4);
    let (_b, fp8) = engine(WeightKind::Fp8);
    let default = PlanOptions::default();
    refused(
        &Compiler::new(10, 7),
        Gpu::Thor,
        &nvfp4,
        default,
        &["nvfp4", "10.8", "--weights int4 or fp8 or bf16"],
    );
    refused(
        &Compiler::new(10, 16),
        Gpu::Hopper,
        &nvfp4,
        default,
        &["nvfp4", "sm_100", "--weights int4 or fp8 or bf16"],
    );
    refused(&Compiler::new(10, 3), Gpu::Orin, &fp8, default, &["fp8", "sm_89", "--weights int4 or bf16"]);
    let options = PlanOptions { lane_capacity: Some(1 << 30), ..default };
    refused(
        &Compiler::new(10, 16),
        Gpu::Thor,
        &fp8,
        options,
        &["lanes of 1073741824 tokens", "made for 1 to"],
    );

    let options = PlanOptions { activations: PlanActivations::Quantized, ..default };
    let (_c, int4) = engine(WeightKind::Int4);
    let (_d, bf16) = engine(WeightKind::Bf16);
    // Formats are looked at first: what the machine does not take is no answer to which activations it would.
    refused(&Compiler::new(10, 7), Gpu::Thor, &nvfp4, options, &["nvfp4", "10.8"]);
    refused(&Compiler::new(10, 16), Gpu::Hopper, &nvfp4, options, &["nvfp4", "sm_100"]);
    refused(&Compiler::new(10, 16), Gpu::Orin, &fp8, options, &["fp8", "sm_89"]);
    for (compiler, gpu, works) in [
        (Compiler::new(10, 16), Gpu::Thor, "build the engine with --weights nvfp4 or fp8, or leave out"),
        (Compiler::new(10, 7), Gpu::Thor, "build the engine with --weights fp8, or leave out"),
        (Compiler::new(10, 16), Gpu::Hopper, "build the engine with --weights fp8, or leave out"),
        (Compiler::new(10, 16), Gpu::Orin, "it takes neither here, or leave out"),
    ] {
        refused(&compiler, gpu, &bf16, options, &["layers in bf16", works, "--plan-activations"]);
    }
    refused(&Compiler::new(10, 16), Gpu::Orin, &int4, options, &["int4", "blocks of 64 or 128"]);

    let unopened = |compiler: Compiler, options, fact: &str| {
        let message = compiler.plans(Gpu::Thor, options).unwrap_err().to_string();
        assert!(message.contains(fact), "{message}");
    };
    unopened(Compiler::new(9, 3), default, "10.0 to 11.x");
    unopened(Compiler::new(12, 0), default, "10.0 to 11.x");
    let operators = PlanOptions { form: Some(Form::Operators), ..default };
    let words = "TensorRT 10.15 or later and a takt built with its headers, this is 10.13.1";
    unopened(Compiler::new(10, 13), operators, words);
    unopened(Compiler::new(10, 13), operators, "leave out --plan-form");
    Compiler::new(10, 15).plans(Gpu::Thor, operators).unwrap();
    unopened(Compiler::new(10, 16), PlanOptions { num_lanes: 0, ..default }, "expected 1 to 64");
    unopened(Compiler::new(10, 16), PlanOptions { num_lanes: 65, ..default }, "expected 1 to 64");
    unopened(Compiler::new(10, 16), PlanOptions { effort: Some(6), ..default }, "TensorRT has 0 to 5");
    unopened(Compiler::new(10, 16), PlanOptions { workspace_bytes: Some(0), ..default }, "0 bytes");

    let kv = PlanOptions { kv: Some(KvType::Fp8), ..default };
    let in_place = PlanOptions { form: Some(Form::Operators), ..kv };
    unopened(Compiler::new(10, 16), in_place, "an fp8 cache in form operators");
    let message = Compiler::new(10, 16).plans(Gpu::Orin, kv).unwrap_err().to_string();
    assert!(message.contains("from sm_89 on") && message.contains("use a plain one"), "{message}");

    let plans = Compiler::new(10, 16).plans(Gpu::Thor, default).unwrap();
    let message = add(Path::new("nowhere"), &plans).unwrap_err().to_string();
    assert!(message.contains("does not exist") && message.contains("takt build"), "{message}");
}

#[test]
fn one_process_at_a_time_builds_plans_and_clears_what_killed_ones_left() {
    let (_folder, engine) = engine(WeightKind::Bf16);
    let left = engine.join("plans/.building-killed");
    fs::create_dir_all(&left).unwrap();
    fs::write(left.join("model.onnx.data"), "gigabytes").unwrap();
    let compiler = Compiler::new(10, 16);
    let plans = compiler.plans(Gpu::Thor, PlanOptions::default()).unwrap();
    let held = place::Place::open(&engine).unwrap();
    assert!(!left.exists());
    let message = add(&engine, &plans).unwrap_err().to_string();
    assert!(message.contains("another takt is building plans"), "{message}");
    drop(held);
    add(&engine, &plans).unwrap();
}

#[test]
fn plans_that_killed_builds_left_go_and_entries_of_another_takt_stay() {
    let (_folder, engine) = engine(WeightKind::Bf16);
    let compiler = Compiler::new(10, 16);
    let plans = compiler.plans(Gpu::Thor, PlanOptions::default()).unwrap();
    let version = || {
        let json = fs::read(engine.join("engine.json")).unwrap();
        serde_json::from_slice::<serde_json::Value>(&json).unwrap()
    };
    assert_eq!(version()["schema_version"], 2);
    let named = add(&engine, &plans).unwrap().plans[0].entry.file.clone();
    assert_eq!(version()["schema_version"], 3);

    let mut manifest = version();
    let foreign = serde_json::json!({ "file": "plans/trt-12.0-sm_130.plan", "form": "spirals" });
    manifest["plans"].as_array_mut().unwrap().push(foreign.clone());
    fs::write(engine.join("engine.json"), manifest.to_string()).unwrap();
    let orphan = "plans/trt-10.16-sm_110a.deadbeef.plan";
    for file in [orphan, "plans/trt-12.0-sm_130.plan", "plans/notes.txt"] {
        fs::write(engine.join(file), "gigabytes").unwrap();
    }
    drop(place::Place::open(&engine).unwrap());
    assert!(!engine.join(orphan).exists());
    for file in [&named[..], "plans/trt-12.0-sm_130.plan", "plans/notes.txt"] {
        assert!(engine.join(file).exists(), "{file}");
    }
    *compiler.salt.borrow_mut() = 1;
    add(&engine, &plans).unwrap();
    assert!(version()["plans"].as_array().unwrap().contains(&foreign));
    assert!(!engine.join(named).exists());
}
