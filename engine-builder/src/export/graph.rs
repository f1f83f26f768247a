//! An ONNX graph under construction: nodes in the order they are computed, constants beside them, large ones in the data file.

use std::collections::HashSet;

use bytes::Bytes;
use prost::Message as _;

use super::{
    data_file::{DataFile, Extent},
    port::{ElementType, Port},
};
use crate::{
    BuildError, Result,
    onnx::proto::{
        AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto,
        TensorProto,
    },
};

/// Domain of operators that TensorRT's parser knows beside the standard's.
pub const TENSORRT_DOMAIN: &str = "trt";
/// Constants from this size on lie in the data file.
const EXTERNAL_FROM_BYTES: usize = 1024;
/// What the format of a file that ends in a model may grow to.
const MAX_MODEL_BYTES: usize = i32::MAX as usize;
/// `TensorProto.DataLocation`.
const EXTERNAL: i32 = 1;

/// An attribute's value.
#[derive(Debug, Clone)]
pub(super) enum Attribute {
    Int(i64),
    Float(f32),
    Ints(Vec<i64>),
}

/// A name in the graph.
pub(super) type Value = String;

/// A graph under construction.
#[derive(Debug)]
pub(super) struct Graph {
    data: DataFile,
    /// What the data file is called beside the model.
    data_name: String,
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    /// Types of what operators outside the standard make, which nobody could infer.
    told: Vec<Port>,
    /// Every name that has a meaning by now.
    known: HashSet<Value>,
    /// The first name that was used without one, or given twice.
    fault: Option<String>,
}

impl Graph {
    pub(super) fn new(data: DataFile, data_name: &str) -> Self {
        Self {
            data,
            data_name: data_name.into(),
            nodes: Vec::new(),
            constants: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            told: Vec::new(),
            known: HashSet::new(),
            fault: None,
        }
    }

    /// Declares an input.
    pub(super) fn input(&mut self, port: Port) -> Value {
        self.define(&port.name);
        let name = port.name.clone();
        self.inputs.push(port);
        name
    }

    /// Declares `port`, whose name is a value by now, as an output.
    pub(super) fn output(&mut self, port: Port) {
        self.demand(&port.name);
        self.outputs.push(port);
    }

    /// States the type of a value that an operator outside the standard makes.
    pub(super) fn tell(&mut self, port: Port) {
        self.told.push(port);
    }

    /// Adds a node with one output, which has the node's name.
    pub(super) fn op(
        &mut self,
        op: &str,
        name: &str,
        inputs: &[&str],
        attributes: &[(&str, Attribute)],
    ) -> Value {
        self.node(op, name, inputs, attributes, &[name]);
        name.to_owned()
    }

    /// Adds a node; `op` may be `domain:name`, an input may be empty where it is optional.
    pub(super) fn node(
        &mut self,
        op: &str,
        name: &str,
        inputs: &[&str],
        attributes: &[(&str, Attribute)],
        outputs: &[&str],
    ) {
        inputs.iter().filter(|input| !input.is_empty()).for_each(|input| self.demand(input));
        outputs.iter().for_each(|output| self.define(output));
        let (domain, op) = op.split_once(':').map_or((None, op), |(domain, op)| (Some(domain), op));
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|&input| input.to_owned()).collect(),
            output: outputs.iter().map(|&output| output.to_owned()).collect(),
            name: Some(name.to_owned()),
            op_type: Some(op.to_owned()),
            attribute: attributes.iter().map(|(name, value)| attribute(name, value)).collect(),
            domain: domain.map(str::to_owned),
        });
    }

    /// Whether `name` has a meaning by now: constants shared by several readers are made by the first.
    pub(super) fn knows(&self, name: &str) -> bool {
        self.known.contains(name)
    }

    /// A constant of bytes that lie in memory, or in a mapped file, as the format wants them.
    ///
    /// # Errors
    /// [`BuildError::Io`]; [`BuildError::Tensor`] when the bytes are not those of the shape.
    pub(super) fn constant(
        &mut self,
        name: &str,
        element: ElementType,
        shape: &[usize],
        bytes: &[u8],
    ) -> Result<Value> {
        if bytes.len() < EXTERNAL_FROM_BYTES {
            let mut tensor = self.tensor(name, element, shape, bytes.len())?;
            tensor.raw_data = Some(Bytes::copy_from_slice(bytes));
            self.constants.push(tensor);
            return Ok(name.to_owned());
        }
        let mut tensor = self.tensor(name, element, shape, bytes.len())?;
        let extent = self.data.append_bytes(bytes)?;
        place(&mut tensor, &self.data_name, extent);
        self.constants.push(tensor);
        Ok(name.to_owned())
    }

    /// The large constant `name`, for another model beside this one.
    pub(super) fn placed(&self, name: &str) -> Option<Placed> {
        let tensor = self.constants.iter().find(|tensor| tensor.name.as_deref() == Some(name))?;
        (tensor.data_location == Some(EXTERNAL)).then(|| Placed(tensor.clone()))
    }

    /// A constant that lies in the data of a model beside this one.
    pub(super) fn borrow(&mut self, placed: &Placed) -> Value {
        let name = placed.0.name.clone().unwrap_or_default();
        self.define(&name);
        self.constants.push(placed.0.clone());
        name
    }

    /// A large constant whose rows are made one after another.
    ///
    /// # Errors
    /// As [`Self::constant`].
    pub(super) fn rows(
        &mut self,
        name: &str,
        element: ElementType,
        shape: &[usize],
        rows: impl Iterator<Item = Vec<u8>>,
    ) -> Result<Value> {
        let extent = self.data.append(rows)?;
        let len = usize::try_from(extent.len).unwrap_or(usize::MAX);
        let mut tensor = self.tensor(name, element, shape, len)?;
        place(&mut tensor, &self.data_name, extent);
        self.constants.push(tensor);
        Ok(name.to_owned())
    }

    /// A constant of 32-bit floats.
    ///
    /// # Errors
    /// As [`Self::constant`].
    pub(super) fn floats(&mut self, name: &str, shape: &[usize], values: &[f32]) -> Result<Value> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(name, ElementType::F32, shape, &bytes)
    }

    /// A one-dimensional constant of integers; shared by everyone who asks for the same.
    ///
    /// # Errors
    /// As [`Self::constant`].
    pub(super) fn ints(&mut self, values: &[i64]) -> Result<Value> {
        let written: Vec<String> = values.iter().map(i64::to_string).collect();
        let name = format!("ints[{}]", written.join(","));
        if self.knows(&name) {
            return Ok(name);
        }
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(&name, ElementType::I64, &[values.len()], &bytes)
    }

    /// A single integer; shared as [`Self::ints`].
    ///
    /// # Errors
    /// As [`Self::constant`].
    pub(super) fn int(&mut self, value: i64) -> Result<Value> {
        let name = format!("int[{value}]");
        if self.knows(&name) {
            return Ok(name);
        }
        self.constant(&name, ElementType::I64, &[], &value.to_le_bytes())
    }

    /// A single float; shared as [`Self::ints`].
    ///
    /// # Errors
    /// As [`Self::constant`].
    pub(super) fn float(&mut self, value: f32) -> Result<Value> {
        let name = format!("float[{value:e}]");
        if self.knows(&name) {
            return Ok(name);
        }
        self.constant(&name, ElementType::F32, &[], &value.to_le_bytes())
    }

    /// Bytes of the data file so far.
    pub(super) fn data_bytes(&self) -> u64 {
        self.data.len()
    }

    /// Closes the data file and gives the model's bytes.
    ///
    /// # Errors
    /// [`BuildError::Io`]; [`BuildError::Unsupported`] for a graph that is not one, or a model beyond 2 GiB.
    pub(super) fn finish(self, opset: i64, properties: &[(&str, String)]) -> Result<Finished> {
        if let Some(fault) = self.fault {
            return Err(BuildError::Unsupported(format!("the exporter made no graph: {fault}")));
        }
        let data_bytes = self.data.finish()?;
        let uses_tensorrt = self.nodes.iter().any(|node| node.domain.is_some());
        let version = |domain: &str, version| OperatorSetIdProto {
            domain: Some(domain.into()),
            version: Some(version),
        };
        let mut opset_import = vec![version("", opset)];
        opset_import.extend(uses_tensorrt.then(|| version(TENSORRT_DOMAIN, 1)));
        let (num_nodes, num_constants) = (self.nodes.len(), self.constants.len());
        let model = ModelProto {
            ir_version: Some(ir_version(opset)),
            producer_name: Some("takt".into()),
            producer_version: Some(env!("CARGO_PKG_VERSION").into()),
            graph: Some(GraphProto {
                node: self.nodes,
                name: Some("decoder".into()),
                initializer: self.constants,
                input: self.inputs.iter().map(Port::value_info).collect(),
                output: self.outputs.iter().map(Port::value_info).collect(),
                value_info: self.told.iter().map(Port::value_info).collect(),
            }),
            opset_import,
            metadata_props: properties.iter().map(|(key, value)| entry(key, value.clone())).collect(),
        };
        if model.encoded_len() > MAX_MODEL_BYTES {
            let fact = format!(
                "a model of {} bytes beside its data: 2 GiB are the format's limit",
                model.encoded_len()
            );
            return Err(BuildError::Unsupported(fact));
        }
        let (inputs, outputs) = (self.inputs, self.outputs);
        Ok(Finished { model: model.encode_to_vec(), data_bytes, inputs, outputs, num_nodes, num_constants })
    }

    fn tensor(
        &mut self,
        name: &str,
        element: ElementType,
        shape: &[usize],
        byte_len: usize,
    ) -> Result<TensorProto> {
        self.define(name);
        let num_elements = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
        let expected =
            num_elements.and_then(|count| count.checked_mul(element.bits())).map(|bits| bits.div_ceil(8));
        let dims: std::result::Result<Vec<i64>, _> = shape.iter().map(|&dim| i64::try_from(dim)).collect();
        match (expected, dims) {
            (Some(expected), Ok(dims)) if expected == byte_len => Ok(TensorProto {
                dims,
                data_type: Some(element as i32),
                name: Some(name.to_owned()),
                ..TensorProto::default()
            }),
            _ => {
                let fact = format!("{byte_len} bytes for {element:?} {shape:?}");
                Err(BuildError::Tensor { name: name.to_owned(), fact })
            }
        }
    }

    fn define(&mut self, name: &str) {
        if !self.known.insert(name.to_owned()) {
            self.fault.get_or_insert(format!("{name:?} is defined twice"));
        }
    }

    fn demand(&mut self, name: &str) {
        if !self.known.contains(name) {
            self.fault.get_or_insert(format!("{name:?} is read before it is defined"));
        }
    }
}

/// A constant in a model's data file.
#[derive(Debug, Clone)]
pub(super) struct Placed(TensorProto);

/// A graph as a file.
#[derive(Debug)]
pub(super) struct Finished {
    /// Bytes of the `.onnx` file.
    pub model: Vec<u8>,
    /// Length of its data file.
    pub data_bytes: u64,
    pub inputs: Vec<Port>,
    pub outputs: Vec<Port>,
    pub num_nodes: usize,
    pub num_constants: usize,
}

/// The oldest format of files that may hold `opset`.
fn ir_version(opset: i64) -> i64 {
    match opset {
        ..=20 => 9,
        21..=22 => 10,
        23 => 11,
        _ => 12,
    }
}

fn place(tensor: &mut TensorProto, data_name: &str, extent: Extent) {
    tensor.data_location = Some(EXTERNAL);
    tensor.external_data = vec![
        entry("location", data_name.to_owned()),
        entry("offset", extent.offset.to_string()),
        entry("length", extent.len.to_string()),
    ];
}

fn entry(key: &str, value: String) -> StringStringEntryProto {
    StringStringEntryProto { key: Some(key.to_owned()), value: Some(value) }
}

fn attribute(name: &str, value: &Attribute) -> AttributeProto {
    let attribute = AttributeProto { name: Some(name.to_owned()), ..AttributeProto::default() };
    match value {
        Attribute::Float(value) => AttributeProto { f: Some(*value), r#type: Some(1), ..attribute },
        Attribute::Int(value) => AttributeProto { i: Some(*value), r#type: Some(2), ..attribute },
        Attribute::Ints(values) => AttributeProto { ints: values.clone(), r#type: Some(7), ..attribute },
    }
}
