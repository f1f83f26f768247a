//! `takt bench --speculation`: what speculation brings here, drafter by drafter and shape by shape, beside plain decoding in the same run.
//!
//! | module | concept |
//! |---|---|
//! | [`prompts`] | what is answered: a file of one's own, or a few of several kinds |
//! | [`method`] | the ways an answer is decoded |
//! | [`player`] | one answer by one of them, timed part by part |
//! | [`tally`] | sums over answers, passes and tasks |
//! | [`measured`] | a real engine: every prompt by every method, in turns; outputs compared token for token |
//! | [`profile`] | how often proposals are accepted, where that is assumed and not measured |
//! | [`simulated`] | a known shape with random weights: measured costs, assumed acceptance |
//! | [`report`] | what all of it came to |
//! | [`plot`] | as a picture |

pub mod measured;
pub mod method;
pub mod player;
pub mod plot;
pub mod profile;
pub mod prompts;
pub mod report;
pub mod simulated;
pub mod tally;
mod virtual_policy;

use takt_engine::{EngineError, TokenId};

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum SpeculationError {
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The prompts cannot be used.
    #[error("{0}")]
    Prompts(String),
    /// Speculation changed an answer, which it never may.
    #[error(
        "prompt {prompt_idx} ({prompt:?}): {method} says token {found:?} where plain decoding says {expected:?}, after {at} tokens of the answer: please report it"
    )]
    Differs {
        /// Its number, from 1.
        prompt_idx: usize,
        /// What was asked.
        prompt: String,
        /// Which method.
        method: String,
        /// Equal tokens before.
        at: usize,
        /// The first that is not; `None` where the answer ended.
        found: Option<TokenId>,
        /// What plain decoding says there; `None` where its answer ended.
        expected: Option<TokenId>,
    },
    /// The user wanted it to end.
    #[error("interrupted")]
    Interrupted,
}

/// The median; of an even number the mean of the two in the middle; 0 of nothing.
#[must_use]
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (sorted.len().saturating_sub(1) / 2, sorted.len() / 2);
    match (sorted.get(low), sorted.get(high)) {
        (Some(low), Some(high)) => (low + high) / 2.0,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_in_the_middle() {
        assert_eq!(median([]), 0.0);
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0]), 2.5);
    }
}
