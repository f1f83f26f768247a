//! How likely a model finds given tokens.

use crate::{
    EngineError, Result, TokenId,
    backend::Backend,
    kv::LaneId,
    step::{LogitsWanted, StepPlan},
};

/// What [`score`] found.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// Logits after the last token, `[vocab_size]`.
    pub last_logits: Vec<f32>,
    /// Mean negative log-likelihood of every token but the first, in nats; `None` for a single token.
    pub nll: Option<f64>,
}

/// What [`score_corpus`] found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CorpusScore {
    /// Tokens whose likelihood was measured.
    pub num_predicted: usize,
    /// Mean negative log-likelihood of those, in nats.
    pub nll: f64,
}

impl CorpusScore {
    /// e to the mean negative log-likelihood.
    #[must_use]
    pub fn perplexity(&self) -> f64 {
        self.nll.exp()
    }
}

/// Scores `tokens` in lane 0, which is emptied before and after, in slices the backend takes.
///
/// # Errors
/// [`EngineError::Input`] for no token or one outside the vocabulary, [`EngineError::Capacity`] when they exceed the lane.
pub fn score(backend: &mut dyn Backend, tokens: &[TokenId]) -> Result<Score> {
    score_after(backend, tokens, 1)
}

/// [`score`] of the tokens from `context_len` on alone: those before it, at least one, are given. The mean is over
/// `tokens[context_len..]`.
///
/// # Errors
/// As [`score`].
pub fn score_after(backend: &mut dyn Backend, tokens: &[TokenId], context_len: usize) -> Result<Score> {
    if tokens.is_empty() {
        return Err(EngineError::Input("nothing to score: at least one token is needed".into()));
    }
    let (capacity, lane) = (backend.capabilities().lane_capacity, LaneId(0));
    if tokens.len() > capacity {
        return Err(EngineError::Capacity(format!(
            "{} tokens to score, a lane holds {capacity}",
            tokens.len()
        )));
    }
    backend.truncate(lane, 0)?;
    let scored = score_slices(backend, lane, tokens, context_len.max(1));
    backend.truncate(lane, 0)?;
    scored
}

/// Scores a long text in chunks of at most `chunk_len` tokens, each on its own: the first token of a chunk is context only.
///
/// # Errors
/// As [`score`]; [`EngineError::Input`] when there is nothing to predict (fewer than two tokens).
pub fn score_corpus(backend: &mut dyn Backend, tokens: &[TokenId], chunk_len: usize) -> Result<CorpusScore> {
    let chunk_len = chunk_len.min(backend.capabilities().lane_capacity);
    if tokens.len() < 2 || chunk_len < 2 {
        return Err(EngineError::Input(
            "nothing to predict: a corpus needs at least 2 tokens, a chunk as well".into(),
        ));
    }
    let (mut sum, mut num_predicted) = (0.0, 0);
    for chunk in tokens.chunks(chunk_len) {
        if let Some(nll) = score(backend, chunk)?.nll {
            sum += nll * (chunk.len() - 1) as f64;
            num_predicted += chunk.len() - 1;
        }
    }
    Ok(CorpusScore { num_predicted, nll: sum / num_predicted as f64 })
}

fn score_slices(
    backend: &mut dyn Backend,
    lane: LaneId,
    tokens: &[TokenId],
    context_len: usize,
) -> Result<Score> {
    let limits = backend.capabilities();
    let slice_len = limits.max_step_tokens.min(limits.max_logits_rows);
    let mut plan = StepPlan::with_capacity(slice_len, 1);
    let (mut sum, mut last_logits) = (0.0, Vec::new());
    for start in (0..tokens.len()).step_by(slice_len) {
        let end = tokens.len().min(start + slice_len);
        plan.clear();
        plan.push(lane, &tokens[start..end], LogitsWanted::All);
        let output = backend.run_step(&plan)?;
        let logits =
            output.segment_logits(0).ok_or_else(|| EngineError::Backend("no logits came back".into()))?;
        let rows = logits.chunks_exact(output.vocab_size()).zip(&tokens[start + 1..]);
        for (row, &next) in rows.skip(context_len.saturating_sub(start + 1)) {
            sum += negative_log_likelihood(row, next);
        }
        if end == tokens.len() {
            last_logits = output.last_logits(0).unwrap_or(&[]).to_vec();
        }
    }
    let num_predicted = tokens.len().saturating_sub(context_len);
    Ok(Score { last_logits, nll: (num_predicted > 0).then(|| sum / num_predicted as f64) })
}

/// `ln Σ exp(logits) - logits[token]` in F64, shifted by the largest logit so that nothing overflows.
fn negative_log_likelihood(logits: &[f32], token: TokenId) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    sum.ln() + f64::from(max) - f64::from(logits[token as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likelihood_of_large_logits_does_not_overflow() {
        assert!((negative_log_likelihood(&[1000.0, 1000.0], 0) - 2f64.ln()).abs() < 1e-12);
        assert!(negative_log_likelihood(&[0.0, 300.0], 1).abs() < 1e-12);
        assert!((negative_log_likelihood(&[0.0, 300.0], 0) - 300.0).abs() < 1e-4);
    }
}
