//! One run of a model over bound memory.

use std::{collections::HashMap, sync::Arc};

use super::{
    Result, RunError,
    attention::Scatter,
    memory::Binding,
    model::{Model, Node, Slot},
    movement::{Cut, shape_of},
    tensor::{Call, Tensor},
};

/// A value while a model runs.
#[derive(Debug, Clone)]
enum Value<'a> {
    Held(Arc<Tensor>),
    /// An input that nobody has read yet, or the cache that was updated in its place.
    Bound(Binding<'a>),
}

impl Value<'_> {
    fn held(&self) -> Result<Arc<Tensor>> {
        match self {
            Self::Held(tensor) => Ok(Arc::clone(tensor)),
            Self::Bound(binding) => Ok(Arc::new(binding.read()?)),
        }
    }
}

impl Model {
    /// Computes all outputs from all inputs. An output of `TensorScatter` that is bound to the memory of its input gets the new rows alone; every
    /// other output is written when all are computed.
    ///
    /// # Errors
    /// For an input or output that is missing, unknown or of another type or shape than the model declares, and for whatever an operator refuses:
    /// a token outside the vocabulary, a position outside the tables, rows beyond the cache. Outputs are not written then, but caches may be.
    pub fn run(&self, bindings: &[Binding<'_>]) -> Result<()> {
        let ports = || self.inputs.iter().chain(&self.outputs);
        if let Some(unknown) =
            bindings.iter().find(|binding| ports().all(|(_, port)| port.name != binding.name))
        {
            return Err(RunError(format!("the model has no input or output {:?}", unknown.name)));
        }
        let bound = |name: &str| {
            let found = bindings.iter().find(|binding| binding.name == name);
            found.ok_or_else(|| RunError("is not bound".into()).at("port", name))
        };
        let mut named = HashMap::new();
        let mut run = Run { model: self, values: vec![None; self.num_slots], outputs: HashMap::new() };
        for (slot, tensor) in &self.constants {
            run.values[*slot] = Some(Value::Held(Arc::clone(tensor)));
        }
        for (slot, port) in &self.inputs {
            let binding = bound(&port.name)?;
            port.check(binding.element, &binding.dims, &mut named)?;
            run.values[*slot] = Some(Value::Bound(binding.clone()));
        }
        for (slot, port) in &self.outputs {
            let binding = bound(&port.name)?;
            port.check(binding.element, &binding.dims, &mut named)?;
            run.outputs.insert(*slot, binding);
        }
        for node in &self.nodes {
            run.step(node).map_err(|e| e.at(node.operator.name, &node.name))?;
        }
        run.finish()
    }
}

struct Run<'r, 'a> {
    model: &'r Model,
    values: Vec<Option<Value<'a>>>,
    outputs: HashMap<Slot, &'r Binding<'a>>,
}

impl<'a> Run<'_, 'a> {
    fn step(&mut self, node: &Node) -> Result<()> {
        let first = node.inputs.first().copied().flatten();
        let bound = match first.and_then(|slot| self.values[slot].as_ref()) {
            Some(Value::Bound(binding)) => Some(binding.clone()),
            _ => None,
        };
        let made = match (node.operator.name, bound) {
            ("Shape", Some(binding)) => vec![held(shape_of(&binding.dims, &node.attributes)?)],
            ("Slice", Some(binding)) if binding.is_plain_float() => vec![self.slice(node, &binding)?],
            ("TensorScatter", Some(binding)) if self.may_update(node, &binding) => {
                vec![self.update(node, binding)?]
            }
            _ => self.compute(node)?,
        };
        for (slot, value) in node.outputs.iter().zip(made) {
            self.values[*slot] = Some(value);
        }
        node.frees.iter().for_each(|slot| self.values[*slot] = None);
        Ok(())
    }

    /// The node's inputs; `skipped` of them are left out.
    fn inputs(&self, node: &Node, skipped: usize) -> Result<Vec<Option<Arc<Tensor>>>> {
        let read = |(idx, slot): (usize, &Option<Slot>)| match slot {
            Some(slot) if idx >= skipped => {
                let value = self.values[*slot].as_ref();
                value.ok_or_else(|| RunError(format!("input {idx} is not computed yet")))?.held().map(Some)
            }
            _ => Ok(None),
        };
        node.inputs.iter().enumerate().map(read).collect()
    }

    fn compute(&self, node: &Node) -> Result<Vec<Value<'a>>> {
        let inputs = self.inputs(node, 0)?;
        let given: Vec<Option<&Tensor>> = inputs.iter().map(Option::as_deref).collect();
        let made = node.operator.compute(&Call { inputs: &given, attributes: &node.attributes })?;
        Ok(made.into_iter().map(held).collect())
    }

    /// Reads what is cut out alone: a cache may be much longer.
    fn slice(&self, node: &Node, binding: &Binding<'a>) -> Result<Value<'a>> {
        let inputs = self.inputs(node, 1)?;
        let given: Vec<Option<&Tensor>> = inputs.iter().map(Option::as_deref).collect();
        let cut = Cut::read(&Call { inputs: &given, attributes: &node.attributes }, &binding.dims)?;
        Ok(held(binding.read_slice(cut.axis, cut.from, cut.until)?))
    }

    /// Whether the cache can be updated in its place: the output is bound to the same memory, and nobody else reads the cache as it was.
    fn may_update(&self, node: &Node, binding: &Binding<'_>) -> bool {
        let out = node.outputs.first().and_then(|slot| self.outputs.get(slot));
        let is_read_once = node.inputs[0]
            .is_some_and(|slot| self.model.num_readers[slot] == 1 && !self.outputs.contains_key(&slot));
        is_read_once && binding.is_plain_float() && out.is_some_and(|out| out.is_in_place_of(binding))
    }

    fn update(&self, node: &Node, binding: Binding<'a>) -> Result<Value<'a>> {
        let inputs = self.inputs(node, 1)?;
        let given: Vec<Option<&Tensor>> = inputs.iter().map(Option::as_deref).collect();
        let call = Call { inputs: &given, attributes: &node.attributes };
        let scatter = Scatter::read(&call, binding.element, &binding.dims)?;
        for (&start, rows) in
            scatter.starts.iter().zip(call.floats(1)?.1.chunks_exact(scatter.run_len.max(1)))
        {
            binding.write_floats(start, rows);
        }
        Ok(Value::Bound(binding))
    }

    /// Writes all outputs: each is read before any is written.
    fn finish(self) -> Result<()> {
        let mut made = Vec::with_capacity(self.outputs.len());
        for (slot, binding) in &self.outputs {
            match self.values[*slot].as_ref() {
                Some(Value::Bound(own)) if own.is_in_place_of(binding) => {}
                Some(value) => made.push((binding, value.held()?)),
                None => return Err(RunError("is not computed".into()).at("output", binding.name)),
            }
        }
        made.into_iter().try_for_each(|(binding, tensor)| binding.write(&tensor))
    }
}

fn held<'a>(tensor: Tensor) -> Value<'a> {
    Value::Held(Arc::new(tensor))
}
