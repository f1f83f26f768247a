//! A list decides what the row decides, or nothing.

use proptest::prelude::*;

use super::*;
use crate::rows::{FetchPermit, MAX_LIST_LEN, RowSource};

/// A row with its list: by a full sort, as the definition says.
#[derive(Debug)]
struct Row {
    logits: Vec<f32>,
    tokens: Vec<TokenId>,
    values: Vec<f32>,
    max_len: usize,
    is_broken: bool,
}

impl Row {
    fn new(logits: &[f32], max_len: usize) -> Self {
        let mut sorted: Vec<_> = (0..)
            .zip(logits.iter().copied())
            .filter(|(_, logit): &(TokenId, f32)| logit.is_finite())
            .collect();
        let value = |logit: f32| if max_len == 1 { logit + 0.0 } else { logit };
        sorted.sort_by(|a, b| value(b.1).total_cmp(&value(a.1)).then(a.0.cmp(&b.0)));
        sorted.truncate(max_len);
        let (tokens, values) = sorted.into_iter().unzip();
        let is_broken = logits.iter().any(|logit| logit.is_nan() || *logit == f32::INFINITY);
        Self { logits: logits.to_vec(), tokens, values, max_len, is_broken }
    }

    fn row(&self) -> LogitsRow<'_> {
        LogitsRow::behind(self, 0, self.logits.len())
    }
}

impl RowSource for Row {
    fn here(&self, _: std::ops::Range<usize>) -> Option<&[f32]> {
        None
    }

    fn list(&self, _: usize) -> Option<Likeliest<'_>> {
        (!self.is_broken).then(|| Likeliest::new(&self.tokens, &self.values, self.max_len))
    }

    fn fetch(&self, _: usize, _: FetchPermit) -> Result<&[f32]> {
        Ok(&self.logits)
    }
}

/// Few values, so that there are ties, both zeros, and what is no number. Made of a seed: a strategy for each number takes minutes.
fn logits(with_broken: bool) -> impl Strategy<Value = Vec<f32>> {
    (any::<u64>(), 1_usize..300, 0_u64..4).prop_map(move |(seed, len, kind)| {
        let mut random = SplitMix64::new(seed);
        let mut below = |limit: u64| random.next_u64() % limit;
        let mut logits: Vec<f32> = (0..len).map(|_| value(below(12), below(40))).collect();
        if with_broken && kind == 0 {
            let at = below(len as u64) as usize;
            logits[at] = [f32::NAN, f32::INFINITY, -f32::NAN][below(3) as usize];
        }
        if kind == 1 {
            logits.iter_mut().for_each(|logit| *logit = logit.min(0.0));
        }
        logits
    })
}

fn value(kind: u64, step: u64) -> f32 {
    match kind {
        0..=4 => step as f32 / -10.0,
        5 | 6 => -0.0,
        7 | 8 => 0.0,
        9 => f32::NEG_INFINITY,
        _ => step as f32 / 8.0,
    }
}

fn params() -> impl Strategy<Value = SamplingParams> {
    let temperature = prop_oneof![1 => Just(0.0_f32), 3 => 0.1_f32..3.0];
    let top_k = prop::option::weighted(0.8, prop_oneof![Just(1_usize), 1..80_usize]);
    let top_p = prop_oneof![Just(1.0_f32), 0.05_f32..1.0];
    let min_p = prop_oneof![Just(0.0_f32), 0.0_f32..=1.0];
    (temperature, top_k, top_p, min_p, any::<u64>()).prop_map(|(temperature, top_k, top_p, min_p, seed)| {
        SamplingParams { temperature, top_k, top_p, min_p, seed }
    })
}

fn told(chosen: Result<TokenId>) -> std::result::Result<TokenId, String> {
    chosen.map_err(|error| error.to_string())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Token, error and random stream: the second row tells whether as many numbers were drawn for the first.
    #[test]
    fn a_row_with_a_list_gives_what_the_whole_row_gives(
        rows in prop::collection::vec(logits(true), 1..4), params in params(), list_len in 1_usize..=64,
    ) {
        let (mut by_row, mut by_list) = (Sampler::new(&params).unwrap(), Sampler::new(&params).unwrap());
        for logits in rows {
            for list_len in [Some(list_len), asked(&by_list, logits.len())].into_iter().flatten() {
                let whole = told(by_row.sample(&logits));
                let listed = told(by_list.sample_row(&mut Row::new(&logits, list_len).row()));
                prop_assert_eq!(&listed, &whole, "list of {}", list_len);
                prop_assert_eq!(by_list.random.state(), by_row.random.state());
            }
        }
    }

    /// What is masked out of a row is not seen in its list either.
    #[test]
    fn a_masked_list_decides_what_the_masked_row_decides(
        logits in logits(false), params in params(), list_len in 1_usize..=64, mask in any::<[u64; 5]>(),
    ) {
        let allowed = |token: TokenId| mask[token as usize / 64] >> (token % 64) & 1 == 1;
        let masked: Vec<f32> =
            (0..).zip(&logits).map(|(token, &logit)| if allowed(token) { logit } else { f32::NEG_INFINITY }).collect();
        let (mut by_row, mut by_list) = (Sampler::new(&params).unwrap(), Sampler::new(&params).unwrap());
        let row = Row::new(&logits, list_len);
        let list = row.list(0).unwrap();
        if let Some(token) = by_list.sample_list(list, logits.len(), allowed) {
            prop_assert_eq!(Ok(token), told(by_row.sample(&masked)));
            prop_assert_eq!(by_list.random.state(), by_row.random.state());
        } else {
            prop_assert_eq!(by_list.random.state(), params.seed, "a number was drawn for nothing");
        }
    }

    /// Rows of distinct logits never need more than was asked for.
    #[test]
    fn what_a_sampler_asks_for_is_enough(params in params(), seed in any::<u64>(), vocab_size in 2_usize..400) {
        let mut random = SplitMix64::new(seed);
        let logits: Vec<f32> = (0..vocab_size).map(|_| random.next_u53() as f32 / (1_u64 << 53) as f32 - 0.5).collect();
        let mut sampler = Sampler::new(&params).unwrap();
        if let Some(list_len) = asked(&sampler, vocab_size) {
            prop_assert!(list_len <= MAX_LIST_LEN);
            let row = Row::new(&logits, list_len);
            prop_assert!(sampler.sample_list(row.list(0).unwrap(), vocab_size, |_| true).is_some());
        } else {
            prop_assert!(params.top_k.is_none_or(|k| k > MAX_LIST_LEN || k >= vocab_size));
        }
    }
}

fn asked(sampler: &Sampler, vocab_size: usize) -> Option<usize> {
    match sampler.detail(vocab_size) {
        Detail::Likeliest(len) => Some(len),
        _ => None,
    }
}

#[test]
fn a_list_that_ends_among_zeros_does_not_decide_for_the_greedy() {
    // 70 times 0 before a −0 of a lower id: the list of 64 does not show that one.
    let mut logits = vec![0.0_f32; 71];
    logits[0] = -0.0;
    let mut greedy = Sampler::new(&SamplingParams::default()).unwrap();
    let row = Row::new(&logits, 64);
    assert_eq!(greedy.sample_list(row.list(0).unwrap(), 71, |_| true), None);
    assert_eq!(greedy.sample_row(&mut row.row()).unwrap(), 0);
    assert_eq!(greedy.sample_row(&mut Row::new(&logits, 1).row()).unwrap(), 0);
}

#[test]
fn a_zero_after_sixty_tokens_beats_a_negative_zero_before_them() {
    let mut logits = vec![-1.0; 65];
    (logits[0], logits[64]) = (-0.0, 0.0);
    let params = SamplingParams { temperature: 1.0, top_k: Some(1), ..SamplingParams::default() };
    assert_eq!(Sampler::new(&params).unwrap().sample(&logits).unwrap(), 64);
    let row = Row::new(&logits, 2);
    assert_eq!(Sampler::new(&params).unwrap().sample_row(&mut row.row()).unwrap(), 64);
}
