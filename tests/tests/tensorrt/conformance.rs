//! The suite that every backend passes, over plans of both forms.

use takt_engine::quant::WeightKind;
use takt_engine_builder::export::{Activations, Compute};
use takt_tests::conformance::{
    self, BF16_PLAN, F16_PLAN, FP8_ACTIVATIONS_PLAN, NVFP4_ACTIVATIONS_PLAN, Subject, Tier,
};

use crate::models::{KINDS, Kind, MAX_TREE, Planned, QUANTIZED, emulated, options};

/// Holds a backend over `planned` to it.
pub fn conforms(planned: &Planned, kind: Kind) {
    let mut backend = planned.open(&options()).unwrap();
    let backend = &mut backend;
    conformance::check(&mut Subject {
        backend,
        weights: &planned.weights,
        tier: tier(kind),
        max_tree: MAX_TREE,
        makes_lists: true,
    });
}

/// How exact a plan of `kind` is.
fn tier(kind: Kind) -> Tier {
    match (kind.activations, kind.weights, kind.compute) {
        (Activations::Quantized, WeightKind::Fp8, _) => FP8_ACTIVATIONS_PLAN,
        (Activations::Quantized, WeightKind::Nvfp4, _) => NVFP4_ACTIVATIONS_PLAN,
        (_, _, Compute::F16) => F16_PLAN,
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
