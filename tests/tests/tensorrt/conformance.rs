//! The suite that every backend passes, over plans of both forms.

use takt_engine_builder::export::Compute;
use takt_tests::conformance::{self, BF16_PLAN, F16_PLAN, Subject};

use crate::models::{KINDS, MAX_TREE, Planned, emulated, options};

/// Holds a backend over `planned` to it.
pub fn conforms(planned: &Planned, compute: Compute) {
    let mut backend = planned.open(&options()).unwrap();
    let tier = if compute == Compute::F16 { F16_PLAN } else { BF16_PLAN };
    let backend = &mut backend;
    conformance::check(&mut Subject {
        backend,
        weights: &planned.weights,
        tier,
        max_tree: MAX_TREE,
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
