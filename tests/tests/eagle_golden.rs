//! EAGLE-3 heads against the reference's own numbers: fused features, draft logits, a chain, a dynamic tree.

use std::{path::PathBuf, sync::LazyLock};

use serde_json::Value;
use takt_eagle_spec::{
    head::{DraftHead, DraftLane, HeadDrafter},
    tree::{DraftTree, Drafter, Frontier, Proposals, TreeShape, grow},
};
use takt_engine::{
    TokenId,
    backend::cpu::ActivationArithmetic,
    dir::EngineDir,
    engine::{Engine, EngineOptions},
    kv::LaneId,
    step::{LogitsWanted, StepPlan},
};
use takt_tests::checkpoint::{build_bf16, fixtures};

const HEADS: [(&str, &str); 2] =
    [("tiny-llama-midlayer", "hf/tiny-llama"), ("tiny-qwen3-layers", "hf/tiny-qwen3")];

/// The targets as engines, built once for all tests.
static ENGINES: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("hf")).unwrap();
    for (_, target) in HEADS {
        build_bf16(&fixture(target), &folder.path().join(target)).unwrap();
    }
    folder
});

fn fixture(name: &str) -> PathBuf {
    fixtures().join(name)
}

fn golden(head: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(&format!("eagle3/{head}/golden.json"))).unwrap()).unwrap()
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|value| value.as_f64().unwrap() as f32).collect()
}

fn tokens(value: &Value) -> Vec<TokenId> {
    value.as_array().unwrap().iter().map(|value| u32::try_from(value.as_u64().unwrap()).unwrap()).collect()
}

fn relative_error(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|value| value * value).sum::<f32>().sqrt();
    norm(&mut found.iter().zip(expected).map(|(a, b)| a - b)) / norm(&mut expected.iter().copied())
}

/// A target, its head, and the head's lane after reading `input_ids` and the token after them.
struct Read {
    head: DraftHead,
    lane: DraftLane,
    dir: EngineDir,
    features: Vec<f32>,
}

fn read(head: &str, target: &str, case: &Value, slice_len: usize) -> Read {
    let path = ENGINES.path().join(target);
    let options = EngineOptions { arithmetic: ActivationArithmetic::F32, ..EngineOptions::default() };
    let mut engine = Engine::open(&path, &options).unwrap();
    let head = DraftHead::open(&fixture(&format!("eagle3/{head}"))).unwrap();
    let num_layers = engine.backend.spec().num_layers;
    engine.backend.capture(&head.config().captured(num_layers).unwrap()).unwrap();
    let dir = EngineDir::open(&path).unwrap();
    let input_ids = tokens(&case["input_ids"]);
    let mut following = input_ids[1..].to_vec();
    following.push(u32::try_from(case["next_token"].as_u64().unwrap()).unwrap());
    let (mut lane, mut features) = (DraftLane::default(), Vec::new());
    for (slice, following) in input_ids.chunks(slice_len).zip(following.chunks(slice_len)) {
        let mut plan = StepPlan::default();
        plan.push(LaneId(0), slice, LogitsWanted::None);
        let output = engine.backend.run_step(&plan).unwrap();
        head.extend(&mut lane, output.features, following, &dir).unwrap();
        features.extend_from_slice(output.features);
    }
    Read { head, lane, dir, features }
}

#[test]
fn captured_layers_are_those_of_the_reference() {
    for (head, target) in HEADS {
        let config: Value =
            serde_json::from_slice(&std::fs::read(fixture(&format!("{target}/config.json"))).unwrap())
                .unwrap();
        let num_layers = usize::try_from(config["num_hidden_layers"].as_u64().unwrap()).unwrap();
        let found = DraftHead::open(&fixture(&format!("eagle3/{head}")))
            .unwrap()
            .config()
            .captured(num_layers)
            .unwrap();
        assert_eq!(serde_json::json!(found), golden(head)["capture_layer_inputs"], "{head}");
    }
}

#[test]
fn fused_features_and_draft_logits_are_the_references_however_the_prompt_is_sliced() {
    for (head, target) in HEADS {
        for case in golden(head)["cases"].as_array().unwrap() {
            for slice_len in [1, 3, 64] {
                let read = read(head, target, case, slice_len);
                let last = read.features.len() - read.features.len() / tokens(&case["input_ids"]).len();
                let fused = read.head.fuse(&read.features[last..]).unwrap();
                let error = relative_error(&fused, &floats(&case["fused_last"]));
                assert!(error < 1e-3, "{head}: fused {error:e}");
                let logits = read.head.tip_logits(&read.lane);
                let error = relative_error(&logits, &floats(&case["draft_logits_last"]));
                assert!(error < 2e-3, "{head}: logits {error:e}");
            }
        }
    }
}

#[test]
fn chains_are_the_references() {
    for (head, target) in HEADS {
        for case in golden(head)["cases"].as_array().unwrap() {
            let mut read = read(head, target, case, 64);
            let root = u32::try_from(case["next_token"].as_u64().unwrap()).unwrap();
            let mut drafter = HeadDrafter::new(&read.head, &mut read.lane, &read.dir);
            let tree = grow(&mut drafter, root, TreeShape::chain(5)).unwrap();
            assert_eq!(tree.tokens[1..], tokens(&case["chain_5"]), "{head}");
        }
    }
}

fn reference_tree(case: &Value) -> DraftTree {
    let expected = &case["tree"];
    let indices = |name: &str| -> Vec<usize> {
        let values = expected[name].as_array().unwrap().iter();
        values.map(|value| usize::try_from(value.as_i64().unwrap().max(0)).unwrap()).collect()
    };
    DraftTree {
        tokens: tokens(&expected["tokens"]),
        parents: indices("parents"),
        depths: indices("depths"),
        cumulative_log_probs: floats(&expected["cumulative_log_prob"]),
        num_certain: 1,
    }
}

#[test]
fn trees_are_the_references_and_drafting_leaves_the_lane_as_it_was() {
    for (head, target) in HEADS {
        let golden = golden(head);
        let parameter =
            |name: &str| usize::try_from(golden["tree_parameters"][name].as_u64().unwrap()).unwrap();
        let shape = TreeShape {
            top_k: parameter("top_k"),
            num_levels: 1 + parameter("levels_after_first"),
            num_nodes: parameter("total_nodes_with_root"),
        };
        for case in golden["cases"].as_array().unwrap() {
            let mut read = read(head, target, case, 64);
            let root = u32::try_from(case["next_token"].as_u64().unwrap()).unwrap();
            let before = read.head.tip_logits(&read.lane);
            let mut grown = || {
                let mut drafter = HeadDrafter::new(&read.head, &mut read.lane, &read.dir);
                grow(&mut drafter, root, shape).unwrap()
            };
            let tree = grown();
            let expected = reference_tree(case);
            assert_eq!(
                (&tree.tokens, &tree.parents, &tree.depths),
                (&expected.tokens, &expected.parents, &expected.depths),
                "{head}"
            );
            for (found, expected) in tree.cumulative_log_probs.iter().zip(&expected.cumulative_log_probs) {
                assert!((found - expected).abs() < 1e-2, "{head}: {found} {expected}");
            }
            assert_eq!(grown(), tree, "again");
            assert_eq!(read.head.tip_logits(&read.lane), before);
        }
    }
}

#[test]
fn a_lane_that_was_cut_back_reads_on_as_if_nothing_had_been() {
    let (head, target) = HEADS[0];
    let case = &golden(head)["cases"][0];
    let mut read = read(head, target, case, 64);
    let expected = read.head.tip_logits(&read.lane);
    let input_ids = tokens(&case["input_ids"]);
    let width = read.features.len() / input_ids.len();
    let root = u32::try_from(case["next_token"].as_u64().unwrap()).unwrap();
    read.head.truncate(&mut read.lane, input_ids.len() - 2).unwrap();
    let start = Frontier { slot: 0, node: 0, parent: 0, token: root, depth: 0 };
    let mut proposals = Proposals::default();
    let refused =
        HeadDrafter::new(&read.head, &mut read.lane, &read.dir).propose(&[start], 1, &mut proposals);
    assert!(refused.unwrap_err().to_string().contains("has read the last"));
    let features = &read.features[(input_ids.len() - 2) * width..];
    let following = [input_ids[input_ids.len() - 1], root];
    read.head.extend(&mut read.lane, features, &following, &read.dir).unwrap();
    assert_eq!(read.head.tip_logits(&read.lane), expected);
    assert!(read.head.truncate(&mut read.lane, 99).is_err());
    assert!(read.head.extend(&mut read.lane, features, &following[..1], &read.dir).is_err());
    let orphan = Frontier { slot: 0, node: 3, parent: 2, token: 1, depth: 2 };
    let mut drafter = HeadDrafter::new(&read.head, &mut read.lane, &read.dir);
    let error = drafter.propose(&[orphan], 1, &mut proposals).unwrap_err();
    assert!(error.to_string().contains("was not expanded"), "{error}");
}
