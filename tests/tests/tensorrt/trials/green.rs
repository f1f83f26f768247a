//! A plan that was timed on a part of the GPU runs there, and says what it says on all of it.

use takt_engine::{
    Engine,
    backend::{Multiprocessors, cuda::GpuShare},
    quant::WeightKind,
};
use takt_engine_builder::{BuildError, plans::PlanOptions};

use super::{Ground, demo, entry, record};

const PERCENT: u8 = 50;

/// Whether there are plans for green contexts here; all of it is tried where there are.
pub fn on_a_part_of_the_gpu(ground: &Ground) -> bool {
    let dir = ground.engine("shared", &demo(), WeightKind::Int4);
    let open = |share| ground.open(&dir, |options| options.gpu.share = share).unwrap();
    let used = |engine: &Engine| {
        let Multiprocessors { used, all } = engine.backend.capabilities().multiprocessors.unwrap();
        assert!(used <= all && used > 0, "{used} of {all}");
        (used < all).then_some(used)
    };
    let green = GpuShare::GreenContext { percent: PERCENT };
    // One that was timed on all of it is not run on a part.
    ground.add(&dir, &ground.plans(PlanOptions::default()).unwrap()).unwrap();
    assert_eq!((entry(&dir).timed_in_green_context, used(&open(green))), (None, None));

    let plans = match ground.plans(PlanOptions { sm_share: Some(PERCENT), ..PlanOptions::default() }) {
        Ok(plans) => plans,
        Err(BuildError::Unsupported(fact)) => {
            assert!(fact.contains("leave out --plan-sm-share"), "{fact}");
            record(&format!("green context: {fact}"));
            return false;
        }
        Err(error) => panic!("{error}"),
    };
    ground.add(&dir, &plans).unwrap();
    drop(plans);
    let timed = entry(&dir).timed_in_green_context.unwrap();
    let (part, whole) = (open(green), open(GpuShare::Priority));
    assert!(used(&part).is_some_and(|used| used >= timed), "{:?} of {timed}", used(&part));
    assert_eq!(used(&whole), None);
    let expected = ground.answers(whole);
    ground.assert_alike(&ground.answers(part), &expected, "on a part of the GPU");
    ground.assert_alike(&expected, &ground.answers_of_the_processor(&dir), "on all of the GPU");
    record(&format!("green context: a plan timed on {timed} multiprocessors says there what it says on all"));
    true
}
