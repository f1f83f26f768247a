//! Verify rounds: every node of a tree gets the logits, bit for bit, that its path alone would have got, and a kept path is as if it had
//! been decoded.

use takt_engine::{
    TokenId,
    backend::Backend,
    engine::{Engine, EngineOptions},
    kv::{KvKind, LaneId},
    step::{LogitsWanted, StepPlan},
};
use takt_node::random::SplitMix64;
use takt_tests::checkpoint::{build_bf16, fixtures};

const TREE: LaneId = LaneId(0);
const PLAIN: LaneId = LaneId(1);

fn open(target: &str, kv: KvKind) -> Engine {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("engine");
    build_bf16(&fixtures().join("hf").join(target), &path).unwrap();
    let options = EngineOptions {
        num_lanes: 40, // as many rows of logits
        lane_capacity: Some(160),
        max_step_tokens: 140,
        kv: Some(kv),
        ..EngineOptions::default()
    };
    Engine::open(&path, &options).unwrap()
}

fn read(backend: &mut dyn Backend, lane: LaneId, tokens: &[TokenId]) -> Vec<f32> {
    let mut plan = StepPlan::default();
    plan.push(lane, tokens, LogitsWanted::Last);
    backend.run_step(&plan).unwrap().last_logits(0).unwrap().to_vec()
}

/// A random tree of `num_nodes` tokens.
fn tree(random: &mut SplitMix64, num_nodes: usize) -> (Vec<TokenId>, Vec<usize>) {
    let tokens = (0..num_nodes).map(|_| random.below(600) as TokenId).collect();
    let parents = (0..num_nodes).map(|node| random.below(node.max(1))).collect();
    (tokens, parents)
}

fn path_to(parents: &[usize], node: usize) -> Vec<usize> {
    let mut path: Vec<usize> =
        std::iter::successors(Some(node), |&node| (node > 0).then(|| parents[node])).collect();
    path.reverse();
    path
}

#[test]
fn every_node_gets_the_logits_of_its_path_alone_bit_for_bit() {
    let mut random = SplitMix64(1);
    for target in ["tiny-llama", "tiny-qwen2", "tiny-qwen3"] {
        for kv in KvKind::ALL {
            let mut engine = open(target, kv);
            let backend = engine.backend.as_mut();
            for (prompt_len, num_nodes) in [(5, 12), (60, 8), (63, 20), (64, 9), (100, 30)] {
                let prompt: Vec<TokenId> = (0..prompt_len).map(|_| random.below(600) as TokenId).collect();
                let (tokens, parents) = tree(&mut random, num_nodes);
                backend.truncate(TREE, 0).unwrap();
                read(backend, TREE, &prompt);
                let mut plan = StepPlan::default();
                plan.push_tree(TREE, &tokens, &parents);
                let output = backend.run_step(&plan).unwrap();
                let logits: Vec<Vec<f32>> = output
                    .segment_logits(0)
                    .unwrap()
                    .chunks(output.vocab_size())
                    .map(<[f32]>::to_vec)
                    .collect();
                assert_eq!(logits.len(), num_nodes);
                assert_eq!(backend.committed_len(TREE), prompt_len, "a tree commits nothing");
                for (node, logits) in logits.iter().enumerate() {
                    backend.truncate(PLAIN, 0).unwrap();
                    read(backend, PLAIN, &prompt);
                    let path: Vec<TokenId> =
                        path_to(&parents, node).iter().map(|&node| tokens[node]).collect();
                    let expected = read(backend, PLAIN, &path);
                    assert!(*logits == expected, "{target} {kv} {prompt_len}: node {node}, path {path:?}");
                }
                // Keep the path to the deepest node: what follows is as if it had been decoded.
                let deepest = (0..num_nodes).max_by_key(|&node| path_to(&parents, node).len()).unwrap();
                let path = path_to(&parents, deepest);
                backend.keep(TREE, &path).unwrap();
                assert_eq!(backend.committed_len(TREE), prompt_len + path.len());
                backend.truncate(PLAIN, 0).unwrap();
                read(backend, PLAIN, &prompt);
                let texts: Vec<TokenId> = path.iter().map(|&node| tokens[node]).collect();
                read(backend, PLAIN, &texts);
                assert!(
                    read(backend, TREE, &[7, 8]) == read(backend, PLAIN, &[7, 8]),
                    "{target} {kv}: after keeping"
                );
            }
        }
    }
}

#[test]
fn trees_run_beside_plain_lanes_without_changing_them() {
    let mut random = SplitMix64(5);
    let mut engine = open("tiny-qwen3", KvKind::Bf16);
    let backend = engine.backend.as_mut();
    let prompt: Vec<TokenId> = (0..70).map(|_| random.below(600) as TokenId).collect();
    read(backend, PLAIN, &prompt);
    let alone = read(backend, PLAIN, &[9]);
    backend.truncate(PLAIN, prompt.len()).unwrap();
    read(backend, TREE, &prompt[..30]);
    let (tokens, parents) = tree(&mut random, 17);
    let mut plan = StepPlan::default();
    plan.push_tree(TREE, &tokens, &parents);
    plan.push(PLAIN, &[9], LogitsWanted::Last);
    let together = backend.run_step(&plan).unwrap().last_logits(1).unwrap().to_vec();
    assert!(together == alone);
    assert_eq!((backend.committed_len(TREE), backend.committed_len(PLAIN)), (30, 71));
}

#[test]
fn what_is_no_tree_and_what_is_no_path_is_refused_and_changes_nothing() {
    let mut engine = open("tiny-llama", KvKind::Bf16);
    let backend = engine.backend.as_mut();
    read(backend, TREE, &[1, 2, 3]);
    let mut refused = |tokens: &[TokenId], parents: &[usize], word: &str| {
        let mut plan = StepPlan::default();
        plan.push_tree(TREE, tokens, parents);
        let error = backend.run_step(&plan).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    };
    refused(&[1, 2], &[0, 1], "node 1 of segment 0 has parent 1");
    refused(&[1, 2], &[1, 0], "node 0 of segment 0 has parent 1");
    refused(&[1, 2], &[0], "1 parents for 2 tokens");
    refused(&[1; 158], &[0; 158], "lane full");
    assert!(backend.keep(TREE, &[0]).unwrap_err().to_string().contains("tree of 0 nodes"));
    let mut plan = StepPlan::default();
    plan.push_tree(TREE, &[4, 5, 6], &[0, 0, 1]);
    backend.run_step(&plan).unwrap();
    for path in [&[][..], &[1], &[0, 2], &[0, 0], &[0, 1, 3]] {
        assert!(backend.keep(TREE, path).unwrap_err().to_string().contains("no path"), "{path:?}");
    }
    assert!(backend.keep(LaneId(9), &[0]).is_err());
    assert_eq!(backend.committed_len(TREE), 3);
    backend.keep(TREE, &[0, 1, 2]).unwrap();
    assert_eq!(backend.committed_len(TREE), 6);
    assert!(backend.keep(TREE, &[0]).is_err(), "kept once");
    // Another step in between: the tree is gone.
    backend.run_step(&plan).unwrap();
    read(backend, TREE, &[1]);
    assert!(backend.keep(TREE, &[0]).is_err());
}
