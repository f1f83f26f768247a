//! A plan whose weights stay in the host's memory, as many as the budget leaves no room for, says the same with any.

use takt_engine::{EngineError, quant::WeightKind};
use takt_engine_builder::plans::PlanOptions;

use super::{Ground, demo, entry, number, record};

/// Of four parts of the plan's weights so many have room.
const QUARTERS: [u64; 4] = [0, 1, 2, 4];

/// Budgets from the least to all of it.
pub fn every_budget(ground: &Ground) {
    let dir = ground.engine("streamed", &demo(), WeightKind::Int4);
    let plans = ground.plans(PlanOptions { streams_weights: true, ..PlanOptions::default() }).unwrap();
    ground.add(&dir, &plans).unwrap();
    assert!(entry(&dir).streams_weights);
    let opened = |max_bytes| ground.open(&dir, |options| options.max_bytes = max_bytes);
    let refusal = |max_bytes| {
        let error = opened(Some(max_bytes)).err().unwrap_or_else(|| panic!("{max_bytes} bytes are enough"));
        assert!(matches!(error, EngineError::Capacity(_)), "{error:?}");
        error.to_string()
    };
    let said = refusal(1);
    // With none of what can be streamed on the device.
    let (least, resident) = (number(&said, "the engine takes"), number(&said, "(plan"));
    let all = entry(&dir).size_bytes;
    assert!(resident < all, "{resident} bytes of {all} have to be there");
    assert_eq!(number(&refusal(least - 1), "the engine takes"), least);
    let expected = ground.answers(opened(None).unwrap());
    for quarters in QUARTERS {
        let budget = least + all * quarters / 4;
        // The same kernels, whatever is sent when: the same bits.
        assert_eq!(ground.answers(opened(Some(budget)).unwrap()), expected, "{budget} bytes");
    }
    ground.assert_alike(&expected, &ground.answers_of_the_processor(&dir), "streamed");
    record(&format!(
        "weight streaming: the same tokens with {resident} to {all} bytes of the plan on the GPU"
    ));
}
