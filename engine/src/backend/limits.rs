//! How large lanes and steps may be asked for, whatever runs them.

use crate::{EngineError, Result, spec::DecoderSpec};

/// Most lanes of an engine.
const MAX_LANES: usize = 1 << 10;
/// Most tokens, and most logits rows, of a step.
const MAX_STEP: usize = 1 << 16;

/// The sizes that every backend is opened with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub num_lanes: usize,
    pub lane_capacity: usize,
    pub max_step_tokens: usize,
    pub max_logits_rows: usize,
}

impl Sizes {
    /// That each is at least 1 and within what the model and the backends take.
    ///
    /// # Errors
    /// [`EngineError::Input`] with what was asked and what is expected.
    pub(super) fn check(self, spec: &DecoderSpec) -> Result<()> {
        let counts = [
            ("lanes", self.num_lanes, MAX_LANES),
            ("tokens a lane", self.lane_capacity, spec.max_context),
            ("tokens a step", self.max_step_tokens, MAX_STEP),
            ("logits rows a step", self.max_logits_rows, MAX_STEP),
        ];
        let out_of_range = counts.into_iter().find(|&(_, value, limit)| value == 0 || value > limit);
        out_of_range.map_or(Ok(()), |(what, value, limit)| {
            Err(EngineError::Input(format!("{value} {what} asked, expected 1..={limit}")))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shapes::decoder_spec;

    #[test]
    fn each_size_is_checked_and_named() {
        let spec = DecoderSpec { max_context: 100, ..decoder_spec("llama-3.2-1b").unwrap() };
        let fits = Sizes { num_lanes: 1, lane_capacity: 100, max_step_tokens: 1, max_logits_rows: MAX_STEP };
        assert!(fits.check(&spec).is_ok());
        for (sizes, said) in [
            (Sizes { num_lanes: 0, ..fits }, "0 lanes"),
            (Sizes { num_lanes: MAX_LANES + 1, ..fits }, "1025 lanes"),
            (Sizes { lane_capacity: 101, ..fits }, "101 tokens a lane asked, expected 1..=100"),
            (Sizes { max_step_tokens: 0, ..fits }, "0 tokens a step"),
            (Sizes { max_logits_rows: MAX_STEP + 1, ..fits }, "65537 logits rows a step"),
        ] {
            let error = sizes.check(&spec).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
