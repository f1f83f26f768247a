//! The suite that every backend passes, over plans of both forms.

use takt_engine::{
    dir::{PlanEntry, PlanKv},
    quant::WeightKind,
};
use takt_engine_builder::export::{Activations, Compute, KvType};
use takt_tests::conformance::{
    self, BF16_PLAN, BF16_PLAN_OVER_E4M3_CACHE, F16_PLAN, F16_PLAN_OVER_E4M3_CACHE, FP8_ACTIVATIONS_PLAN,
    NVFP4_ACTIVATIONS_PLAN, Subject, Tier,
};

use crate::models::{
    FP8_CACHE, FP8_CACHE_BF16, KINDS, Kind, MAX_TREE, Planned, QUANTIZED, emulated, options,
};

/// Holds a backend over `planned` to it.
pub fn conforms(planned: &Planned, kind: Kind) {
    let mut backend = planned.open(&options()).unwrap();
    conformance::check(&mut Subject {
        backend: &mut backend,
        weights: &planned.weights,
        tier: tier(kind),
        max_tree: MAX_TREE,
        cache_scales: &planned.cache_scales,
        makes_lists: true,
    });
}

/// How exact a plan of `kind` is.
fn tier(kind: Kind) -> Tier {
    match (kind.activations, kind.weights, kind.compute, kind.kv) {
        (Activations::Plain, _, Compute::F16, KvType::Fp8) => F16_PLAN_OVER_E4M3_CACHE,
        (Activations::Plain, _, Compute::Bf16, KvType::Fp8) => BF16_PLAN_OVER_E4M3_CACHE,
        (activations, _, compute, KvType::Fp8) => {
            panic!("no tier for an E4M3 cache beside {activations:?} activations in {compute:?}")
        }
        (Activations::Quantized, WeightKind::Fp8, ..) => FP8_ACTIVATIONS_PLAN,
        (Activations::Quantized, WeightKind::Nvfp4, ..) => NVFP4_ACTIVATIONS_PLAN,
        (_, _, Compute::F16, _) => F16_PLAN,
        _ => BF16_PLAN,
    }
}

#[test]
fn the_tensorrt_backend_does_what_every_backend_must() {
    emulated("conformance::the_tensorrt_backend_does_what_every_backend_must", |_, _, _| {
        for kind in &KINDS[1..3] {
            println!("{kind:?}");
            conforms(&Planned::new(*kind), *kind);
        }
    });
}

#[test]
fn a_plan_with_one_profile_for_everything_does_what_every_backend_must() {
    emulated(
        "conformance::a_plan_with_one_profile_for_everything_does_what_every_backend_must",
        |_, _, _| {
            for kind in &KINDS[1..3] {
                println!("{kind:?}");
                let planned = Planned::refittable(*kind);
                conforms(&planned, *kind);
                // It is what the manifest says, or it is refused.
                let entry = PlanEntry { refittable: None, ..planned.entry.clone() };
                let error = planned.open_as(&entry, &options()).unwrap_err().to_string();
                assert!(error.contains("has 1 profiles, expected 3: prefill, decode, verify"), "{error}");
            }
            let planned = Planned::new(KINDS[1]);
            let entry = PlanEntry { refittable: Some("0".repeat(64)), ..planned.entry.clone() };
            let error = planned.open_as(&entry, &options()).unwrap_err().to_string();
            assert!(error.contains("has 3 profiles, expected 1: one for everything"), "{error}");
        },
    );
}

#[test]
fn with_quantized_activations_it_does_all_of_that_as_near_as_they_let_it() {
    emulated(
        "conformance::with_quantized_activations_it_does_all_of_that_as_near_as_they_let_it",
        |_, _, _| {
            for kind in QUANTIZED {
                println!("{kind:?}");
                conforms(&Planned::new(kind), kind);
            }
        },
    );
}

#[test]
fn a_plan_with_a_cache_of_8_bits_does_what_every_backend_must() {
    emulated("conformance::a_plan_with_a_cache_of_8_bits_does_what_every_backend_must", |_, _, _| {
        for kind in [FP8_CACHE, FP8_CACHE_BF16] {
            println!("{kind:?}");
            let planned = Planned::new(kind);
            assert_eq!(
                (planned.entry.kv, planned.cache_scales.len()),
                (PlanKv::Fp8, planned.spec.num_layers)
            );
            conforms(&planned, kind);
        }
    });
}
