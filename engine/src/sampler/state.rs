//! A sampler as whoever chooses in its place sees it: what it chooses by, and where its random stream is.

use super::{Sampler, SamplingParams, Shortlist, SplitMix64, weight};
use crate::{
    TokenId,
    rows::{Choice, MAX_LIST_LEN},
    step::Detail,
};

/// How the next token of a sequence is chosen, and the ones after it; greedily by default.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SamplerState {
    params: SamplingParams,
    random: u64,
}

impl SamplerState {
    /// How it chooses.
    #[must_use]
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// State of the random stream, SplitMix64's.
    #[must_use]
    pub fn random(&self) -> u64 {
        self.random
    }

    /// By which differences of logits are multiplied, for powers of two; 0 is greedy.
    #[must_use]
    pub fn scale(&self) -> f32 {
        if self.params.is_greedy() { 0.0 } else { weight::scale(self.params.temperature) }
    }

    /// Top-p in units of 2⁻⁵³.
    #[must_use]
    pub fn top_p(&self) -> u64 {
        weight::fraction(self.params.top_p)
    }

    /// Least weight that min-p keeps, of a largest weight of 2⁴⁴.
    #[must_use]
    pub fn min_weight(&self) -> u64 {
        weight::min_weight(self.params.min_p)
    }

    /// After `num_tokens` more: each draws one number, a greedy choice none.
    #[must_use]
    pub fn after(self, num_tokens: usize) -> Self {
        let drawn = if self.params.is_greedy() { 0 } else { num_tokens as u64 };
        Self { random: self.random.wrapping_add(drawn.wrapping_mul(GAMMA)), ..self }
    }

    /// A sampler in this state.
    #[must_use]
    pub fn sampler(&self) -> Sampler {
        Sampler { params: self.params, random: SplitMix64::new(self.random), shortlist: Shortlist::default() }
    }

    /// What it needs of a row of `vocab_size` logits where nobody chooses in its place.
    #[must_use]
    pub fn detail(&self, vocab_size: usize) -> Detail {
        match self.params.top_k {
            _ if self.params.is_greedy() => Detail::Likeliest(1),
            // Of a list of one token 0 and −0 are the same, and here they are not.
            Some(k) if k < vocab_size && k <= MAX_LIST_LEN => Detail::Likeliest(k.max(2)),
            _ => Detail::Whole,
        }
    }
}

/// By which every number of a SplitMix64 stream advances its state.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

impl Sampler {
    /// What it is now: a backend that is told can choose in its place ([`Detail::Chosen`]).
    #[must_use]
    pub fn state(&self) -> SamplerState {
        SamplerState { params: self.params, random: self.random.state() }
    }

    /// Takes a choice that was made in its place, and draws what making it drew; `None`, and nothing drawn, where it was made for a sampler that
    /// is not this one, as it is now.
    pub(super) fn take(&mut self, choice: Choice) -> Option<TokenId> {
        if choice.sampler != self.state() {
            return None;
        }
        if !self.is_greedy() {
            self.random.next_u64();
        }
        Some(choice.token)
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, ops::Range};

    use super::*;
    use crate::{
        Result,
        rows::{FetchPermit, Likeliest, LogitsRow, RowSource},
    };

    const HOT: SamplingParams =
        SamplingParams { temperature: 0.7, top_k: None, top_p: 0.9, min_p: 0.0, seed: u64::MAX - 5 };

    /// A row that is fetched at a price, with a choice of 7.
    #[derive(Debug)]
    struct Chosen {
        sampler: SamplerState,
        logits: Vec<f32>,
        num_fetched: Cell<usize>,
    }

    impl RowSource for Chosen {
        fn here(&self, _: Range<usize>) -> Option<&[f32]> {
            None
        }

        fn list(&self, _: usize) -> Option<Likeliest<'_>> {
            None
        }

        fn choice(&self, _: usize) -> Option<Choice> {
            Some(Choice { token: 7, sampler: self.sampler })
        }

        fn fetch(&self, _: usize, _: FetchPermit) -> Result<&[f32]> {
            self.num_fetched.set(self.num_fetched.get() + 1);
            Ok(&self.logits)
        }
    }

    #[test]
    fn a_row_that_was_chosen_by_for_this_sampler_is_not_fetched_and_for_another_is() {
        let mut sampler = Sampler::new(&HOT).unwrap();
        // What no row says: only a choice gives it.
        let logits = vec![2.0, 1.5, 1.0];
        let row = Chosen { sampler: sampler.state(), logits: logits.clone(), num_fetched: Cell::new(0) };
        let mut plain = sampler.clone();
        assert_eq!(sampler.sample_row(&mut LogitsRow::behind(&row, 0, 3)).unwrap(), 7);
        assert_eq!(row.num_fetched.get(), 0);
        plain.sample(&logits).unwrap();
        // The next number of the stream, by a row that was chosen by with the first.
        let next = sampler.sample_row(&mut LogitsRow::behind(&row, 0, 3)).unwrap();
        assert_eq!((next, row.num_fetched.get()), (plain.sample(&logits).unwrap(), 1));
        assert_eq!(sampler.state(), plain.state());
    }

    #[test]
    fn a_state_runs_ahead_as_its_sampler_draws() {
        let logits: Vec<f32> = (0..50_u8).map(|token| f32::from(token) / 20.0).collect();
        for params in [HOT, SamplingParams::default()] {
            let mut sampler = Sampler::new(&params).unwrap();
            let first = sampler.state();
            for num_drawn in 0..5 {
                assert_eq!(sampler.state(), first.after(num_drawn), "{params:?}");
                let there = first.after(num_drawn).sampler().sample(&logits).unwrap();
                assert_eq!(sampler.sample(&logits).unwrap(), there);
            }
            assert_eq!(first.after(3) == first, params.is_greedy());
        }
    }

    #[test]
    fn a_choice_for_this_sampler_is_taken_once_and_any_other_never() {
        for params in [HOT, SamplingParams::default()] {
            let (mut sampler, mut sampling) =
                (Sampler::new(&params).unwrap(), Sampler::new(&params).unwrap());
            let state = sampler.state();
            let others = [
                Sampler::new(&SamplingParams { seed: 9, ..params }).unwrap().state(),
                Sampler::new(&SamplingParams { temperature: 0.8, ..params }).unwrap().state(),
                SamplerState { random: state.random ^ 1, ..state },
            ];
            for other in others {
                assert_eq!(sampler.take(Choice { token: 7, sampler: other }), None);
                assert_eq!(sampler.state(), state, "nothing was drawn");
            }
            assert_eq!(sampler.take(Choice { token: 7, sampler: state }), Some(7));
            sampling.sample(&[1.0, 0.5]).unwrap();
            assert_eq!(sampler.state(), sampling.state());
            let again = sampler.take(Choice { token: 7, sampler: state });
            assert_eq!(again.is_some(), params.is_greedy(), "the stream has moved on");
        }
    }
}
