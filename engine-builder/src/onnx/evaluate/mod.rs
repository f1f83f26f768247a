//! A small interpreter for everything in a decoder's graph that is not a weight: masks, positions, rotary tables, head layout,
//! normalisation, attention and activation, in `f64`.
//!
//! It exists so that an export is recognised by what it *computes*: the glue between the linear layers is run on made-up
//! activations and compared with the decoder's equations. An operator that is not here is refused by name.

mod arithmetic;
mod attention;
mod movement;
mod normalization;
mod reduction;
mod rotary;

use std::rc::Rc;

pub use attention::{local_window, scale};
pub use normalization::{epsilon, weight_input};
pub use rotary::table_tensors;

use super::{
    array::{Array, Fact},
    graph::{Graph, Node, TensorId},
};
use crate::Result;

/// Values of tensors, as far as they have been computed.
#[derive(Debug)]
pub struct Evaluator<'a> {
    graph: &'a Graph,
    values: Vec<Option<Rc<Array>>>,
}

/// Constants up to this many elements are computed once and kept; larger ones again for each reader.
const KEPT_ELEMENTS: usize = 1 << 16;
/// Longest chain of operators on a constant that is followed.
const MAX_CHAIN: usize = 64;

impl<'a> Evaluator<'a> {
    /// An evaluator that knows the graph's stored tensors only.
    pub fn new(graph: &'a Graph) -> Self {
        Self { graph, values: vec![None; graph.tensors.len()] }
    }

    /// Gives `tensor` a value.
    pub fn set(&mut self, tensor: TensorId, value: Array) {
        self.values[tensor.0] = Some(Rc::new(value));
    }

    /// The value, when it has been computed.
    pub fn known(&self, tensor: TensorId) -> Option<&Rc<Array>> {
        self.values[tensor.0].as_ref()
    }

    /// The value of `tensor`: computed before, stored, or folded from stored ones.
    ///
    /// # Errors
    /// When it has no value, or is too large to be glue.
    pub fn demand(&mut self, tensor: TensorId) -> Fact<Rc<Array>> {
        self.demand_within(tensor, MAX_CHAIN)
    }

    fn demand_within(&mut self, tensor: TensorId, chain: usize) -> Fact<Rc<Array>> {
        if let Some(value) = &self.values[tensor.0] {
            return Ok(value.clone());
        }
        let info = self.graph.tensor(tensor);
        if let Some(stored) = &info.stored {
            let value = Rc::new(Array::from_stored(stored)?);
            self.keep_small(tensor, &value);
            return Ok(value);
        }
        let node = self.graph.producer(tensor).ok_or_else(|| format!("{:?} has no value", info.name))?;
        let chain = chain
            .checked_sub(1)
            .ok_or_else(|| format!("{:?} is made by too long a chain of constants", info.name))?;
        let inputs = node
            .inputs
            .iter()
            .map(|i| i.map(|i| self.demand_within(i, chain)).transpose())
            .collect::<Fact<Vec<_>>>()?;
        let outputs = apply(node, self.graph.opset, &inputs)?;
        let position = node.outputs.iter().position(|o| *o == Some(tensor)).unwrap_or(0);
        let value = outputs.into_iter().nth(position).ok_or("an output the operator does not have")?;
        let value = Rc::new(value);
        self.keep_small(tensor, &value);
        Ok(value)
    }

    fn keep_small(&mut self, tensor: TensorId, value: &Rc<Array>) {
        if value.data.len() <= KEPT_ELEMENTS {
            self.values[tensor.0] = Some(value.clone());
        }
    }

    /// Runs every node that `targets` need, keeping only what is still to be read.
    ///
    /// # Errors
    /// Naming the node that cannot run.
    pub fn run_to(&mut self, targets: &[TensorId]) -> Result<()> {
        let order = self.graph.order_for(targets)?;
        let mut readers = vec![0_usize; self.graph.tensors.len()];
        let inputs = order.iter().flat_map(|idx| self.graph.nodes[*idx].inputs.iter().flatten());
        inputs.chain(targets).for_each(|id| readers[id.0] += 1);
        for node_idx in order {
            let node = &self.graph.nodes[node_idx];
            self.run(node)?;
            for input in node.inputs.iter().flatten() {
                readers[input.0] -= 1;
                if readers[input.0] == 0 {
                    self.values[input.0] = None;
                }
            }
        }
        Ok(())
    }

    /// Runs one node on its inputs' values.
    ///
    /// # Errors
    /// Naming the node and operator.
    pub fn run(&mut self, node: &Node) -> Result<()> {
        self.try_run(node).map_err(|fact| node.refuse(&fact))
    }

    fn try_run(&mut self, node: &Node) -> Fact<()> {
        let mut inputs = Vec::with_capacity(node.inputs.len());
        for (idx, input) in node.inputs.iter().enumerate() {
            // A table of cosines for every position of a long context is not unpacked to read a few rows.
            let rows_only = node.op == "Gather" && idx == 0;
            inputs.push(match input {
                Some(id) if rows_only && self.is_large_stored(*id) => None,
                Some(id) => Some(self.demand(*id)?),
                None => None,
            });
        }
        let outputs = match (node.op.as_str(), node.input(0), inputs.first()) {
            ("Gather", Some(table), Some(None)) => vec![self.gather_rows(node, table, inputs.get(1))?],
            _ => apply(node, self.graph.opset, &inputs)?,
        };
        for (id, value) in node.outputs.iter().zip(outputs) {
            if let Some(id) = id {
                self.set(*id, value);
            }
        }
        Ok(())
    }

    fn is_large_stored(&self, id: TensorId) -> bool {
        self.values[id.0].is_none()
            && self
                .graph
                .tensor(id)
                .stored
                .as_ref()
                .is_some_and(|s| s.num_elements() > KEPT_ELEMENTS && s.dims.len() == 2)
    }

    /// `Gather` along axis 0 from a stored matrix, decoding only the rows asked for.
    fn gather_rows(&self, node: &Node, table: TensorId, indices: Option<&Option<Rc<Array>>>) -> Fact<Array> {
        let indices = indices.cloned().flatten().ok_or("input 1 is missing")?;
        let stored = self.graph.tensor(table).stored.as_ref().ok_or("input 0 is missing")?;
        let &[rows, width] = stored.dims.as_slice() else {
            return Err("a table that is not a matrix".into());
        };
        if node.int("axis").unwrap_or(0) != 0 {
            return Err("columns gathered from a large table".into());
        }
        let mut data = Vec::new();
        for idx in indices.as_ints() {
            let row = usize::try_from(if idx < 0 { idx + rows as i64 } else { idx })
                .ok()
                .filter(|r| *r < rows)
                .ok_or_else(|| format!("row {idx} of {rows}"))?;
            for column in 0..width {
                data.push(
                    stored
                        .dtype
                        .element(&stored.bytes, row * width + column)
                        .ok_or("stored values are truncated")?,
                );
            }
        }
        Array::new([indices.shape.as_slice(), &[width]].concat(), stored.dtype.kind(), data)
    }
}

/// Operands of an operator.
pub(super) struct Operands<'a> {
    pub node: &'a Node,
    pub opset: i64,
    inputs: &'a [Option<Rc<Array>>],
}

impl Operands<'_> {
    /// Input `idx`.
    pub fn get(&self, idx: usize) -> Fact<&Array> {
        self.optional(idx).ok_or_else(|| format!("input {idx} is missing"))
    }

    /// Input `idx`, if given.
    pub fn optional(&self, idx: usize) -> Option<&Array> {
        self.inputs.get(idx).and_then(|i| i.as_deref())
    }

    /// How many inputs there are.
    pub fn len(&self) -> usize {
        self.inputs.len()
    }

    /// Integers from input `idx`, or from the attribute older versions used.
    pub fn ints(&self, idx: usize, attribute: &str) -> Option<Vec<i64>> {
        self.optional(idx).map(Array::as_ints).or_else(|| self.node.ints(attribute).map(<[i64]>::to_vec))
    }

    /// Refuses any input from `first` on, whose meaning is `what`.
    pub fn refuse_inputs(&self, first: usize, what: &str) -> Fact<()> {
        match (first..self.len()).find(|idx| self.optional(*idx).is_some()) {
            Some(idx) => Err(format!("input {idx} is given ({what}), which is not understood")),
            None => Ok(()),
        }
    }
}

/// Runs the operator of `node`.
fn apply(node: &Node, opset: i64, inputs: &[Option<Rc<Array>>]) -> Fact<Vec<Array>> {
    let operands = Operands { node, opset, inputs };
    let families = [
        arithmetic::apply,
        movement::apply,
        reduction::apply,
        normalization::apply,
        rotary::apply,
        attention::apply,
    ];
    for family in families {
        if let Some(result) = family(&operands) {
            return result;
        }
    }
    Err("an operator that no known decoder export uses here; it is refused, not guessed".into())
}
