//! Small ONNX models, written by hand: `onnx.proto`'s messages by their fields' numbers.

use std::{fs, path::Path};

/// Numbers of `TensorProto.DataType`.
pub const FLOAT: u64 = 1;
pub const INT64: u64 = 7;
pub const BF16: u64 = 16;

/// A dimension.
#[derive(Debug, Clone, Copy)]
pub enum Dim {
    Fixed(u64),
    Named(&'static str),
}
use Dim::{Fixed, Named};

/// A protobuf message.
#[derive(Debug, Clone, Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn number(mut self, field: u64, value: u64) -> Self {
        self.varint(field << 3);
        self.varint(value);
        self
    }

    fn bytes(mut self, field: u64, bytes: &[u8]) -> Self {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    fn message(self, field: u64, message: &Self) -> Self {
        self.bytes(field, &message.0)
    }
}

/// A model that is being written.
#[derive(Debug, Clone, Default)]
pub struct Onnx {
    graph: Message,
}

impl Onnx {
    /// A graph's input.
    pub fn input(self, name: &str, data_type: u64, dims: &[Dim]) -> Self {
        self.port(11, name, data_type, dims)
    }

    /// A graph's output.
    pub fn output(self, name: &str, data_type: u64, dims: &[Dim]) -> Self {
        self.port(12, name, data_type, dims)
    }

    fn port(mut self, field: u64, name: &str, data_type: u64, dims: &[Dim]) -> Self {
        let dim = |dim: &Dim| match dim {
            Fixed(len) => Message::default().number(1, *len),
            Named(name) => Message::default().bytes(2, name.as_bytes()),
        };
        let shape = dims.iter().map(dim).fold(Message::default(), |shape, dim| shape.message(1, &dim));
        let tensor = Message::default().number(1, data_type).message(2, &shape);
        let port =
            Message::default().bytes(1, name.as_bytes()).message(2, &Message::default().message(1, &tensor));
        self.graph = self.graph.message(field, &port);
        self
    }

    /// A node, named after what it does and its output.
    pub fn node(mut self, op_type: &str, inputs: &[&str], output: &str) -> Self {
        let node = inputs.iter().fold(Message::default(), |node, input| node.bytes(1, input.as_bytes()));
        let name = format!("/{op_type}_{output}");
        let node = node.bytes(2, output.as_bytes()).bytes(3, name.as_bytes()).bytes(4, op_type.as_bytes());
        self.graph = self.graph.message(1, &node);
        self
    }

    /// Values in the model itself.
    pub fn weight(self, name: &str, data_type: u64, dims: &[u64], values: &[u8]) -> Self {
        self.initializer(name, data_type, dims, |tensor| tensor.bytes(9, values))
    }

    /// Values in a file beside it.
    pub fn external(self, name: &str, dims: &[u64], file: &str, offset: u64, len: u64) -> Self {
        self.initializer(name, FLOAT, dims, |tensor| {
            let entries =
                [("location", file.to_owned()), ("offset", offset.to_string()), ("length", len.to_string())];
            let entry = |(key, value): &(&str, String)| {
                Message::default().bytes(1, key.as_bytes()).bytes(2, value.as_bytes())
            };
            entries.iter().map(entry).fold(tensor, |tensor, entry| tensor.message(13, &entry)).number(14, 1)
        })
    }

    fn initializer(
        mut self,
        name: &str,
        data_type: u64,
        dims: &[u64],
        values: impl FnOnce(Message) -> Message,
    ) -> Self {
        let tensor = dims.iter().fold(Message::default(), |tensor, dim| tensor.number(1, *dim));
        let tensor = values(tensor.number(2, data_type).bytes(8, name.as_bytes()));
        self.graph = self.graph.message(5, &tensor);
        self
    }

    /// The file.
    pub fn bytes(&self) -> Vec<u8> {
        let opset = Message::default().bytes(1, b"").number(2, 24);
        Message::default()
            .number(1, 10)
            .message(7, &self.graph.clone().bytes(2, b"test"))
            .message(8, &opset)
            .0
    }
}

/// What a model's data file holds: eight values of 32 bits behind four that are none of its.
pub fn data() -> Vec<u8> {
    (0_u8..12).flat_map(|value| f32::from(value).to_le_bytes()).collect()
}

/// A model of two inputs and an output with weights beside it and in it, an attention and a cache that is updated in its place.
pub fn decoder(attention: bool) -> Onnx {
    let cache = [Named("batch"), Fixed(2), Fixed(8), Fixed(16)];
    let model = Onnx::default()
        .input("ids", INT64, &[Named("batch"), Named("sequence")])
        .input("past", BF16, &cache)
        .output("logits", FLOAT, &[Named("batch"), Named("sequence"), Fixed(4)])
        .output("present", BF16, &cache)
        .external("table", &[2, 4], "model.onnx.data", 16, 32)
        .weight("scale", FLOAT, &[1], &1_f32.to_le_bytes())
        .weight("axes", INT64, &[1], &1_i64.to_le_bytes())
        .node("Gather", &["table", "ids"], "rows");
    let model = if attention {
        model.node("TensorScatter", &["past", "rows"], "present").node(
            "Attention",
            &["rows", "present"],
            "mixed",
        )
    } else {
        model.node("Identity", &["past"], "present").node("Identity", &["rows"], "mixed")
    };
    model.node("Mul", &["mixed", "scale"], "logits")
}

/// Writes it with its data into `folder`; the model's path.
pub fn write(model: &Onnx, folder: &Path) -> std::path::PathBuf {
    fs::write(folder.join("model.onnx.data"), data()).unwrap();
    let path = folder.join("model.onnx");
    fs::write(&path, model.bytes()).unwrap();
    path
}
