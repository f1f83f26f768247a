//! The tokens that may be drawn, with their weights.

use std::cmp::Ordering;

use super::{SamplingParams, exponential::exp_nonpositive};
use crate::{TokenId, rows::Likeliest};

/// Tokens sorted at a time when looking for the top-p set; it is usually far smaller.
const FIRST_BATCH: usize = 128;

#[derive(Debug, Clone, Copy)]
struct Candidate {
    logit: f32,
    token: TokenId,
    /// Probability relative to the most likely token's.
    weight: f64,
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
}

impl Shortlist {
    /// Sets memory aside for what [`Self::fill`] holds at most.
    pub fn reserve(&mut self, vocab_size: usize, top_k: Option<usize>) {
        let capacity = top_k.map_or(vocab_size, |k| buffer_len(k).min(vocab_size));
        self.candidates.reserve(capacity.saturating_sub(self.candidates.len()));
    }

    /// Applies all filters to `logits` `[vocab_size]`, of which `largest` is the largest, and finite.
    pub fn fill(&mut self, logits: &[f32], largest: f32, params: &SamplingParams) {
        self.candidates.clear();
        match params.top_k {
            Some(k) if k < logits.len() => self.collect_top_k(logits, k),
            _ => self.candidates.extend(finite(logits)),
        }
        self.weigh(largest, params);
    }

    /// The first `k` of a list that are `allowed`: what [`Self::fill`] takes of the row for a top-k of `k`, if the list is long enough.
    pub fn gather(&mut self, list: Likeliest<'_>, k: usize, allowed: impl Fn(TokenId) -> bool) {
        self.candidates.clear();
        let allowed = list.entries().filter(|&(token, _)| allowed(token));
        self.candidates.extend(allowed.map(|(token, logit)| Candidate { logit, token, weight: 0.0 }).take(k));
    }

    /// Applies the filters after top-k to what [`Self::gather`] found.
    pub fn narrow(&mut self, params: &SamplingParams) {
        if let Some(&Candidate { logit, .. }) = self.candidates.first() {
            self.weigh(logit, params);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.candidates.is_empty()
    }

    pub fn len(&self) -> usize {
        self.candidates.len()
    }

    fn weigh(&mut self, largest: f32, params: &SamplingParams) {
        for candidate in &mut self.candidates {
            let scaled = (f64::from(candidate.logit) - f64::from(largest)) / f64::from(params.temperature);
            candidate.weight = exp_nonpositive(scaled);
        }
        if params.top_p < 1.0 {
            self.keep_top_p(f64::from(params.top_p));
        }
        if params.min_p > 0.0 {
            // The most likely token has weight 1.
            self.candidates.retain(|candidate| candidate.weight >= f64::from(params.min_p));
        }
    }

    /// The token at `unit` in `[0, 1)` of the total weight; `None` for an empty list.
    pub fn pick(&self, unit: f64) -> Option<TokenId> {
        let total: f64 = self.candidates.iter().map(|candidate| candidate.weight).sum();
        let mut rest = unit * total;
        for candidate in &self.candidates {
            rest -= candidate.weight;
            if rest < 0.0 {
                return Some(candidate.token);
            }
        }
        // Rounding left a crumb beyond the last token that has any weight.
        self.candidates.iter().rev().find(|candidate| candidate.weight > 0.0).map(|candidate| candidate.token)
    }

    /// The k largest, sorted: candidates gather in a buffer that is cut back to k whenever it is full, which also raises the bar.
    fn collect_top_k(&mut self, logits: &[f32], k: usize) {
        let mut bar = f32::NEG_INFINITY;
        for candidate in finite(logits) {
            // Ids ascend, so a token equal to the k-th loses the tie.
            if candidate.logit.total_cmp(&bar).is_le() && self.candidates.len() >= k {
                continue;
            }
            self.candidates.push(candidate);
            if self.candidates.len() == buffer_len(k) {
                self.cut_to(k);
                bar = self.candidates[k - 1].logit;
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

    /// Keeps the most likely tokens up to and including the one that reaches `top_p` of the weight; leaves them sorted.
    fn keep_top_p(&mut self, top_p: f64) {
        let total: f64 = self.candidates.iter().map(|candidate| candidate.weight).sum();
        let (mut sorted_len, mut batch, mut reached) = (0, FIRST_BATCH, 0.0);
        while sorted_len < self.candidates.len() {
            let rest = &mut self.candidates[sorted_len..];
            let batch_len = batch.min(rest.len());
            if batch_len < rest.len() {
                rest.select_nth_unstable_by(batch_len - 1, Candidate::order);
            }
            rest[..batch_len].sort_unstable_by(Candidate::order);
            for at in sorted_len..sorted_len + batch_len {
                reached += self.candidates[at].weight;
                if reached >= top_p * total {
                    self.candidates.truncate(at + 1);
                    return;
                }
            }
            (sorted_len, batch) = (sorted_len + batch_len, batch * 4);
        }
    }
}

/// Length of the buffer that top-k candidates gather in.
fn buffer_len(k: usize) -> usize {
    k.saturating_mul(2).max(64)
}

fn finite(logits: &[f32]) -> impl Iterator<Item = Candidate> + '_ {
    (0..).zip(logits).filter(|(_, logit)| logit.is_finite()).map(|(token, &logit)| Candidate {
        logit,
        token,
        weight: 0.0,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `(token, probability)` by token.
    fn distribution(shortlist: &Shortlist) -> Vec<(TokenId, f64)> {
        let total: f64 = shortlist.candidates.iter().map(|candidate| candidate.weight).sum();
        let mut entries: Vec<_> = shortlist
            .candidates
            .iter()
            .map(|candidate| (candidate.token, candidate.weight / total))
            .collect();
        entries.sort_by_key(|entry| entry.0);
        entries
    }

    fn fill(logits: &[f32], params: &SamplingParams) -> Shortlist {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut shortlist = Shortlist::default();
        shortlist.reserve(logits.len(), params.top_k);
        let capacity = shortlist.candidates.capacity();
        shortlist.fill(logits, largest, params);
        assert_eq!(shortlist.candidates.capacity(), capacity, "allocated after reserving");
        shortlist
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
            let ours = distribution(&fill(&golden.logits, &case.params));
            let tokens: Vec<_> = ours.iter().map(|entry| entry.0).collect();
            assert_eq!(tokens, case.tokens, "{:?}", case.params);
            for ((_, ours), theirs) in ours.iter().zip(case.probabilities) {
                assert!((ours - theirs).abs() < 1e-6, "{:?}: {ours} {theirs}", case.params);
            }
        }
    }

    proptest! {
        #[test]
        fn filters_leave_what_a_full_sort_leaves(
            logits in prop::collection::vec((-40_i8..40).prop_map(|step| f32::from(step) / 8.0), 1..600),
            top_k in prop::option::of(1_usize..300),
            top_p in 0.05_f32..=1.0,
            min_p in 0.0_f32..0.5,
        ) {
            let params = SamplingParams { temperature: 1.3, top_k, top_p, min_p, seed: 0 };
            let ours: Vec<_> = distribution(&fill(&logits, &params)).iter().map(|entry| entry.0).collect();
            prop_assert_eq!(ours, by_full_sort(&logits, &params));
        }
    }

    /// The same by the definition: everything sorted, prefix by prefix.
    fn by_full_sort(logits: &[f32], params: &SamplingParams) -> Vec<TokenId> {
        let mut sorted: Vec<_> = logits.iter().copied().zip(0..).collect();
        sorted.sort_by(|a: &(f32, TokenId), b| b.0.total_cmp(&a.0));
        sorted.truncate(params.top_k.unwrap_or(usize::MAX));
        let weight = |logit: f32| (f64::from(logit) / f64::from(params.temperature)).exp();
        let total: f64 = sorted.iter().map(|entry| weight(entry.0)).sum();
        let num_kept = (1..sorted.len())
            .find(|&len| {
                sorted[..len].iter().map(|entry| weight(entry.0)).sum::<f64>()
                    >= f64::from(params.top_p) * total
            })
            .filter(|_| params.top_p < 1.0);
        sorted.truncate(num_kept.unwrap_or(sorted.len()));
        let bar = f64::from(params.min_p) * weight(sorted[0].0);
        let mut tokens: Vec<_> =
            sorted.iter().filter(|entry| weight(entry.0) >= bar).map(|entry| entry.1).collect();
        tokens.sort_unstable();
        tokens
    }

    #[test]
    fn the_end_of_the_unit_interval_still_picks_a_token() {
        let shortlist =
            fill(&[0.0, 1.0, -900.0], &SamplingParams { temperature: 1.0, ..SamplingParams::default() });
        assert_eq!(shortlist.pick(1.0), Some(1));
        assert_eq!(shortlist.pick(0.0), Some(0));
    }
}
