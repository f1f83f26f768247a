//! What the canary asks: fixed prompts, or the user's own.

use std::path::Path;

use serde::Deserialize;
use takt_engine::{
    TokenId,
    text::{ChatOptions, Message, SpecialTokens, Text},
};

use crate::{BuildError, Result};

/// Beside a head: prompts of its own domain, one JSON object `{"system": …, "user": …}` a line.
pub(super) const PROMPTS_FILE: &str = "prompts.jsonl";
/// Most prompts that are asked.
const MAX_PROMPTS: usize = 16;

/// Of several kinds, because heads differ by kind: talk, code, arithmetic, a robot's state.
const BUILT_IN: [&str; 8] = [
    "What is the capital of France, and what is it known for?",
    "Write a Python function that returns the n-th Fibonacci number.",
    "A robot drives 3 metres in 2 seconds. How far does it drive in a minute? Explain step by step.",
    "Summarize in one sentence: The arm lifted the box, turned to the left, and put it down on the conveyor.",
    "List five things to check before starting a mobile robot.",
    "Translate to German: Where is the blue wrench?",
    "Reply with a JSON object with the keys \"action\" and \"object\": pick up the red cup.",
    "Tell me a short story about a lighthouse.",
];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    system: Option<String>,
    user: String,
}

/// The canary's prompts as tokens: those in `file`, or the built-in ones; for an engine without tokenizer, made-up tokens.
///
/// # Errors
/// [`BuildError::Source`] for a file that cannot be read as prompts, with the line; [`BuildError::Engine`] when the template refuses them.
pub fn canary_prompts(
    file: Option<&Path>,
    text: Option<&Text>,
    vocab_size: usize,
) -> Result<Vec<Vec<TokenId>>> {
    let Some(text) = text else { return Ok(made_up(vocab_size)) };
    let lines = match file {
        Some(file) => read(file)?,
        None => BUILT_IN.map(|user| Line { system: None, user: user.into() }).into(),
    };
    lines.into_iter().map(|line| tokens(line, text)).collect()
}

fn read(file: &Path) -> Result<Vec<Line>> {
    let refused = |fact: String| BuildError::Source { path: file.into(), fact };
    let contents = std::fs::read_to_string(file).map_err(|e| refused(format!("cannot be read: {e}")))?;
    let lines = contents.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).take(MAX_PROMPTS);
    let lines: Vec<Line> = lines
        .map(|(idx, line)| {
            serde_json::from_str(line).map_err(|e| {
                refused(format!("line {}: {e}; expected {{\"system\": …, \"user\": …}}", idx + 1))
            })
        })
        .collect::<Result<_>>()?;
    if lines.is_empty() {
        return Err(refused("holds no prompts: expected {\"system\": …, \"user\": …}, one a line".into()));
    }
    Ok(lines)
}

fn tokens(line: Line, text: &Text) -> Result<Vec<TokenId>> {
    if !text.has_chat_template() {
        return Ok(text.encode(&line.user, SpecialTokens::Add)?);
    }
    let system = line.system.map(|content| Message::new("system", content));
    let messages: Vec<Message> = system.into_iter().chain([Message::new("user", line.user)]).collect();
    Ok(text.encode_chat(&messages, &ChatOptions::default())?)
}

/// Without a tokenizer nothing is likely; but the same tokens on every machine.
fn made_up(vocab_size: usize) -> Vec<Vec<TokenId>> {
    let mut state = 1_u64;
    let mut token = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        TokenId::try_from((state >> 33) % vocab_size.max(1) as u64).unwrap_or_default()
    };
    (0..BUILT_IN.len()).map(|_| (0..24).map(|_| token()).collect()).collect()
}
