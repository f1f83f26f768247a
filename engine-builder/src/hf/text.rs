//! The text side of a Hugging Face folder: tokenizer, chat template, special tokens, end tokens, sampling defaults.

use std::path::{Path, PathBuf};

use serde_json::Value;
use takt_engine::TokenId;

use super::config::Config;
use crate::{BuildError, Result, checkpoint::TextFiles};

/// Special tokens that chat templates refer to.
const SPECIAL_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"];
/// Sampling defaults that are taken over.
const SAMPLING: [&str; 4] = ["temperature", "top_k", "top_p", "min_p"];

/// Finds everything about text in `folder`; `config` is its `config.json`.
pub(super) fn text_files(folder: &Path, config: &Config) -> Result<TextFiles> {
    let tokenizer = folder.join("tokenizer.json");
    if !tokenizer.is_file() {
        return Err(no_tokenizer(folder));
    }
    read(folder, Some(tokenizer), &[config])
}

/// Finds what there is about text around an ONNX file in `folder`; a model without a tokenizer can still be scored by token ids.
pub(crate) fn text_around_onnx(folder: &Path) -> Result<TextFiles> {
    let tokenizer = Some(folder.join("tokenizer.json")).filter(|path| path.is_file());
    let config = Config::read_if_exists(&folder.join("config.json"))?;
    let genai = match Config::read_if_exists(&folder.join("genai_config.json"))? {
        Some(file) => file.object("model")?,
        None => None,
    };
    let configs: Vec<&Config> = genai.iter().chain(&config).collect();
    read(folder, tokenizer, &configs)
}

/// `configs` are the files that may name end tokens, after `generation_config.json`.
fn read(folder: &Path, tokenizer: Option<PathBuf>, configs: &[&Config]) -> Result<TextFiles> {
    let tokenizer_config = Config::read_if_exists(&folder.join("tokenizer_config.json"))?;
    let generation = Config::read_if_exists(&folder.join("generation_config.json"))?;
    let special_tokens = special_tokens(folder, tokenizer_config.as_ref())?;
    Ok(TextFiles {
        chat_template: chat_template(folder, tokenizer_config.as_ref())?,
        eos_token_ids: eos_token_ids(generation.as_ref(), configs)?,
        bos_token_id: match &tokenizer {
            Some(file) => bos_token_id(file, tokenizer_config.as_ref(), &special_tokens)?,
            None => None,
        },
        special_tokens,
        sampling: sampling(generation.as_ref())?,
        tokenizer,
    })
}

fn no_tokenizer(folder: &Path) -> BuildError {
    let fact = if folder.join("tokenizer.model").exists() {
        "has a tokenizer.model but no tokenizer.json; convert it with \
         `python -c \"from transformers import AutoTokenizer as T; T.from_pretrained('.').save_pretrained('.')\"`"
    } else {
        "has no tokenizer.json; download it from where the weights came from"
    };
    BuildError::Source { path: folder.into(), fact: fact.into() }
}

/// `chat_template.jinja`, else `chat_template.json`, else the template in `tokenizer_config.json`.
fn chat_template(folder: &Path, tokenizer_config: Option<&Config>) -> Result<Option<String>> {
    let path = folder.join("chat_template.jinja");
    if path.exists() {
        let read = std::fs::read_to_string(&path);
        return read.map(Some).map_err(|source| BuildError::Io { action: "read", path, source });
    }
    if let Some(file) = Config::read_if_exists(&folder.join("chat_template.json"))? {
        return Ok(file.string("chat_template")?.map(str::to_owned));
    }
    let Some(config) = tokenizer_config else { return Ok(None) };
    match config.value("chat_template") {
        None => Ok(None),
        Some(Value::String(template)) => Ok(Some(template.clone())),
        Some(Value::Array(named)) => named_template(config, named),
        Some(_) => Err(config.error("chat_template is neither a string nor a list of named templates")),
    }
}

/// The template called `default` in `[{"name": …, "template": …}]`.
fn named_template(config: &Config, named: &[Value]) -> Result<Option<String>> {
    let field = |entry: &Value, key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
    let default = named.iter().find(|entry| field(entry, "name").as_deref() == Some("default"));
    match default.and_then(|entry| field(entry, "template")) {
        Some(template) => Ok(Some(template)),
        None => Err(config.error("chat_template is a list without a template named \"default\"")),
    }
}

fn special_tokens(folder: &Path, tokenizer_config: Option<&Config>) -> Result<Vec<(String, String)>> {
    let older = Config::read_if_exists(&folder.join("special_tokens_map.json"))?;
    let mut tokens = Vec::new();
    for key in SPECIAL_TOKENS {
        for config in [tokenizer_config, older.as_ref()].into_iter().flatten() {
            if let Some(text) = token_text(config, key)? {
                tokens.push((key.to_owned(), text));
                break;
            }
        }
    }
    Ok(tokens)
}

/// A token is a string, or an object with `content`.
fn token_text(config: &Config, key: &str) -> Result<Option<String>> {
    match config.value(key) {
        Some(Value::Object(token)) => match token.get("content").and_then(Value::as_str) {
            Some(text) => Ok(Some(text.into())),
            None => Err(config.error(format!("{key} is an object without content"))),
        },
        _ => Ok(config.string(key)?.map(str::to_owned)),
    }
}

/// From `generation_config.json`, else from the first of `configs` that has it: one id or a list.
fn eos_token_ids(generation: Option<&Config>, configs: &[&Config]) -> Result<Vec<TokenId>> {
    for config in generation.into_iter().chain(configs.iter().copied()) {
        let Some(value) = config.value("eos_token_id") else { continue };
        let items = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        let id = |item: &Value| item.as_u64().and_then(|id| TokenId::try_from(id).ok());
        return items
            .iter()
            .map(|item| {
                id(item).ok_or_else(|| config.error(format!("eos_token_id holds {item}, expected token ids")))
            })
            .collect();
    }
    Ok(Vec::new())
}

/// The id of `bos_token` when `tokenizer_config.json` asks to start every text with it.
fn bos_token_id(
    tokenizer: &Path,
    config: Option<&Config>,
    special_tokens: &[(String, String)],
) -> Result<Option<TokenId>> {
    let Some(config) = config else { return Ok(None) };
    if config.flag("add_bos_token")? != Some(true) {
        return Ok(None);
    }
    let Some((_, text)) = special_tokens.iter().find(|(key, _)| key == "bos_token") else {
        return Err(config.error("sets add_bos_token but names no bos_token"));
    };
    let file = Config::read(tokenizer)?;
    let in_added = file.value("added_tokens").and_then(Value::as_array).and_then(|added| {
        added.iter().find(|token| token.get("content").and_then(Value::as_str) == Some(text))?.get("id")
    });
    let in_vocab = || file.value("model")?.get("vocab")?.get(text);
    match in_added.or_else(in_vocab).and_then(Value::as_u64).and_then(|id| TokenId::try_from(id).ok()) {
        Some(id) => Ok(Some(id)),
        None => Err(file.error(format!("does not know the bos_token {text:?} of tokenizer_config.json"))),
    }
}

/// The makers' sampling, where they ask for sampling at all.
fn sampling(generation: Option<&Config>) -> Result<Vec<(String, f64)>> {
    let Some(config) = generation else { return Ok(Vec::new()) };
    if config.flag("do_sample")? != Some(true) {
        return Ok(Vec::new());
    }
    let mut defaults = Vec::new();
    for key in SAMPLING {
        match (key, config.number(key)?) {
            // Sampling without a temperature is sampling at 1; a top_k of 0 is none.
            ("temperature", None) => defaults.push((key.into(), 1.0)),
            (_, None) | ("top_k", Some(0.0)) => {}
            (_, Some(value)) => defaults.push((key.into(), value)),
        }
    }
    Ok(defaults)
}
