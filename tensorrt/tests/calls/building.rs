//! Builds: the calls, what goes wrong, and that nothing is left of a build whatever went wrong.

use std::{fs, ops::ControlFlow, path::Path};

use takt_tensorrt::{
    TensorRt, TensorRtError,
    build::{PlanFlags, PlanRequest, build_plan},
};

use crate::{
    build, from, model, profile, request,
    standin::{Failure, Standin},
};

const STRIPPED: PlanFlags = PlanFlags { refittable: false, stripped: true, weight_streaming: false };

/// Asserts that all that was made was destroyed, in an order that TensorRT allows.
#[track_caller]
fn assert_nothing_is_left(standin: &Standin) {
    assert_eq!(standin.alive(), [""; 0]);
    assert_eq!(standin.faults(), [""; 0]);
}

/// The decoder in a folder of its own.
fn decoder() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let onnx = model::write(&model::decoder(from(10, 15)), folder.path());
    (folder, onnx)
}

#[test]
fn a_build_is_this_sequence_of_calls() {
    let Some(standin) = Standin::load() else { return };
    let (folder, onnx) = decoder();
    standin.clear();
    let trt = TensorRt::open().unwrap();
    assert_eq!(standin.record(), ["getInferLibVersion()"], "the version is asked before anything else");
    let profiles = [profile("prefill", [1, 4, 8]), profile("decode", [1, 1, 1])];
    let request = PlanRequest {
        workspace_bytes: Some(1 << 30),
        optimization_level: Some(2),
        flags: PlanFlags { weight_streaming: true, ..PlanFlags::default() },
        ..request(&onnx, &profiles)
    };
    let built = build(&trt, &request).unwrap();
    assert_eq!(built.num_decomposable, usize::from(from(10, 15)));
    assert!(!built.used_timing_cache && built.warnings.is_empty(), "{built:?}");
    assert_eq!(standin.alive(), ["IHostMemory"]);
    drop(built);
    let strongly_typed = if from(11, 0) { 0 } else { 2 };
    let decomposable = if from(10, 15) { "IAttention::setDecomposable(true)\n" } else { "" };
    let (path, version) = (onnx.display(), trt.header_version());
    let version = version.major * 10_000 + version.minor * 100 + version.patch;
    let expected = format!(
        r#"createInferBuilder_INTERNAL(@1, {version})
IBuilder::setErrorRecorder(@2)
IBuilder::createNetworkV2({strongly_typed})
IBuilder::createBuilderConfig()
createNvOnnxParser_INTERNAL(INetworkDefinition, @1, PARSER)
IParser::parseFromFile("{path}", 2)
{decomposable}IBuilderConfig::setFlag(kWEIGHT_STREAMING)
IBuilderConfig::setMemoryPoolLimit(kWORKSPACE, 1073741824)
IBuilderConfig::setBuilderOptimizationLevel(2)
IBuilderConfig::setMaxAuxStreams(0)
IBuilderConfig::createTimingCache(null, 0)
IBuilderConfig::setTimingCache(ITimingCache, false)
IBuilder::createOptimizationProfile()
IOptimizationProfile::setDimensions("ids", kMIN, [1,1])
IOptimizationProfile::setDimensions("ids", kOPT, [1,4])
IOptimizationProfile::setDimensions("ids", kMAX, [2,8])
IOptimizationProfile::setDimensions("past", kMIN, [1,2,8,16])
IOptimizationProfile::setDimensions("past", kOPT, [1,2,8,16])
IOptimizationProfile::setDimensions("past", kMAX, [2,2,8,16])
IBuilderConfig::addOptimizationProfile(IOptimizationProfile)
IBuilder::createOptimizationProfile()
IOptimizationProfile::setDimensions("ids", kMIN, [1,1])
IOptimizationProfile::setDimensions("ids", kOPT, [1,1])
IOptimizationProfile::setDimensions("ids", kMAX, [2,1])
IOptimizationProfile::setDimensions("past", kMIN, [1,2,8,16])
IOptimizationProfile::setDimensions("past", kOPT, [1,2,8,16])
IOptimizationProfile::setDimensions("past", kMAX, [2,2,8,16])
IBuilderConfig::addOptimizationProfile(IOptimizationProfile)
IBuilderConfig::setProgressMonitor(@3)
IBuilder::buildSerializedNetwork(INetworkDefinition, IBuilderConfig)
IBuilderConfig::setProgressMonitor(null)
ITimingCache::serialize()
IHostMemory#2::~IHostMemory()
IParser::~IParser()
INetworkDefinition::~INetworkDefinition()
IBuilderConfig::~IBuilderConfig()
IBuilder::~IBuilder()
ITimingCache::~ITimingCache()
IHostMemory::~IHostMemory()"#
    );
    let mut steps = standin.steps();
    // The parser's version is its own.
    if let Some((before, _)) = steps[4].rsplit_once(' ') {
        steps[4] = format!("{before} PARSER)");
    }
    assert_eq!(steps, expected.lines().collect::<Vec<_>>());
    assert_nothing_is_left(&standin);
    drop(folder);
}

#[test]
fn flags_are_tensorrts_whatever_their_numbers() {
    let Some(standin) = Standin::load() else { return };
    let (_folder, onnx) = decoder();
    let trt = TensorRt::open().unwrap();
    let profiles = [profile("decode", [1, 1, 1])];
    let built_with = |refittable, stripped| {
        standin.clear();
        let flags = PlanFlags { refittable, stripped, weight_streaming: false };
        let built = build(&trt, &PlanRequest { flags, ..request(&onnx, &profiles) }).unwrap();
        let flags: Vec<_> = standin.record().into_iter().filter(|call| call.contains("setFlag(")).collect();
        (flags.join(" ").replace("IBuilderConfig::setFlag", ""), built.plan.len())
    };
    let (flags, whole) = built_with(false, false);
    assert_eq!(flags, "");
    let (flags, refittable) = built_with(true, false);
    assert_eq!((flags.as_str(), refittable), ("(kREFIT)", whole));
    let (flags, stripped) = built_with(false, true);
    assert_eq!(flags, "(kREFIT_IDENTICAL) (kSTRIP_PLAN)");
    assert!(stripped < whole, "{stripped} of {whole} bytes");
    assert_eq!(built_with(true, true).0, "(kREFIT) (kSTRIP_PLAN)");
    assert_nothing_is_left(&standin);
}

#[test]
fn a_second_profile_of_a_refittable_plan_is_refused_with_the_reason() {
    let Some(standin) = Standin::load() else { return };
    let (_folder, onnx) = decoder();
    let trt = TensorRt::open().unwrap();
    let profiles = [profile("prefill", [1, 4, 8]), profile("decode", [1, 1, 1])];
    let error = build(&trt, &PlanRequest { flags: STRIPPED, ..request(&onnx, &profiles) }).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains(
            "profile decode: it was not taken (a plan whose weights can be given anew has one profile)"
        ),
        "{error}"
    );
    assert!(error.contains("not supported for refittable engines"), "{error}");
    assert_nothing_is_left(&standin);
}

#[test]
fn a_timing_cache_is_used_again_on_its_device_and_with_its_version_alone() {
    let Some(standin) = Standin::load() else { return };
    let (_folder, onnx) = decoder();
    let trt = TensorRt::open().unwrap();
    let profiles = [profile("decode", [1, 1, 1])];
    let build_with = |cache: &[u8]| {
        build(&trt, &PlanRequest { timing_cache: cache, ..request(&onnx, &profiles) }).unwrap()
    };
    let first = build_with(&[]);
    assert!(!first.used_timing_cache && !first.timing_cache.is_empty());
    let again = build_with(&first.timing_cache);
    assert!(again.used_timing_cache);
    assert_eq!(again.timing_cache, first.timing_cache);
    standin.set_sm(87);
    let elsewhere = build_with(&first.timing_cache);
    assert!(!elsewhere.used_timing_cache, "of another device");
    assert_ne!(elsewhere.timing_cache, first.timing_cache);
    assert!(
        elsewhere.warnings.iter().any(|warning| warning.contains("timing cache")),
        "{:?}",
        elsewhere.warnings
    );
    assert!(!build_with(b"of something else").used_timing_cache);
    drop((first, again, elsewhere));
    assert_nothing_is_left(&standin);
}

#[test]
fn progress_is_told_in_nested_phases() {
    let Some(_standin) = Standin::load() else { return };
    let (_folder, onnx) = decoder();
    let trt = TensorRt::open().unwrap();
    let profiles = [profile("decode", [1, 1, 1])];
    let mut told = Vec::new();
    build_plan(&trt, &request(&onnx, &profiles), &mut |progress| {
        told.push(format!(
            "{} in {:?}: {}/{}",
            progress.phase, progress.parent, progress.done, progress.total
        ));
        ControlFlow::Continue(())
    })
    .unwrap();
    let at = |line: &str| {
        let found = told.iter().position(|said| said.starts_with(line));
        found.unwrap_or_else(|| panic!("{line} in {told:#?}"))
    };
    let begin = at("reading the model in None: 0/1");
    let outer = at("Building engine in None: 0/3");
    let inner = at(r#"Timing graph nodes for profile 0 in Some("Building engine"): 2/"#);
    let end = at("Building engine in None: 3/3");
    assert!(begin < outer && outer < inner && inner < end, "{told:#?}");
}

#[test]
fn a_build_that_is_cancelled_leaves_nothing_wherever_it_is() {
    let Some(standin) = Standin::load() else { return };
    let (_folder, onnx) = decoder();
    let trt = TensorRt::open().unwrap();
    let profiles = [profile("decode", [1, 1, 1])];
    // Otherwise a build this small would often be over before it hears of it.
    standin.set_endless(true);
    for phase in ["reading the model", "Building engine", "Timing graph nodes for profile 0"] {
        let cancelled = build_plan(&trt, &request(&onnx, &profiles), &mut |progress| {
            if progress.phase == phase { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(matches!(cancelled, Err(TensorRtError::Cancelled)), "{phase}: {cancelled:?}");
        assert_nothing_is_left(&standin);
    }
}

#[test]
fn an_operator_the_parser_does_not_know_is_named_with_its_node() {
    let Some(standin) = Standin::load() else { return };
    let (_folder, onnx) = decoder();
    let trt = TensorRt::open().unwrap();
    standin.refuse_operator("Gather");
    let error = build(&trt, &request(&onnx, &[profile("decode", [1, 1, 1])])).unwrap_err().to_string();
    assert!(error.starts_with("TensorRT: reading the ONNX model failed: "), "{error}");
    assert!(
        error.contains(r#"node 0 (Gather "/Gather_rows"): No importer registered for op: Gather"#),
        "{error}"
    );
    assert_nothing_is_left(&standin);
}

#[test]
fn what_is_no_model_is_said_to_be_none() {
    let Some(standin) = Standin::load() else { return };
    let (folder, onnx) = decoder();
    let trt = TensorRt::open().unwrap();
    let profiles = [profile("decode", [1, 1, 1])];
    let error = |onnx: &Path| build(&trt, &request(onnx, &profiles)).unwrap_err().to_string();
    fs::remove_file(folder.path().join("model.onnx.data")).unwrap();
    let without_data = error(&onnx);
    assert!(
        without_data.contains("Failed to open file") && without_data.contains("model.onnx.data"),
        "{without_data}"
    );
    let text = folder.path().join("text.onnx");
    fs::write(&text, "no model").unwrap();
    let no_model = error(&text);
    assert!(no_model.contains("Failed to parse ONNX model"), "{no_model}");
    assert_nothing_is_left(&standin);
}

#[test]
fn what_the_builder_refuses_is_told_in_its_words() {
    let Some(standin) = Standin::load() else { return };
    let (_folder, onnx) = decoder();
    let trt = TensorRt::open().unwrap();
    let error = build(&trt, &request(&onnx, &[])).unwrap_err().to_string();
    assert!(error.starts_with("TensorRT: building the plan failed: "), "{error}");
    assert!(error.contains("no optimization profile has been defined"), "{error}");
    let mut unknown = profile("decode", [1, 1, 1]);
    unknown.inputs[0].0 = "tokens".into();
    let error = build(&trt, &request(&onnx, &[unknown])).unwrap_err().to_string();
    assert!(error.contains("tokens, which is no input"), "{error}");
    assert_nothing_is_left(&standin);
}

#[test]
fn warnings_come_with_the_plan() {
    let Some(standin) = Standin::load() else { return };
    let (_folder, onnx) = decoder();
    let trt = TensorRt::open().unwrap();
    let profiles = [profile("decode", [1, 1, 1])];
    let built =
        build(&trt, &PlanRequest { workspace_bytes: Some(4096), ..request(&onnx, &profiles) }).unwrap();
    assert!(
        matches!(&built.warnings[..], [one] if one.contains("sufficient workspace memory")),
        "{:?}",
        built.warnings
    );
    drop(built);
    assert_nothing_is_left(&standin);
}

#[test]
fn a_plan_is_not_thrown_away_for_its_timing_cache() {
    let Some(standin) = Standin::load() else { return };
    let (_folder, onnx) = decoder();
    let trt = TensorRt::open().unwrap();
    let profiles = [profile("decode", [1, 1, 1])];
    for how in [Failure::Error, Failure::OutOfMemory, Failure::Silent] {
        standin.fail("ITimingCache::serialize", 1, how);
        let built = build(&trt, &request(&onnx, &profiles)).unwrap();
        assert!(standin.has_failed());
        assert!(!built.plan.is_empty() && built.timing_cache.is_empty());
        let [warning] = &built.warnings[..] else { panic!("{:?}", built.warnings) };
        assert!(warning.contains("writing the timing cache") && warning.contains("anew"), "{warning}");
        drop(built);
        assert_nothing_is_left(&standin);
    }
}

#[test]
fn limits_that_are_not_taken_are_told_though_a_configuration_has_no_recorder() {
    let Some(standin) = Standin::load() else { return };
    let (_folder, onnx) = decoder();
    let trt = TensorRt::open().unwrap();
    let profiles = [profile("decode", [1, 1, 1])];
    let limited = || {
        let limits = PlanRequest {
            workspace_bytes: Some(1 << 20),
            optimization_level: Some(2),
            ..request(&onnx, &profiles)
        };
        build(&trt, &limits)
    };
    for (method, said) in [
        ("setMemoryPoolLimit", "a workspace of 1048576 bytes was not taken"),
        ("setBuilderOptimizationLevel", "optimization level 2 was not taken"),
        ("setMaxAuxStreams", "that it has one stream was not taken"),
    ] {
        for how in [Failure::Error, Failure::Silent] {
            standin.fail(&format!("IBuilderConfig::{method}"), 1, how);
            let error = limited().unwrap_err().to_string();
            assert!(error.contains(said), "{method}: {error}");
            assert_eq!(error.contains("told to fail"), how == Failure::Error, "{error}");
            assert_nothing_is_left(&standin);
        }
    }
    limited().unwrap();
}

/// Every call that can fail, one after another.
fn fail_each_call(standin: &Standin, how: Failure, check: impl Fn(&str, Option<TensorRtError>)) {
    let (_folder, onnx) = decoder();
    let trt = TensorRt::open().unwrap();
    let profiles = [profile("decode", [1, 1, 1])];
    let mut n = 0;
    loop {
        n += 1;
        standin.clear();
        standin.fail_any(n, how);
        let built = build(&trt, &request(&onnx, &profiles));
        let has_failed = standin.has_failed();
        standin.fail_any(0, how);
        let record = standin.record();
        if !has_failed {
            built.unwrap();
            break;
        }
        // All that fails behind the plan is its timing cache, which has a test of its own.
        let is_for_the_cache = built.is_ok() && record.iter().any(|call| call == "ITimingCache::serialize()");
        let error = built.map(drop).err();
        if !is_for_the_cache {
            check(&record.join("\n"), error);
        }
        assert_nothing_is_left(standin);
    }
    assert!(n > 15, "only {} calls failed", n - 1);
}

#[test]
fn whichever_call_fails_there_is_an_error_and_nothing_is_left() {
    let Some(standin) = Standin::load() else { return };
    fail_each_call(&standin, Failure::Error, |record, error| {
        let error = error.unwrap_or_else(|| panic!("an error went unseen in\n{record}"));
        assert!(matches!(error, TensorRtError::Failed { .. }), "{error}");
        assert!(error.to_string().contains("told to fail"), "{error}");
    });
}

#[test]
fn memory_that_runs_out_in_a_build_is_an_error_of_its_own() {
    let Some(standin) = Standin::load() else { return };
    fail_each_call(&standin, Failure::OutOfMemory, |record, error| {
        let error = error.unwrap_or_else(|| panic!("an error went unseen in\n{record}"));
        assert!(matches!(error, TensorRtError::OutOfMemory { .. }), "{error}\nin\n{record}");
        assert!(error.to_string().contains("Requested size was"), "{error}");
    });
}

#[test]
fn calls_that_fail_without_a_word_are_seen_too() {
    let Some(standin) = Standin::load() else { return };
    fail_each_call(&standin, Failure::Silent, |record, error| {
        assert!(matches!(error, Some(TensorRtError::Failed { .. })), "{error:?}\nin\n{record}");
    });
}
