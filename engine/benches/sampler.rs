//! Choosing a token by a whole row of logits, as the CPU's decode steps leave it.
//!
//! `cargo bench -p takt-engine --bench sampler` prints criterion's figures, kept between runs for comparison: check out another version, run
//! it, come back, and run it again.
#![expect(clippy::unwrap_used, reason = "a benchmark has nobody to report an error to")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use takt_engine::sampler::{Sampler, SamplingParams};

/// Qwen3's.
const VOCAB_SIZE: usize = 151_936;

/// Logits of a bell curve, the same in every run.
fn bell_curve() -> Vec<f32> {
    let mut state = 7_u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    (0..VOCAB_SIZE).map(|_| ((0..12).map(|_| uniform()).sum::<f32>() - 6.0) * 2.0).collect()
}

fn choose(criterion: &mut Criterion) {
    let logits = bell_curve();
    let base = SamplingParams { temperature: 0.7, ..SamplingParams::default() };
    let cases = [
        ("greedy", SamplingParams::default()),
        ("temperature", base),
        ("min-p", SamplingParams { min_p: 0.05, ..base }),
        ("top-p", SamplingParams { top_p: 0.9, ..base }),
        ("top-k", SamplingParams { top_k: Some(20), ..base }),
        ("top-k, top-p", SamplingParams { top_k: Some(40), top_p: 0.95, ..base }),
    ];
    let mut group = criterion.benchmark_group("choose of 151,936");
    for (name, params) in cases {
        let mut sampler = Sampler::new(&params).unwrap();
        sampler.reserve(VOCAB_SIZE);
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| sampler.sample(black_box(&logits)).unwrap());
        });
    }
}

criterion_group!(benches, choose);
criterion_main!(benches);
