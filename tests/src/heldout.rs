//! Exact match of the demo model on its held-out set, run by the product itself.

use std::{collections::BTreeMap, error::Error, fs, ops::ControlFlow, path::Path};

use serde::Deserialize;
use takt_engine::{
    TokenId,
    backend::Backend,
    generate,
    kv::LaneId,
    score::score_after,
    sequence::{Sequence, SequenceLimits, SequenceOptions},
    text::{ChatOptions, Message, SpecialTokens, Text},
};

/// Longest answer; every right one is shorter.
const MAX_ANSWER_TOKENS: usize = 48;

/// One line of `models/takt-demo/eval/heldout.jsonl`.
#[derive(Debug, Clone, Deserialize)]
pub struct Line {
    /// System prompt; `None` for no system message.
    pub system: Option<String>,
    /// The operator's sentence.
    pub user: String,
    /// The one right answer, as JSON.
    pub answer: String,
    /// `template`, `combination` or `both`.
    pub split: String,
}

/// How many lines of each split were answered exactly.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// By split: (right, all).
    pub by_split: BTreeMap<String, (usize, usize)>,
}

impl Tally {
    /// Lines answered exactly, and all lines.
    #[must_use]
    pub fn total(&self) -> (usize, usize) {
        self.by_split.values().fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1))
    }

    /// Share of lines answered exactly, 0 to 1.
    #[must_use]
    pub fn share(&self) -> f64 {
        let (right, all) = self.total();
        right as f64 / all.max(1) as f64
    }
}

/// Every `stride`-th line of the file.
///
/// # Errors
/// When the file cannot be read or a line is not of that form.
pub fn read(path: &Path, stride: usize) -> Result<Vec<Line>, Box<dyn Error>> {
    let text = fs::read_to_string(path)?;
    text.lines().step_by(stride).map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// Answers every line greedily in lane 0 and compares the parsed JSON; `on_answer` sees each line, the answer and whether it is right.
///
/// # Errors
/// Those of the text and of the backend.
pub fn evaluate(
    backend: &mut dyn Backend,
    text: &Text,
    lines: &[Line],
    on_answer: &mut dyn FnMut(&Line, &str, bool),
) -> Result<Tally, Box<dyn Error>> {
    let mut tally = Tally::default();
    for line in lines {
        let answer = answer(backend, text, line)?;
        let right = serde_json::from_str::<serde_json::Value>(&answer).is_ok_and(|value| {
            serde_json::from_str(&line.answer).is_ok_and(|expected: serde_json::Value| value == expected)
        });
        let count = tally.by_split.entry(line.split.clone()).or_default();
        count.0 += usize::from(right);
        count.1 += 1;
        on_answer(line, &answer, right);
    }
    Ok(tally)
}

/// The line's prompt, as the demo asks it.
///
/// # Errors
/// Those of the text.
pub fn prompt(text: &Text, line: &Line) -> Result<Vec<TokenId>, Box<dyn Error>> {
    let mut messages: Vec<Message> =
        line.system.iter().map(|system| Message::new("system", system)).collect();
    messages.push(Message::new("user", &line.user));
    Ok(text.encode_chat(&messages, &ChatOptions { add_generation_prompt: true, ..ChatOptions::default() })?)
}

/// Perplexity of the right answers, each after its prompt, their end included: e to the mean negative log-likelihood of a token.
///
/// # Errors
/// Those of the text and of the backend.
pub fn perplexity(backend: &mut dyn Backend, text: &Text, lines: &[Line]) -> Result<f64, Box<dyn Error>> {
    let end = text.defaults().eos_token_ids.first().copied().ok_or("the model has no end of turn")?;
    let (mut sum, mut num_predicted) = (0.0, 0);
    for line in lines {
        let mut tokens = prompt(text, line)?;
        let context_len = tokens.len();
        tokens.extend(text.encode(&line.answer, SpecialTokens::AsWritten)?);
        tokens.push(end);
        if let Some(nll) = score_after(backend, &tokens, context_len)?.nll {
            sum += nll * (tokens.len() - context_len) as f64;
            num_predicted += tokens.len() - context_len;
        }
    }
    if num_predicted == 0 {
        return Err("no answer to predict".into());
    }
    Ok((sum / num_predicted as f64).exp())
}

fn answer(backend: &mut dyn Backend, text: &Text, line: &Line) -> Result<String, Box<dyn Error>> {
    let prompt = prompt(text, line)?;
    let options = SequenceOptions {
        max_tokens: Some(MAX_ANSWER_TOKENS),
        eos_token_ids: text.defaults().eos_token_ids.clone(),
        ..SequenceOptions::default()
    };
    let limits = SequenceLimits {
        lane_capacity: backend.capabilities().lane_capacity,
        vocab_size: backend.spec().vocab_size,
    };
    let mut sequence = Sequence::new(&prompt, &options, limits, Some(text.stream_decoder()))?;
    backend.truncate(LaneId(0), 0)?;
    generate(backend, LaneId(0), &mut sequence, &mut |_| ControlFlow::Continue(()))?;
    Ok(sequence.text().to_owned())
}
