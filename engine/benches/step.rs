//! Whole steps of the CPU backend on random weights: decode steps and a prefill slice, against a plain read of the weights.
//!
//! `cargo bench -p takt-engine --bench step` alternates each step with a read of as many bytes as the step's weights, so that
//! what else runs on the machine hits both, and prints medians.
#![expect(clippy::unwrap_used, reason = "a benchmark has nobody to report an error to")]

use std::{
    hint::black_box,
    thread,
    time::{Duration, Instant},
};

use takt_engine::{
    EngineOptions,
    backend::{
        Backend,
        cpu::{ActivationArithmetic, CpuBackend, ThreadPool, kernels::ReadProbe},
    },
    kv::{KvKind, LaneId},
    quant::WeightKind,
    shapes::{RandomWeights, decoder_spec},
    spec::DecoderSpec,
    step::{LogitsWanted, StepPlan},
};

/// Tokens in the lane before a measured step, and of the prefill slice.
const CONTEXT_LEN: usize = 128;

/// A model to measure: a published shape with fewer layers, since all layers cost the same, and the shipped demo's.
fn models() -> [(&'static str, DecoderSpec); 2] {
    let mut small = decoder_spec("qwen3-0.6b").unwrap();
    small.num_layers = 4;
    small.vocab_size = 16_384;
    let mut demo = decoder_spec("qwen3-0.6b").unwrap();
    (demo.num_layers, demo.hidden_size, demo.intermediate_size) = (6, 256, 768);
    (demo.num_q_heads, demo.num_kv_heads, demo.head_dim, demo.vocab_size) = (4, 2, 64, 2048);
    demo.rope.inv_freq.truncate(32);
    [("4 layers of qwen3-0.6b", small), ("the demo's shape", demo)]
}

fn plan(len: usize) -> StepPlan {
    let mut plan = StepPlan::with_capacity(len, 1);
    plan.push(LaneId(0), &vec![7; len], LogitsWanted::Last);
    plan
}

/// Median times of a step that starts with `context_len` tokens in the lane, and of the read.
fn measure(backend: &mut CpuBackend, plan: &StepPlan, context_len: usize, read: impl Fn()) -> (f64, f64) {
    let (mut steps, mut reads) = (Vec::new(), Vec::new());
    let start = Instant::now();
    while steps.len() < 9 || start.elapsed() < Duration::from_millis(250) {
        backend.truncate(LaneId(0), context_len).unwrap();
        let before = Instant::now();
        black_box(backend.run_step(plan).unwrap());
        steps.push(before.elapsed());
        let before = Instant::now();
        read();
        reads.push(before.elapsed());
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort_unstable();
        times[times.len() / 2].as_secs_f64()
    };
    (median(&mut steps), median(&mut reads))
}

fn main() {
    let num_cores = thread::available_parallelism().map_or(1, usize::from);
    println!(
        "{:>22} {:>5} {:>5} {:>7} {:>12} {:>12} {:>7}",
        "model", "kind", "x", "threads", "prefill us/t", "decode us", "share"
    );
    for (name, spec) in models() {
        for (kind, arithmetic) in [
            (WeightKind::Nvfp4, ActivationArithmetic::Int8),
            (WeightKind::Nvfp4, ActivationArithmetic::F32),
            (WeightKind::Bf16, ActivationArithmetic::F32),
        ] {
            let weights = RandomWeights::new(
                &spec,
                kind,
                if kind == WeightKind::Bf16 { kind } else { WeightKind::Fp8 },
                1,
            )
            .unwrap();
            for num_threads in [1, num_cores] {
                let options = EngineOptions {
                    threads: Some(num_threads),
                    lane_capacity: Some(2 * CONTEXT_LEN),
                    arithmetic,
                    ..EngineOptions::default()
                };
                let cpu_options = options.cpu_options(&spec, KvKind::Bf16);
                let mut backend = CpuBackend::new(&spec, &weights, &cpu_options).unwrap();
                let pool = ThreadPool::new(num_threads).unwrap();
                let probe = ReadProbe::new(backend.capabilities().weight_bytes_per_step as usize);
                let read = || {
                    black_box(probe.read(&pool));
                };
                let (prefill, _) = measure(&mut backend, &plan(CONTEXT_LEN), 0, read);
                let (decode, read_seconds) = measure(&mut backend, &plan(1), CONTEXT_LEN, read);
                println!(
                    "{name:>22} {kind:>5} {arithmetic:>5?} {num_threads:>7} {:>12.1} {:>12.1} {:>6.0}%",
                    prefill * 1e6 / CONTEXT_LEN as f64,
                    decode * 1e6,
                    100.0 * read_seconds / decode,
                );
            }
        }
    }
}
