//! From logits to a token.
//!
//! Temperature, top-k, top-p and min-p narrow the vocabulary to a **shortlist** in that order, each on the renormalized rest of the one
//! before, as transformers' logits warpers do; then one number of the request's own random stream picks from it, in the order of the tokens' ids.
//! Probabilities are integers, so the same logits and seed give the same tokens on every platform, in whatever order somebody adds up.

#[cfg(test)]
mod list_tests;
mod params;
mod random;
mod shortlist;
mod state;
mod weight;

pub use params::SamplingParams;
pub use state::SamplerState;

use crate::{
    EngineError, Result, TokenId,
    rows::{Likeliest, LogitsRow},
    step::Detail,
};
use random::SplitMix64;
use shortlist::Shortlist;

/// Chooses tokens for one sequence.
#[derive(Debug, Clone)]
pub struct Sampler {
    params: SamplingParams,
    random: SplitMix64,
    shortlist: Shortlist,
}

impl Sampler {
    /// A sampler at the start of its random stream.
    ///
    /// # Errors
    /// [`EngineError::Input`] naming a parameter that is out of range.
    pub fn new(params: &SamplingParams) -> Result<Self> {
        params.validate()?;
        Ok(Self { params: *params, random: SplitMix64::new(params.seed), shortlist: Shortlist::default() })
    }

    /// Whether it always takes the likeliest token.
    #[must_use]
    pub fn is_greedy(&self) -> bool {
        self.params.is_greedy()
    }

    /// Sets memory aside for logits of `vocab_size` tokens, so that [`Self::sample`] allocates nothing.
    pub fn reserve(&mut self, vocab_size: usize) {
        if !self.params.is_greedy() {
            self.shortlist.reserve(vocab_size, &self.params);
        }
    }

    /// Chooses a token by `logits` `[vocab_size]`. −∞ excludes a token: that is how a grammar's mask arrives here.
    /// Greedy takes the largest logit, of equal ones the lowest id, and draws no random number; otherwise exactly one is drawn.
    ///
    /// # Errors
    /// [`EngineError::Backend`] when a logit is NaN or +∞, or none is finite.
    pub fn sample(&mut self, logits: &[f32]) -> Result<TokenId> {
        let largest = largest_logit(logits)?;
        if self.params.is_greedy() {
            return first_equal(logits, largest);
        }
        let token = self.shortlist.choose(logits, largest, &self.params, self.random.next_u53());
        token.map_or_else(|| first_equal(logits, largest), Ok)
    }

    /// What it needs of a row of `vocab_size` logits where nobody chooses in its place.
    #[must_use]
    pub fn detail(&self, vocab_size: usize) -> Detail {
        self.state().detail(vocab_size)
    }

    /// The token that [`Self::sample`] chooses by the whole row: the one that the backend chose in its place, where it did; by the row's list, where that
    /// decides it.
    ///
    /// # Errors
    /// As [`Self::sample`], and when the row cannot be fetched.
    pub fn sample_row(&mut self, row: &mut LogitsRow<'_>) -> Result<TokenId> {
        if let Some(token) = row.choice().and_then(|choice| self.take(choice)) {
            return Ok(token);
        }
        let listed = row.list().and_then(|list| self.sample_list(list, row.vocab_size(), |_| true));
        listed.map_or_else(|| self.sample(row.whole()?), Ok)
    }

    /// The token that [`Self::sample`] chooses by a row of which `list` has the likeliest tokens, all that are not `allowed` being −∞;
    /// `None`, and no number drawn, where others than those of the list could count.
    pub(crate) fn sample_list(
        &mut self,
        list: Likeliest<'_>,
        vocab_size: usize,
        allowed: impl Fn(TokenId) -> bool,
    ) -> Option<TokenId> {
        if self.params.is_greedy() {
            return likeliest_of(list, allowed);
        }
        let k = self.params.top_k.filter(|&k| k < vocab_size && list.max_len() > 1)?;
        self.shortlist.gather(list, k, allowed);
        if self.shortlist.is_empty() || self.shortlist.len() < k && !list.is_complete() {
            return None;
        }
        self.shortlist.narrow(&self.params);
        self.shortlist.pick(self.random.next_u53())
    }
}

/// The lowest id of those allowed tokens whose logits equal the largest; `None` where one that is not listed could be it.
fn likeliest_of(list: Likeliest<'_>, allowed: impl Fn(TokenId) -> bool) -> Option<TokenId> {
    let mut allowed = list.entries().filter(|&(token, _)| allowed(token));
    let (first, largest) = allowed.next()?;
    // Ids ascend among the same logits; but −0 comes after 0 in the list, where the two are equal here, and the list may end in between.
    let is_cut = largest == 0.0 && list.max_len() > 1 && !list.is_complete();
    if is_cut && list.entries().last().is_some_and(|(_, logit)| logit == 0.0) {
        return None;
    }
    allowed.take_while(|&(_, logit)| logit == largest).map(|(token, _)| token).chain([first]).min()
}

/// The largest of the logits.
fn largest_logit(logits: &[f32]) -> Result<f32> {
    let mut largest = f32::NEG_INFINITY;
    let mut all_valid = true;
    // No branches, so that the compiler may use SIMD. NaN fails the comparison.
    for &logit in logits {
        all_valid &= logit < f32::INFINITY;
        largest = if logit > largest { logit } else { largest };
    }
    if !all_valid {
        let found = logits.iter().enumerate().find(|(_, logit)| logit.is_nan() || **logit == f32::INFINITY);
        let (token, logit) = found.unwrap_or((0, &f32::NAN));
        return Err(EngineError::Backend(format!(
            "the logit of token {token} is {logit}: the model's output is broken"
        )));
    }
    if largest == f32::NEG_INFINITY {
        return Err(EngineError::Backend(format!(
            "none of {} logits is finite: no token can be chosen",
            logits.len()
        )));
    }
    Ok(largest)
}

fn first_equal(logits: &[f32], value: f32) -> Result<TokenId> {
    let token =
        logits.iter().position(|&logit| logit == value).and_then(|token| TokenId::try_from(token).ok());
    token.ok_or_else(|| EngineError::Backend("more logits than token ids".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOT_GREEDY: SamplingParams =
        SamplingParams { temperature: 1.0, top_k: None, top_p: 1.0, min_p: 0.0, seed: 9 };

    fn draw_many(params: SamplingParams, logits: &[f32], num_draws: usize) -> Vec<usize> {
        let mut sampler = Sampler::new(&params).unwrap();
        let mut counts = vec![0; logits.len()];
        for _ in 0..num_draws {
            counts[sampler.sample(logits).unwrap() as usize] += 1;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_lowest_id_of_equal_logits() {
        let mut sampler = Sampler::new(&SamplingParams::default()).unwrap();
        assert_eq!(sampler.sample(&[0.5, 2.0, -1.0, 2.0]).unwrap(), 1);
        assert_eq!(sampler.sample(&[f32::NEG_INFINITY, -3.0]).unwrap(), 1);
    }

    #[test]
    fn broken_logits_are_an_error_that_names_the_token() {
        for params in [SamplingParams::default(), NOT_GREEDY] {
            let mut sampler = Sampler::new(&params).unwrap();
            assert!(sampler.sample(&[0.0, f32::NAN]).unwrap_err().to_string().contains("token 1 is NaN"));
            assert!(sampler.sample(&[f32::INFINITY]).unwrap_err().to_string().contains("token 0 is inf"));
            assert!(sampler.sample(&[f32::NEG_INFINITY; 3]).unwrap_err().to_string().contains("none of 3"));
            assert!(sampler.sample(&[]).is_err());
        }
    }

    /// Pearson's statistic against the exact probabilities; 99.9th percentile of χ² with 6 degrees of freedom is 22.5.
    #[test]
    fn frequencies_follow_the_probabilities() {
        let logits = [1.0_f32, 0.0, 2.0, -1.0, 0.5, 1.5, -0.5];
        let temperature = 0.8;
        let num_draws = 50_000;
        let counts = draw_many(SamplingParams { temperature, ..NOT_GREEDY }, &logits, num_draws);
        let weights = logits.map(|logit| f64::from(logit / temperature).exp());
        let total: f64 = weights.iter().sum();
        let expected = weights.map(|weight| weight / total * num_draws as f64);
        let chi_square: f64 = counts
            .iter()
            .zip(expected)
            .map(|(&count, expected)| (count as f64 - expected).powi(2) / expected)
            .sum();
        assert!(chi_square < 22.5, "{chi_square}: {counts:?}, expected {expected:?}");
    }

    #[test]
    fn the_same_seed_gives_the_same_tokens_and_another_seed_others() {
        let logits: Vec<f32> = (0..100_u8).map(|token| f32::from(token) * 37.0 % 101.0 / 16.0).collect();
        let draws = |seed| {
            let mut sampler = Sampler::new(&SamplingParams { seed, ..NOT_GREEDY }).unwrap();
            (0..20).map(|_| sampler.sample(&logits).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draws(1), draws(1));
        assert_ne!(draws(1), draws(2));
        // Computed apart in Python from the two definitions (SplitMix64, inverse of the cumulative softmax); the same on every platform.
        assert_eq!(draws(1)[..8], [57, 76, 98, 46, 46, 78, 90, 53]);
    }

    #[test]
    fn excluded_tokens_are_never_drawn() {
        let counts = draw_many(NOT_GREEDY, &[f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY, 1.0], 2_000);
        assert_eq!((counts[0], counts[2]), (0, 0));
        assert!(counts[1] > 0 && counts[3] > counts[1]);
    }
}
