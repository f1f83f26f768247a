//! Good Hugging Face checkpoints → engine directories: every family, both forms of `config.json`, shards, number formats.

use std::fs;

use safetensors::Dtype;
use serde_json::{Value, json};
use takt_engine::{dir::EngineDir, kv::KvKind, quant::WeightKind};
use takt_engine_builder::BuildOptions;
use takt_tests::checkpoint::{
    CheckpointCopy as Copy, Tensors, build_bf16, build_with, checkpoints, engine_bytes, fixtures,
    read_tensors, write_tensors,
};

#[test]
fn every_family_builds_in_every_format_and_opens() {
    let out = tempfile::tempdir().unwrap();
    for source in checkpoints() {
        for kind in WeightKind::ALL {
            let engine = out.path().join(format!("{}-{kind}", source.file_name().unwrap().to_str().unwrap()));
            let report = build_with(&source, &engine, &BuildOptions::new(kind))
                .unwrap_or_else(|e| panic!("{source:?} as {kind}: {e}"));
            let opened = EngineDir::open(&engine).unwrap();
            assert_eq!(opened.manifest().spec, report.spec);
            let files: u64 = engine_bytes(&engine).values().map(|bytes| bytes.len() as u64).sum();
            assert_eq!(report.engine_bytes, files);
            assert_eq!(opened.matrix("model.layers.0.mlp.up_proj").unwrap().kind(), kind);
        }
    }
}

#[test]
fn a_bf16_engine_holds_the_checkpoints_weights_exactly() {
    let out = tempfile::tempdir().unwrap();
    for source in checkpoints().into_iter().filter(|source| source.join("model.safetensors").exists()) {
        let engine = out.path().join(source.file_name().unwrap());
        let report = build_bf16(&source, &engine).unwrap();
        assert!(report.tensors.iter().all(|tensor| tensor.stats.sum_squared_error == 0.0));
        let found = read_tensors(&engine.join("weights.safetensors"));
        let wanted = read_tensors(&source.join("model.safetensors"));
        let names = |tensors: &Tensors| tensors.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&found), names(&wanted), "{source:?}");
        for (name, (dtype, _, bytes)) in &wanted {
            assert_eq!(*dtype, Dtype::BF16);
            let (found_dtype, _, stored) = &found[name];
            // bf16 is the upper half of F32, in which norms and biases are stored.
            let as_f32 = || bytes.chunks_exact(2).flat_map(|raw| [0, 0, raw[0], raw[1]]).collect::<Vec<u8>>();
            match found_dtype {
                Dtype::BF16 => assert_eq!(stored, bytes, "{name}"),
                _ => assert_eq!(stored, &as_f32(), "{name}"),
            }
        }
    }
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let copy = Copy::of("hf/tiny-qwen2");
    for kind in WeightKind::ALL {
        let (a, b) = (copy.root().join(format!("a-{kind}")), copy.root().join(format!("b-{kind}")));
        build_with(&copy.folder(), &a, &BuildOptions::new(kind)).unwrap();
        build_with(&fixtures().join("hf/tiny-qwen2"), &b, &BuildOptions::new(kind)).unwrap();
        assert_eq!(engine_bytes(&a), engine_bytes(&b), "{kind}");
    }
}

#[test]
fn old_and_new_config_forms_give_the_same_engine() {
    let (new, old) = (Copy::of("hf/tiny-llama"), Copy::of("hf/tiny-llama"));
    old.edit_json("config.json", |config| {
        let mut rope = config.as_object_mut().unwrap().remove("rope_parameters").unwrap();
        config["rope_theta"] = rope.as_object_mut().unwrap().remove("rope_theta").unwrap();
        config["rope_scaling"] = rope;
        config["torch_dtype"] = config.as_object_mut().unwrap().remove("dtype").unwrap();
    });
    new.build().unwrap();
    old.build().unwrap();
    assert_eq!(engine_bytes(&new.out()), engine_bytes(&old.out()));
    let spec = EngineDir::open(&new.out()).unwrap().manifest().spec.clone();
    assert_eq!((spec.rope.scaling.as_str(), spec.rope.theta), ("llama3", 500_000.0));
}

#[test]
fn shards_give_the_same_engine_as_one_file() {
    let (single, sharded) = (Copy::of("hf/tiny-qwen3"), Copy::of("hf/tiny-qwen3"));
    sharded.shard(3);
    single.build().unwrap();
    sharded.build().unwrap();
    assert_eq!(engine_bytes(&single.out()), engine_bytes(&sharded.out()));
}

#[test]
fn derived_tables_of_old_checkpoints_are_ignored() {
    let (plain, with_table) = (Copy::of("families/llama2"), Copy::of("families/llama2"));
    let shard = with_table.file("model-00001-of-00007.safetensors");
    let mut tensors = read_tensors(&shard);
    let name = "model.layers.0.self_attn.rotary_emb.inv_freq";
    tensors.insert(name.into(), (Dtype::F32, vec![8], vec![0; 32]));
    write_tensors(&shard, &tensors);
    with_table.edit_json("model.safetensors.index.json", |index| {
        index["weight_map"][name] = json!("model-00001-of-00007.safetensors");
    });
    plain.build().unwrap();
    with_table.build().unwrap();
    assert_eq!(engine_bytes(&plain.out()), engine_bytes(&with_table.out()));
}

#[test]
fn f16_and_f32_checkpoints_are_read_exactly() {
    let (bf16, f32, f16) = (
        Copy::of("families/llama-linear"),
        Copy::of("families/llama-linear"),
        Copy::of("families/llama-linear"),
    );
    f32.edit_tensors(|tensors| {
        for (dtype, _, bytes) in tensors.values_mut() {
            *dtype = Dtype::F32;
            *bytes = bytes.chunks_exact(2).flat_map(|raw| [0, 0, raw[0], raw[1]]).collect();
        }
    });
    bf16.build().unwrap();
    f32.build().unwrap();
    assert_eq!(engine_bytes(&bf16.out()), engine_bytes(&f32.out()));

    f16.edit_tensors(|tensors| {
        let (dtype, _, bytes) = tensors.get_mut("model.norm.weight").unwrap();
        *dtype = Dtype::F16;
        *bytes = half::f16::from_f32(0.3).to_le_bytes().repeat(bytes.len() / 2);
    });
    f16.build().unwrap();
    let norm = EngineDir::open(&f16.out()).unwrap().vector("model.norm.weight").unwrap();
    assert!(norm.iter().all(|&value| value == half::f16::from_f32(0.3).to_f32()));
}

#[test]
fn a_tied_head_is_stored_only_when_its_format_differs_from_the_embedding() {
    let copy = Copy::of("families/llama3-tied");
    copy.build().unwrap();
    assert!(!read_tensors(&copy.out().join("weights.safetensors")).contains_key("lm_head.weight"));
    assert_eq!(EngineDir::open(&copy.out()).unwrap().lm_head().unwrap().kind(), WeightKind::Bf16);

    let fp8 = copy.root().join("fp8");
    let options = BuildOptions { kv: Some(KvKind::Int8), ..BuildOptions::new(WeightKind::Nvfp4) };
    build_with(&copy.folder(), &fp8, &options).unwrap();
    let engine = EngineDir::open(&fp8).unwrap();
    assert_eq!(engine.lm_head().unwrap().kind(), WeightKind::Fp8);
    assert_eq!(engine.embedding().unwrap().kind(), WeightKind::Bf16);
    assert_eq!(engine.manifest().quantization.kv, KvKind::Int8);
}

#[test]
fn a_tied_checkpoint_with_a_head_tensor_is_tied_only_when_both_are_equal() {
    let [plain, same, only_head, different] = [(); 4].map(|()| Copy::of("families/llama3-tied"));
    same.edit_tensors(|tensors| {
        tensors.insert("lm_head.weight".into(), tensors["model.embed_tokens.weight"].clone());
    });
    only_head.edit_tensors(|tensors| {
        let embedding = tensors.remove("model.embed_tokens.weight").unwrap();
        tensors.insert("lm_head.weight".into(), embedding);
    });
    different.edit_tensors(|tensors| {
        let mut head = tensors["model.embed_tokens.weight"].clone();
        head.2.rotate_left(2);
        tensors.insert("lm_head.weight".into(), head);
    });
    for copy in [&plain, &same, &only_head] {
        assert!(copy.build().unwrap().spec.tied_embeddings);
        assert_eq!(engine_bytes(&plain.out()), engine_bytes(&copy.out()));
    }
    // transformers 5 warns and does not tie them.
    assert!(!different.build().unwrap().spec.tied_embeddings);
}

#[test]
fn settings_that_are_off_or_do_not_matter_at_inference_are_accepted() {
    let copy = Copy::of("families/llama-linear");
    copy.set("rope_interleaved", json!(false))
        .set("logit_scale", Value::Null)
        .set("_name_or_path", json!("a/b"))
        .set("pretraining_tp", json!(1))
        .set("auto_map", json!({}));
    copy.build().unwrap();
}

#[test]
fn windows_follow_the_configuration() {
    let windows = |copy: &Copy| copy.build().map(|report| report.spec.windows);
    assert_eq!(windows(&Copy::of("families/mistral-window")).unwrap(), [Some(8); 3]);
    assert!(windows(&Copy::of("families/mistral-wide-heads")).unwrap().is_empty());
    assert_eq!(windows(&Copy::of("families/qwen2-window")).unwrap(), [None, Some(8), Some(8)]);

    let without_types = Copy::of("families/qwen2-window");
    without_types.set("layer_types", Value::Null).set("max_window_layers", json!(2));
    assert_eq!(windows(&without_types).unwrap(), [None, None, Some(8)]);

    let switched_off = Copy::of("families/qwen2-window");
    switched_off.set("use_sliding_window", json!(false));
    switched_off.assert_refused(&["layer_types", "contradicts"]);

    let as_long_as_the_context = Copy::of("families/mistral-window");
    as_long_as_the_context.set("sliding_window", json!(128));
    assert!(windows(&as_long_as_the_context).unwrap().is_empty());
}

#[test]
fn templates_and_tokens_are_found_in_all_their_places() {
    let copy = Copy::of("families/llama-linear");
    let tokenizer_config = json!({
        "chat_template": [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ messages }}"}],
        "bos_token": {"content": "t3", "special": true}, "eos_token": "t1", "add_bos_token": true, "pad_token": null
    });
    fs::write(copy.file("tokenizer_config.json"), tokenizer_config.to_string()).unwrap();
    let generation =
        json!({"eos_token_id": [5, 1], "do_sample": true, "temperature": 0.6, "top_p": 0.9, "top_k": 0});
    fs::write(copy.file("generation_config.json"), generation.to_string()).unwrap();
    copy.build().unwrap();
    let engine = EngineDir::open(&copy.out()).unwrap();
    let generation = engine.generation();
    assert_eq!((&generation.eos_token_ids, &engine.manifest().eos_token_ids), (&vec![5, 1], &vec![5, 1]));
    assert_eq!(generation.bos_token_id, Some(3));
    assert_eq!(generation.special_tokens["bos_token"], "t3");
    assert_eq!(generation.special_tokens.len(), 2);
    assert_eq!((generation.sampling.temperature, generation.sampling.top_p), (Some(0.6), Some(0.9)));
    assert_eq!((generation.sampling.top_k, generation.sampling.min_p), (None, None));
    assert_eq!(fs::read_to_string(engine.chat_template_path().unwrap()).unwrap(), "{{ messages }}");

    // A file of its own comes first, and without do_sample the model is greedy.
    fs::write(copy.file("chat_template.jinja"), "own file").unwrap();
    copy.edit_json("generation_config.json", |config| config["do_sample"] = json!(false));
    let again = copy.root().join("again");
    build_bf16(&copy.folder(), &again).unwrap();
    let engine = EngineDir::open(&again).unwrap();
    assert_eq!(fs::read_to_string(engine.chat_template_path().unwrap()).unwrap(), "own file");
    assert_eq!(engine.generation().sampling.temperature, None);
}

#[test]
fn the_context_can_be_shortened_but_not_stretched() {
    let copy = Copy::of("families/llama-linear");
    let with =
        |max_context| BuildOptions { max_context: Some(max_context), ..BuildOptions::new(WeightKind::Bf16) };
    let report = build_with(&copy.folder(), &copy.out(), &with(64)).unwrap();
    assert_eq!(report.spec.max_context, 64);
    for wanted in [0, 129] {
        let message =
            build_with(&copy.folder(), &copy.root().join("other"), &with(wanted)).unwrap_err().to_string();
        assert!(message.contains("made for 1 to 128"), "{message}");
    }
}

#[test]
fn the_report_groups_losses_by_role_with_plausible_figures() {
    let copy = Copy::of("hf/tiny-llama");
    let report = build_with(&copy.folder(), &copy.out(), &BuildOptions::new(WeightKind::Nvfp4)).unwrap();
    let groups = report.groups();
    let names: Vec<&str> = groups.iter().map(|group| group.role.name()).collect();
    let projections =
        ["attention q", "attention k", "attention v", "attention o", "mlp gate", "mlp up", "mlp down"];
    assert_eq!(names, [&["embedding"], &projections[..], &["lm_head"]].concat());
    for group in groups {
        let (error, snr) = (group.stats.relative_rms(), group.stats.snr_db());
        assert_eq!(group.num_tensors, if projections.contains(&group.role.name()) { 6 } else { 1 });
        assert!(group.worst.1 >= error - 1e-9);
        match group.kind {
            WeightKind::Bf16 => assert_eq!(error, 0.0),
            // Four bits lose about a tenth of the signal's root mean square, eight bits a fortieth.
            WeightKind::Nvfp4 => {
                assert!((0.05..0.15).contains(&error) && (16.0..26.0).contains(&snr), "{error} {snr}");
            }
            _ => assert!((0.01..0.04).contains(&error), "{error}"),
        }
    }
    let tensors = read_tensors(&copy.file("model.safetensors"));
    let wanted: u64 = tensors.values().map(|(_, shape, _)| shape.iter().product::<usize>() as u64).sum();
    assert_eq!(report.num_parameters, wanted);
}
