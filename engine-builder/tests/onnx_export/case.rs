//! What is run on both sides: steps over the lanes of the CPU backend, and its numbers.

use std::{
    fs,
    path::{Path, PathBuf},
};

use safetensors::{Dtype, serialize_to_file, tensor::TensorView};
use serde_json::{Value, json};
use takt_engine::{
    TokenId,
    backend::cpu::ActivationArithmetic,
    dir::EngineDir,
    draft::{DraftPlan, DraftRow, DraftSource as _},
    engine::{Engine, EngineOptions},
    kv::LaneId,
    step::{LogitsWanted, StepPlan},
};
use takt_engine_builder::{BuildOptions, build};

/// `tests/fixtures` of the workspace.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

/// A folder for engines and exports, on the disk of `target`: the system's is in memory on many machines.
pub fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("onnx-export-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// An engine from a checkpoint.
pub fn engine(folder: &Path, source: &Path, options: &BuildOptions<'_>) -> PathBuf {
    let out = folder.join("engine");
    build(source, &out, options, &mut |_| {}).unwrap();
    out
}

/// One lane's share of a step: tokens, of a tree their parents, and the path that is kept of it.
struct Share {
    lane: usize,
    tokens: Vec<TokenId>,
    parents: Vec<usize>,
    keep: Vec<usize>,
}

fn text(lane: usize, tokens: &[TokenId]) -> Share {
    Share { lane, tokens: tokens.to_vec(), parents: Vec::new(), keep: Vec::new() }
}

fn tree(lane: usize, tokens: &[TokenId], parents: &[usize], keep: &[usize]) -> Share {
    Share { lane, tokens: tokens.to_vec(), parents: parents.to_vec(), keep: keep.to_vec() }
}

/// Prefill of one lane, a ragged one of both, decode steps of both and one, and with `trees` a round on each lane with a step after it.
fn steps(trees: bool) -> Vec<Vec<Share>> {
    let mut steps = vec![
        vec![text(0, &[5, 17, 3, 29, 11, 40, 8])],
        vec![text(1, &[12, 7, 31, 2, 19]), text(0, &[23, 4])],
        vec![text(0, &[6]), text(1, &[33])],
        vec![text(1, &[9])],
    ];
    if trees {
        steps.push(vec![
            tree(0, &[10, 21, 34, 22, 1], &[0, 0, 0, 1, 3], &[0, 1, 3]),
            tree(1, &[14, 30, 25], &[0, 0, 0], &[0, 2]),
        ]);
        steps.push(vec![text(1, &[18]), text(0, &[27])]);
        steps.push(vec![tree(0, &[13, 2, 36, 5], &[0, 0, 1, 0], &[0])]);
    }
    steps.push(vec![text(0, &[16, 28, 35]), text(1, &[20])]);
    steps
}

/// Where what a draft head must say comes from.
pub enum Head {
    /// There is none.
    None,
    /// A fixture's golden answers, which are the published definition's.
    Golden(PathBuf),
    /// The CPU backend.
    Cpu,
}

/// Writes `case.json` and `expected.safetensors` for the engine into `folder`.
pub fn write(folder: &Path, engine_dir: &Path, trees: bool, head: &Head) {
    let options = EngineOptions {
        arithmetic: ActivationArithmetic::F32,
        num_lanes: 2,
        lane_capacity: Some(64),
        speculation: false,
        ..EngineOptions::default()
    };
    let mut engine = Engine::open(engine_dir, &options).unwrap();
    let num_layers = engine.backend.spec().num_layers;
    engine.backend.capture(&(0..=num_layers).collect::<Vec<_>>()).unwrap();
    let (mut tensors, mut described) = (Vec::new(), Vec::new());
    for (number, step) in steps(trees).iter().enumerate() {
        run(&mut engine, number, step, &mut tensors);
        described.push(describe(step));
    }
    let case = json!({"num_lanes": 2, "steps": described, "draft": heads(engine_dir, head)});
    fs::write(folder.join("case.json"), case.to_string()).unwrap();
    let views = tensors.iter().map(|(name, shape, bytes): &(String, Vec<usize>, Vec<u8>)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    serialize_to_file(views, None, &folder.join("expected.safetensors")).unwrap();
}

fn run(engine: &mut Engine, number: usize, step: &[Share], tensors: &mut Vec<(String, Vec<usize>, Vec<u8>)>) {
    let mut plan = StepPlan::default();
    for share in step {
        match share.parents.is_empty() {
            true => plan.push(LaneId(share.lane), &share.tokens, LogitsWanted::All),
            false => plan.push_tree(LaneId(share.lane), &share.tokens, &share.parents),
        }
    }
    let output = engine.backend.run_step(&plan).unwrap();
    let (width, mut first) = (output.features().len() / plan.tokens.len(), 0);
    for (place, share) in step.iter().enumerate() {
        let count = share.tokens.len();
        let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let logits = output.segment_logits(place).unwrap();
        let hidden = &output.features()[first * width..(first + count) * width];
        tensors.push((
            format!("{number}.{}.logits", share.lane),
            vec![count, output.vocab_size()],
            bytes(logits),
        ));
        tensors.push((format!("{number}.{}.hidden", share.lane), vec![count, width], bytes(hidden)));
        first += count;
    }
    for share in step.iter().filter(|share| !share.parents.is_empty()) {
        engine.backend.keep(LaneId(share.lane), &share.keep).unwrap();
    }
}

fn describe(step: &[Share]) -> Value {
    let chain = |share: &Share| match share.parents.is_empty() {
        true => (0..share.tokens.len()).map(|node| node.saturating_sub(1)).collect(),
        false => share.parents.clone(),
    };
    json!({
        "lanes": step.iter().map(|share| share.lane).collect::<Vec<_>>(),
        "tokens": step.iter().map(|share| &share.tokens).collect::<Vec<_>>(),
        "parents": step.iter().map(chain).collect::<Vec<Vec<usize>>>(),
        "keep": step.iter().map(|share| (!share.parents.is_empty()).then_some(&share.keep)).collect::<Vec<_>>(),
    })
}

/// What a head must say, with what leads from its tokens to the target's.
fn heads(engine_dir: &Path, head: &Head) -> Value {
    let mut cases = match head {
        Head::None => return json!([]),
        Head::Golden(path) => {
            serde_json::from_slice::<Value>(&fs::read(path).unwrap()).unwrap()["cases"].clone()
        }
        Head::Cpu => json!([drafted(engine_dir, &[5, 17, 3, 29, 11, 40], 8)]),
    };
    let engine = EngineDir::open(engine_dir).unwrap();
    let head = engine.draft().unwrap();
    let (targets, width) = (head.target_tokens().unwrap(), head.manifest().spec.hidden_size);
    for case in cases.as_array_mut().unwrap() {
        let fed: Vec<Value> =
            ["input_ids", "next_token", "draft_logits_last", "chain_5"].map(|key| case[key].clone()).into();
        let [ids, next, logits, chain] = &fed[..] else { panic!() };
        *case = json!({"input_ids": ids, "next_token": next, "draft_logits_last": logits, "chain": chain,
            "hidden_size": width, "target_tokens": targets});
    }
    cases
}

/// What the CPU backend's head proposes after `input_ids` and `next_token`: first logits, and a greedy chain of five.
fn drafted(engine_dir: &Path, input_ids: &[TokenId], next_token: TokenId) -> Value {
    let options = EngineOptions {
        arithmetic: ActivationArithmetic::F32,
        lane_capacity: Some(64),
        ..EngineOptions::default()
    };
    let mut backend = Engine::open(engine_dir, &options).unwrap().backend;
    let mut plan = StepPlan::default();
    plan.push(LaneId(0), input_ids, LogitsWanted::None);
    backend.run_step(&plan).unwrap();
    let (mut logits, mut chain, mut token) = (Vec::new(), Vec::new(), next_token);
    for number in 0..5_usize {
        let rows = vec![DraftRow { lane: LaneId(0), parent: number.checked_sub(1), token }];
        let output = backend.draft(&DraftPlan { rows, top_k: 1, wants_logits: true }).unwrap();
        if number == 0 {
            logits = output.logits.to_vec();
        }
        token = output.row(0).next().unwrap().0;
        chain.push(token);
    }
    json!({"input_ids": input_ids, "next_token": next_token, "draft_logits_last": logits, "chain_5": chain})
}
