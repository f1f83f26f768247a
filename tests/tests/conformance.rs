//! The CPU backend in the suite that every backend passes.

use takt_engine::{backend::cpu::ActivationArithmetic, kv::KvKind, quant::WeightKind, spec::DecoderSpec};
use takt_tests::{
    backends::{open, options},
    conformance::{F32, F32_OVER_8_BIT_CACHE, INT8_ACTIVATIONS, Subject, Tier, check},
    memory_weights::{MemoryWeights, small_spec},
};

fn conforms(
    spec: &DecoderSpec,
    weights: WeightKind,
    kv: KvKind,
    (arithmetic, tier): (ActivationArithmetic, Tier),
) {
    let model = MemoryWeights::random(spec, weights, WeightKind::Bf16, 5);
    let mut backend = open(spec, &model, &options(kv, arithmetic));
    check(&mut Subject {
        backend: &mut backend,
        weights: &model,
        tier,
        max_tree: 64,
        cache_scales: &[],
        makes_lists: false,
    });
}

#[test]
fn the_cpu_backend_does_what_every_backend_must() {
    let exact = (ActivationArithmetic::F32, F32);
    conforms(&small_spec(), WeightKind::Bf16, KvKind::Bf16, exact);
    let windows = vec![None, Some(9), None];
    conforms(&DecoderSpec { windows, ..small_spec() }, WeightKind::Nvfp4, KvKind::Bf16, exact);
}

#[test]
fn it_does_with_8_bit_caches_and_8_bit_activations() {
    for kv in [KvKind::Fp8, KvKind::Int8] {
        conforms(&small_spec(), WeightKind::Fp8, kv, (ActivationArithmetic::F32, F32_OVER_8_BIT_CACHE));
    }
    conforms(&small_spec(), WeightKind::Int4, KvKind::Bf16, (ActivationArithmetic::Int8, INT8_ACTIVATIONS));
}
