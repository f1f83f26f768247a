//! The suite that every backend passes.

use takt_engine::{kv::KvKind, quant::WeightKind, spec::DecoderSpec};
use takt_tests::{
    conformance::{BF16, BF16_OVER_E4M3_CACHE, Subject, Tier, check},
    memory_weights::MemoryWeights,
};

use crate::models::{on_device, open, options, spec};

fn conforms(spec: &DecoderSpec, weights: WeightKind, kv: KvKind, tier: Tier) {
    let model = MemoryWeights::random(spec, weights, WeightKind::Bf16, 5);
    let mut backend = open(spec, &model, &options(kv)).unwrap();
    check(&mut Subject {
        backend: &mut backend,
        weights: &model,
        tier,
        max_tree: 64,
        cache_scales: &[],
        makes_lists: true,
    });
}

#[test]
fn the_cuda_backend_does_what_every_backend_must() {
    on_device("conformance::the_cuda_backend_does_what_every_backend_must").run(|_| {
        conforms(&spec(), WeightKind::Bf16, KvKind::Bf16, BF16);
        let windows = vec![None, Some(9), None];
        conforms(&DecoderSpec { windows, ..spec() }, WeightKind::Nvfp4, KvKind::Fp8, BF16_OVER_E4M3_CACHE);
        conforms(&spec(), WeightKind::Int4, KvKind::Int8, BF16);
    });
}
