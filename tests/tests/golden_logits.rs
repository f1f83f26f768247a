//! Logits, likelihoods and greedy tokens of the Hugging Face fixtures against transformers' own.

use std::{collections::HashMap, fs, path::PathBuf};

use serde::Deserialize;
use takt_engine::{
    TokenId,
    backend::{
        Backend,
        cpu::{ActivationArithmetic, CpuBackend},
    },
    kv::{KvKind, LaneId},
    quant::WeightKind,
    score::score,
    spec::{DecoderSpec, RopePairing, RopeSpec},
    step::{LogitsWanted, StepPlan},
};
use takt_tests::{
    backends::{argmax, open, options, relative_errors},
    memory_weights::MemoryWeights,
};

const MODELS: [&str; 3] = ["tiny-llama", "tiny-qwen2", "tiny-qwen3"];
/// Relative error of F32 arithmetic over the 16-bit cache, a hundredth of what the project promises (2e-2); measured at most
/// 2e-4 (2026-11-21).
const CLOSE: f64 = 1e-3;
/// 8-bit activations, L2; measured at most 7e-2.
const INT8_ACTIVATIONS: f64 = 0.15;
/// A greedy choice by less than this may go either way.
const SMALL_MARGIN: f64 = 1e-2;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    input_ids: Vec<TokenId>,
    last_logits_f32: Vec<f64>,
    #[serde(default)]
    greedy_48: Vec<TokenId>,
    #[serde(default)]
    greedy_margins: Vec<f64>,
    #[serde(default)]
    nll_of_prompt: f64,
}

fn folder(model: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/hf").join(model)
}

fn golden(model: &str, file: &str) -> Vec<Case> {
    let text = fs::read(folder(model).join(file)).unwrap();
    serde_json::from_slice::<Golden>(&text).unwrap().cases
}

fn spec(model: &str) -> DecoderSpec {
    let c: serde_json::Value =
        serde_json::from_slice(&fs::read(folder(model).join("config.json")).unwrap()).unwrap();
    let n = |k: &str| c[k].as_u64().unwrap() as usize;
    let head_dim = c["head_dim"].as_u64().map_or(n("hidden_size") / n("num_attention_heads"), |d| d as usize);
    let r = &c["rope_parameters"];
    let theta = r["rope_theta"].as_f64().unwrap() as f32;
    let mut inv_freq: Vec<f32> =
        (0..head_dim / 2).map(|i| 1.0 / theta.powf((2 * i) as f32 / head_dim as f32)).collect();
    if r["rope_type"] == "llama3" {
        let f = |k: &str| r[k].as_f64().unwrap() as f32;
        let (factor, low, high, old) =
            (f("factor"), f("low_freq_factor"), f("high_freq_factor"), f("original_max_position_embeddings"));
        for v in &mut inv_freq {
            let wavelen = 2.0 * std::f32::consts::PI / *v;
            if wavelen > old / low {
                *v /= factor;
            } else if wavelen >= old / high {
                let smooth = (old / wavelen - low) / (high - low);
                *v = (1.0 - smooth) * *v / factor + smooth * *v;
            }
        }
    }
    DecoderSpec {
        family: c["model_type"].as_str().unwrap().into(),
        num_layers: n("num_hidden_layers"),
        hidden_size: n("hidden_size"),
        intermediate_size: n("intermediate_size"),
        num_q_heads: n("num_attention_heads"),
        num_kv_heads: n("num_key_value_heads"),
        head_dim,
        vocab_size: n("vocab_size"),
        max_context: n("max_position_embeddings"),
        norm_eps: c["rms_norm_eps"].as_f64().unwrap() as f32,
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        rope: RopeSpec {
            theta: theta.into(),
            scaling: "default".into(),
            inv_freq,
            attention_factor: 1.0,
            pairing: RopePairing::Half,
        },
        qk_norm: model == "tiny-qwen3",
        qkv_bias: model == "tiny-qwen2",
        o_bias: false,
        mlp_bias: false,
        tied_embeddings: c["tie_word_embeddings"].as_bool().unwrap(),
        windows: vec![],
    }
}

fn backend(model: &str, weights: WeightKind, kv: KvKind, arithmetic: ActivationArithmetic) -> CpuBackend {
    let bytes = fs::read(folder(model).join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensors: HashMap<String, Vec<f32>> = file
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            (name, view.data().chunks(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect())
        })
        .collect();
    let spec = spec(model);
    let source = MemoryWeights::new(&spec, weights, WeightKind::Bf16, |name, _| tensors[name].clone());
    open(&spec, &source, &options(kv, arithmetic))
}

/// Worst `(max, L2)` relative error over the cases of one golden file.
fn worst_errors(backend: &mut dyn Backend, cases: &[Case]) -> (f64, f64) {
    let errors = cases.iter().map(|case| {
        let found = score(backend, &case.input_ids).unwrap();
        relative_errors(&found.last_logits, &case.last_logits_f32)
    });
    errors.fold((0.0, 0.0), |worst, error| (f64::max(worst.0, error.0), f64::max(worst.1, error.1)))
}

#[test]
fn bf16_logits_and_likelihoods_match_transformers() {
    for model in MODELS {
        let cases = golden(model, "golden.json");
        let mut backend = backend(model, WeightKind::Bf16, KvKind::Bf16, ActivationArithmetic::F32);
        let (max, l2) = worst_errors(&mut backend, &cases);
        let nll = cases.iter().filter(|case| case.input_ids.len() > 1).map(|case| {
            (score(&mut backend, &case.input_ids).unwrap().nll.unwrap() - case.nll_of_prompt).abs()
        });
        let nll = nll.fold(0.0, f64::max);
        println!("{model} bf16: max {max:.2e}, L2 {l2:.2e}, nll off by {nll:.2e}");
        assert!(max < CLOSE && l2 < CLOSE, "{model}: max {max:.2e}, L2 {l2:.2e}");
        assert!(nll < CLOSE, "{model}: nll off by {nll:.2e}");
    }
}

#[test]
fn greedy_tokens_match_transformers_up_to_the_first_small_margin() {
    for model in MODELS {
        let mut backend = backend(model, WeightKind::Bf16, KvKind::Bf16, ActivationArithmetic::F32);
        for (case_idx, case) in golden(model, "golden.json").iter().enumerate() {
            let sure = case.greedy_margins.iter().position(|&margin| margin < SMALL_MARGIN);
            let sure = sure.unwrap_or(case.greedy_48.len());
            let found = greedy(&mut backend, &case.input_ids, case.greedy_48.len());
            let same = found.iter().zip(&case.greedy_48).take_while(|(a, b)| a == b).count();
            println!("{model} case {case_idx}: {same} of {} greedy tokens equal, {sure} sure", found.len());
            assert!(
                same >= sure,
                "{model} case {case_idx}: token {same} differs before the first small margin at {sure}"
            );
        }
    }
}

fn greedy(backend: &mut dyn Backend, prompt: &[TokenId], len: usize) -> Vec<TokenId> {
    let lane = LaneId(1);
    backend.truncate(lane, 0).unwrap();
    let mut next = prompt.to_vec();
    let mut plan = StepPlan::default();
    (0..len)
        .map(|_| {
            plan.clear();
            plan.push(lane, &next, LogitsWanted::Last);
            let token = argmax(backend.run_step(&plan).unwrap().last_logits(0).unwrap());
            next = vec![token];
            token
        })
        .collect()
}

#[test]
fn nvfp4_logits_match_transformers_on_the_dequantized_weights() {
    for model in MODELS {
        let cases = golden(model, "golden_nvfp4.json");
        let error = |arithmetic| {
            worst_errors(&mut backend(model, WeightKind::Nvfp4, KvKind::Bf16, arithmetic), &cases)
        };
        let (max, l2) = error(ActivationArithmetic::F32);
        let (int8_max, int8_l2) = error(ActivationArithmetic::Int8);
        println!("{model} nvfp4: f32 max {max:.2e}, L2 {l2:.2e}; int8 max {int8_max:.2e}, L2 {int8_l2:.2e}");
        assert!(max < CLOSE && l2 < CLOSE, "{model}: max {max:.2e}, L2 {l2:.2e}");
        assert!(int8_l2 < INT8_ACTIVATIONS, "{model} int8: L2 {int8_l2:.2e}");
    }
}

#[test]
fn eight_bit_caches_stay_near_the_bf16_cache() {
    for (kv, bound) in [(KvKind::Fp8, 0.25), (KvKind::Int8, 0.08)] {
        for model in MODELS {
            let mut backend = backend(model, WeightKind::Bf16, kv, ActivationArithmetic::F32);
            let (max, l2) = worst_errors(&mut backend, &golden(model, "golden.json"));
            println!("{model} {kv} cache: max {max:.2e}, L2 {l2:.2e}");
            assert!(l2 < bound, "{model} {kv}: L2 {l2:.2e}, at most {bound}");
        }
    }
}
