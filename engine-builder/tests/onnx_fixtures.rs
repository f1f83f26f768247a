//! Public exporters' ONNX files against the Hugging Face checkpoints they were made from.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::path::PathBuf;

use takt_engine::spec::DecoderSpec;
use takt_engine_builder::{checkpoint::Checkpoint, hf, onnx};

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

fn pair(onnx_name: &str, hf_name: &str) -> (Checkpoint, Checkpoint) {
    let onnx = onnx::open(&fixtures().join("onnx").join(onnx_name)).unwrap();
    (onnx, hf::open(&fixtures().join("hf").join(hf_name)).unwrap())
}

/// Names and shapes of the tensors `spec` calls for.
fn tensors(spec: &DecoderSpec) -> Vec<(String, Vec<usize>)> {
    let (d, f, v) = (spec.hidden_size, spec.intermediate_size, spec.vocab_size);
    let mut all = vec![
        ("model.embed_tokens.weight".to_owned(), vec![v, d]),
        ("lm_head.weight".to_owned(), vec![v, d]),
        ("model.norm.weight".to_owned(), vec![d]),
    ];
    for layer in 0..spec.num_layers {
        let mut add =
            |name: &str, shape: &[usize]| all.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
        add("input_layernorm.weight", &[d]);
        add("post_attention_layernorm.weight", &[d]);
        add("self_attn.o_proj.weight", &[d, spec.q_dim()]);
        for (name, rows) in [("q", spec.q_dim()), ("k", spec.kv_dim()), ("v", spec.kv_dim())] {
            add(&format!("self_attn.{name}_proj.weight"), &[rows, d]);
            if spec.qkv_bias {
                add(&format!("self_attn.{name}_proj.bias"), &[rows]);
            }
            if spec.qk_norm && name != "v" {
                add(&format!("self_attn.{name}_norm.weight"), &[spec.head_dim]);
            }
        }
        add("mlp.gate_proj.weight", &[f, d]);
        add("mlp.up_proj.weight", &[f, d]);
        add("mlp.down_proj.weight", &[d, f]);
    }
    all
}

/// Everything but the words for people, and frequencies to the rounding that a table of cosines leaves.
fn assert_same_decoder(onnx: &DecoderSpec, hf: &DecoderSpec) {
    let mut comparable = onnx.clone();
    comparable.family.clone_from(&hf.family);
    comparable.rope.scaling.clone_from(&hf.rope.scaling);
    comparable.rope.inv_freq.clone_from(&hf.rope.inv_freq);
    comparable.max_context = hf.max_context;
    assert_eq!(&comparable, hf);
    assert_eq!(onnx.rope.inv_freq.len(), hf.rope.inv_freq.len());
    for (found, expected) in onnx.rope.inv_freq.iter().zip(&hf.rope.inv_freq) {
        assert!((found - expected).abs() <= 5e-7 * expected, "frequency {found}, expected {expected}");
    }
}

#[test]
fn every_tensor_of_the_float_exports_is_the_checkpoints_bit_for_bit() {
    for (onnx_name, hf_name) in [
        ("tiny-llama-ortgenai-fp32", "tiny-llama"),
        ("tiny-llama-torch-opset18.onnx", "tiny-llama"),
        ("tiny-qwen3-torch-opset23.onnx", "tiny-qwen3"),
    ] {
        let (onnx, hf) = pair(onnx_name, hf_name);
        assert_same_decoder(&onnx.spec, &hf.spec);
        for (name, shape) in tensors(&hf.spec) {
            let (found, expected) =
                (onnx.tensors.load(&name, &shape).unwrap(), hf.tensors.load(&name, &shape).unwrap());
            assert!(found == expected, "{onnx_name}: {name} differs");
        }
    }
}

#[test]
fn int4_tensors_are_the_checkpoints_to_a_quantization_step() {
    let (onnx, hf) = pair("tiny-qwen2-ortgenai-int4", "tiny-qwen2");
    assert_same_decoder(&onnx.spec, &hf.spec);
    assert!(onnx.spec.tied_embeddings, "one table serves as embedding and head");
    for (name, shape) in tensors(&hf.spec) {
        let (found, expected) =
            (onnx.tensors.load(&name, &shape).unwrap(), hf.tensors.load(&name, &shape).unwrap());
        if shape.len() == 1 {
            assert!(found == expected, "{name} differs");
            continue;
        }
        for (found, expected) in found.values.chunks(32).zip(expected.values.chunks(32)) {
            // Symmetric codes -8..=7: a step is an eighth of the largest weight, and the positive end may be one step short.
            let largest = expected.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
            for (f, e) in found.iter().zip(expected) {
                assert!(
                    (f - e).abs() <= largest / 8.0 * 1.01,
                    "{name}: {f}, expected {e} with blocks up to {largest}"
                );
            }
        }
    }
}

#[test]
fn what_lies_beside_the_model_is_found() {
    let onnx = onnx::open(&fixtures().join("onnx/tiny-llama-ortgenai-fp32")).unwrap();
    assert_eq!(onnx.spec.max_context, 512);
    assert_eq!(onnx.text.eos_token_ids, [2]);
    assert!(onnx.text.tokenizer.is_some() && onnx.text.chat_template.is_some());
    let alone = onnx::open(&fixtures().join("onnx/tiny-llama-torch-opset18.onnx")).unwrap();
    assert!(alone.text.tokenizer.is_none(), "a model without a tokenizer can still be scored");
}

#[test]
fn a_tensor_asked_for_with_another_shape_is_refused() {
    let onnx = onnx::open(&fixtures().join("onnx/tiny-llama-ortgenai-fp32")).unwrap();
    let error =
        onnx.tensors.load("model.layers.0.self_attn.q_proj.weight", &[128, 64]).unwrap_err().to_string();
    assert!(error.contains("[128, 128]") && error.contains("[128, 64]"), "{error}");
    assert!(!onnx.tensors.contains("model.layers.6.self_attn.q_proj.weight"));
}
