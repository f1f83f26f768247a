//! The CPU backend against the decoder written naively in F64, for every option a description can have.

use takt_engine::{
    TokenId,
    backend::cpu::ActivationArithmetic,
    kv::{KvKind, LaneId},
    quant::WeightKind,
    spec::{DecoderSpec, RopePairing},
};
use takt_tests::{
    backends::{open, options, relative_errors, run_slices},
    conformance::{F32, F32_OVER_8_BIT_CACHE, INT8_ACTIVATIONS},
    memory_weights::{MemoryWeights, small_spec, uniform},
    reference,
};

fn tokens(spec: &DecoderSpec, len: usize) -> Vec<TokenId> {
    let mut state = 7;
    (0..len).map(|_| (uniform(&mut state).abs() * (spec.vocab_size - 1) as f32) as TokenId).collect()
}

/// Largest relative L2 error over all positions of 140 tokens.
fn error(spec: &DecoderSpec, weights: WeightKind, kv: KvKind, arithmetic: ActivationArithmetic) -> f64 {
    let model = MemoryWeights::random(spec, weights, WeightKind::Bf16, 3);
    let tokens = tokens(spec, 140);
    let expected = reference::logits(spec, &model, kv, &tokens);
    let found = run_slices(&mut open(spec, &model, &options(kv, arithmetic)), LaneId(0), &tokens, 140);
    let errors = found.iter().zip(&expected).map(|(found, expected)| relative_errors(found, expected).1);
    errors.fold(0.0, |max, error| if error.is_nan() { f64::NAN } else { f64::max(max, error) })
}

#[track_caller]
fn check(what: &str, spec: &DecoderSpec) {
    let found = error(spec, WeightKind::Bf16, KvKind::Bf16, ActivationArithmetic::F32);
    println!("{what}: {found:.2e}");
    assert!(found < F32.bound, "{what}: relative error {found:.2e}, {F32:?}");
}

#[test]
fn every_option_of_the_description_matches_the_naive_decoder() {
    let base = small_spec();
    check("plain", &base);
    check("tied embeddings", &DecoderSpec { tied_embeddings: true, ..base.clone() });
    check("QK-norm", &DecoderSpec { qk_norm: true, ..base.clone() });
    check("all biases", &DecoderSpec { qkv_bias: true, o_bias: true, mlp_bias: true, ..base.clone() });
    check("MQA with wide heads", &DecoderSpec { num_kv_heads: 1, head_dim: 64, ..base.clone() });
    check("as many kv heads as query heads", &DecoderSpec { num_kv_heads: 4, ..base.clone() });
    check("6 heads on 2, odd width", &DecoderSpec { num_q_heads: 6, head_dim: 36, ..base.clone() });
    check(
        "24 heads on 1",
        &DecoderSpec { num_q_heads: 24, num_kv_heads: 1, head_dim: 16, rope: rope(16), ..base },
    );
}

fn rope(head_dim: usize) -> takt_engine::spec::RopeSpec {
    takt_engine::shapes::unscaled_rope(1e4, head_dim)
}

#[test]
fn every_kind_of_rotation_matches_the_naive_decoder() {
    let base = small_spec();
    let mut partial = base.clone();
    partial.rope.inv_freq.truncate(8);
    check("partial rotary", &partial);
    partial.rope.pairing = RopePairing::Interleaved;
    check("partial rotary, interleaved", &partial);
    let mut yarn = base.clone();
    yarn.rope.attention_factor = 1.2079;
    yarn.rope.inv_freq.iter_mut().skip(4).for_each(|freq| *freq /= 4.0);
    check("yarn's attention factor", &yarn);
}

#[test]
fn sliding_windows_match_the_naive_decoder_layer_by_layer() {
    let base = small_spec();
    for windows in [vec![Some(16); 3], vec![Some(1), None, Some(70)], vec![Some(64), Some(65), Some(63)]] {
        check(&format!("windows {windows:?}"), &DecoderSpec { windows, ..base.clone() });
    }
}

#[test]
fn every_weight_format_matches_the_naive_decoder_on_the_dequantized_weights() {
    for kind in WeightKind::ALL {
        let found = error(&small_spec(), kind, KvKind::Bf16, ActivationArithmetic::F32);
        println!("{kind} weights, f32: {found:.2e}");
        assert!(found < F32.bound, "{kind}: {found:.2e}");
    }
}

#[test]
fn eight_bit_activations_stay_within_their_tier() {
    for kind in [WeightKind::Nvfp4, WeightKind::Int4] {
        let found = error(&small_spec(), kind, KvKind::Bf16, ActivationArithmetic::Int8);
        println!("{kind} weights, int8: {found:.2e}");
        assert!(found < INT8_ACTIVATIONS.bound, "{kind}: {found:.2e}");
    }
}

#[test]
fn every_cache_format_matches_the_naive_decoder_that_rounds_alike() {
    for (kv, tier) in
        [(KvKind::Bf16, F32), (KvKind::Fp8, F32_OVER_8_BIT_CACHE), (KvKind::Int8, F32_OVER_8_BIT_CACHE)]
    {
        let found = error(&small_spec(), WeightKind::Bf16, kv, ActivationArithmetic::F32);
        println!("{kv} cache: {found:.2e}");
        assert!(found < tier.bound, "{kv}: {found:.2e}, {tier:?}");
    }
}
