//! Whole steps of the CPU backend on random weights, against a plain read of the weights.
//!
//! `cargo bench -p takt-engine --bench step` takes every kind of step in turn with a read of as many bytes as the step's weights,
//! so that what else runs on the machine hits all, and prints medians and their ratios:
//!
//! - **share**: how much of the decode step's time the read takes;
//! - **lanes**: tokens a second of [`NUM_LANES`] lanes decoding together, over those of one lane;
//! - **verify**: time of a step of [`VERIFY_LEN`] tokens of one lane, all logits wanted, over that of a decode step;
//! - **again**: time to the first token of a prompt of [`PROMPT_LEN`] tokens of which a snapshot holds all but the last, over that
//!   of a decode step.
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
/// Lanes that decode together.
const NUM_LANES: usize = 8;
/// Tokens of a verify round.
const VERIFY_LEN: usize = 8;
/// Tokens of a prompt whose prefix is known.
const PROMPT_LEN: usize = 64;

/// Models to measure: a published shape, and the shipped demo's.
fn models() -> [(&'static str, DecoderSpec); 2] {
    let mut demo = decoder_spec("qwen3-0.6b").unwrap();
    (demo.num_layers, demo.hidden_size, demo.intermediate_size) = (6, 256, 768);
    (demo.num_q_heads, demo.num_kv_heads, demo.head_dim, demo.vocab_size) = (4, 2, 64, 2048);
    demo.rope.inv_freq.truncate(32);
    [("qwen3-0.6b", decoder_spec("qwen3-0.6b").unwrap()), ("the demo's shape", demo)]
}

/// A step of `num_tokens` of each of the first `num_lanes` lanes.
fn plan(num_lanes: usize, num_tokens: usize, logits: LogitsWanted) -> StepPlan {
    let mut plan = StepPlan::with_capacity(num_lanes * num_tokens, num_lanes);
    for lane in 0..num_lanes {
        plan.push(LaneId(lane), &vec![7; num_tokens], logits);
    }
    plan
}

/// Seconds, medians.
struct Times {
    prefill: f64,
    decode: f64,
    lanes: f64,
    verify: f64,
    again: f64,
    read: f64,
}

/// Every kind of step in turn, until each was taken nine times and half a second has passed.
fn measure(backend: &mut CpuBackend, read: impl Fn()) -> Times {
    let plans = [
        plan(1, CONTEXT_LEN, LogitsWanted::Last),
        plan(1, 1, LogitsWanted::Last),
        plan(NUM_LANES, 1, LogitsWanted::Last),
        plan(1, VERIFY_LEN, LogitsWanted::All),
    ];
    // As many tokens as one step takes.
    let slice = plan(NUM_LANES, CONTEXT_LEN / NUM_LANES, LogitsWanted::None);
    for _ in 0..NUM_LANES {
        backend.run_step(&slice).unwrap();
    }
    let snapshot = backend.save_snapshot(LaneId(0), PROMPT_LEN - 1).unwrap();
    let mut times: [Vec<Duration>; 6] = Default::default();
    let start = Instant::now();
    while times[0].len() < 9 || start.elapsed() < Duration::from_millis(500) {
        for (kind, plan) in plans.iter().enumerate() {
            let context_len = if kind == 0 { 0 } else { CONTEXT_LEN };
            (0..NUM_LANES).for_each(|lane| backend.truncate(LaneId(lane), CONTEXT_LEN).unwrap());
            backend.truncate(LaneId(0), context_len).unwrap();
            let before = Instant::now();
            black_box(backend.run_step(plan).unwrap());
            times[kind].push(before.elapsed());
        }
        let before = Instant::now();
        backend.truncate(LaneId(0), 0).unwrap();
        backend.restore_snapshot(LaneId(0), snapshot).unwrap();
        black_box(backend.run_step(&plans[1]).unwrap());
        times[4].push(before.elapsed());
        // As long as it was.
        backend.truncate(LaneId(0), 0).unwrap();
        backend.run_step(&plans[0]).unwrap();
        let before = Instant::now();
        read();
        times[5].push(before.elapsed());
    }
    let [prefill, decode, lanes, verify, again, read] = times.map(|mut times| {
        times.sort_unstable();
        times[times.len() / 2].as_secs_f64()
    });
    Times { prefill, decode, lanes, verify, again, read }
}

fn main() {
    let num_threads = thread::available_parallelism().map_or(1, usize::from);
    println!("{num_threads} threads; medians of steps taken in turn");
    println!(
        "{:>16} {:>6} {:>5} {:>5} {:>12} {:>12} {:>7} {:>6} {:>7} {:>6}",
        "model", "kind", "head", "x", "prefill us/t", "decode us", "share", "lanes", "verify", "again"
    );
    let (int8, float) = (ActivationArithmetic::Int8, ActivationArithmetic::F32);
    for (name, spec) in models() {
        for (kind, head, arithmetic) in [
            (WeightKind::Nvfp4, WeightKind::Nvfp4, int8),
            (WeightKind::Nvfp4, WeightKind::Fp8, int8),
            (WeightKind::Nvfp4, WeightKind::Nvfp4, float),
            (WeightKind::Int4, WeightKind::Int4, int8),
            (WeightKind::Fp8, WeightKind::Fp8, float),
            (WeightKind::Bf16, WeightKind::Bf16, float),
        ] {
            let weights = RandomWeights::new(&spec, kind, head, 1).unwrap();
            let options = EngineOptions {
                num_lanes: NUM_LANES,
                num_snapshots: 1,
                lane_capacity: Some(2 * CONTEXT_LEN),
                arithmetic,
                ..EngineOptions::default()
            };
            let mut backend =
                CpuBackend::new(&spec, &weights, &options.cpu_options(&spec, KvKind::Bf16)).unwrap();
            drop(weights);
            let pool = ThreadPool::new(num_threads).unwrap();
            let probe = ReadProbe::new(backend.capabilities().weight_bytes_per_step as usize);
            let times = measure(&mut backend, || {
                black_box(probe.read(&pool));
            });
            println!(
                "{name:>16} {kind:>6} {head:>5} {arithmetic:>5?} {:>12.1} {:>12.1} {:>6.0}% {:>6.2} {:>7.2} {:>6.2}",
                times.prefill * 1e6 / CONTEXT_LEN as f64,
                times.decode * 1e6,
                100.0 * times.read / times.decode,
                NUM_LANES as f64 * times.decode / times.lanes,
                times.verify / times.decode,
                times.again / times.decode,
            );
        }
    }
}
