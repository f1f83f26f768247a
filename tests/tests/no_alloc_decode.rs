//! A step allocates nothing: not on the calling thread, not on a worker.

use takt_engine::{
    TokenId,
    backend::{Backend, cpu::ActivationArithmetic},
    kv::{KvKind, LaneId},
    quant::WeightKind,
    sampler::{Sampler, SamplingParams},
    spec::DecoderSpec,
    step::{Detail, LogitsWanted, StepPlan},
};
use takt_tests::{
    backends::{open, options},
    counting::{CountingAllocator, num_allocations},
    memory_weights::{MemoryWeights, small_spec},
};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

// One test alone in its binary: the counter sees every thread of the process.
#[test]
fn prefill_slices_and_decode_steps_allocate_nothing() {
    let spec = DecoderSpec { qk_norm: true, qkv_bias: true, mlp_bias: true, ..small_spec() };
    for (weights, kv, arithmetic) in [
        (WeightKind::Nvfp4, KvKind::Int8, ActivationArithmetic::Int8),
        (WeightKind::Nvfp4, KvKind::Fp8, ActivationArithmetic::F32),
        (WeightKind::Bf16, KvKind::Bf16, ActivationArithmetic::F32),
    ] {
        let model = MemoryWeights::random(&spec, weights, weights, 1);
        let mut backend = open(&spec, &model, &options(kv, arithmetic));
        let mut plan = StepPlan::with_capacity(64, 3);
        // On a busy machine a thread of the pool may start (and allocate, once) long after the pool was made; an allocation
        // of a step would be in every window.
        let windows: Vec<usize> = (0..10).map(|_| allocations_of_60_steps(&mut backend, &mut plan)).collect();
        assert!(windows.contains(&0), "{weights} weights, {kv} cache: allocations in 60 steps: {windows:?}");
        assert!(windows.iter().sum::<usize>() < 60, "{weights} weights, {kv} cache: {windows:?}");
    }
}

/// Steps of a decoding lane beside a lane that prefills in slices of 3.
fn allocations_of_60_steps(backend: &mut dyn Backend, plan: &mut StepPlan) -> usize {
    backend.truncate(LaneId(0), 0).unwrap();
    backend.truncate(LaneId(1), 0).unwrap();
    let mut greedy = Sampler::new(&SamplingParams::default()).unwrap();
    let before = num_allocations();
    let mut next: [TokenId; 3] = [1, 2, 3];
    for step in 0..60 {
        plan.clear();
        plan.push(LaneId(0), &next[..1], LogitsWanted::Last);
        plan.last_needs(if step % 3 == 0 { Detail::Whole } else { Detail::Likeliest(1) });
        plan.push(LaneId(1), &next, if step % 2 == 0 { LogitsWanted::All } else { LogitsWanted::None });
        let mut output = backend.run_step(plan).unwrap();
        next[0] = greedy.sample_row(&mut output.last_row(0).unwrap()).unwrap();
    }
    num_allocations() - before
}
