//! Logits of ONNX exports, built and opened as `takt build` and `takt score` do, against transformers and onnxruntime.

use std::{fs, path::PathBuf};

use serde::Deserialize;
use takt_engine::{
    Engine, EngineOptions, TokenId, backend::cpu::ActivationArithmetic, kv::KvKind, quant::WeightKind,
    score::score,
};
use takt_engine_builder::{BuildOptions, build};
use takt_tests::backends::relative_errors;

/// What the project promises for bf16.
const PROMISED: f64 = 2e-2;
/// Exports of bf16 checkpoints lose nothing on the way.
const LOSSLESS: f64 = 1e-3;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    input_ids: Vec<TokenId>,
    last_logits_f32: Vec<f64>,
}

fn assert_logits(model: &str, golden: &str, bound: f64) {
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let golden: Golden = serde_json::from_slice(&fs::read(fixtures.join(golden)).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("engine");
    let options = BuildOptions { kv: Some(KvKind::Bf16), ..BuildOptions::new(WeightKind::Bf16) };
    build(&fixtures.join("onnx").join(model), &out, &options, &mut |_| ()).unwrap();
    let options =
        EngineOptions { threads: Some(2), arithmetic: ActivationArithmetic::F32, ..EngineOptions::default() };
    let mut backend = Engine::open(&out, &options).unwrap().backend;
    for case in &golden.cases {
        let found = score(&mut *backend, &case.input_ids).unwrap().last_logits;
        let (max, l2) = relative_errors(&found, &case.last_logits_f32);
        println!("{model}, {} tokens: max {max:.2e}, L2 {l2:.2e}", case.input_ids.len());
        assert!(max < bound && l2 < bound, "{model}: max {max:.2e}, L2 {l2:.2e}");
    }
}

#[test]
fn exports_of_the_checkpoints_give_transformers_logits() {
    assert_logits("tiny-llama-ortgenai-fp32", "hf/tiny-llama/golden.json", LOSSLESS);
    assert_logits("tiny-llama-torch-opset18.onnx", "hf/tiny-llama/golden.json", LOSSLESS);
    assert_logits("tiny-qwen3-torch-opset23.onnx", "hf/tiny-qwen3/golden.json", LOSSLESS);
}

#[test]
fn an_int4_export_gives_onnxruntimes_logits() {
    assert_logits("tiny-qwen2-ortgenai-int4", "onnx/golden_int4.json", PROMISED);
}

#[test]
fn a_sliding_window_hidden_in_a_mask_is_found() {
    let model = "mini-mistral-window20-torch-opset18";
    assert_logits(&format!("{model}.onnx"), &format!("onnx/{model}.golden.json"), PROMISED);
}

#[test]
fn exports_with_a_cache_give_onnxruntimes_logits() {
    for model in ["mini-qwen3-cache-torch-opset23", "mini-llama-cache-torchscript-opset17"] {
        assert_logits(&format!("{model}.onnx"), &format!("onnx/{model}.golden.json"), PROMISED);
    }
}
