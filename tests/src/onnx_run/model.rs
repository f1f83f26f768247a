//! A model that was read: operators in their order, and constants with all that follows from them alone.

use std::{collections::HashMap, sync::Arc};

use prost::Message as _;

use super::{
    Result, RunError,
    attributes::Attributes,
    constants::{Constants, File},
    operators::{self, Operator},
    port::Port,
    proto::{GraphProto, ModelProto, NodeProto},
    tensor::{Call, Tensor},
};

/// Versions of the standard whose operators are known here.
const OPSETS: std::ops::RangeInclusive<i64> = 20..=24;

/// A value's place while a model runs.
pub(super) type Slot = usize;

/// One operator of a model.
#[derive(Debug)]
pub(super) struct Node {
    pub name: String,
    pub operator: &'static Operator,
    pub attributes: Attributes,
    pub inputs: Vec<Option<Slot>>,
    pub outputs: Vec<Slot>,
    /// Whose values nobody reads afterwards.
    pub frees: Vec<Slot>,
}

/// A model that can be run, any number of times.
#[derive(Debug)]
pub struct Model {
    pub(super) nodes: Vec<Node>,
    pub(super) num_slots: usize,
    pub(super) constants: Vec<(Slot, Arc<Tensor>)>,
    pub(super) inputs: Vec<(Slot, Port)>,
    pub(super) outputs: Vec<(Slot, Port)>,
    /// How many operators read a value.
    pub(super) num_readers: Vec<usize>,
}

impl Model {
    /// Reads the model `onnx`, whose large constants are in the files `data`. What follows from constants alone, as dequantized weights do, is
    /// computed once, here.
    ///
    /// # Errors
    /// For what is no model, for an operator, an attribute or a type that is not there, with its name.
    pub fn read(onnx: &[u8], data: &[File<'_>]) -> Result<Self> {
        let model = ModelProto::decode(onnx).map_err(|e| RunError(format!("no ONNX model: {e}")))?;
        let opset = model.opset_import.iter().find(|opset| opset.domain.is_empty());
        match opset.map(|opset| opset.version) {
            Some(version) if OPSETS.contains(&version) => {}
            other => return Err(RunError(format!("opset {other:?}; from {OPSETS:?} are known here"))),
        }
        let graph = model.graph.ok_or_else(|| RunError("a model without a graph".into()))?;
        Reader::new(&graph, data)?.read()
    }

    /// How many operators run each time.
    #[must_use]
    pub fn num_nodes(&self) -> usize {
        self.nodes.len()
    }
}

/// A model being read.
struct Reader<'a> {
    graph: &'a GraphProto,
    constants: Constants<'a>,
    slots: HashMap<&'a str, Slot>,
    /// What is known without running it.
    known: HashMap<Slot, Arc<Tensor>>,
    /// How many nodes have yet to be read that read a value.
    left: Vec<usize>,
    /// Whether a node that has to be run reads a value.
    is_run_with: Vec<bool>,
}

impl<'a> Reader<'a> {
    fn new(graph: &'a GraphProto, data: &'a [File<'a>]) -> Result<Self> {
        let constants = Constants::new(&graph.initializer, data);
        let mut slots = HashMap::new();
        let inputs = graph.input.iter().map(|port| port.name.as_str());
        let made = graph.node.iter().flat_map(|node| &node.output).map(String::as_str);
        for name in constants.names().chain(inputs).chain(made) {
            let slot = slots.len();
            if slots.insert(name, slot).is_some() {
                return Err(RunError(format!("{name:?} is defined twice")));
            }
        }
        let mut left = vec![0; slots.len()];
        for name in graph.node.iter().flat_map(|node| &node.input).filter(|name| !name.is_empty()) {
            let slot =
                slots.get(name.as_str()).ok_or_else(|| RunError(format!("{name:?} is not defined")))?;
            left[*slot] += 1;
        }
        let is_run_with = vec![false; slots.len()];
        Ok(Self { graph, constants, slots, known: HashMap::new(), left, is_run_with })
    }

    fn slot(&self, name: &str) -> Result<Slot> {
        self.slots.get(name).copied().ok_or_else(|| RunError(format!("{name:?} is not defined")))
    }

    fn read(mut self) -> Result<Model> {
        let num_readers = self.left.clone();
        let mut nodes = Vec::new();
        let outputs = self.ports(&self.graph.output)?;
        for node in &self.graph.node {
            if let Some(node) = self.node(node).map_err(|e| e.at(&node.op_type, &node.name))? {
                nodes.push(node);
            }
        }
        let (inputs, num_slots) = (self.ports(&self.graph.input)?, self.slots.len());
        let mut last_reader: HashMap<Slot, usize> = HashMap::new();
        for (idx, node) in nodes.iter().enumerate() {
            last_reader.extend(node.inputs.iter().flatten().map(|slot| (*slot, idx)));
        }
        let wanted = |slot: &Slot| outputs.iter().any(|(output, _)| output == slot);
        for (slot, idx) in &last_reader {
            if !wanted(slot) {
                nodes[*idx].frees.push(*slot);
            }
        }
        self.known.retain(|slot, _| last_reader.contains_key(slot) || wanted(slot));
        let constants = self.known.into_iter().collect();
        Ok(Model { nodes, num_slots, constants, inputs, outputs, num_readers })
    }

    fn ports(&self, ports: &[super::proto::ValueInfoProto]) -> Result<Vec<(Slot, Port)>> {
        ports.iter().map(|info| Ok((self.slot(&info.name)?, Port::read(info)?))).collect()
    }

    /// A node that has to be run; what follows from constants alone is computed at once.
    fn node(&mut self, proto: &NodeProto) -> Result<Option<Node>> {
        let operator = operators::find(&proto.domain, &proto.op_type)?;
        let attributes = Attributes::read(&proto.attribute, operator.attributes)?;
        let mut inputs = Vec::with_capacity(proto.input.len());
        for name in &proto.input {
            inputs.push(if name.is_empty() { None } else { Some(self.value(name)?) });
        }
        let outputs: Vec<Slot> = proto.output.iter().map(|name| self.slot(name)).collect::<Result<_>>()?;
        let follows = inputs.iter().flatten().all(|slot| self.known.contains_key(slot));
        if follows {
            let held: Vec<_> =
                inputs.iter().map(|slot| slot.map(|slot| Arc::clone(&self.known[&slot]))).collect();
            let given: Vec<Option<&Tensor>> = held.iter().map(Option::as_deref).collect();
            let made = operator.compute(&Call { inputs: &given, attributes: &attributes })?;
            self.known.extend(outputs.iter().copied().zip(made.into_iter().map(Arc::new)));
        }
        for slot in inputs.iter().flatten() {
            self.left[*slot] -= 1;
            self.is_run_with[*slot] |= !follows;
            // Codes and scales are not held any longer than the weights they make.
            if self.left[*slot] == 0 && !self.is_run_with[*slot] {
                self.known.remove(slot);
            }
        }
        let name = proto.name.clone();
        Ok((!follows).then_some(Node { name, operator, attributes, inputs, outputs, frees: Vec::new() }))
    }

    /// The place of `name`, which is read if it is a constant that nobody has asked for yet.
    fn value(&mut self, name: &str) -> Result<Slot> {
        let slot = self.slot(name)?;
        if let (false, Some(tensor)) = (self.known.contains_key(&slot), self.constants.read(name)?) {
            self.known.insert(slot, Arc::new(tensor));
        }
        Ok(slot)
    }
}
