//! Damaged and foreign draft heads are refused with the tensor's name and what was expected.

use std::{
    fs,
    path::{Path, PathBuf},
};

use safetensors::Dtype;
use takt_engine::quant::WeightKind;
use takt_engine_builder::{BuildOptions, build, draft::DraftOptions};
use takt_tests::checkpoint::{Tensors, fixtures, read_tensors, write_tensors};

fn original() -> PathBuf {
    fixtures().join("eagle3/tiny-llama-midlayer")
}

/// What opening the fixture says after `change`.
fn refusal(change: impl FnOnce(&mut Tensors, &mut serde_json::Value)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut tensors = read_tensors(&original().join("model.safetensors"));
    let mut config: serde_json::Value =
        serde_json::from_slice(&fs::read(original().join("config.json")).unwrap()).unwrap();
    change(&mut tensors, &mut config);
    write_tensors(&folder.path().join("model.safetensors"), &tensors);
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    refusal_of(folder.path())
}

/// What building tiny-llama with the head in `folder` says; nothing is left behind.
fn refusal_of(folder: &Path) -> String {
    let out = tempfile::tempdir().unwrap();
    let draft = Some(DraftOptions { folder, prompts: None, measures: true });
    let options = BuildOptions { draft, ..BuildOptions::new(WeightKind::Bf16) };
    let target = fixtures().join("hf/tiny-llama");
    let refused = build(&target, &out.path().join("engine"), &options, &mut |_| {});
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0, "nothing half-made");
    refused.map(|_| ()).unwrap_err().to_string()
}

fn set(tensors: &mut Tensors, name: &str, at: usize, bytes: &[u8]) {
    tensors.get_mut(name).unwrap().2[at..at + bytes.len()].copy_from_slice(bytes);
}

#[track_caller]
fn assert_says(error: &str, words: &[&str]) {
    for word in words {
        assert!(error.contains(word), "{word:?} not in {error}");
    }
}

#[test]
fn a_map_of_tokens_that_does_not_hold_is_refused() {
    let error = refusal(|tensors, _| set(tensors, "d2t", 8, &9_999_i64.to_le_bytes()));
    assert_says(&error, &["d2t", "draft token 1 + 9999", "640"]);
    let error = refusal(|tensors, _| set(tensors, "d2t", 0, &(-1_i64).to_le_bytes()));
    assert_says(&error, &["d2t", "0 + -1"]);
    let error = refusal(|tensors, _| {
        let members = &mut tensors.get_mut("t2d").unwrap().2;
        let marked = members.iter().position(|&byte| byte == 1).unwrap();
        members[marked] = 0;
    });
    assert_says(&error, &["t2d", "255 of 640 tokens are marked, expected 256"]);
    let error = refusal(|tensors, _| {
        let (dtype, _, data) = tensors.get_mut("d2t").unwrap();
        (*dtype, *data) = (Dtype::F32, vec![0; 4 * 256]);
    });
    assert_says(&error, &["d2t", "F32, expected I64 or I32"]);
    let error = refusal(|tensors, _| drop(tensors.remove("d2t")));
    assert_says(&error, &["d2t", "proposes 256 of 640 tokens"]);
}

#[test]
fn weights_that_are_damaged_or_of_another_shape_are_refused_by_name() {
    let error = refusal(|tensors, _| set(tensors, "fc.weight", 20, &[0xc0, 0x7f]));
    assert_says(&error, &["fc.weight", "NaN at position 10"]);
    let error = refusal(|tensors, _| drop(tensors.remove("midlayer.hidden_norm.weight")));
    assert_says(&error, &["midlayer.hidden_norm.weight", "missing"]);
    let error = refusal(|_, config| config["target_hidden_size"] = 256.into());
    assert_says(&error, &["embed_tokens.weight", "128 wide and its target 256"]);
    let error = refusal(|tensors, _| {
        let (_, shape, data) = tensors.get_mut("fc.weight").unwrap();
        *shape = vec![128, 256];
        data.truncate(128 * 256 * 2);
    });
    assert_says(&error, &["fc.weight", "[128, 256]", "[128, 384]"]);
    let error = refusal(|_, config| config["head_dim"] = 64.into());
    assert_says(&error, &["q_proj", "[128, 256]", "[256, 256]"]);
    let error = refusal(|tensors, _| {
        let names: Vec<String> =
            tensors.keys().filter(|name| name.starts_with("midlayer")).cloned().collect();
        names.iter().for_each(|name| drop(tensors.remove(name)));
    });
    assert_says(&error, &["no midlayer.* and no layers.0.*"]);
    let error = refusal(|tensors, _| {
        let (dtype, _, data) = tensors.get_mut("norm.weight").unwrap();
        (*dtype, *data) = (Dtype::I64, vec![0; 8 * 128]);
    });
    assert_says(&error, &["norm.weight", "I64, expected BF16"]);
}

#[test]
fn a_pickle_a_missing_file_and_a_truncated_one_are_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let open = || refusal_of(folder.path());
    assert_says(&open(), &["config.json"]);
    fs::copy(original().join("config.json"), folder.path().join("config.json")).unwrap();
    assert_says(&open(), &["model.safetensors"]);
    fs::write(folder.path().join("pytorch_model.bin"), b"\x80\x02").unwrap();
    assert_says(&open(), &["pickle", "save_file"]);
    let whole = fs::read(original().join("model.safetensors")).unwrap();
    for len in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(folder.path().join("model.safetensors"), &whole[..len]).unwrap();
        assert_says(&open(), &["corrupt", "model.safetensors"]);
    }
    fs::write(folder.path().join("config.json"), "{").unwrap();
    assert_says(&open(), &["config.json"]);
}

#[test]
fn a_head_of_another_model_is_refused_before_anything_large_is_read() {
    let error = refusal(|_, config| config["hidden_size"] = 64.into());
    assert_says(&error, &["hidden size of 64, this one has 128", "another model"]);
    let error = refusal(|tensors, config| {
        config["vocab_size"] = 700.into();
        drop(tensors.remove("t2d"));
    });
    assert_says(&error, &["vocabulary of 700, this one has 640", "another model"]);
    let error = refusal(|_, config| config["eagle_aux_hidden_state_layer_ids"] = vec![1, 2, 99].into());
    assert_says(&error, &["layer 99", "another target"]);
}
