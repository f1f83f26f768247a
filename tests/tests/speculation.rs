//! Whole rounds on real models: draft, verify, keep. Greedy output with speculation is greedy output without it, token for token.

use std::path::{Path, PathBuf};

use takt_eagle_spec::tree::TreeShape;
use takt_engine::{
    TokenId,
    engine::{Engine, EngineOptions},
    quant::WeightKind,
    sequence::SequenceOptions,
    text::Text,
};
use takt_engine_builder::{BuildOptions, build, draft::DraftOptions};
use takt_tests::{
    checkpoint::fixtures,
    heldout,
    speculated::{Method, answer},
};

const ALL_KINDS: [WeightKind; 4] = [WeightKind::Bf16, WeightKind::Fp8, WeightKind::Nvfp4, WeightKind::Int4];
const PROMPTS: [&[TokenId]; 3] = [&[373, 293, 399, 341], &[1, 85, 91, 377, 12, 85, 91], &[5; 30]];

/// The target with the head, in one format.
fn open(target: &Path, head: &Path, weights: WeightKind) -> (tempfile::TempDir, Engine) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("engine");
    let draft = Some(DraftOptions { folder: head, prompts: None, measures: false });
    let options = BuildOptions { draft, ..BuildOptions::new(weights) };
    build(target, &path, &options, &mut |_| {}).unwrap();
    let options = EngineOptions { lane_capacity: Some(256), ..EngineOptions::default() };
    let engine = Engine::open(&path, &options).unwrap();
    (folder, engine)
}

#[test]
fn greedy_output_with_any_drafter_and_tree_is_the_plain_one_in_every_weight_format() {
    let shapes = [
        TreeShape::chain(1),
        TreeShape::chain(5),
        TreeShape { top_k: 4, num_levels: 5, num_nodes: 16 },
        TreeShape { top_k: 3, num_levels: 2, num_nodes: 8 },
    ];
    let options = SequenceOptions { max_tokens: Some(48), ..SequenceOptions::default() };
    let mut num_saved = 0;
    for (target, head) in [("tiny-llama", "tiny-llama-midlayer"), ("tiny-qwen3", "tiny-qwen3-layers")] {
        for weights in ALL_KINDS {
            let (target, head) = (fixtures().join("hf").join(target), fixtures().join("eagle3").join(head));
            let (_folder, mut engine) = open(&target, &head, weights);
            let backend = engine.backend.as_mut();
            for prompt in PROMPTS {
                let plain = answer(backend, prompt, &options, Method::Plain).unwrap();
                for shape in shapes {
                    let found = answer(backend, prompt, &options, Method::Head(shape)).unwrap();
                    assert_eq!(found.tokens, plain.tokens, "{} {weights} {shape:?}", target.display());
                    let found = answer(backend, prompt, &options, Method::Lookup(shape)).unwrap();
                    assert_eq!(
                        found.tokens,
                        plain.tokens,
                        "{} {weights} {shape:?}, looked up",
                        target.display()
                    );
                    num_saved += plain.num_rounds - found.num_rounds;
                }
            }
        }
    }
    // Random models fall into loops, which a look at what was said before predicts.
    assert!(num_saved > 100, "{num_saved} steps saved by prompt lookup");
}

/// The whole held-out set is what the example `speculation` runs.
#[test]
fn the_demo_models_head_saves_most_steps_and_changes_no_answer_in_any_weight_format() {
    let model: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/takt-demo");
    let lines = heldout::read(&model.join("eval/heldout.jsonl"), 100).unwrap();
    for weights in ALL_KINDS {
        let (folder, mut engine) = open(&model, &model.join("eagle3"), weights);
        let text = Text::open(&folder.path().join("engine")).unwrap().unwrap();
        let options = SequenceOptions {
            max_tokens: Some(48),
            eos_token_ids: engine.manifest.eos_token_ids.clone(),
            ..SequenceOptions::default()
        };
        let (mut rounds, mut accepted) = (0, 0);
        for line in &lines {
            let prompt = heldout::prompt(&text, line).unwrap();
            let backend = engine.backend.as_mut();
            let plain = answer(backend, &prompt, &options, Method::Plain).unwrap();
            for shape in [TreeShape::chain(7), TreeShape { top_k: 3, num_levels: 7, num_nodes: 20 }] {
                let found = answer(backend, &prompt, &options, Method::Head(shape)).unwrap();
                assert_eq!(found.tokens, plain.tokens, "{weights} {shape:?}: {}", line.user);
                (rounds, accepted) = (rounds + found.num_rounds, accepted + found.num_accepted);
            }
        }
        let accept_len = 1.0 + accepted as f64 / rounds as f64;
        assert!(accept_len > 4.0, "{weights}: {accept_len}");
    }
}
