//! The tokens that may be drawn, with their weights.

use std::cmp::Ordering;

use super::{
    SamplingParams,
    weight::{self, NUM_BINS, Weigher},
};
use crate::{TokenId, rows::Likeliest};

/// Tokens that are looked at together: their sum is kept, and what has none of the largest is passed over.
const CHUNK: usize = 256;

#[derive(Debug, Clone, Copy)]
struct Candidate {
    logit: f32,
    token: TokenId,
    weight: u64,
}

impl Candidate {
    /// Most likely first; of equal ones the lowest id.
    fn order(&self, other: &Self) -> Ordering {
        other.logit.total_cmp(&self.logit).then(self.token.cmp(&other.token))
    }
}

/// Scratch memory of a sampler, filled anew for each token.
#[derive(Debug, Clone, Default)]
pub(super) struct Shortlist {
    candidates: Vec<Candidate>,
    /// Weight of each chunk of a row of which no token is left out before.
    chunks: Vec<u64>,
    /// Weight of each bin of likelihood.
    bins: Vec<u64>,
}

impl Shortlist {
    /// Sets memory aside for what [`Self::choose`] holds at most.
    pub fn reserve(&mut self, vocab_size: usize, params: &SamplingParams) {
        let num_candidates = match params.top_k {
            Some(k) => buffer_len(k).min(vocab_size),
            None if params.top_p < 1.0 => vocab_size,
            None => 0,
        };
        self.candidates.clear();
        self.candidates.reserve(num_candidates);
        self.chunks.clear();
        self.chunks.reserve(vocab_size.div_ceil(CHUNK));
        self.bins.clear();
        self.bins.reserve(NUM_BINS);
    }

    /// The token of `logits` `[vocab_size]`, of which `largest` is the largest and finite, at which `number`, of 53 bits, points when all filters are
    /// applied.
    pub fn choose(
        &mut self,
        logits: &[f32],
        largest: f32,
        params: &SamplingParams,
        number: u64,
    ) -> Option<TokenId> {
        let weigher = Weigher::new(largest, weight::scale(params.temperature));
        match params.top_k {
            Some(k) if k < logits.len() => {
                self.collect_top_k(logits, k);
                self.narrow(params);
            }
            _ if params.top_p < 1.0 => {
                self.collect_top_p(logits, weigher, weight::fraction(params.top_p));
                self.drop_unlikely(params);
            }
            _ if params.min_p > 0.0 => {
                let bar = weight::min_weight(params.min_p);
                let kept = |logit| Some(weigher.weight(logit)).filter(|&weight| weight >= bar).unwrap_or(0);
                return self.pick_of_row(logits, kept, number);
            }
            _ => return self.pick_of_row(logits, |logit| weigher.weight(logit), number),
        }
        self.pick(number)
    }

    /// The first `k` of a list that are `allowed`: what [`Self::choose`] takes of the row for a top-k of `k`, if the list is long enough.
    pub fn gather(&mut self, list: Likeliest<'_>, k: usize, allowed: impl Fn(TokenId) -> bool) {
        self.candidates.clear();
        let allowed = list.entries().filter(|&(token, _)| allowed(token));
        self.candidates.extend(allowed.map(|(token, logit)| Candidate { logit, token, weight: 0 }).take(k));
    }

    /// Applies the filters after top-k to its tokens, likeliest first; those that are left are in the order of their ids.
    pub fn narrow(&mut self, params: &SamplingParams) {
        let Some(&Candidate { logit: largest, .. }) = self.candidates.first() else { return };
        let weigher = Weigher::new(largest, weight::scale(params.temperature));
        self.candidates.iter_mut().for_each(|candidate| candidate.weight = weigher.weight(candidate.logit));
        if params.top_p < 1.0 {
            let goal = weight::goal(weight::fraction(params.top_p), self.weight());
            let num_kept = reaching(&self.candidates, goal);
            self.candidates.truncate(num_kept);
        }
        self.drop_unlikely(params);
        self.candidates.sort_unstable_by_key(|candidate| candidate.token);
    }

    pub fn is_empty(&self) -> bool {
        self.candidates.is_empty()
    }

    pub fn len(&self) -> usize {
        self.candidates.len()
    }

    /// The token at which `number`, of 53 bits, points; `None` for an empty list.
    pub fn pick(&self, number: u64) -> Option<TokenId> {
        let mut rest = weight::point(number, self.weight());
        let mut candidates = self.candidates.iter();
        candidates.find(|candidate| is_at(&mut rest, candidate.weight)).map(|candidate| candidate.token)
    }

    /// The same of a whole row, of which a token counts by what `kept` gives for its logit.
    fn pick_of_row(&mut self, logits: &[f32], kept: impl Fn(f32) -> u64, number: u64) -> Option<TokenId> {
        self.chunks.clear();
        let chunks = logits.chunks(CHUNK);
        self.chunks.extend(chunks.map(|chunk| chunk.iter().map(|&logit| kept(logit)).sum::<u64>()));
        let mut rest =
            weight::point(number, self.chunks.iter().fold(0, |sum, &part| sum.saturating_add(part)));
        let chunk = self.chunks.iter().position(|&part| is_at(&mut rest, part))?;
        let start = chunk * CHUNK;
        let within = logits[start..].iter().position(|&logit| is_at(&mut rest, kept(logit)))?;
        TokenId::try_from(start + within).ok()
    }

    fn weight(&self) -> u64 {
        self.candidates.iter().fold(0, |sum, candidate| sum.saturating_add(candidate.weight))
    }

    fn drop_unlikely(&mut self, params: &SamplingParams) {
        let bar = weight::min_weight(params.min_p);
        self.candidates.retain(|candidate| candidate.weight >= bar);
    }

    /// The k largest, sorted: candidates gather in a buffer that is cut back to k whenever it is full, which also raises the bar.
    fn collect_top_k(&mut self, logits: &[f32], k: usize) {
        self.candidates.clear();
        let mut bar = f32::NEG_INFINITY;
        for (first, chunk) in (0..).step_by(CHUNK).zip(logits.chunks(CHUNK)) {
            if is_below(chunk, bar) {
                continue;
            }
            for (token, &logit) in (first..).zip(chunk) {
                // Ids ascend, so a token equal to the k-th loses the tie.
                let is_beyond = logit.total_cmp(&bar).is_le() && self.candidates.len() >= k;
                if is_beyond || logit == f32::NEG_INFINITY {
                    continue;
                }
                self.candidates.push(Candidate { logit, token, weight: 0 });
                if self.candidates.len() == buffer_len(k) {
                    self.cut_to(k);
                    bar = self.candidates[k - 1].logit;
                }
            }
        }
        self.cut_to(k);
        self.candidates.sort_unstable_by(Candidate::order);
    }

    /// Keeps the k most likely, the k-th last.
    fn cut_to(&mut self, k: usize) {
        if self.candidates.len() > k {
            self.candidates.select_nth_unstable_by(k - 1, Candidate::order);
            self.candidates.truncate(k);
        }
    }

    /// The most likely tokens up to and including the one that reaches `fraction` · 2⁻⁵³ of the row's weight, in the order of their ids. One bin of
    /// likelihood has the last of them: what is before it is in, and only its own tokens are sorted.
    fn collect_top_p(&mut self, logits: &[f32], weigher: Weigher, fraction: u64) {
        let total = self.fill_bins(logits, weigher);
        let goal = weight::goal(fraction, total);
        let (mut last, mut before) = (0, 0);
        while last + 1 < NUM_BINS && self.bins[last] < goal - before {
            (last, before) = (last + 1, before + self.bins[last]);
        }
        self.candidates.clear();
        self.candidates.extend(
            (0..)
                .zip(logits)
                .filter(|&(_, &logit)| weigher.bin(logit) == last)
                .map(|(token, &logit)| Candidate { logit, token, weight: weigher.weight(logit) }),
        );
        self.candidates.sort_unstable_by(Candidate::order);
        let num_kept = reaching(&self.candidates, goal - before);
        let Some(&cut) = self.candidates[..num_kept].last() else { return };
        self.candidates.clear();
        for (first, chunk) in (0..).step_by(CHUNK).zip(logits.chunks(CHUNK)) {
            if is_below(chunk, cut.logit) {
                continue;
            }
            let candidates =
                (first..).zip(chunk).map(|(token, &logit)| Candidate { logit, token, weight: 0 });
            let kept = candidates.filter(|candidate| candidate.order(&cut).is_le());
            self.candidates.extend(kept.map(|kept| Candidate { weight: weigher.weight(kept.logit), ..kept }));
        }
    }

    /// Weighs every bin, and returns the weight of all.
    fn fill_bins(&mut self, logits: &[f32], weigher: Weigher) -> u64 {
        self.bins.clear();
        self.bins.resize(NUM_BINS, 0);
        let (mut total, mut weights, mut places) = (0_u64, [0; CHUNK], [0_usize; CHUNK]);
        for chunk in logits.chunks(CHUNK) {
            // Apart from the scattered sums, so that the compiler may use SIMD.
            for ((weight, place), &logit) in weights.iter_mut().zip(&mut places).zip(chunk) {
                (*weight, *place) = (weigher.weight(logit), weigher.bin(logit));
            }
            for (&weight, &place) in weights.iter().zip(&places).take(chunk.len()) {
                self.bins[place] = self.bins[place].saturating_add(weight);
                total = total.saturating_add(weight);
            }
        }
        total
    }
}

/// Whether what `rest` points at lies within the next `weight`; else it points past it.
fn is_at(rest: &mut u64, weight: u64) -> bool {
    let past = rest.checked_sub(weight);
    *rest = past.unwrap_or(*rest);
    past.is_none()
}

/// How many of the candidates, likeliest first, reach `goal`: at least one.
fn reaching(candidates: &[Candidate], goal: u64) -> usize {
    let mut missing = goal;
    let last = candidates.iter().position(|candidate| {
        missing = missing.saturating_sub(candidate.weight);
        missing == 0
    });
    last.map_or(candidates.len(), |last| last + 1)
}

/// Whether all logits are smaller than `bar`. No branches, so that the compiler may use SIMD.
fn is_below(logits: &[f32], bar: f32) -> bool {
    logits.iter().fold(true, |is_below, &logit| is_below & (logit < bar))
}

/// Length of the buffer that top-k candidates gather in.
fn buffer_len(k: usize) -> usize {
    k.saturating_mul(2).max(64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `(token, probability)` by token.
    fn distribution(logits: &[f32], params: &SamplingParams) -> Vec<(TokenId, f64)> {
        let kept = by_definition(logits, params);
        let total: u64 = kept.iter().map(|entry| entry.1).sum();
        let kept = kept.into_iter().filter(|entry| entry.1 > 0);
        kept.map(|(token, weight)| (token, weight as f64 / total as f64)).collect()
    }

    /// `(token, weight)` by token, of those that the filters leave: everything sorted, prefix by prefix.
    fn by_definition(logits: &[f32], params: &SamplingParams) -> Vec<(TokenId, u64)> {
        let weigher = Weigher::new(largest(logits), weight::scale(params.temperature));
        let mut sorted: Vec<_> = logits.iter().copied().zip(0..).collect();
        sorted.sort_by(|a: &(f32, TokenId), b| b.0.total_cmp(&a.0));
        sorted.truncate(params.top_k.unwrap_or(usize::MAX));
        let mut kept: Vec<_> =
            sorted.into_iter().map(|(logit, token)| (token, weigher.weight(logit))).collect();
        let total: u64 = kept.iter().map(|entry| entry.1).sum();
        let reaches = |len: &usize| {
            let reached: u64 = kept[..*len].iter().map(|entry| entry.1).sum();
            u128::from(reached) << 53 >= u128::from(weight::fraction(params.top_p)) * u128::from(total)
        };
        let num_kept = (1..kept.len()).find(reaches).filter(|_| params.top_p < 1.0);
        kept.truncate(num_kept.unwrap_or(kept.len()));
        kept.retain(|entry| entry.1 as f64 >= f64::from(params.min_p) * (1_u64 << 44) as f64);
        kept.sort_unstable();
        kept
    }

    fn largest(logits: &[f32]) -> f32 {
        logits.iter().copied().fold(f32::NEG_INFINITY, f32::max)
    }

    /// Without memory beyond what was set aside.
    fn choose(logits: &[f32], params: &SamplingParams, number: u64) -> Option<TokenId> {
        let mut shortlist = Shortlist::default();
        shortlist.reserve(logits.len(), params);
        let capacities =
            |of: &Shortlist| [of.candidates.capacity(), of.chunks.capacity(), of.bins.capacity()];
        let reserved = capacities(&shortlist);
        let token = shortlist.choose(logits, largest(logits), params, number);
        assert_eq!(capacities(&shortlist), reserved, "allocated after reserving");
        token
    }

    #[derive(serde::Deserialize)]
    struct GoldenCase {
        params: SamplingParams,
        tokens: Vec<TokenId>,
        probabilities: Vec<f64>,
    }

    #[derive(serde::Deserialize)]
    struct Golden {
        logits: Vec<f32>,
        cases: Vec<GoldenCase>,
    }

    #[test]
    fn filters_leave_what_transformers_leaves() {
        let golden: Golden = serde_json::from_str(include_str!("golden_transformers.json")).unwrap();
        assert!(golden.cases.len() > 20);
        for case in golden.cases {
            let ours = distribution(&golden.logits, &case.params);
            let tokens: Vec<_> = ours.iter().map(|entry| entry.0).collect();
            assert_eq!(tokens, case.tokens, "{:?}", case.params);
            for ((_, ours), theirs) in ours.iter().zip(case.probabilities) {
                assert!((ours - theirs).abs() < 1e-6, "{:?}: {ours} {theirs}", case.params);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(600))]

        /// Of rows with many ties, with few, and with tokens that weigh nothing or are excluded.
        #[test]
        fn the_token_is_the_one_that_the_definition_gives(
            steps in prop::collection::vec(-40_i16..40, 1..600),
            (step, excluded, shift) in (prop_oneof![Just(0.125_f32), Just(0.37), Just(3.0)], any::<bool>(), -9_i16..9),
            temperature in prop_oneof![Just(1.3_f32), Just(0.7), Just(1e-30), Just(1e30), Just(f32::MAX)],
            top_k in prop::option::of(1_usize..700),
            top_p in prop_oneof![Just(1.0_f32), 0.05_f32..=1.0, Just(1e-6), Just(1e-45), Just(0.5)],
            min_p in prop_oneof![Just(0.0_f32), 0.0_f32..0.5, Just(1.0)],
            numbers in prop::collection::vec(0_u64..1 << 53, 4),
        ) {
            let logit = |steps: i16| if excluded && steps < -20 { f32::NEG_INFINITY } else { f32::from(steps + shift) * step };
            let mut logits: Vec<f32> = steps.into_iter().map(logit).collect();
            logits[0] = -0.0;
            let params = SamplingParams { temperature, top_k, top_p, min_p, seed: 0 };
            let kept = by_definition(&logits, &params);
            let total: u64 = kept.iter().map(|entry| entry.1).sum();
            for number in numbers.into_iter().chain([0, (1 << 53) - 1]) {
                let mut rest = (u128::from(number) * u128::from(total)) >> 53;
                let wanted = kept.iter().find(|entry| {
                    let is_here = rest < u128::from(entry.1);
                    rest = rest.saturating_sub(u128::from(entry.1));
                    is_here
                });
                prop_assert_eq!(choose(&logits, &params, number), wanted.map(|entry| entry.0));
            }
        }
    }

    #[test]
    fn a_row_of_nothing_but_ties_may_be_longer_than_any_vocabulary() {
        let params = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
        let logits = vec![1.5; 1 << 19];
        assert_eq!(choose(&logits, &params, 0), Some(0));
        assert_eq!(choose(&logits, &params, (1 << 53) - 1), Some((1 << 19) - 1));
        assert_eq!(
            choose(&logits, &SamplingParams { top_p: 0.5, ..params }, (1 << 53) - 1),
            Some((1 << 18) - 1)
        );
        // Twice the sum that 64 bits hold: the last tokens are not drawn, but no sum wraps.
        assert_eq!(choose(&vec![1.5; 1 << 21], &params, (1 << 53) - 1), Some((1 << 20) - 1));
    }
}
