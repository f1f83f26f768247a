//! Whole rounds on real models: draft, verify, keep. Greedy output with speculation is greedy output without it, token for token.

use std::{convert::Infallible, path::PathBuf};

use takt_eagle_spec::{
    head::{DraftHead, DraftLane, HeadDrafter},
    lookup::PromptLookup,
    tree::{DraftTree, TreeShape, grow},
    verify::walk,
};
use takt_engine::{
    TokenId,
    backend::Backend,
    dir::EngineDir,
    engine::{Engine, EngineOptions},
    kv::LaneId,
    quant::WeightKind,
    step::{LogitsWanted, StepPlan},
};
use takt_engine_builder::{BuildOptions, build};
use takt_tests::checkpoint::fixtures;

const LANE: LaneId = LaneId(0);
const NUM_TOKENS: usize = 48;
const PROMPTS: [&[TokenId]; 3] = [&[373, 293, 399, 341], &[1, 85, 91, 377, 12, 85, 91], &[5; 30]];

fn open(target: &str, weights: WeightKind) -> (tempfile::TempDir, PathBuf, Engine) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("engine");
    build(&fixtures().join("hf").join(target), &path, &BuildOptions::new(weights), &mut |_| {}).unwrap();
    let options = EngineOptions { num_lanes: 20, lane_capacity: Some(160), ..EngineOptions::default() };
    let engine = Engine::open(&path, &options).unwrap();
    (folder, path, engine)
}

fn argmax(logits: &[f32]) -> TokenId {
    let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a)));
    best.unwrap() as TokenId
}

/// Reads `tokens`, calling `with` with their features; returns the choice after the last.
fn read(backend: &mut dyn Backend, tokens: &[TokenId], mut with: impl FnMut(&[f32])) -> TokenId {
    let mut plan = StepPlan::default();
    plan.push(LANE, tokens, LogitsWanted::Last);
    let output = backend.run_step(&plan).unwrap();
    with(output.features);
    argmax(output.last_logits(0).unwrap())
}

fn plain(backend: &mut dyn Backend, prompt: &[TokenId]) -> Vec<TokenId> {
    backend.truncate(LANE, 0).unwrap();
    let mut answer = vec![read(backend, prompt, |_| {})];
    while answer.len() < NUM_TOKENS {
        let last = *answer.last().unwrap();
        answer.push(read(backend, &[last], |_| {}));
    }
    answer
}

/// What a round brings: the accepted nodes, the root included, and the target's token after them.
struct Accepted {
    path: Vec<usize>,
    next: TokenId,
}

/// Verifies `tree` and keeps what is accepted; `with` gets the features of every node.
fn round(backend: &mut dyn Backend, tree: &DraftTree, mut with: impl FnMut(&[f32])) -> Accepted {
    let mut plan = StepPlan::default();
    plan.push_tree(LANE, &tree.tokens, &tree.parents);
    let output = backend.run_step(&plan).unwrap();
    with(output.features);
    let logits = output.segment_logits(0).unwrap();
    let choose = |node: usize| {
        Ok::<_, Infallible>(Some(argmax(&logits[node * output.vocab_size..][..output.vocab_size])))
    };
    let mut path = Vec::new();
    let next = walk(tree, choose, &mut path).unwrap().unwrap();
    let accepted = Accepted { path, next };
    backend.keep(LANE, &accepted.path).unwrap();
    accepted
}

fn answer_of(accepted: &Accepted, tree: &DraftTree, answer: &mut Vec<TokenId>) {
    answer.extend(accepted.path[1..].iter().map(|&node| tree.tokens[node]));
    answer.push(accepted.next);
}

/// Speculates with the head; returns the answer and the rounds it took.
fn with_head(
    backend: &mut dyn Backend,
    head: &DraftHead,
    dir: &EngineDir,
    prompt: &[TokenId],
    shape: TreeShape,
) -> (Vec<TokenId>, usize) {
    backend.truncate(LANE, 0).unwrap();
    let (mut lane, mut features) = (DraftLane::default(), Vec::new());
    let first = read(backend, prompt, |found| features.extend_from_slice(found));
    let following: Vec<TokenId> = prompt[1..].iter().copied().chain([first]).collect();
    head.extend(&mut lane, &features, &following, dir).unwrap();
    let (mut answer, mut num_rounds) = (vec![first], 0);
    while answer.len() < NUM_TOKENS {
        let root = *answer.last().unwrap();
        let tree = grow(&mut HeadDrafter::new(head, &mut lane, dir), root, shape).unwrap();
        features.clear();
        let accepted = round(backend, &tree, |found| features.extend_from_slice(found));
        let width = features.len() / tree.len();
        let kept: Vec<f32> = accepted
            .path
            .iter()
            .flat_map(|&node| features[node * width..][..width].iter().copied())
            .collect();
        let before = answer.len();
        answer_of(&accepted, &tree, &mut answer);
        head.extend(&mut lane, &kept, &answer[before..], dir).unwrap();
        assert_eq!(
            lane.committed_len(),
            backend.committed_len(LANE),
            "one draft row for each token of the target"
        );
        num_rounds += 1;
    }
    answer.truncate(NUM_TOKENS);
    (answer, num_rounds)
}

fn with_lookup(backend: &mut dyn Backend, prompt: &[TokenId], shape: TreeShape) -> (Vec<TokenId>, usize) {
    backend.truncate(LANE, 0).unwrap();
    let mut answer = vec![read(backend, prompt, |_| {})];
    let (mut num_rounds, mut lookup) = (0, PromptLookup::new(1));
    while answer.len() < NUM_TOKENS {
        let history: Vec<TokenId> = prompt.iter().chain(&answer).copied().collect();
        let root = *answer.last().unwrap();
        let tree = grow(&mut lookup.over(&[history]), root, shape).unwrap();
        let accepted = round(backend, &tree, |_| {});
        answer_of(&accepted, &tree, &mut answer);
        num_rounds += 1;
    }
    answer.truncate(NUM_TOKENS);
    (answer, num_rounds)
}

#[test]
fn greedy_output_with_any_drafter_and_tree_is_the_plain_one_in_every_weight_format() {
    let shapes = [
        TreeShape::chain(1),
        TreeShape::chain(5),
        TreeShape { top_k: 4, num_levels: 5, num_nodes: 16 },
        TreeShape { top_k: 3, num_levels: 2, num_nodes: 8 },
    ];
    let mut num_saved = 0;
    for (target, head) in [("tiny-llama", "tiny-llama-midlayer"), ("tiny-qwen3", "tiny-qwen3-layers")] {
        let head = DraftHead::open(&fixtures().join("eagle3").join(head)).unwrap();
        for weights in [WeightKind::Bf16, WeightKind::Fp8, WeightKind::Nvfp4, WeightKind::Int4] {
            let (_folder, path, mut engine) = open(target, weights);
            let dir = EngineDir::open(&path).unwrap();
            let num_layers = engine.backend.spec().num_layers;
            engine.backend.capture(&head.config().captured(num_layers).unwrap()).unwrap();
            let backend = engine.backend.as_mut();
            for prompt in PROMPTS {
                let expected = plain(backend, prompt);
                for shape in shapes {
                    let (found, _) = with_head(backend, &head, &dir, prompt, shape);
                    assert_eq!(found, expected, "{target} {weights} {shape:?}");
                    let (found, num_rounds) = with_lookup(backend, prompt, shape);
                    assert_eq!(found, expected, "{target} {weights} {shape:?}, looked up");
                    num_saved += NUM_TOKENS - 1 - num_rounds.min(NUM_TOKENS - 1);
                }
            }
        }
    }
    // Random models fall into loops, which a look at what was said before predicts.
    assert!(num_saved > 100, "{num_saved} steps saved by prompt lookup");
}
