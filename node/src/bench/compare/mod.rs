//! `takt bench --compare`: Takt and a rival in turn, so that whatever slows the machine meets both.

pub mod rival;

use takt_engine::{EngineError, backend::Backend, kv::LaneId};

use self::rival::{LlamaBench, RivalError, RivalRun};
use super::{NUM_PREFILLS, NUM_WARM_STEPS, decode, prefill, read_bandwidth};

/// What is compared.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// The other side.
    pub rival: LlamaBench,
    /// Tokens of the prompt.
    pub prompt_len: usize,
    /// Tokens decoded.
    pub num_tokens: usize,
    /// How often each side is measured.
    pub num_rounds: usize,
}

/// One round: each side once.
#[derive(Debug, Clone)]
pub struct Round {
    /// Prompt tokens a second of ours.
    pub prefill_tok_s: f64,
    /// Tokens a second of ours.
    pub decode_tok_s: f64,
    /// The rival's.
    pub rival: RivalRun,
    /// Bytes a second that the machine read right after ours.
    pub read_bandwidth: f64,
}

/// Why nothing was compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// Of our side.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Of the other.
    #[error(transparent)]
    Rival(#[from] RivalError),
}

/// A figure over all rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// Middle value.
    pub median: f64,
    /// Least.
    pub least: f64,
    /// Most.
    pub most: f64,
}

impl Spread {
    /// Of `values`, of which there is at least one.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let at = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
        let (middle, last) = (sorted.len() / 2, sorted.len().saturating_sub(1));
        let median = if sorted.len().is_multiple_of(2) {
            f64::midpoint(at(middle.saturating_sub(1)), at(middle))
        } else {
            at(middle)
        };
        Self { median, least: at(0), most: at(last) }
    }
}

impl Comparison {
    /// Measures round after round; `on_round` hears of each, and says whether to go on.
    ///
    /// # Errors
    /// [`CompareError`].
    pub fn run(
        &self,
        backend: &mut dyn Backend,
        on_round: &mut dyn FnMut(&Round) -> bool,
    ) -> Result<Vec<Round>, CompareError> {
        let num_threads = backend.capabilities().num_threads;
        let mut rounds = Vec::with_capacity(self.num_rounds);
        for round_idx in 0..self.num_rounds {
            let theirs = || self.rival.run(self.prompt_len, self.num_tokens, num_threads);
            // Who comes first changes: the first of a round may meet a cooler processor.
            let rival_first = (round_idx % 2 == 1).then(theirs).transpose()?;
            let (prefill_tok_s, decode_tok_s) = self.ours(backend)?;
            let read_bandwidth = read_bandwidth(num_threads)?;
            let rival = rival_first.map_or_else(theirs, Ok)?;
            let round = Round { prefill_tok_s, decode_tok_s, rival, read_bandwidth };
            let go_on = on_round(&round);
            rounds.push(round);
            if !go_on {
                break;
            }
        }
        Ok(rounds)
    }

    /// Tokens a second of prefill and decode.
    fn ours(&self, backend: &mut dyn Backend) -> Result<(f64, f64), EngineError> {
        let prefill = prefill(backend, self.prompt_len, NUM_PREFILLS)?;
        // As llama-bench decodes: from an empty context.
        backend.truncate(LaneId(0), 0)?;
        decode(backend, NUM_WARM_STEPS)?;
        let decode = decode(backend, self.num_tokens)?;
        Ok((prefill.tok_s(), decode.tok_s()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one_or_between_the_middle_two() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Spread { median: 2.0, least: 1.0, most: 3.0 });
        assert_eq!(Spread::of([4.0, 1.0]), Spread { median: 2.5, least: 1.0, most: 4.0 });
        assert_eq!(Spread::of([7.0]).median, 7.0);
    }
}
