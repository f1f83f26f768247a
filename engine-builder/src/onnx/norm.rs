//! RMSNorm before a layer: its weight and epsilon, checked on the trial run.

use super::{
    array::Fact,
    compare::agree,
    evaluate::{epsilon, weight_input},
    graph::TensorId,
    landmarks::behind_movement,
    trace::Trace,
};

/// An RMSNorm.
#[derive(Debug, Clone)]
pub struct Norm {
    /// Weight, a constant.
    pub weight: TensorId,
    /// Its values.
    pub values: Vec<f64>,
    /// Epsilon.
    pub epsilon: f64,
}

/// Most operators of a decomposed RMSNorm between its weight and its epsilon.
const MAX_SEARCH: usize = 16;

impl Norm {
    /// Reads the RMSNorm whose result is `tensor`, possibly moved or cast since.
    ///
    /// # Errors
    /// Naming the operator found instead.
    pub fn behind(trace: &Trace<'_>, tensor: TensorId) -> Fact<Self> {
        let graph = trace.graph;
        let at = behind_movement(graph, tensor);
        let node = graph.producer(at).ok_or("no operator makes it")?;
        let found = || format!("operator {} (node {:?})", node.full_op(), node.name);
        let (weight, epsilon) = if let Some(idx) = weight_input(node) {
            (node.required_fact(idx)?, f64::from(epsilon(node)))
        } else if node.op == "Mul" {
            let (a, b) = (node.required_fact(0)?, node.required_fact(1)?);
            let (weight, value) = if trace.is_constant(a) { (a, b) } else { (b, a) };
            (
                weight,
                decomposed_epsilon(trace, value).ok_or_else(|| {
                    format!("{} without the addition of an epsilon to a mean of squares", found())
                })?,
            )
        } else {
            return Err(found());
        };
        if !trace.is_constant(weight) {
            return Err(format!("{} whose weight is not a constant", found()));
        }
        Ok(Self { weight, values: trace.value_or_constant(weight)?.data, epsilon })
    }

    /// The norm of rows as wide as the weight.
    pub fn apply(&self, rows: &[f64]) -> Vec<f64> {
        let width = self.values.len().max(1);
        let mut out = rows.to_vec();
        for row in out.chunks_exact_mut(width) {
            let mean = row.iter().map(|v| v * v).sum::<f64>() / width as f64;
            let factor = 1.0 / (mean + self.epsilon).sqrt();
            row.iter_mut().zip(&self.values).for_each(|(v, w)| *v *= factor * w);
        }
        out
    }

    /// Checks that `found` is the norm of `stream`, or of its last rows.
    ///
    /// # Errors
    /// When it is not.
    pub fn check(&self, found: &[f64], stream: &[f64]) -> Fact<()> {
        let expected = self.apply(stream);
        let last =
            expected.len().checked_sub(found.len()).and_then(|start| expected.get(start..)).unwrap_or(&[]);
        if !found.is_empty() && found.len().is_multiple_of(self.values.len()) && agree(found, last) {
            return Ok(());
        }
        Err("its values are not RMSNorm(residual stream) · weight".into())
    }
}

/// The constant added to a mean, searched backwards from the normalised value.
fn decomposed_epsilon(trace: &Trace<'_>, value: TensorId) -> Option<f64> {
    let graph = trace.graph;
    let mut queue = std::collections::VecDeque::from([value]);
    for _ in 0..MAX_SEARCH {
        let node = graph.producer(queue.pop_front()?)?;
        if node.op == "Add" {
            let (a, b) = (node.input(0)?, node.input(1)?);
            let (constant, other) = if trace.is_constant(a) { (a, b) } else { (b, a) };
            let is_mean = graph
                .producer(behind_movement(graph, other))
                .is_some_and(|n| n.op.starts_with("Reduce") || n.op == "Div" || n.op == "Mul");
            if let Some(epsilon) = trace
                .is_constant(constant)
                .then(|| trace.value_or_constant(constant).ok()?.as_scalar())
                .flatten()
                .filter(|_| is_mean)
            {
                return Some(epsilon);
            }
            continue;
        }
        let arithmetic =
            ["Mul", "Div", "Sqrt", "Reciprocal", "Pow", "Cast", "Exp", "Log", "Identity", "Unsqueeze"];
        if arithmetic.contains(&node.op.as_str()) {
            // The residual stream itself may be an addition: only ways that lead through the deviation count.
            queue.extend(
                node.inputs
                    .iter()
                    .flatten()
                    .filter(|i| trace.is_hidden(**i) && graph.producer(**i).is_some()),
            );
        }
    }
    None
}
