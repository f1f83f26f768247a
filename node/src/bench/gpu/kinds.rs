//! Every kind of step by itself: a decode step, prompts of some lengths, trees of some sizes that are verified.

use std::{
    hint::black_box,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use takt_engine::{
    EngineError, TokenId,
    backend::Backend,
    kv::LaneId,
    sampler::SamplerState,
    step::{Detail, LogitsWanted, StepPlan},
};

use crate::{bench::measure::tokens, demo::percentile};

const LANE: LaneId = LaneId(0);
/// Steps of each kind before those that count: graphs are captured, caches filled.
const NUM_WARM: usize = 3;
/// Times each prompt is read, after once that does not count.
const NUM_PREFILLS: usize = 3;

/// What is measured.
#[derive(Debug, Clone)]
pub struct Kinds {
    /// Tokens the lane holds before a decode step or a tree.
    pub context_len: usize,
    /// Lengths of prompts.
    pub prefill_lens: Vec<usize>,
    /// Tokens of trees.
    pub verify_sizes: Vec<usize>,
    /// Steps of each kind.
    pub num_samples: usize,
}

/// One kind of step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One token.
    Decode,
    /// A prompt, in slices of the backend's largest step.
    Prefill,
    /// A tree.
    Verify,
}

impl Kind {
    /// As reports name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Prefill => "prefill",
            Self::Verify => "verify",
        }
    }
}

/// What was measured of a kind.
#[derive(Debug, Clone)]
pub struct Timed {
    /// Which.
    pub kind: Kind,
    /// Tokens computed.
    pub num_tokens: usize,
    /// Each time.
    pub times: Vec<Duration>,
    /// Bytes of weights and of cached keys and values that it reads at least: the weights once a step, the cache of its context once.
    pub num_bytes: f64,
}

impl Timed {
    /// The time that `share` of the steps stay within.
    #[must_use]
    pub fn within(&self, share: f64) -> Duration {
        percentile(&self.times, share)
    }

    /// Bytes a second, at the median.
    #[must_use]
    pub fn bytes_s(&self) -> f64 {
        self.num_bytes / self.within(0.5).as_secs_f64().max(1e-9)
    }

    /// Tokens a second, at the median.
    #[must_use]
    pub fn tok_s(&self) -> f64 {
        self.num_tokens as f64 / self.within(0.5).as_secs_f64().max(1e-9)
    }
}

/// Bytes of keys and values of a token.
fn kv_bytes(backend: &dyn Backend) -> f64 {
    let facts = backend.capabilities();
    facts.kv_bytes as f64 / (facts.num_lanes * facts.lane_capacity).max(1) as f64
}

/// Measures what of `kinds` fits the backend's lanes and steps; stops early when `cancelled`. Decode steps and trees come in turn, so that
/// clocks which change meanwhile change all of them.
///
/// # Errors
/// Whatever the backend reports.
pub fn measure(
    backend: &mut dyn Backend,
    kinds: &Kinds,
    cancelled: &AtomicBool,
) -> Result<Vec<Timed>, EngineError> {
    let facts = backend.capabilities();
    let (capacity, slice_len, weights) =
        (facts.lane_capacity, facts.max_step_tokens.max(1), facts.weight_bytes_per_step as f64);
    let most_nodes = facts.max_logits_rows.min(facts.max_step_tokens);
    let kv_bytes = kv_bytes(backend);
    let context_len = kinds.context_len.clamp(1, capacity.saturating_sub(1).max(1));
    let fits = |&&size: &&usize| size > 0 && size <= most_nodes && context_len + size <= capacity;
    let sizes: Vec<usize> =
        std::iter::once(1).chain(kinds.verify_sizes.iter().filter(fits).copied()).collect();
    let mut bench = Bench { plan: StepPlan::with_capacity(slice_len, 1), backend };
    bench.read_prompt(context_len, slice_len)?;
    let of_steps = |times, num_tokens: usize, kind| Timed {
        kind,
        num_tokens,
        times,
        num_bytes: weights + kv_bytes * (context_len + num_tokens) as f64,
    };
    let mut times = vec![Vec::with_capacity(kinds.num_samples); sizes.len()];
    for sample in 0..NUM_WARM + kinds.num_samples.max(1) {
        for (idx, &size) in sizes.iter().enumerate() {
            let took = if idx == 0 { bench.decode(context_len)? } else { bench.verify(size)? };
            if sample >= NUM_WARM {
                times[idx].push(took);
            }
        }
        if cancelled.load(Ordering::Relaxed) {
            break;
        }
    }
    let kind_of = |idx: usize| if idx == 0 { Kind::Decode } else { Kind::Verify };
    let mut all: Vec<Timed> =
        times.into_iter().enumerate().map(|(idx, times)| of_steps(times, sizes[idx], kind_of(idx))).collect();
    for &len in kinds.prefill_lens.iter().filter(|&&len| len > 0 && len <= capacity) {
        let mut times = Vec::with_capacity(NUM_PREFILLS);
        for round in 0..=NUM_PREFILLS {
            let took = bench.read_prompt(len, slice_len)?;
            if round > 0 {
                times.push(took);
            }
            if cancelled.load(Ordering::Relaxed) {
                break;
            }
        }
        let num_slices = len.div_ceil(slice_len);
        // A slice reads the keys and values of all before it, and its own.
        let num_read: usize = (1..=num_slices).map(|slice| (slice * slice_len).min(len)).sum();
        let num_bytes = weights * num_slices as f64 + kv_bytes * num_read as f64;
        all.push(Timed { kind: Kind::Prefill, num_tokens: len, times, num_bytes });
    }
    bench.backend.truncate(LANE, 0)?;
    Ok(all)
}

struct Bench<'a> {
    backend: &'a mut dyn Backend,
    plan: StepPlan,
}

impl Bench<'_> {
    /// One token after `context_len` others, taken back.
    fn decode(&mut self, context_len: usize) -> Result<Duration, EngineError> {
        self.plan.clear();
        self.plan.push(LANE, &[1], LogitsWanted::Last);
        let took = self.run()?;
        self.backend.truncate(LANE, context_len)?;
        Ok(took)
    }

    /// A tree in which every node has two children, none of which is kept.
    fn verify(&mut self, size: usize) -> Result<Duration, EngineError> {
        let tree = tokens(self.backend, size);
        let parents: Vec<usize> = (0..size).map(|node| node.saturating_sub(1) / 2).collect();
        self.plan.clear();
        self.plan.push_tree(LANE, &tree, &parents);
        self.run()
    }

    /// A prompt of `len` tokens into the empty lane.
    fn read_prompt(&mut self, len: usize, slice_len: usize) -> Result<Duration, EngineError> {
        let prompt: Vec<TokenId> = tokens(self.backend, len);
        self.backend.truncate(LANE, 0)?;
        let started = Instant::now();
        for slice in prompt.chunks(slice_len) {
            let is_last = self.backend.committed_len(LANE) + slice.len() == len;
            self.plan.clear();
            self.plan.push(LANE, slice, if is_last { LogitsWanted::Last } else { LogitsWanted::None });
            self.plan.last_needs(Detail::Chosen(SamplerState::default()));
            black_box(self.backend.run_step(&self.plan)?.num_rows(0));
        }
        Ok(started.elapsed())
    }

    fn run(&mut self) -> Result<Duration, EngineError> {
        // As greedy decoding and its rounds ask for it.
        self.plan.last_needs(Detail::Chosen(SamplerState::default()));
        let started = Instant::now();
        black_box(self.backend.run_step(&self.plan)?.num_rows(0));
        Ok(started.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use takt_engine::{
        engine::{EngineOptions, open_weights},
        quant::WeightKind,
        shapes::{RandomWeights, decoder_spec, unscaled_rope},
        spec::DecoderSpec,
    };

    use super::*;

    #[test]
    fn every_kind_that_fits_is_measured_with_the_bytes_it_reads() {
        let spec = DecoderSpec {
            num_layers: 1,
            hidden_size: 64,
            intermediate_size: 128,
            num_q_heads: 2,
            num_kv_heads: 1,
            head_dim: 32,
            rope: unscaled_rope(1e4, 32),
            vocab_size: 96,
            ..decoder_spec("llama-3.2-1b").unwrap()
        };
        let source = RandomWeights::new(&spec, WeightKind::Bf16, WeightKind::Bf16, 1).unwrap();
        let options = EngineOptions {
            threads: Some(1),
            lane_capacity: Some(64),
            max_step_tokens: 16,
            ..EngineOptions::default()
        };
        let mut backend = open_weights(&spec, &source, &options).unwrap();
        let kinds =
            Kinds { context_len: 20, prefill_lens: vec![40, 65], verify_sizes: vec![8, 60], num_samples: 2 };
        let found = measure(backend.as_mut(), &kinds, &AtomicBool::new(false)).unwrap();
        let of: Vec<_> = found.iter().map(|timed| (timed.kind.name(), timed.num_tokens)).collect();
        assert_eq!(of, [("decode", 1), ("verify", 8), ("prefill", 40)]);
        assert_eq!(found.iter().map(|timed| timed.times.len()).collect::<Vec<_>>(), [2, 2, 3]);
        let facts = backend.capabilities();
        let (weights, kv) = (facts.weight_bytes_per_step as f64, facts.kv_bytes as f64 / 64.0);
        let bytes: Vec<f64> = found.iter().map(|timed| timed.num_bytes).collect();
        // Slices of 16, 32 and 40 tokens' keys and values.
        let expected = [weights + kv * 21.0, weights + kv * 28.0, weights * 3.0 + kv * 88.0];
        assert_eq!(bytes, expected);
        assert_eq!(backend.committed_len(LANE), 0);
    }
}
