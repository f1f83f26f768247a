//! What pads lanes is made of numbers, whatever the tokens of a model do in 16 bits.

use takt_engine::{
    TokenId,
    backend::{Backend, cpu::ActivationArithmetic},
    kv::KvKind,
    quant::WeightKind,
    spec::DecoderSpec,
};
use takt_engine_builder::export::Form;
use takt_tensorrt::build::PlanFlags;
use takt_tests::{
    backends,
    memory_weights::{MemoryWeights, uniform},
};

use crate::{
    forward::{assert_near, bound, talk},
    models::{FP8_CACHE, KINDS, Kind, Place, Planned, emulated, options, spec, tokens},
};

/// A random model in which `overflows` says whether a token's values, in the first layer, are past what F16 holds: they are 30,000 times a part of the
/// embedding that others have none of.
fn model(spec: &DecoderSpec, overflows: impl Fn(TokenId) -> bool) -> MemoryWeights {
    let (hidden, mut state) = (spec.hidden_size, 1);
    MemoryWeights::new(spec, WeightKind::Bf16, WeightKind::Bf16, |name, len| {
        let (offset, spread) =
            if name.contains("norm") { (1.0, 0.3) } else { (0.0, 1.7 / (hidden as f32).sqrt()) };
        let mut values: Vec<f32> = (0..len).map(|_| offset + spread * uniform(&mut state)).collect();
        match name {
            "model.embed_tokens.weight" => {
                for (token, row) in (0..).zip(values.chunks_exact_mut(hidden)) {
                    row[0] = if overflows(token) { 1.0 } else { 0.0 };
                }
            }
            "model.layers.0.self_attn.v_proj.weight" => {
                values.chunks_exact_mut(hidden).for_each(|row| row[0] = 3e4);
            }
            _ => {}
        }
        values
    })
}

fn kinds() -> [Kind; 2] {
    let f16 = |form| Kind { form, weights: WeightKind::Bf16, ..KINDS[0] };
    [f16(Form::Operators), f16(Form::Primitives)]
}

#[test]
fn a_token_past_what_f16_holds_pads_no_lane_and_harms_none() {
    let test = "padding::a_token_past_what_f16_holds_pads_no_lane_and_harms_none";
    emulated(test, |_, _, _| {
        for kind in kinds() {
            let spec = spec(false);
            // The first three that are tried.
            let overflows = |token| [0, 12, 24].contains(&token);
            let planned = Planned::of(kind, spec.clone(), model(&spec, overflows), PlanFlags::default());
            let mut said = tokens(&spec, 100);
            said.iter_mut().filter(|token| overflows(**token)).for_each(|token| *token += 1);
            let mut backend = planned.open(&options()).unwrap();
            let exact = backends::options(KvKind::Bf16, ActivationArithmetic::F32);
            let mut cpu = backends::open(&spec, &planned.weights, &exact);
            // Lanes that are idle, empty, shorter than others, and trees.
            let (found, expected) = (talk(&mut backend, &said), talk(&mut cpu, &said));
            for (idx, (found, expected)) in found.iter().flatten().zip(expected.iter().flatten()).enumerate()
            {
                assert_near(found, expected, bound(kind.compute), &format!("{kind:?}: row {idx}"));
            }
        }
    });
}

/// Keys and values in 8 bits saturate, and their scales are known: what they say again is within F16, or there is no such plan.
#[test]
fn a_cache_of_8_bits_past_what_f16_holds_is_refused_when_the_model_is_written() {
    let test = "padding::a_cache_of_8_bits_past_what_f16_holds_is_refused_when_the_model_is_written";
    emulated(test, |_, _, _| {
        let spec = spec(false);
        let planned = |compute| {
            let kind = Kind { compute, has_windows: false, ..FP8_CACHE };
            let model = (spec.clone(), model(&spec, |token| token == 0));
            Planned::at(Place::stand_in(), kind, model, PlanFlags::default())
        };
        let error = planned(FP8_CACHE.compute).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("model.layers.0 takes a scale of") && error.contains("use bf16"), "{error}");
        let in_bf16 = planned(KINDS[2].compute).unwrap();
        assert!(in_bf16.cache_scales[0][1] * 448.0 > 65_504.0, "{:?}", in_bf16.cache_scales);
        // Whatever pads is a number.
        let mut backend = in_bf16.open(&options()).unwrap();
        let said = talk(&mut backend, &tokens(&spec, 100));
        assert!(said.iter().flatten().flatten().all(|logit| logit.is_finite()));
    });
}

#[test]
fn a_plan_in_which_no_token_stays_within_f16_is_refused_with_what_to_do() {
    let test = "padding::a_plan_in_which_no_token_stays_within_f16_is_refused_with_what_to_do";
    emulated(test, |device, standin, _| {
        for kind in kinds() {
            let spec = spec(false);
            let planned = Planned::of(kind, spec.clone(), model(&spec, |_| true), PlanFlags::default());
            let error = planned.open(&options()).unwrap_err().to_string();
            let said = "past what f16 holds for each of the tokens 0, 12, 24, 36, 48, 60, 72, 84";
            assert!(error.contains(said) && error.contains("`--plan-dtype bf16`"), "{error}");
            let in_bf16 = Kind { compute: KINDS[2].compute, ..kind };
            let planned = Planned::of(in_bf16, spec.clone(), model(&spec, |_| true), PlanFlags::default());
            assert_eq!(planned.open(&options()).unwrap().capabilities().backend, "tensorrt");
        }
        assert_eq!(standin.alive(), [""; 0]);
        assert_eq!(device.report().leaks(), Vec::<String>::new());
    });
}
