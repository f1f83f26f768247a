//! Small CPU backends and ways to drive them.

use takt_engine::{
    TokenId,
    backend::{
        Backend,
        cpu::{ActivationArithmetic, CpuBackend, CpuOptions},
    },
    kv::{KvKind, LaneId},
    spec::DecoderSpec,
    step::{LogitsWanted, StepPlan},
    weights::WeightSource,
};

/// Options for small models: 2 threads, 3 lanes of 200 tokens, exact arithmetic.
#[must_use]
pub fn options(kv: KvKind, arithmetic: ActivationArithmetic) -> CpuOptions {
    CpuOptions {
        num_threads: 2,
        num_lanes: 3,
        lane_capacity: 200,
        kv,
        arithmetic,
        max_step_tokens: 256,
        max_logits_rows: 256,
        max_kv_bytes: None,
    }
}

/// A backend over `source`.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn open(spec: &DecoderSpec, source: &dyn WeightSource, options: &CpuOptions) -> CpuBackend {
    CpuBackend::new(spec, source, options).expect("a backend")
}

/// Logits of every token of `tokens`, which extend `lane` in slices of `slice_len`.
///
/// # Panics
/// When a step fails.
pub fn run_slices(
    backend: &mut dyn Backend,
    lane: LaneId,
    tokens: &[TokenId],
    slice_len: usize,
) -> Vec<Vec<f32>> {
    let mut logits = Vec::new();
    for slice in tokens.chunks(slice_len) {
        let mut plan = StepPlan::default();
        plan.push(lane, slice, LogitsWanted::All);
        let output = backend.run_step(&plan).expect("a step");
        let rows = output.segment_logits(0).expect("whole rows");
        logits.extend(rows.chunks(output.vocab_size()).map(<[f32]>::to_vec));
    }
    logits
}

/// Position of the largest value.
#[must_use]
pub fn argmax(logits: &[f32]) -> TokenId {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(0, |(idx, _)| idx as TokenId)
}

/// `(max |Δ| / max |expected|, ‖Δ‖ / ‖expected‖)`.
///
/// # Panics
/// When the lengths differ.
#[must_use]
pub fn relative_errors(found: &[f32], expected: &[f64]) -> (f64, f64) {
    assert_eq!(found.len(), expected.len(), "vectors of different lengths");
    let deltas: Vec<f64> = found.iter().zip(expected).map(|(&f, e)| f64::from(f) - e).collect();
    let max = |values: &[f64]| {
        values.iter().fold(0.0f64, |max, v| if v.is_nan() { f64::NAN } else { max.max(v.abs()) })
    };
    let norm = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>().sqrt();
    (max(&deltas) / max(expected), norm(&deltas) / norm(expected))
}
