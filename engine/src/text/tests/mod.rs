//! Text as a whole, against Hugging Face's own answers where there are any.

mod golden;
mod injection;
mod robustness;
mod streaming;

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::*;

/// The fixture models that come with a tokenizer, a chat template and golden answers.
const MODELS: [&str; 3] = ["tiny-llama", "tiny-qwen2", "tiny-qwen3"];

fn fixture(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/hf").join(model)
}

/// The text of a fixture model, through an engine directory that holds only text.
fn fixture_text(model: &str) -> Text {
    let tokenizer = fs::read_to_string(fixture(model).join("tokenizer.json")).unwrap();
    let template = fs::read_to_string(fixture(model).join("chat_template.jinja")).unwrap();
    open(&tokenizer, Some(&template)).unwrap()
}

/// Opens an engine directory with these files.
fn open(tokenizer: &str, template: Option<&str>) -> Result<Text> {
    let dir = tempfile::tempdir().unwrap();
    let defaults = r#"{"eos_token_ids":[2],"special_tokens":{"bos_token":"<s>","eos_token":"</s>"}}"#;
    fs::write(dir.path().join(GenerationDefaults::FILE), defaults).unwrap();
    fs::write(dir.path().join(Text::TOKENIZER_FILE), tokenizer).unwrap();
    if let Some(template) = template {
        fs::write(dir.path().join(Text::TEMPLATE_FILE), template).unwrap();
    }
    Text::open(dir.path()).map(|text| text.expect("there is a tokenizer"))
}

/// A sentencepiece-like tokenizer with byte fallback, and this decoder.
fn sentencepiece_like(decoder: &serde_json::Value) -> String {
    let mut vocab = serde_json::Map::new();
    for special in ["<unk>", "<s>", "</s>"] {
        vocab.insert(special.into(), vocab.len().into());
    }
    for byte in 0..=255 {
        vocab.insert(format!("<0x{byte:02X}>"), vocab.len().into());
    }
    for piece in ["▁", "▁▁", "a", "b", "ab", "▁a", "▁ab", "é", "机", "🤖", "##s", "\u{FFFD}", "."]
    {
        vocab.insert(piece.into(), vocab.len().into());
    }
    let added = |id: usize, content: &str| {
        serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": decoder,
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": ["▁ ▁", "a b", "▁ a", "▁ ab"]},
    })
    .to_string()
}

/// Decoders of published tokenizers that use sentencepiece's pieces, by name.
fn sentencepiece_decoders() -> Vec<(&'static str, serde_json::Value)> {
    let replace = serde_json::json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
    let bytes = serde_json::json!({"type": "ByteFallback"});
    let fuse = serde_json::json!({"type": "Fuse"});
    let strip = serde_json::json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
    let sequence =
        |stages: &[&serde_json::Value]| serde_json::json!({"type": "Sequence", "decoders": stages});
    let metaspace = |scheme: &str| serde_json::json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true});
    vec![
        ("llama 2, mistral", sequence(&[&replace, &bytes, &fuse, &strip])),
        ("gemma", sequence(&[&replace, &bytes, &fuse])),
        ("metaspace always", metaspace("always")),
        ("metaspace first", metaspace("first")),
        ("metaspace never", metaspace("never")),
        ("wordpiece", serde_json::json!({"type": "WordPiece", "prefix": "##", "cleanup": true})),
        ("none", serde_json::Value::Null),
    ]
}
