//! Plans into an engine directory, with TensorRT's calls seen from the other side, and each of them failing.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use takt_engine::{
    dir::{Manifest, PlanActivations, PlanCompute, PlanFile},
    quant::WeightKind,
};
use takt_engine_builder::{
    BuildError, BuildOptions, Progress, Stage, TimingCacheUse, build,
    draft::DraftOptions,
    plans::{DevicePlans, PlanOptions, add_plans},
};
use takt_tests::checkpoint::fixtures;
use tempfile::TempDir;

use crate::{
    emulator::driver::EmulatedDevice,
    models::on_the_stand_in,
    standin::{Failure, Standin},
};

fn emulated(test: &'static str) -> EmulatedDevice {
    EmulatedDevice::new(test).sm(87)
}

/// An engine with a draft head.
fn engine() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("engine");
    let head = fixtures().join("eagle3/tiny-llama-midlayer");
    let draft = DraftOptions { folder: &head, prompts: None, measures: false };
    let options = BuildOptions { draft: Some(draft), ..BuildOptions::new(WeightKind::Bf16) };
    build(&fixtures().join("hf/tiny-llama"), &path, &options, &mut |_| {}).unwrap();
    (folder, path)
}

/// Every file below a folder with its bytes, and every folder.
fn tree(folder: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(tree(&path));
            found.insert(path, None);
        } else {
            found.insert(path.clone(), Some(fs::read(&path).unwrap()));
        }
    }
    found
}

fn calls(standin: &Standin, what: &str) -> Vec<String> {
    standin.record().into_iter().filter(|line| line.contains(what)).collect()
}

#[test]
fn options_become_what_tensorrt_is_asked_for() {
    on_the_stand_in(emulated("plans::options_become_what_tensorrt_is_asked_for"), |_, standin, _| {
        let (_folder, engine) = engine();
        let options = PlanOptions {
            num_lanes: 3,
            lane_capacity: Some(100),
            kv: None,
            compute: PlanCompute::F16,
            activations: PlanActivations::Plain,
            workspace_bytes: Some(5 << 20),
            effort: Some(1),
            is_refittable: false,
            streams_weights: true,
            sm_share: None,
            form: None,
        };
        standin.clear();
        let report =
            add_plans(&engine, &DevicePlans::open(options, None).unwrap(), None, &mut |_| {}).unwrap();
        assert_eq!(calls(standin, "kWEIGHT_STREAMING").len(), 2, "set and asked for");
        assert!(calls(standin, "kREFIT").is_empty() && calls(standin, "kSTRIP_PLAN").is_empty());
        assert_eq!(calls(standin, &format!("setMemoryPoolLimit(kWORKSPACE, {})", 5 << 20)).len(), 1);
        assert_eq!(calls(standin, "setBuilderOptimizationLevel(1)").len(), 1);
        assert_eq!(calls(standin, "addOptimizationProfile(").len(), 3);
        // The whole of the cache is a plan's, whatever the profile.
        let cache = calls(standin, "setDimensions(\"past_key_values.0.key\", kMAX");
        let rows = |line: &String, rows: usize| line.contains(&format!(",{rows},"));
        // 100 tokens and 65 rows for padding, up to a multiple of 8.
        assert!(cache.len() == 3 && cache.iter().all(|line| rows(line, 168)), "{cache:?}");
        assert!(report.plans.iter().all(|plan| plan.entry.streams_weights && plan.entry.num_lanes == 3));
        assert_eq!(standin.alive(), [""; 0]);
    });
}

#[test]
fn calls_of_tensorrt_fail_and_the_engine_is_as_it_was() {
    let test = "plans::calls_of_tensorrt_fail_and_the_engine_is_as_it_was";
    on_the_stand_in(emulated(test), |_, standin, _| {
        let (folder, engine) = engine();
        let (before, timings) = (tree(folder.path()), tempfile::tempdir().unwrap());
        let plans = DevicePlans::open(PlanOptions::default(), Some(timings.path().join("t"))).unwrap();
        let manifest = fs::read(engine.join("engine.json")).unwrap();
        standin.clear();
        add_plans(&engine, &plans, None, &mut |_| {}).unwrap();
        let num_calls = standin.record().len() as u64;
        let whole = || {
            let manifest = Manifest::read(&engine).unwrap();
            assert_eq!(manifest.plans.len(), 1);
            assert!(manifest.check_plans(&engine).iter().all(|check| check.outcome.is_ok()));
            fs::remove_dir_all(engine.join("plans")).unwrap();
        };
        whole();
        fs::write(engine.join("engine.json"), &manifest).unwrap();
        let mut num_failed = 0;
        let hows = [Failure::Error, Failure::OutOfMemory, Failure::Silent];
        // `takt_tensorrt`'s own suite fails each call; here one in fifteen does, each in another way than the one before.
        for (idx, n) in (1..=num_calls).step_by(15).enumerate() {
            standin.fail_any(n, hows[idx % 3]);
            match add_plans(&engine, &plans, None, &mut |_| {}) {
                // There is no such call any more, or one that only costs time, as those of the timings.
                Ok(_) => {
                    whole();
                    fs::write(engine.join("engine.json"), &manifest).unwrap();
                }
                Err(error) => {
                    num_failed += 1;
                    let told = matches!(error, BuildError::Plan { .. } | BuildError::TensorRt(_));
                    assert!(told, "call {n}: {error:?}");
                }
            }
            standin.fail_any(0, Failure::Error);
            assert!(tree(folder.path()) == before, "call {n}");
            assert_eq!(standin.alive(), [""; 0], "call {n}");
        }
        assert!(num_failed >= 10, "{num_failed} of {num_calls}");
    });
}

#[test]
fn a_build_that_is_cancelled_in_a_phase_of_tensorrt_leaves_nothing() {
    let test = "plans::a_build_that_is_cancelled_in_a_phase_of_tensorrt_leaves_nothing";
    on_the_stand_in(emulated(test), |_, standin, _| {
        let (folder, engine) = engine();
        let before = tree(folder.path());
        let plans = DevicePlans::open(PlanOptions::default(), None).unwrap();
        let phases = RefCell::new(Vec::new());
        for stop_at in 0.. {
            let (flag, mut step) = (AtomicBool::new(false), 0);
            let mut watch = |at: Progress<'_>| {
                if at.stage == Stage::Plans {
                    flag.fetch_or(step == stop_at, Ordering::Relaxed);
                    phases.borrow_mut().push(at.item.to_owned());
                    step += 1;
                }
            };
            let ended = add_plans(&engine, &plans, Some(&flag), &mut watch);
            if !flag.load(Ordering::Relaxed) {
                ended.unwrap();
                break;
            }
            assert!(matches!(ended, Err(BuildError::Cancelled)), "at {stop_at}: {ended:?}");
            assert!(tree(folder.path()) == before, "at {stop_at}");
            assert_eq!(standin.alive(), [""; 0]);
        }
        let phases = phases.into_inner();
        assert!(phases.iter().any(|phase| phase.starts_with("decoder: ")), "{phases:?}");
    });
}

#[test]
fn measurements_of_another_release_are_not_taken_and_a_note_says_so() {
    let test = "plans::measurements_of_another_release_are_not_taken_and_a_note_says_so";
    on_the_stand_in(emulated(test), |_, standin, _| {
        let (_folder, engine) = engine();
        let timings = tempfile::tempdir().unwrap();
        let (major, minor, patch) = standin.built().version;
        let as_number = |number: u32| i32::try_from(number).unwrap();
        let build_with = |patch: u32| {
            standin.set_version(as_number(major), as_number(minor), as_number(patch));
            let plans = DevicePlans::open(PlanOptions::default(), Some(timings.path().into())).unwrap();
            add_plans(&engine, &plans, None, &mut |_| {}).unwrap().plans
        };
        let first = build_with(patch);
        assert_eq!(first[0].timing_cache, TimingCacheUse::New);
        assert_eq!(build_with(patch)[0].timing_cache, TimingCacheUse::Used);
        // Kept by one release, and found where another keeps its own.
        let file = |patch: u32| {
            let name = format!("trt-{major}.{minor}.{patch}-");
            let entries = fs::read_dir(timings.path()).unwrap().map(|entry| entry.unwrap().path());
            entries.into_iter().find(|path| path.file_name().unwrap().to_string_lossy().starts_with(&name))
        };
        let of_first = file(patch).unwrap();
        let name = of_first.file_name().unwrap().to_string_lossy().replacen(
            &format!("{major}.{minor}.{patch}-"),
            &format!("{major}.{minor}.{}-", patch + 1),
            1,
        );
        fs::copy(&of_first, timings.path().join(name)).unwrap();
        let second = build_with(patch + 1);
        assert_eq!(second[0].timing_cache, TimingCacheUse::New);
        assert!(second[0].warnings.iter().any(|note| note.contains("did not take the measurements")));
        assert_eq!(build_with(patch + 1)[0].timing_cache, TimingCacheUse::Used);
    });
}

/// The engine of the fixture in BF16, with other numbers where it is `tuned`.
fn engine_of(tuned: bool) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let (checkpoint, path) = (folder.path().join("checkpoint"), folder.path().join("engine"));
    fs::create_dir(&checkpoint).unwrap();
    for entry in fs::read_dir(fixtures().join("hf/tiny-llama")).unwrap() {
        let from = entry.unwrap().path();
        let mut bytes = fs::read(&from).unwrap();
        if tuned && from.extension().is_some_and(|extension| extension == "safetensors") {
            let header = 8 + usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
            // Signs of some numbers.
            bytes[header..].iter_mut().skip(3).step_by(8).for_each(|byte| *byte ^= 0x80);
        }
        fs::write(checkpoint.join(from.file_name().unwrap()), bytes).unwrap();
    }
    build(&checkpoint, &path, &BuildOptions::new(WeightKind::Bf16), &mut |_| {}).unwrap();
    (folder, path)
}

#[test]
fn a_refit_is_asked_for_weight_by_weight_and_gives_the_plan_that_a_build_would() {
    const TEST: &str = "plans::a_refit_is_asked_for_weight_by_weight_and_gives_the_plan_that_a_build_would";
    on_the_stand_in(emulated(TEST), |_, standin, _| {
        let ((_folder, engine), (_tuned, tuned)) = (engine_of(false), engine_of(true));
        let options = PlanOptions { is_refittable: true, lane_capacity: Some(100), ..PlanOptions::default() };
        standin.clear();
        let built =
            add_plans(&engine, &DevicePlans::open(options, None).unwrap(), None, &mut |_| {}).unwrap();
        assert_eq!(calls(standin, "setFlag(kREFIT)").len(), 1, "{:?}", calls(standin, "setFlag"));
        assert_eq!(calls(standin, "addOptimizationProfile(").len(), 1);
        let names = calls(standin, "::getAllWeights(");
        assert!(!names.is_empty(), "which weights it takes is asked when it is built");
        assert!(calls(standin, "::setNamedWeights(").is_empty());

        standin.clear();
        let before = tree(&tuned);
        let refitting = DevicePlans::open_refit(&engine).unwrap();
        let report = add_plans(&tuned, &refitting, None, &mut |_| {}).unwrap();
        assert!(calls(standin, "IBuilder").is_empty(), "nothing is built");
        let steps = standin.steps();
        let at = |what: &str| {
            steps.iter().position(|call| call.contains(what)).unwrap_or_else(|| panic!("{what}: {steps:#?}"))
        };
        let last = |what: &str| steps.iter().rposition(|call| call.contains(what)).unwrap();
        let order = [
            at("::deserializeCudaEngine("),
            at("::setNamedWeights("),
            last("::setNamedWeights("),
            at("::refitCudaEngine()"),
            at("::serialize()"),
        ];
        assert!(order.is_sorted(), "{order:?} of {steps:#?}");
        let asked = calls(standin, "::getMissingWeights(");
        assert!(!asked.is_empty(), "{:#?}", standin.record());
        let num_given = calls(standin, "::setNamedWeights(").len();
        assert!(num_given > 20, "{num_given}");
        assert_eq!(standin.alive(), [""; 0]);

        // The stand-in's plans are their models: what is built of the tuned engine is what the refit gave.
        let plan = |dir: &Path| {
            let manifest = Manifest::read(dir).unwrap();
            let entry = manifest.plans.iter().next().unwrap().clone();
            let bytes = PlanFile::open(dir, &entry).unwrap().bytes().to_vec();
            (entry, bytes)
        };
        let (refitted, bytes) = plan(&tuned);
        assert_eq!(refitted, report.plans[0].entry);
        let rebuilt =
            add_plans(&tuned, &DevicePlans::open(options, None).unwrap(), None, &mut |_| {}).unwrap();
        let (fresh, same) = plan(&tuned);
        assert_eq!(fresh, rebuilt.plans[0].entry);
        assert!(bytes == same && bytes != plan(&engine).1);
        assert_eq!((&refitted.refittable, &refitted.blake3), (&fresh.refittable, &fresh.blake3));
        assert_eq!(refitted.refittable, built.plans[0].entry.refittable);
        // Nothing but the plan and the manifest is another.
        let mut after = tree(&tuned);
        after.retain(|path, _| !path.starts_with(tuned.join("plans")) && !path.ends_with("engine.json"));
        assert!(after.iter().all(|(path, bytes)| before[path] == *bytes));
    });
}

#[test]
fn whichever_call_of_a_refit_fails_the_engine_is_as_it_was() {
    const TEST: &str = "plans::whichever_call_of_a_refit_fails_the_engine_is_as_it_was";
    on_the_stand_in(emulated(TEST), |_, standin, _| {
        let ((_folder, engine), (_tuned, tuned)) = (engine_of(false), engine_of(true));
        let options = PlanOptions { is_refittable: true, lane_capacity: Some(64), ..PlanOptions::default() };
        add_plans(&engine, &DevicePlans::open(options, None).unwrap(), None, &mut |_| {}).unwrap();
        let (before, pattern) = (tree(&tuned), tree(&engine));
        let mut num_failed = 0;
        for how in [Failure::Error, Failure::OutOfMemory, Failure::Silent] {
            let mut n = 0;
            loop {
                n += 1;
                let refitting = DevicePlans::open_refit(&engine).unwrap();
                standin.fail_any(n, how);
                let refitted = add_plans(&tuned, &refitting, None, &mut |_| {});
                let has_failed = standin.has_failed();
                standin.fail_any(0, how);
                assert_eq!(standin.alive(), [""; 0], "{how:?} {n}");
                assert!(tree(&engine) == pattern, "{how:?} {n}");
                if !has_failed {
                    refitted.unwrap();
                    break;
                }
                num_failed += 1;
                let error = refitted.expect_err("a failure went unseen").to_string();
                assert!(
                    error.contains("plan of the decoder") && error.contains("--plan-refit-from"),
                    "{error}"
                );
                assert!(tree(&tuned) == before, "{how:?} {n}: {error}");
            }
            fs::remove_dir_all(&tuned).unwrap();
            for (path, bytes) in &before {
                match bytes {
                    None => fs::create_dir_all(path).unwrap(),
                    Some(bytes) => {
                        fs::create_dir_all(path.parent().unwrap()).unwrap();
                        fs::write(path, bytes).unwrap();
                    }
                }
            }
        }
        assert!(
            num_failed > 60,
            "{num_failed}: the runtime, the plan, a refitter, every weight, the refit, the new plan"
        );
    });
}
