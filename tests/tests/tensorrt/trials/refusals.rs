//! What cannot be a plan of this machine is refused with what to do, and what could be runs afterwards as before.

use std::{fs, ops::ControlFlow, path::Path};

use takt_engine::{dir::blake3_hex, quant::WeightKind};
use takt_engine_builder::{
    export::{ExportOptions, export},
    plans::PlanOptions,
};
use takt_tensorrt::{
    TensorRt, TensorRtError, Version,
    build::{PlanFlags, PlanRequest, build_plan},
};

use super::{Ground, demo, entry, record, relabel};

/// An operator that nobody has, as long as the one whose place it takes.
pub const NO_OPERATOR: &str = "NoSuch";
const OPERATOR: &str = "MatMul";
/// At a plan's beginning TensorRT looks for its mark and version.
const HEAD_LEN: usize = 64;

impl Ground {
    /// That the plan of `dir` is refused in words with `parts`.
    #[track_caller]
    pub fn assert_refused(&self, dir: &Path, parts: &[&str]) {
        let said = match self.open(dir, |_| {}) {
            Ok(_) => panic!("it was opened"),
            Err(error) => error.to_string(),
        };
        assert!(parts.iter().all(|part| said.contains(part)), "{parts:?} not in {said}");
    }
}

/// Puts `bytes` in the place of the only plan of an engine, as if they had been built.
fn replace_plan(dir: &Path, bytes: &[u8]) {
    fs::write(dir.join(entry(dir).file), bytes).unwrap();
    relabel(dir, |plan| {
        plan["size_bytes"] = bytes.len().into();
        plan["blake3"] = blake3_hex(bytes).into();
    });
}

/// Plans of other machines, damaged ones, and a model that TensorRT does not take.
pub fn of_bad_input(ground: &Ground) {
    let dir = ground.engine("refused", &demo(), WeightKind::Int4);
    let plans = ground.plans(PlanOptions::default()).unwrap();
    ground.add(&dir, &plans).unwrap();
    let expected = ground.answers(ground.open(&dir, |_| {}).unwrap());
    let own = entry(&dir);
    let bytes = fs::read(dir.join(&own.file)).unwrap();

    let Version { major, minor, .. } = plans.version();
    let here = format!("no plan for TensorRT {major}.{minor} on {}", own.sm);
    let command = "--tensorrt --plans-only` builds one on this machine";
    for (field, value) in [
        ("tensorrt", format!("{major}.{}", minor + 1)),
        ("sm", if own.sm == "sm_87" { "sm_110a".into() } else { "sm_87".into() }),
    ] {
        let before = serde_json::to_value(&own).unwrap();
        relabel(&dir, |plan| plan[field] = value.clone().into());
        ground.assert_refused(&dir, &[&here, "there are plans for", &value, command]);
        relabel(&dir, |plan| *plan = before);
    }

    // Of the size and the hash that the manifest has, and no plan.
    let mut beheaded = bytes.clone();
    beheaded[..HEAD_LEN].iter_mut().for_each(|byte| *byte ^= 0x5a);
    for bad in [&beheaded[..], &bytes[..bytes.len() / 2]] {
        replace_plan(&dir, bad);
        ground.assert_refused(&dir, &["loading the plan failed", "--plans-only` builds the plan again"]);
    }
    // Damaged since.
    replace_plan(&dir, &bytes);
    fs::write(dir.join(entry(&dir).file), &beheaded).unwrap();
    ground.assert_refused(&dir, &["BLAKE3 is ", "--plans-only"]);

    refuses_an_operator(ground, &dir);

    fs::write(dir.join(entry(&dir).file), &bytes).unwrap();
    assert_eq!(ground.answers(ground.open(&dir, |_| {}).unwrap()), expected);
    record("bad input: plans of other machines, damaged plans and an unknown operator are refused");
}

/// That a model with an operator that TensorRT has not becomes an error that names it.
fn refuses_an_operator(ground: &Ground, dir: &Path) {
    let trt = TensorRt::open().unwrap();
    let Version { major, minor, .. } = trt.version();
    let model = ground.path("refused-onnx");
    let target = format!("tensorrt-{major}.{minor}").parse().unwrap();
    let options = ExportOptions { target, max_context: Some(super::CAPACITY), ..ExportOptions::default() };
    let exported = export(dir, &model, &options, &mut |_| {}).unwrap();
    let path = model.join(exported.contract.models[0].file);
    let mut bytes = fs::read(&path).unwrap();
    let places: Vec<usize> = bytes
        .windows(OPERATOR.len())
        .enumerate()
        .filter(|(_, at)| *at == OPERATOR.as_bytes())
        .map(|(at, _)| at)
        .collect();
    assert!(!places.is_empty(), "a decoder multiplies");
    places.iter().for_each(|&at| bytes[at..][..OPERATOR.len()].copy_from_slice(NO_OPERATOR.as_bytes()));
    fs::write(&path, bytes).unwrap();
    let request = PlanRequest {
        onnx: &path,
        profiles: &[],
        flags: PlanFlags::default(),
        workspace_bytes: None,
        optimization_level: None,
        timing_cache: &[],
        stream: None,
    };
    let error = build_plan(&trt, &request, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(error, TensorRtError::Failed { .. }), "{error:?}");
    assert!(error.to_string().contains(NO_OPERATOR), "{error}");
}
