//! Bad checkpoints and bad places: every one is refused with a message that says what, and nothing is left behind.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use safetensors::Dtype;
use serde_json::{Value, json};
use takt_engine::{dir::EngineDir, quant::WeightKind};
use takt_engine_builder::{BuildError, BuildOptions, build};
use takt_tests::checkpoint::{
    CheckpointCopy as Copy, build_bf16, build_with, engine_bytes, read_tensors, write_tensors,
};

const MODEL: &str = "families/llama-linear";
const INDEX: &str = "model.safetensors.index.json";

fn sharded() -> Copy {
    let copy = Copy::of(MODEL);
    copy.shard(2);
    copy
}

#[test]
fn a_missing_shard_is_named() {
    let copy = sharded();
    fs::remove_file(copy.file("model-1.safetensors")).unwrap();
    copy.assert_refused(&["model-1.safetensors", "missing from the folder"]);
}

#[test]
fn an_index_that_contradicts_its_shards_is_refused() {
    // Tensors are dealt round by name: the final norm is the last of an odd or even count.
    let copy = sharded();
    let in_first = read_tensors(&copy.file("model-0.safetensors")).contains_key("model.norm.weight");
    let wrong = if in_first { "model-1.safetensors" } else { "model-0.safetensors" };
    copy.edit_json(INDEX, |index| index["weight_map"]["model.norm.weight"] = json!(wrong));
    copy.assert_refused(&["model.norm.weight", "it is in"]);

    let copy = sharded();
    copy.edit_json(INDEX, |index| {
        index["weight_map"].as_object_mut().unwrap().remove("model.norm.weight");
    });
    copy.assert_refused(&["does not list", "model.norm.weight"]);

    let copy = sharded();
    copy.edit_json(INDEX, |index| index["weight_map"]["extra"] = json!("model-0.safetensors"));
    copy.assert_refused(&["extra", "it is not"]);
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let copy = sharded();
    let mut second = read_tensors(&copy.file("model-1.safetensors"));
    let (name, tensor) = read_tensors(&copy.file("model-0.safetensors")).into_iter().next().unwrap();
    second.insert(name.clone(), tensor);
    write_tensors(&copy.file("model-1.safetensors"), &second);
    copy.assert_refused(&[&name, "holds too"]);
}

#[test]
fn an_index_cannot_name_files_outside_its_folder() {
    for outside in ["../model-0.safetensors", "/model-0.safetensors", "..", ""] {
        let copy = sharded();
        copy.edit_json(INDEX, |index| index["weight_map"]["model.norm.weight"] = json!(outside));
        copy.assert_refused(&["expected a file beside it"]);
    }
}

#[test]
fn truncated_weights_are_refused_at_every_length() {
    let copy = Copy::of(MODEL);
    let bytes = fs::read(copy.file("model.safetensors")).unwrap();
    for len in [0, 1, 7, 8, 500, bytes.len() / 2, bytes.len() - 1] {
        fs::write(copy.file("model.safetensors"), &bytes[..len]).unwrap();
        copy.assert_refused(&["model.safetensors"]);
    }
}

#[test]
fn shuffled_offsets_are_refused() {
    let copy = Copy::of(MODEL);
    let bytes = fs::read(copy.file("model.safetensors")).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let offsets = header["model.layers.0.mlp.up_proj.weight"]["data_offsets"].clone();
    header["model.layers.0.mlp.gate_proj.weight"]["data_offsets"] = offsets;
    let header = header.to_string().into_bytes();
    let shuffled = [&(header.len() as u64).to_le_bytes()[..], &header, &bytes[8 + header_len..]].concat();
    fs::write(copy.file("model.safetensors"), shuffled).unwrap();
    copy.assert_refused(&["not a whole safetensors file"]);
}

#[test]
fn wrong_missing_and_unknown_tensors_are_refused_by_name() {
    let up = "model.layers.1.mlp.up_proj.weight";
    let copy = Copy::of(MODEL);
    copy.edit_tensors(|tensors| drop(tensors.remove(up)));
    copy.assert_refused(&[up, "missing"]);

    let copy = Copy::of(MODEL);
    copy.edit_tensors(|tensors| tensors.get_mut(up).unwrap().1.reverse());
    copy.assert_refused(&[up, "[64, 160]", "[160, 64]"]);

    let copy = Copy::of(MODEL);
    copy.edit_tensors(|tensors| tensors.get_mut(up).unwrap().0 = Dtype::I16);
    copy.assert_refused(&[up, "I16", "BF16, F16 or F32"]);

    let copy = Copy::of(MODEL);
    let sinks = "model.layers.0.self_attn.sinks";
    copy.edit_tensors(|tensors| drop(tensors.insert(sinks.into(), (Dtype::F32, vec![1], vec![0; 4]))));
    copy.assert_refused(&[sinks, "not part of the llama architecture"]);
}

#[test]
fn weights_that_are_not_numbers_are_refused_with_tensor_count_and_place() {
    for (name, bits) in [("model.layers.2.self_attn.o_proj.weight", 0x7fc0u16), ("model.norm.weight", 0xff80)]
    {
        let copy = Copy::of(MODEL);
        copy.edit_tensors(|tensors| {
            tensors.get_mut(name).unwrap().2[10..12].copy_from_slice(&bits.to_le_bytes());
        });
        copy.assert_refused(&[name, "1 of", "index 5"]);
    }
}

#[test]
fn a_matrix_that_does_not_fit_the_format_is_refused_by_name() {
    let copy = Copy::of(MODEL);
    copy.edit_tensors(|tensors| {
        for (name, (_, shape, bytes)) in tensors.iter_mut() {
            // A feed-forward width of 156, which is no multiple of 16.
            match name.split('.').nth(4) {
                Some("gate_proj" | "up_proj") => {
                    shape[0] = 156;
                    bytes.truncate(2 * 156 * 64);
                }
                Some("down_proj") => {
                    shape[1] = 156;
                    bytes.truncate(2 * 156 * 64);
                }
                _ => {}
            }
        }
    });
    copy.set("intermediate_size", json!(156));
    let options = BuildOptions::new(WeightKind::Nvfp4);
    let message = build_with(&copy.folder(), &copy.out(), &options).unwrap_err().to_string();
    assert!(message.contains("multiple of 16") && message.contains("mlp.down_proj has 156"), "{message}");
    assert_eq!(copy.neighbours(), ["model"]);
    copy.build().unwrap();
}

#[test]
fn unknown_architectures_and_settings_are_refused_by_name() {
    let cases = [
        ("model_type", json!("mixtral"), "mixtral"),
        ("model_type", Value::Null, "model_type"),
        ("architectures", json!(["LlamaForSequenceClassification"]), "LlamaForSequenceClassification"),
        ("hidden_act", json!("gelu"), "gelu"),
        ("quantization_config", json!({"quant_method": "gptq", "bits": 4}), "gptq"),
        ("num_local_experts", json!(8), "num_local_experts"),
        ("logit_scale", json!(0.5), "logit_scale"),
        ("sliding_window", json!(16), "sliding_window"),
        ("layer_types", json!(["full_attention", "linear_attention", "full_attention"]), "linear_attention"),
        ("layer_types", json!(["full_attention"]), "names 1 layers"),
        ("partial_rotary_factor", json!(0.5), "partial_rotary_factor"),
        ("rope_parameters", json!({"rope_type": "default"}), "keep one of them"),
        ("rope_scaling", json!({"rope_type": "dynamic", "factor": 2.0}), "dynamic"),
        ("rope_scaling", json!({"type": "longrope", "short_factor": [1.0]}), "longrope"),
        (
            "rope_scaling",
            json!({"rope_type": "linear", "factor": 2.0, "mrope_section": [8]}),
            "mrope_section",
        ),
        ("rope_scaling", json!({"rope_type": "linear"}), "has no rope_scaling.factor"),
        ("rope_scaling", json!({"rope_type": "linear", "factor": 0}), "factor"),
        ("rope_scaling", json!({"rope_type": "yarn", "type": "linear", "factor": 2}), "rope_type says"),
        ("rope_scaling", json!("linear"), "expected an object"),
        ("vocab_size", json!("96"), "expected a whole number"),
        ("vocab_size", json!(-1), "expected a whole number"),
        ("hidden_size", Value::Null, "has no hidden_size"),
        ("num_hidden_layers", json!(u64::MAX), "num_layers"),
        ("num_hidden_layers", json!(0), "num_layers is 0"),
        ("head_dim", json!(15), "head_dim"),
        ("num_key_value_heads", json!(3), "do not divide"),
        ("is_encoder_decoder", json!(true), "is_encoder_decoder"),
    ];
    for (key, value, fact) in cases {
        let copy = Copy::of(MODEL);
        copy.set(key, value);
        copy.assert_refused(&[fact]);
    }
}

#[test]
fn absent_files_are_named_with_what_to_do() {
    for (removed, facts) in [
        ("tokenizer.json", ["tokenizer.json", "download it"]),
        ("config.json", ["config.json", "not a Hugging Face checkpoint"]),
        ("model.safetensors", ["no weights", "model.safetensors"]),
    ] {
        let copy = Copy::of(MODEL);
        fs::remove_file(copy.file(removed)).unwrap();
        copy.assert_refused(&facts);
    }
    let pickle = Copy::of(MODEL);
    fs::rename(pickle.file("model.safetensors"), pickle.file("pytorch_model.bin")).unwrap();
    pickle.assert_refused(&["pickle", "save_pretrained"]);
    let out = tempfile::tempdir().unwrap();
    let message = build_bf16(Path::new("/nowhere/at/all"), &out.path().join("e")).unwrap_err().to_string();
    assert!(message.contains("does not exist"), "{message}");
}

#[test]
fn a_tokenizer_or_end_token_of_another_model_is_refused() {
    let copy = Copy::of(MODEL);
    copy.edit_json("tokenizer.json", |tokenizer| tokenizer["model"]["vocab"]["t96"] = json!(96));
    copy.assert_refused(&["id 96", "96 tokens"]);
    let copy = Copy::of(MODEL);
    fs::write(copy.file("tokenizer.json"), "{").unwrap();
    copy.assert_refused(&["tokenizer.json", "JSON"]);
    let copy = Copy::of(MODEL);
    copy.edit_json("tokenizer.json", |tokenizer| tokenizer["model"]["type"] = json!("Telepathy"));
    copy.assert_refused(&["model/tokenizer.json"]);
    let copy = Copy::of(MODEL);
    fs::write(copy.file("chat_template.jinja"), "{% for message in messages %}").unwrap();
    copy.assert_refused(&["model/chat_template.jinja"]);
    let copy = Copy::of(MODEL);
    copy.set("eos_token_id", json!(96));
    copy.assert_refused(&["special token 96"]);
}

#[test]
fn only_engines_are_replaced_and_only_with_force() {
    let copy = Copy::of(MODEL);
    let force = BuildOptions { force: true, ..BuildOptions::new(WeightKind::Fp8) };
    copy.build().unwrap();
    let message = copy.build().unwrap_err().to_string();
    assert!(message.contains("--force"), "{message}");
    build_with(&copy.folder(), &copy.out(), &force).unwrap();
    assert_eq!(EngineDir::open(&copy.out()).unwrap().manifest().quantization.weights, WeightKind::Fp8);

    // A damaged engine may be replaced, a folder with anything else in it may not.
    fs::write(copy.out().join("weights.safetensors"), "broken").unwrap();
    build_with(&copy.folder(), &copy.out(), &force).unwrap();
    EngineDir::open(&copy.out()).unwrap();
    fs::write(copy.out().join("notes.txt"), "mine").unwrap();
    for place in [copy.out(), copy.folder(), copy.file("config.json")] {
        let message = build_with(&copy.folder(), &place, &force).unwrap_err().to_string();
        assert!(message.contains("not an engine directory") || message.contains("not a folder"), "{message}");
    }
    assert!(copy.out().join("notes.txt").exists() && copy.file("config.json").exists());
    assert_eq!(copy.neighbours(), ["engine", "model"]);
}

#[test]
fn a_cancelled_build_keeps_the_old_engine_and_leaves_nothing_else() {
    let copy = Copy::of(MODEL);
    copy.build().unwrap();
    let before = engine_bytes(&copy.out());
    let stop = AtomicBool::new(false);
    let options =
        BuildOptions { force: true, cancelled: Some(&stop), ..BuildOptions::new(WeightKind::Nvfp4) };
    let mut seen = 0;
    let result = build(&copy.folder(), &copy.out(), &options, &mut |progress| {
        seen = progress.done;
        stop.store(progress.done == 9, Ordering::Relaxed);
    });
    assert!(matches!(result, Err(BuildError::Cancelled)));
    assert_eq!(seen, 9);
    assert_eq!(engine_bytes(&copy.out()), before);
    assert_eq!(copy.neighbours(), ["engine", "model"]);
}

#[test]
fn a_build_that_fails_late_keeps_the_old_engine_and_leaves_nothing_else() {
    let copy = Copy::of(MODEL);
    copy.build().unwrap();
    let before = engine_bytes(&copy.out());
    // The last tensor is bad: everything before was written already.
    copy.edit_tensors(|tensors| {
        tensors.get_mut("lm_head.weight").unwrap().2[..2].copy_from_slice(&0x7f80u16.to_le_bytes());
    });
    let force = BuildOptions { force: true, ..BuildOptions::new(WeightKind::Int4) };
    let message = build_with(&copy.folder(), &copy.out(), &force).unwrap_err().to_string();
    assert!(message.contains("lm_head.weight"), "{message}");
    assert_eq!(engine_bytes(&copy.out()), before);
    // Folders made on the way to the engine go too.
    assert!(build_bf16(&copy.folder(), &copy.root().join("a/b/engine")).is_err());
    assert_eq!(copy.neighbours(), ["engine", "model"]);
}
