//! Canonical tensor names onto the graph's constants: transposed, sliced and dequantized when they are asked for.

use std::collections::HashMap;

use super::{
    array::Fact,
    graph::{Graph, TensorId},
    linear::Matrix,
    trace::Trace,
    weights,
};
use crate::{
    BuildError, Result,
    checkpoint::{Tensor, TensorSource},
};

/// Output rows `first..first + count` of a linear layer.
#[derive(Debug, Clone, Copy)]
pub struct Rows {
    /// Layer, by index in the trace.
    pub linear: usize,
    /// First row.
    pub first: usize,
    /// Rows.
    pub count: usize,
}

impl Rows {
    /// A whole layer.
    pub fn all(trace: &Trace<'_>, linear: usize) -> Self {
        Self { linear, first: 0, count: trace.linears[linear].out_features }
    }

    /// These columns of the layer's made-up result, `[tokens, count]`.
    ///
    /// # Errors
    /// When the layer has none.
    pub fn columns(&self, trace: &Trace<'_>) -> Fact<Vec<f64>> {
        let width = trace.linears[self.linear].out_features;
        let data = &trace.output_of(self.linear)?.data;
        Ok(data
            .chunks_exact(width)
            .flat_map(|row| row[self.first..self.first + self.count].iter().copied())
            .collect())
    }
}

/// Where a canonical tensor's values are.
#[derive(Debug, Clone)]
pub enum Location {
    /// Rows of a matrix, `[out, in]`.
    Matrix {
        /// The matrix.
        matrix: Matrix,
        /// First row.
        first: usize,
        /// Rows.
        count: usize,
    },
    /// Elements of a vector.
    Vector {
        /// A constant.
        tensor: TensorId,
        /// First element.
        first: usize,
        /// Elements.
        count: usize,
    },
}

/// The tensors of an ONNX decoder.
#[derive(Debug)]
pub struct OnnxTensors {
    /// The graph with its stored tensors.
    pub graph: Graph,
    /// By canonical name.
    pub locations: HashMap<String, Location>,
}

impl OnnxTensors {
    fn read(&self, location: &Location) -> Fact<Tensor> {
        match location {
            Location::Matrix { matrix, first, count } => {
                let mut values = matrix.load(&self.graph)?;
                let &[rows, columns] = values.shape.as_slice() else {
                    return Err(format!("a weight of shape {:?}", values.shape));
                };
                if first + count > rows {
                    return Err(format!("rows {first} + {count} of {rows}"));
                }
                values.data.truncate((first + count) * columns);
                values.data.drain(..first * columns);
                Ok(Tensor { shape: vec![*count, columns], values: values.data })
            }
            Location::Vector { tensor, first, count } => {
                let values = weights::load(&self.graph, *tensor)?.data;
                let part = values
                    .get(*first..first + count)
                    .ok_or_else(|| format!("elements {first} + {count} of {}", values.len()))?;
                Ok(Tensor { shape: vec![*count], values: part.to_vec() })
            }
        }
    }
}

impl TensorSource for OnnxTensors {
    fn load(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let fail = |fact: String| BuildError::Tensor { name: name.to_owned(), fact };
        let location =
            self.locations.get(name).ok_or_else(|| fail("is not part of this ONNX decoder".into()))?;
        let stored = match location {
            Location::Matrix { matrix, .. } => matrix.root(&self.graph),
            Location::Vector { tensor, .. } => *tensor,
        };
        let tensor = self
            .read(location)
            .map_err(|fact| fail(format!("(ONNX {:?}) {fact}", self.graph.tensor(stored).name)))?;
        if tensor.shape != shape {
            return Err(fail(format!("has shape {:?}, expected {shape:?}", tensor.shape)));
        }
        Ok(tensor)
    }

    fn contains(&self, name: &str) -> bool {
        self.locations.contains_key(name)
    }
}
