//! RMSNorm in 32 bits: `x / √(mean(x²) + ε) · weight`, over the last axis.

use super::{
    graph::{Attribute, Value},
    target::Form,
    writer::Writer,
};
use crate::Result;

impl Writer<'_> {
    /// `x` `[…, n]` in 32 bits → the same, with the weights `name` `[n]`; `label` names the result.
    pub(super) fn rms_norm(&mut self, label: &str, x: &str, name: &str) -> Result<Value> {
        let weight = match self.graph.knows(name) {
            true => name.to_owned(),
            false => {
                let values = self.tensors.vector(name)?;
                self.graph.floats(name, &[values.len()], &values)?
            }
        };
        let epsilon = self.spec.norm_eps;
        if self.form == Form::Operators {
            let attributes = [("axis", Attribute::Int(-1)), ("epsilon", Attribute::Float(epsilon))];
            return Ok(self.graph.op("RMSNormalization", label, &[x, &weight], &attributes));
        }
        let part = |what: &str| format!("{label}.{what}");
        let (axes, epsilon) = (self.graph.ints(&[-1])?, self.graph.float(epsilon)?);
        let graph = &mut self.graph;
        let square = graph.op("Mul", &part("square"), &[x, x], &[]);
        let mean =
            graph.op("ReduceMean", &part("mean"), &[&square, &axes], &[("keepdims", Attribute::Int(1))]);
        let sum = graph.op("Add", &part("sum"), &[&mean, &epsilon], &[]);
        let root = graph.op("Sqrt", &part("root"), &[&sum], &[]);
        let unit = graph.op("Div", &part("unit"), &[x, &root], &[]);
        Ok(graph.op("Mul", label, &[&unit, &weight], &[]))
    }
}
