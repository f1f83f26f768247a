//! The token that pads lanes: one that was seen to leave numbers.
//!
//! Nobody sees padding's rows, but what is not seen is multiplied by nothing, which makes nothing of numbers only: a value past what 16 bits hold (65,504
//! in F16) would reach its lane as 0 · ∞. Padding sees itself alone, so what it says depends on nothing but the token, in whatever lane, beside whomever; its
//! position only rotates its key. So one look when a plan is opened tells of all padding there will be, and of lanes that hold nothing, too, which have no
//! token of their own to pad with.

use half::{bf16, f16};

use crate::{
    EngineError, TokenId,
    dir::{PlanCompute, PlanEntry, PlanKv},
};

/// Tokens that are tried.
const MAX_TRIED: usize = 8;

/// Tokens that may pad, spread over the vocabulary.
pub(super) fn candidates(vocab_size: usize) -> impl Iterator<Item = TokenId> {
    let step = (vocab_size / MAX_TRIED).max(1);
    (0..vocab_size).step_by(step).take(MAX_TRIED).filter_map(|token| TokenId::try_from(token).ok())
}

/// E4M3's one code, beside its sign, that is no number.
const E4M3_NAN: u8 = 0x7f;

/// Whether keys and values that a token leaves in the cache of the plan `entry` are numbers, and stay numbers however its key is rotated: none is larger
/// than half of what 16 bits hold. Codes of 8 bits saturate, and times their scale are within 16 bits by the way they were chosen.
pub(super) fn is_harmless(rows: &[u8], entry: &PlanEntry) -> bool {
    if entry.kv == PlanKv::Fp8 {
        return rows.iter().all(|code| code & E4M3_NAN != E4M3_NAN);
    }
    let (halves, _) = rows.as_chunks::<2>();
    halves.iter().all(|&raw| match entry.compute {
        PlanCompute::F16 => f16::from_ne_bytes(raw).to_f32().abs() <= f16::MAX.to_f32() / 2.0,
        PlanCompute::Bf16 => bf16::from_ne_bytes(raw).to_f32().abs() <= bf16::MAX.to_f32() / 2.0,
    })
}

/// Says that no token may pad: then nothing that a lane could begin with is a number either.
pub(super) fn refusal(vocab_size: usize, compute: PlanCompute) -> EngineError {
    let tried: Vec<String> = candidates(vocab_size).map(|token| token.to_string()).collect();
    let (dtype, what_to_do) = match compute {
        PlanCompute::F16 => ("f16", ": build it with `--plan-dtype bf16`"),
        PlanCompute::Bf16 => ("bf16", ", which bf16 holds in any trained model: check its weights"),
    };
    EngineError::Unsupported(format!(
        "the TensorRT plan's keys and values are past what {dtype} holds for each of the tokens {}, alone in a lane{what_to_do}",
        tried.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::{super::entry, *};
    use crate::dir::PlanRole;

    #[test]
    fn candidates_are_few_and_within_the_vocabulary() {
        assert_eq!(candidates(96).collect::<Vec<_>>(), [0, 12, 24, 36, 48, 60, 72, 84]);
        assert_eq!(candidates(3).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(candidates(151_936).count(), MAX_TRIED);
    }

    fn plan(compute: PlanCompute, kv: PlanKv) -> PlanEntry {
        PlanEntry { compute, kv, ..entry::tests::plan(16, "sm_110a", PlanRole::Decoder) }
    }

    #[test]
    fn values_past_half_of_what_the_type_holds_harm() {
        let f16s = |value: f32| [f16::from_f32(1.0), f16::from_f32(value)].map(f16::to_ne_bytes);
        let in_f16 = plan(PlanCompute::F16, PlanKv::Plain);
        for (value, is_one) in
            [(32_000.0, true), (-32_000.0, true), (40_000.0, false), (-1e6, false), (f32::NAN, false)]
        {
            assert_eq!(is_harmless(f16s(value).as_flattened(), &in_f16), is_one, "{value}");
        }
        let bf16s = |value: f32| bf16::from_f32(value).to_ne_bytes();
        let in_bf16 = plan(PlanCompute::Bf16, PlanKv::Plain);
        assert!(is_harmless(&bf16s(1e30), &in_bf16));
        assert!(!is_harmless(&bf16s(f32::INFINITY), &in_bf16));
        assert!(!is_harmless(&bf16s(f32::NAN), &in_bf16));
    }

    #[test]
    fn codes_of_8_bits_harm_where_they_are_no_numbers() {
        let in_fp8 = plan(PlanCompute::F16, PlanKv::Fp8);
        let numbers: Vec<u8> =
            (0..=u8::MAX).filter(|code| !crate::quant::e4m3::decode(*code).is_nan()).collect();
        assert_eq!(numbers.len(), 254);
        assert!(is_harmless(&numbers, &in_fp8));
        for code in [0x7f, 0xff] {
            assert!(!is_harmless(&[0, code, 0], &in_fp8), "{code:#x}");
        }
    }
}
