//! Logits against the decoder written naively in F64, for every option a description can have.

use takt_engine::{
    kv::{KvKind, LaneId},
    quant::WeightKind,
    spec::{DecoderSpec, RopePairing},
};
use takt_tests::{
    backends::{relative_errors, run_slices},
    conformance::{BF16, BF16_OVER_E4M3_CACHE},
    memory_weights::MemoryWeights,
    reference,
};

use crate::models::{on_device, open, options, spec, tokens};

/// Largest relative L2 error over all positions of 80 tokens.
fn error(spec: &DecoderSpec, weights: WeightKind, kv: KvKind) -> f64 {
    let model = MemoryWeights::random(spec, weights, WeightKind::Bf16, 3);
    let tokens = tokens(spec, 80);
    let expected = reference::logits(spec, &model, kv, &tokens);
    let found = run_slices(&mut open(spec, &model, &options(kv)).unwrap(), LaneId(0), &tokens, 80);
    let errors = found.iter().zip(&expected).map(|(found, expected)| relative_errors(found, expected).1);
    errors.fold(0.0, |max, error| if error.is_nan() { f64::NAN } else { f64::max(max, error) })
}

#[track_caller]
fn check(what: &str, spec: &DecoderSpec) {
    let found = error(spec, WeightKind::Bf16, KvKind::Bf16);
    println!("{what}: {found:.2e}");
    assert!(found < BF16.bound, "{what}: relative error {found:.2e}, {BF16:?}");
}

#[test]
fn every_option_of_the_description_matches_the_naive_decoder() {
    on_device("forward::every_option_of_the_description_matches_the_naive_decoder").run(|_| {
        let base = spec();
        check("plain", &base);
        check("tied embeddings", &DecoderSpec { tied_embeddings: true, ..base.clone() });
        check("QK-norm", &DecoderSpec { qk_norm: true, ..base.clone() });
        check("all biases", &DecoderSpec { qkv_bias: true, o_bias: true, mlp_bias: true, ..base.clone() });
        check("MQA", &DecoderSpec { num_kv_heads: 1, ..base.clone() });
        check("7 heads on 1", &DecoderSpec { num_q_heads: 7, num_kv_heads: 1, ..base.clone() });
        let windows = vec![Some(1), None, Some(30)];
        check("windows", &DecoderSpec { windows, ..base.clone() });
        let mut partial = base;
        partial.rope.inv_freq.truncate(8);
        partial.rope.pairing = RopePairing::Interleaved;
        check("partial rotary, interleaved", &partial);
    });
}

#[test]
fn every_weight_and_cache_format_matches_the_naive_decoder() {
    on_device("forward::every_weight_and_cache_format_matches_the_naive_decoder").run(|_| {
        for kind in WeightKind::ALL {
            let found = error(&spec(), kind, KvKind::Bf16);
            println!("{kind} weights: {found:.2e}");
            assert!(found < BF16.bound, "{kind}: {found:.2e}");
        }
        for (kv, tier) in [(KvKind::Fp8, BF16_OVER_E4M3_CACHE), (KvKind::Int8, BF16)] {
            let found = error(&spec(), WeightKind::Bf16, kv);
            println!("{kv} cache: {found:.2e}");
            assert!(found < tier.bound, "{kv}: {found:.2e}, {tier:?}");
        }
    });
}
