//! The text side of the engine directory, checked before it is written.

use std::{collections::BTreeMap, path::Path};

use serde_json::Value;
use takt_engine::{
    EngineError,
    dir::{CHAT_TEMPLATE_FILE, GENERATION_FILE, TOKENIZER_FILE},
    spec::DecoderSpec,
    text::{GenerationDefaults, SamplingDefaults, Text},
};

use crate::{
    BuildError, Result,
    checkpoint::TextFiles,
    staging::{Staging, io_error},
};

/// Writes `tokenizer.json`, `chat_template.jinja` and `generation.json`; gives what the user should be warned of.
pub(crate) fn write_text_files(
    staging: &Staging,
    text: &TextFiles,
    spec: &DecoderSpec,
) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    match &text.tokenizer {
        Some(path) => {
            let json = std::fs::read(path).map_err(|e| io_error("read", path, e))?;
            warnings.extend(check_vocabulary(path, &json, spec.vocab_size)?);
            staging.write(TOKENIZER_FILE, &json)?;
        }
        None => warnings.push("no tokenizer.json: the engine can only score token ids".into()),
    }
    match &text.chat_template {
        Some(template) => staging.write(CHAT_TEMPLATE_FILE, template.as_bytes())?,
        None => warnings.push("no chat template: prompts go to the model as they are".into()),
    }
    if text.eos_token_ids.is_empty() {
        warnings.push("no end token: answers end only at their token limit, stop text or deadline".into());
    }
    let defaults = generation_defaults(text)?;
    check_ids(&defaults, spec.vocab_size)?;
    let mut json = serde_json::to_vec_pretty(&defaults)
        .map_err(|e| BuildError::Unsupported(format!("generation defaults that are not JSON: {e}")))?;
    json.push(b'\n');
    staging.write(GENERATION_FILE, &json)?;
    check_opens(staging, text)?;
    Ok(warnings)
}

/// Opens what was written as the runtime will: a tokenizer or template that it refuses is refused here.
fn check_opens(staging: &Staging, text: &TextFiles) -> Result<()> {
    let Some(path) = &text.tokenizer else { return Ok(()) };
    match Text::open(staging.path()) {
        Ok(_) => Ok(()),
        // Named by the file it came from: the staging folder is gone when this is read.
        Err(EngineError::Corrupt { path: written, fact }) => {
            let source = match written.file_name().and_then(|name| name.to_str()) {
                Some(GENERATION_FILE) => path.with_file_name("generation_config.json"),
                Some(CHAT_TEMPLATE_FILE) if path.with_file_name(CHAT_TEMPLATE_FILE).exists() => {
                    path.with_file_name(CHAT_TEMPLATE_FILE)
                }
                Some(CHAT_TEMPLATE_FILE) => path.with_file_name("tokenizer_config.json"),
                _ => path.clone(),
            };
            Err(BuildError::Source { path: source, fact })
        }
        Err(e) => Err(BuildError::Source { path: path.clone(), fact: e.to_string() }),
    }
}

fn generation_defaults(text: &TextFiles) -> Result<GenerationDefaults> {
    let mut sampling = SamplingDefaults::default();
    for (key, value) in &text.sampling {
        match key.as_str() {
            "temperature" => sampling.temperature = Some(*value as f32),
            "top_p" => sampling.top_p = Some(*value as f32),
            "min_p" => sampling.min_p = Some(*value as f32),
            // Beyond any vocabulary is no limit, and the cast saturates.
            "top_k" if *value >= 1.0 => sampling.top_k = Some(*value as usize),
            _ => return Err(BuildError::Unsupported(format!("sampling default {key} = {value}"))),
        }
    }
    let special_tokens: BTreeMap<String, String> = text.special_tokens.iter().cloned().collect();
    Ok(GenerationDefaults {
        eos_token_ids: text.eos_token_ids.clone(),
        bos_token_id: text.bos_token_id,
        special_tokens,
        sampling,
    })
}

fn check_ids(defaults: &GenerationDefaults, vocab_size: usize) -> Result<()> {
    let ids = defaults.eos_token_ids.iter().chain(&defaults.bos_token_id);
    match ids.into_iter().find(|&&id| id as usize >= vocab_size) {
        Some(id) => {
            Err(BuildError::Unsupported(format!("special token {id} outside the vocabulary of {vocab_size}")))
        }
        None => Ok(()),
    }
}

/// Every token of the tokenizer's own vocabulary must have a row in the embedding. Tokens added later may lie beyond (some
/// fine-tunes add padding without resizing the model); that is worth a warning.
fn check_vocabulary(path: &Path, json: &[u8], vocab_size: usize) -> Result<Option<String>> {
    let broken = |fact: String| BuildError::Source { path: path.into(), fact };
    let tokenizer: Value = serde_json::from_slice(json).map_err(|e| broken(format!("is not JSON: {e}")))?;
    let own = match tokenizer.get("model").and_then(|model| model.get("vocab")) {
        Some(Value::Object(ids)) => ids.values().filter_map(Value::as_u64).max(),
        // Unigram: a list of pieces with their scores, the id is the place.
        Some(Value::Array(pieces)) => (pieces.len() as u64).checked_sub(1),
        _ => return Err(broken("has no model.vocab, so it is not a tokenizer".into())),
    };
    let has_row = |id: u64| id < vocab_size as u64;
    if let Some(id) = own.filter(|&id| !has_row(id)) {
        let rows = format!("the model's vocabulary has {vocab_size} tokens");
        return Err(broken(format!("has a token with id {id}, but {rows}: it belongs to another model")));
    }
    let added = tokenizer.get("added_tokens").and_then(Value::as_array).into_iter().flatten();
    let beyond =
        added.filter_map(|token| token.get("id").and_then(Value::as_u64)).filter(|&id| !has_row(id)).count();
    let warning =
        || format!("{beyond} added tokens lie beyond the model's {vocab_size}; texts with them are refused");
    Ok((beyond > 0).then(warning))
}
