//! How many bytes a cache takes, and whether it fits.

use super::KvKind;
use crate::{EngineError, Result, spec::DecoderSpec};

/// Bytes one token takes in one lane: keys and values of every layer and key/value head, scales included.
#[must_use]
pub fn kv_bytes_per_token(spec: &DecoderSpec, kind: KvKind) -> u64 {
    // `DecoderSpec::validate` bounds each factor by 2^10, so the product stays far below 2^64.
    2 * (spec.num_layers * spec.num_kv_heads) as u64
        * (spec.head_dim * kind.element_bytes() + size_of::<f32>()) as u64
}

/// Bytes of `num_lanes` lanes of `lane_capacity` tokens; `None` when they exceed 2^64.
#[must_use]
pub fn kv_bytes(spec: &DecoderSpec, kind: KvKind, num_lanes: usize, lane_capacity: usize) -> Option<u64> {
    kv_bytes_per_token(spec, kind).checked_mul(num_lanes as u64)?.checked_mul(lane_capacity as u64)
}

/// Bytes of the cache when they stay within `budget_bytes`.
///
/// # Errors
/// [`EngineError::Capacity`] with the sizes and the lane capacity that would fit.
pub fn check_kv_budget(
    spec: &DecoderSpec,
    kind: KvKind,
    num_lanes: usize,
    lane_capacity: usize,
    budget_bytes: u64,
) -> Result<u64> {
    let needed = kv_bytes(spec, kind, num_lanes, lane_capacity);
    if let Some(needed) = needed.filter(|&needed| needed <= budget_bytes) {
        return Ok(needed);
    }
    let per_token = kv_bytes_per_token(spec, kind);
    let fits = budget_bytes / per_token.saturating_mul(num_lanes as u64).max(1);
    let needed = needed.map_or_else(|| "more than 2^64".to_string(), |bytes| bytes.to_string());
    Err(EngineError::Capacity(format!(
        "the {kind} KV cache of {num_lanes} lanes x {lane_capacity} tokens x {per_token} bytes takes {needed} bytes, \
         {budget_bytes} are allowed: use at most {fits} tokens a lane, fewer lanes or a smaller format"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shapes;

    #[test]
    fn kv_bytes_of_known_shapes_match_hand_arithmetic() {
        let spec = shapes::decoder_spec("qwen3-0.6b").unwrap();
        assert_eq!(kv_bytes_per_token(&spec, KvKind::Bf16), 28 * 2 * 8 * (256 + 4));
        assert_eq!(kv_bytes_per_token(&spec, KvKind::Fp8), 28 * 2 * 8 * (128 + 4));
        assert_eq!(kv_bytes(&spec, KvKind::Int8, 4, 1000), Some(4 * 1000 * 28 * 2 * 8 * 132));
    }

    #[test]
    fn a_cache_over_budget_is_refused_with_the_capacity_that_fits() {
        let spec = shapes::decoder_spec("qwen3-0.6b").unwrap();
        let error = check_kv_budget(&spec, KvKind::Bf16, 2, 1000, 116_480 * 2 * 10).unwrap_err();
        assert!(error.is_capacity());
        let text = error.to_string();
        assert!(
            text.contains("takes 232960000 bytes, 2329600 are allowed: use at most 10 tokens a lane"),
            "{text}"
        );
        assert!(check_kv_budget(&spec, KvKind::Bf16, 2, 10, 116_480 * 2 * 10).is_ok());
        assert!(check_kv_budget(&spec, KvKind::Bf16, usize::MAX, usize::MAX, u64::MAX).is_err());
    }
}
