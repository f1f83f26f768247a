//! What a backend takes beside weights and lanes, without opening one.

use super::{
    CpuOptions,
    activations::Arithmetic,
    arena::{Arena, StepLimits},
    draft::CpuDraft,
    rope::RopeTable,
};
use crate::{draft::DraftSpec, spec::DecoderSpec};

/// Bytes of the buffers of a step and of the position tables of `spec` (valid) and of its head. Assumes 8-bit activations, which take a little
/// more than F32 alone.
#[must_use]
pub fn workspace_bytes(spec: &DecoderSpec, options: &CpuOptions, draft: Option<&DraftSpec>) -> u64 {
    let limits = StepLimits {
        max_tokens: options.max_step_tokens,
        max_logits_rows: options.max_logits_rows,
        num_lanes: options.num_lanes,
    };
    let own = Arena::num_bytes(spec, limits, Arithmetic::Int8)
        + RopeTable::bytes_for(&spec.rope, options.lane_capacity);
    let heads = draft.map_or(0, |draft| {
        let features = options.max_step_tokens * draft.captured.len() * spec.hidden_size * size_of::<f32>();
        CpuDraft::workspace_bytes(draft, options.lane_capacity, Arithmetic::Int8) + features as u64
    });
    own + heads
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shapes::decoder_spec;

    #[test]
    fn the_bytes_told_are_the_bytes_allocated() {
        let spec = DecoderSpec {
            hidden_size: 64,
            intermediate_size: 160,
            vocab_size: 96,
            ..decoder_spec("llama-3.2-1b").unwrap()
        };
        let limits = StepLimits { max_tokens: 20, max_logits_rows: 7, num_lanes: 3 };
        for arithmetic in [Arithmetic::F32, Arithmetic::Int8] {
            let arena = Arena::new(&spec, limits, arithmetic);
            let numbers: usize =
                [&arena.residual, &arena.delta, &arena.qkv, &arena.attended, &arena.gate_up, &arena.logits]
                    .iter()
                    .map(|buffer| buffer.len() * 4)
                    .sum();
            let inputs: u64 = [&arena.normed, &arena.heads, &arena.gated, &arena.last]
                .iter()
                .map(|rows| rows.num_bytes())
                .sum();
            assert_eq!(
                Arena::num_bytes(&spec, limits, arithmetic),
                numbers as u64 + inputs,
                "{arithmetic:?}"
            );
        }
    }
}
