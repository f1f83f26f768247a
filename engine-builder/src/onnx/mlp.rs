//! The gated feed-forward layer: `down(silu(gate(x)) · up(x))`.

use std::collections::BTreeSet;

use super::{
    array::Fact,
    compare::agree,
    tensors::Rows,
    trace::{Glue, Origin, Trace},
};

/// Rows of the layers that are gate and up projection.
#[derive(Debug, Clone)]
pub struct GatedMlp {
    /// Gate projection.
    pub gate: Rows,
    /// Up projection.
    pub up: Rows,
    /// Down projection.
    pub down: Rows,
}

/// Reads the feed-forward layer that ends in linear layer `down`.
///
/// # Errors
/// Naming the operators found when it is not SwiGLU.
pub fn read(trace: &Trace<'_>, glue: &Glue, down: usize) -> Fact<GatedMlp> {
    let width = trace.linears[down].in_features;
    let found = trace.value(trace.linears[down].input)?;
    for (gate, up) in arrangements(trace, &glue.origins, width) {
        let (g, u) = (gate.columns(trace)?, up.columns(trace)?);
        let expected: Vec<f64> = g.iter().zip(&u).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
        if agree(&found.data, &expected) {
            return Ok(GatedMlp { gate, up, down: Rows::all(trace, down) });
        }
    }
    Err(format!("its input is not silu(gate) · up; operators found: {}", glue.describe(trace.graph)))
}

/// Gate and up as two layers in either order, or as two halves of one.
fn arrangements(trace: &Trace<'_>, origins: &BTreeSet<Origin>, width: usize) -> Vec<(Rows, Rows)> {
    let layers: Vec<usize> =
        origins.iter().filter_map(|o| if let Origin::Linear(idx) = o { Some(*idx) } else { None }).collect();
    let (a, b) = match layers[..] {
        [one] if trace.linears[one].out_features == 2 * width => {
            (Rows { linear: one, first: 0, count: width }, Rows { linear: one, first: width, count: width })
        }
        [a, b] if [a, b].iter().all(|l| trace.linears[*l].out_features == width) => {
            (Rows::all(trace, a), Rows::all(trace, b))
        }
        _ => return Vec::new(),
    };
    vec![(a, b), (b, a)]
}
