//! The graph with names resolved: who makes each tensor, who reads it, in which order nodes can run.

use std::collections::HashMap;

use super::{
    model_file::{ModelFile, StoredTensor},
    proto,
};
use crate::{BuildError, Result};

/// Identity of a tensor of the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorId(pub usize);

/// One operator.
#[derive(Debug)]
pub struct Node {
    /// Operator name.
    pub op: String,
    /// From `com.microsoft` rather than the standard.
    pub contrib: bool,
    /// Name in the file, or of its first output.
    pub name: String,
    /// Inputs; `None` for an optional one left out.
    pub inputs: Vec<Option<TensorId>>,
    /// Outputs; `None` for an optional one left out.
    pub outputs: Vec<Option<TensorId>>,
    attributes: Vec<proto::AttributeProto>,
}

/// A tensor: its maker is a node, or its value is stored, or it is an input of the graph.
#[derive(Debug)]
pub struct TensorInfo {
    /// Name in the file.
    pub name: String,
    /// Node that makes it.
    pub producer: Option<usize>,
    /// Its stored value.
    pub stored: Option<StoredTensor>,
    /// Nodes that read it.
    pub consumers: Vec<usize>,
}

/// An input fed by the caller.
#[derive(Debug)]
pub struct GraphInput {
    /// The tensor.
    pub tensor: TensorId,
    /// `TensorProto.DataType`.
    pub elem_type: i32,
    /// Dimensions; `None` where symbolic.
    pub dims: Vec<Option<usize>>,
}

/// The decoder's graph.
#[derive(Debug)]
pub struct Graph {
    /// Operators, in the file's order.
    pub nodes: Vec<Node>,
    /// Tensors.
    pub tensors: Vec<TensorInfo>,
    /// What the caller feeds.
    pub inputs: Vec<GraphInput>,
    /// What the caller reads.
    pub outputs: Vec<TensorId>,
    /// Version of the standard operators.
    pub opset: i64,
}

impl Node {
    /// Input `idx`, if given.
    pub fn input(&self, idx: usize) -> Option<TensorId> {
        self.inputs.get(idx).copied().flatten()
    }

    /// Output `idx`, if named.
    pub fn output(&self, idx: usize) -> Option<TensorId> {
        self.outputs.get(idx).copied().flatten()
    }

    /// Input `idx`, or what is missing.
    ///
    /// # Errors
    /// When it is not given.
    pub fn required_fact(&self, idx: usize) -> Result<TensorId, String> {
        self.input(idx).ok_or_else(|| format!("input {idx} is missing"))
    }

    /// Inputs whose values, and not only shape or type, the outputs depend on.
    pub fn value_inputs(&self) -> impl Iterator<Item = TensorId> {
        let count = match self.op.as_str() {
            "Shape" | "Size" => 0,
            "CastLike" => 1,
            _ => self.inputs.len(),
        };
        self.inputs.iter().take(count).flatten().copied()
    }

    fn attribute(&self, name: &str) -> Option<&proto::AttributeProto> {
        self.attributes.iter().find(|a| a.name.as_deref() == Some(name))
    }

    /// Integer attribute.
    pub fn int(&self, name: &str) -> Option<i64> {
        self.attribute(name).and_then(|a| a.i)
    }

    /// Float attribute.
    pub fn float(&self, name: &str) -> Option<f32> {
        self.attribute(name).and_then(|a| a.f)
    }

    /// Integer list attribute.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        self.attribute(name).map(|a| a.ints.as_slice())
    }

    /// Text attribute.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.attribute(name).and_then(|a| a.s.as_deref()).and_then(|s| std::str::from_utf8(s).ok())
    }

    /// Tensor attribute.
    pub fn tensor(&self, name: &str) -> Option<&proto::TensorProto> {
        self.attribute(name).and_then(|a| a.t.as_ref())
    }

    /// The operator with its domain where not standard.
    pub fn full_op(&self) -> String {
        if self.contrib { format!("com.microsoft.{}", self.op) } else { self.op.clone() }
    }

    /// The error that names this operator and node.
    pub fn refuse(&self, fact: &str) -> BuildError {
        BuildError::Unsupported(format!("ONNX operator {} (node {:?}): {fact}", self.full_op(), self.name))
    }
}

impl Graph {
    /// Resolves the names of `file`'s graph.
    ///
    /// # Errors
    /// When a tensor is made twice, or a stored tensor is invalid.
    pub fn new(file: &ModelFile) -> Result<Self> {
        let opset = file
            .model
            .opset_import
            .iter()
            .find(|o| is_standard(o.domain.as_deref()))
            .and_then(|o| o.version)
            .unwrap_or(1);
        let mut builder = Builder::default();
        let empty = proto::GraphProto::default();
        let proto = file.model.graph.as_ref().unwrap_or(&empty);
        for tensor in &proto.initializer {
            let id = builder.id(tensor.name.as_deref().unwrap_or(""));
            builder.tensors[id.0].stored = Some(file.external().stored(tensor)?);
        }
        for node in &proto.node {
            builder.add_node(node, file)?;
        }
        let inputs = proto.input.iter().filter_map(|info| builder.graph_input(info)).collect();
        let outputs =
            proto.output.iter().map(|info| builder.id(info.name.as_deref().unwrap_or(""))).collect();
        Ok(Self { nodes: builder.nodes, tensors: builder.tensors, inputs, outputs, opset })
    }

    /// The tensor's entry.
    pub fn tensor(&self, id: TensorId) -> &TensorInfo {
        &self.tensors[id.0]
    }

    /// The node that makes `id`.
    pub fn producer(&self, id: TensorId) -> Option<&Node> {
        self.tensors[id.0].producer.map(|idx| &self.nodes[idx])
    }

    /// Nodes needed for `targets`, each after those it reads from.
    ///
    /// # Errors
    /// When the graph has a cycle, or reads a tensor that nothing makes.
    pub fn order_for(&self, targets: &[TensorId]) -> Result<Vec<usize>> {
        const OPEN: u8 = 1;
        const DONE: u8 = 2;
        let mut state = vec![0_u8; self.nodes.len()];
        let mut order = Vec::new();
        let mut stack: Vec<(usize, usize)> = Vec::new();
        let roots: Vec<usize> = targets.iter().filter_map(|t| self.tensors[t.0].producer).collect();
        for root in roots {
            if state[root] == 0 {
                state[root] = OPEN;
                stack.push((root, 0));
            }
            while let Some((node_idx, next)) = stack.pop() {
                let node = &self.nodes[node_idx];
                let Some(input) = node.inputs.get(next) else {
                    state[node_idx] = DONE;
                    order.push(node_idx);
                    continue;
                };
                stack.push((node_idx, next + 1));
                let Some(producer) = input.and_then(|t| self.tensors[t.0].producer) else {
                    self.check_source(node, *input)?;
                    continue;
                };
                match state[producer] {
                    OPEN => return Err(node.refuse("the graph has a cycle here")),
                    DONE => {}
                    _ => {
                        state[producer] = OPEN;
                        stack.push((producer, 0));
                    }
                }
            }
        }
        Ok(order)
    }

    fn check_source(&self, node: &Node, input: Option<TensorId>) -> Result<()> {
        let Some(id) = input else { return Ok(()) };
        if self.tensors[id.0].stored.is_some() || self.inputs.iter().any(|i| i.tensor == id) {
            return Ok(());
        }
        Err(node.refuse(&format!(
            "reads {:?}, which no node, initializer or graph input provides",
            self.tensors[id.0].name
        )))
    }
}

fn is_standard(domain: Option<&str>) -> bool {
    matches!(domain, None | Some("" | "ai.onnx"))
}

#[derive(Default)]
struct Builder {
    ids: HashMap<String, TensorId>,
    tensors: Vec<TensorInfo>,
    nodes: Vec<Node>,
}

impl Builder {
    fn id(&mut self, name: &str) -> TensorId {
        if let Some(id) = self.ids.get(name) {
            return *id;
        }
        let id = TensorId(self.tensors.len());
        self.tensors.push(TensorInfo {
            name: name.to_owned(),
            producer: None,
            stored: None,
            consumers: Vec::new(),
        });
        self.ids.insert(name.to_owned(), id);
        id
    }

    fn optional_id(&mut self, name: &str) -> Option<TensorId> {
        (!name.is_empty()).then(|| self.id(name))
    }

    fn add_node(&mut self, proto: &proto::NodeProto, file: &ModelFile) -> Result<()> {
        let first_output = proto.output.first().map_or("", String::as_str);
        let domain = proto.domain.as_deref();
        let standard = is_standard(domain);
        let contrib = domain == Some("com.microsoft");
        let op = proto.op_type.clone().unwrap_or_default();
        let node = Node {
            op: if standard || contrib { op } else { format!("{}.{op}", domain.unwrap_or_default()) },
            contrib,
            name: proto.name.clone().filter(|n| !n.is_empty()).unwrap_or_else(|| first_output.to_owned()),
            inputs: proto.input.iter().map(|name| self.optional_id(name)).collect(),
            outputs: proto.output.iter().map(|name| self.optional_id(name)).collect(),
            attributes: proto.attribute.clone(),
        };
        if standard && node.op == "Constant" {
            let stored = constant(&node, file)?;
            let id = node.output(0).ok_or_else(|| node.refuse("makes nothing"))?;
            self.tensors[id.0].stored = Some(stored);
            return Ok(());
        }
        let node_idx = self.nodes.len();
        for input in node.inputs.iter().flatten() {
            self.tensors[input.0].consumers.push(node_idx);
        }
        for output in node.outputs.iter().flatten() {
            let tensor = &mut self.tensors[output.0];
            if tensor.producer.is_some() || tensor.stored.is_some() {
                return Err(node.refuse(&format!("makes {:?}, which exists already", tensor.name)));
            }
            tensor.producer = Some(node_idx);
        }
        self.nodes.push(node);
        Ok(())
    }

    fn graph_input(&mut self, info: &proto::ValueInfoProto) -> Option<GraphInput> {
        let tensor = self.id(info.name.as_deref().unwrap_or(""));
        if self.tensors[tensor.0].stored.is_some() {
            return None;
        }
        let tensor_type = info.r#type.as_ref().and_then(|t| t.tensor_type.clone()).unwrap_or_default();
        let dim = |d: &proto::DimensionProto| match &d.value {
            Some(proto::dimension::Value::DimValue(value)) => usize::try_from(*value).ok(),
            _ => None,
        };
        let dims = tensor_type.shape.unwrap_or_default().dim.iter().map(dim).collect();
        Some(GraphInput { tensor, elem_type: tensor_type.elem_type.unwrap_or(0), dims })
    }
}

/// The value of a `Constant` node, in whichever attribute it is.
fn constant(node: &Node, file: &ModelFile) -> Result<StoredTensor> {
    let mut tensor = proto::TensorProto { name: Some(node.name.clone()), ..Default::default() };
    if let Some(value) = node.tensor("value") {
        tensor = value.clone();
        tensor.name = Some(node.name.clone());
    } else if let Some(value) = node.float("value_float") {
        tensor.data_type = Some(1);
        tensor.float_data = vec![value];
    } else if let Some(value) = node.int("value_int") {
        tensor.data_type = Some(7);
        tensor.int64_data = vec![value];
    } else if let Some(values) = node.ints("value_ints") {
        tensor.data_type = Some(7);
        tensor.dims = vec![i64::try_from(values.len()).unwrap_or(i64::MAX)];
        tensor.int64_data = values.to_vec();
    } else if let Some(attribute) = node.attribute("value_floats") {
        tensor.data_type = Some(1);
        tensor.dims = vec![i64::try_from(attribute.floats.len()).unwrap_or(i64::MAX)];
        tensor.float_data.clone_from(&attribute.floats);
    } else {
        return Err(node.refuse("a constant without a numeric value"));
    }
    file.external().stored(&tensor)
}
