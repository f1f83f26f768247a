//! Tiny checkpoints of every supported family, built and run by the product, against transformers' logits.

use std::{fs, path::Path};

use serde::Deserialize;
use takt_engine::{Engine, EngineOptions, quant::WeightKind, score::score};
use takt_engine_builder::{BuildOptions, build};

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    input_ids: Vec<u32>,
    last_logits_f32: Vec<f32>,
    nll_of_prompt: Option<f64>,
}

/// Largest difference relative to the largest golden logit.
fn relative_error(logits: &[f32], golden: &[f32]) -> f32 {
    assert_eq!(logits.len(), golden.len());
    let largest = golden.iter().fold(0f32, |max, value| max.max(value.abs()));
    logits.iter().zip(golden).fold(0f32, |max, (a, b)| max.max((a - b).abs())) / largest
}

fn check(name: &str) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/families").join(name);
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("engine");
    build(&source, &dir, &BuildOptions::new(WeightKind::Bf16), &mut |_| {}).unwrap();
    let mut engine = Engine::open(&dir, &EngineOptions::default()).unwrap();
    let golden: Golden = serde_json::from_slice(&fs::read(source.join("golden.json")).unwrap()).unwrap();
    for case in golden.cases {
        let found = score(engine.backend.as_mut(), &case.input_ids).unwrap();
        let error = relative_error(&found.last_logits, &case.last_logits_f32);
        println!("{name}, {} tokens: logits off by {error:.1e}", case.input_ids.len());
        assert!(error < 1e-2, "{name}, {} tokens: {error}", case.input_ids.len());
        if let Some(nll) = case.nll_of_prompt {
            let found_nll = found.nll.unwrap();
            assert!((found_nll - nll).abs() < 1e-2, "{name}: nll {found_nll}, expected {nll}");
        }
    }
}

macro_rules! families {
    ($($test:ident: $folder:literal,)*) => { $(#[test] fn $test() { check($folder); })* };
}

families! {
    llama_2_from_shards: "llama2",
    llama_with_biases_everywhere: "llama-biases",
    llama_with_linear_rope_and_an_old_config: "llama-linear",
    llama_with_yarn_and_an_old_config: "llama-yarn",
    llama_3_rope_with_tied_embeddings: "llama3-tied",
    mistral_with_a_sliding_window: "mistral-window",
    mistral_with_wide_heads: "mistral-wide-heads",
    qwen2_with_a_window_on_some_layers: "qwen2-window",
    qwen3_tied_from_shards: "qwen3-tied",
    qwen3_with_yarn: "qwen3-yarn",
}
