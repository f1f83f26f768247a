//! The suite that every backend passes, over plans of both forms.

use takt_engine::dir::PlanKv;
use takt_engine_builder::export::Compute;
use takt_tests::conformance::{self, BF16_PLAN, F16_PLAN, F16_PLAN_OVER_E4M3_CACHE, Subject};

use crate::models::{FP8_CACHE, KINDS, MAX_TREE, Planned, emulated, options};

/// Holds a backend over `planned` to it.
pub fn conforms(planned: &Planned, compute: Compute) {
    let mut backend = planned.open(&options()).unwrap();
    let tier = match (compute, planned.entry.kv) {
        (Compute::F16, PlanKv::Fp8) => F16_PLAN_OVER_E4M3_CACHE,
        (Compute::F16, PlanKv::Plain) => F16_PLAN,
        (_, PlanKv::Plain) => BF16_PLAN,
        (_, PlanKv::Fp8) => panic!("no tier for an E4M3 cache beside {compute:?}"),
    };
    let backend = &mut backend;
    conformance::check(&mut Subject {
        backend,
        weights: &planned.weights,
        tier,
        max_tree: MAX_TREE,
        cache_scales: &planned.cache_scales,
        makes_lists: true,
    });
}

#[test]
fn the_tensorrt_backend_does_what_every_backend_must() {
    emulated("conformance::the_tensorrt_backend_does_what_every_backend_must", |_, _, _| {
        for kind in &KINDS[1..3] {
            println!("{kind:?}");
            conforms(&Planned::new(*kind), kind.compute);
        }
    });
}

#[test]
fn a_plan_with_a_cache_of_8_bits_does_what_every_backend_must() {
    emulated("conformance::a_plan_with_a_cache_of_8_bits_does_what_every_backend_must", |_, _, _| {
        let planned = Planned::new(FP8_CACHE);
        assert_eq!((planned.entry.kv, planned.cache_scales.len()), (PlanKv::Fp8, planned.spec.num_layers));
        conforms(&planned, FP8_CACHE.compute);
    });
}
