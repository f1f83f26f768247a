//! What a request may choose about sampling.

use serde::{Deserialize, Serialize};

use crate::{EngineError, Result};

/// How the next token is chosen. Filters apply in the order temperature, top-k, top-p, min-p, as in Hugging Face transformers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SamplingParams {
    /// 0 is greedy; otherwise logits are divided by it.
    pub temperature: f32,
    /// Keep the k most likely tokens; `None` keeps all.
    pub top_k: Option<usize>,
    /// Keep the smallest set whose probability reaches p; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this fraction as likely as the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Seed of the request's own random stream.
    pub seed: u64,
}

impl Default for SamplingParams {
    /// Greedy.
    fn default() -> Self {
        Self { temperature: 0.0, top_k: None, top_p: 1.0, min_p: 0.0, seed: 0 }
    }
}

impl SamplingParams {
    /// True when the most likely token is always taken.
    #[must_use]
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Checks every value against its range.
    ///
    /// # Errors
    /// [`EngineError::Input`] naming the first value out of range.
    pub fn validate(&self) -> Result<()> {
        let fail = |fact: String| Err(EngineError::Input(fact));
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return fail(format!(
                "temperature is {}, expected a number from 0 (greedy) up",
                self.temperature
            ));
        }
        if self.top_k == Some(0) {
            return fail("top_k is 0, expected at least 1, or none to keep all tokens".into());
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return fail(format!("top_p is {}, expected above 0 and at most 1", self.top_p));
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return fail(format!("min_p is {}, expected 0 to 1", self.min_p));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_out_of_range_are_named() {
        let greedy = SamplingParams::default();
        greedy.validate().unwrap();
        for (params, name) in [
            (SamplingParams { temperature: -1.0, ..greedy }, "temperature"),
            (SamplingParams { temperature: f32::NAN, ..greedy }, "temperature"),
            (SamplingParams { top_k: Some(0), ..greedy }, "top_k"),
            (SamplingParams { top_p: 0.0, ..greedy }, "top_p"),
            (SamplingParams { top_p: f32::NAN, ..greedy }, "top_p"),
            (SamplingParams { min_p: 1.1, ..greedy }, "min_p"),
            (SamplingParams { min_p: f32::NAN, ..greedy }, "min_p"),
        ] {
            assert!(params.validate().unwrap_err().to_string().starts_with(name));
        }
    }
}
