//! Whole rounds on real models: draft, verify, keep. Greedy output with speculation is greedy output without it, token for token.

use std::convert::Infallible;

use takt_eagle_spec::{
    drafter::HeadDrafter,
    lookup::PromptLookup,
    tree::{DraftTree, TreeShape, grow},
    verify::walk,
};
use takt_engine::{
    TokenId,
    backend::Backend,
    engine::{Engine, EngineOptions},
    kv::LaneId,
    quant::WeightKind,
    step::{LogitsWanted, StepPlan},
};
use takt_engine_builder::{BuildOptions, build, draft::DraftOptions};
use takt_tests::checkpoint::fixtures;

const LANE: LaneId = LaneId(0);
const NUM_TOKENS: usize = 48;
const PROMPTS: [&[TokenId]; 3] = [&[373, 293, 399, 341], &[1, 85, 91, 377, 12, 85, 91], &[5; 30]];

/// The target with the head, in one format.
fn open(target: &str, head: &str, weights: WeightKind) -> (tempfile::TempDir, Engine) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("engine");
    let head = fixtures().join("eagle3").join(head);
    let draft = Some(DraftOptions { folder: &head, prompts: None, measures: false });
    let options = BuildOptions { draft, ..BuildOptions::new(weights) };
    build(&fixtures().join("hf").join(target), &path, &options, &mut |_| {}).unwrap();
    let options = EngineOptions { lane_capacity: Some(160), ..EngineOptions::default() };
    let engine = Engine::open(&path, &options).unwrap();
    (folder, engine)
}

fn argmax(logits: &[f32]) -> TokenId {
    let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a)));
    best.unwrap() as TokenId
}

/// Reads `tokens`; returns the choice after the last.
fn read(backend: &mut dyn Backend, tokens: &[TokenId]) -> TokenId {
    let mut plan = StepPlan::default();
    plan.push(LANE, tokens, LogitsWanted::Last);
    let output = backend.run_step(&plan).unwrap();
    argmax(output.last_logits(0).unwrap())
}

fn plain(backend: &mut dyn Backend, prompt: &[TokenId]) -> Vec<TokenId> {
    backend.truncate(LANE, 0).unwrap();
    let mut answer = vec![read(backend, prompt)];
    while answer.len() < NUM_TOKENS {
        let last = *answer.last().unwrap();
        answer.push(read(backend, &[last]));
    }
    answer
}

/// What a round brings: the accepted nodes, the root included, and the target's token after them.
struct Accepted {
    path: Vec<usize>,
    next: TokenId,
}

/// Verifies `tree` and keeps what is accepted.
fn round(backend: &mut dyn Backend, tree: &DraftTree) -> Accepted {
    let mut plan = StepPlan::default();
    plan.push_tree(LANE, &tree.tokens, &tree.parents);
    let output = backend.run_step(&plan).unwrap();
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

/// Speculates with the engine's head; returns the answer and the rounds it took.
fn with_head(backend: &mut dyn Backend, prompt: &[TokenId], shape: TreeShape) -> (Vec<TokenId>, usize) {
    backend.truncate(LANE, 0).unwrap();
    let mut answer = vec![read(backend, prompt)];
    let mut num_rounds = 0;
    while answer.len() < NUM_TOKENS {
        let root = *answer.last().unwrap();
        let tree = grow(&mut HeadDrafter::new(backend, &[LANE]), root, shape).unwrap();
        let accepted = round(backend, &tree);
        answer_of(&accepted, &tree, &mut answer);
        num_rounds += 1;
    }
    answer.truncate(NUM_TOKENS);
    (answer, num_rounds)
}

fn with_lookup(backend: &mut dyn Backend, prompt: &[TokenId], shape: TreeShape) -> (Vec<TokenId>, usize) {
    backend.truncate(LANE, 0).unwrap();
    let mut answer = vec![read(backend, prompt)];
    let (mut num_rounds, mut lookup) = (0, PromptLookup::new(1));
    while answer.len() < NUM_TOKENS {
        let history: Vec<TokenId> = prompt.iter().chain(&answer).copied().collect();
        let root = *answer.last().unwrap();
        let tree = grow(&mut lookup.over(&[history]), root, shape).unwrap();
        let accepted = round(backend, &tree);
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
        for weights in [WeightKind::Bf16, WeightKind::Fp8, WeightKind::Nvfp4, WeightKind::Int4] {
            let (_folder, mut engine) = open(target, head, weights);
            let backend = engine.backend.as_mut();
            for prompt in PROMPTS {
                let expected = plain(backend, prompt);
                for shape in shapes {
                    let (found, _) = with_head(backend, prompt, shape);
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
