//! Constants of a model: in the model's file, or in files beside it.

use std::collections::HashMap;

use super::{Result, RunError, element::Element, proto::TensorProto, tensor::Tensor};

/// A file of a model: its name as the model writes it, and its bytes.
pub type File<'a> = (&'a str, &'a [u8]);

/// Where in `data` a constant's bytes lie.
fn external<'a>(tensor: &TensorProto, data: &[File<'a>]) -> Result<&'a [u8]> {
    let entry = |key: &str| {
        let found = tensor.external_data.iter().find(|entry| entry.key == key);
        found.map(|entry| entry.value.as_str())
    };
    let number = |key: &str| {
        entry(key).map(str::parse::<usize>).transpose().map_err(|e| RunError(format!("{key}: {e}")))
    };
    let location = entry("location").unwrap_or_default();
    let Some((_, bytes)) = data.iter().find(|(name, _)| *name == location) else {
        let names: Vec<&str> = data.iter().map(|(name, _)| *name).collect();
        return Err(RunError(format!("its bytes are in {location:?}, there is {names:?}")));
    };
    let offset = number("offset")?.unwrap_or(0);
    let end = match number("length")? {
        Some(len) => offset.checked_add(len),
        None => Some(bytes.len()),
    };
    end.and_then(|end| bytes.get(offset..end)).ok_or_else(|| {
        RunError(format!("bytes from {offset} to {end:?} of {location:?}, which has {}", bytes.len()))
    })
}

/// Reads one, whose bytes may be in `data`.
pub(super) fn read(tensor: &TensorProto, data: &[File<'_>]) -> Result<Tensor> {
    const EXTERNAL: i32 = 1;
    let bytes = match (tensor.data_location, &tensor.raw_data) {
        (EXTERNAL, _) => external(tensor, data)?,
        (_, Some(raw)) => raw,
        _ => return Err(RunError("numbers in fields of their own are not read here".into())),
    };
    let element = Element::of_onnx(i64::from(tensor.data_type))?;
    let dims: std::result::Result<Vec<usize>, _> =
        tensor.dims.iter().map(|&dim| usize::try_from(dim)).collect();
    let dims = dims.map_err(|_| RunError(format!("a shape {:?}", tensor.dims)))?;
    Tensor::decode(element, &dims, bytes.len(), |idx| bytes[idx])
}

/// Constants by name, each read when it is first asked for.
pub(super) struct Constants<'a> {
    stored: HashMap<&'a str, &'a TensorProto>,
    data: &'a [File<'a>],
}

impl<'a> Constants<'a> {
    pub fn new(stored: &'a [TensorProto], data: &'a [File<'a>]) -> Self {
        Self { stored: stored.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect(), data }
    }

    pub fn names(&self) -> impl Iterator<Item = &'a str> {
        self.stored.keys().copied()
    }

    pub fn read(&self, name: &str) -> Result<Option<Tensor>> {
        let stored = self.stored.get(name);
        stored.map(|tensor| read(tensor, self.data)).transpose().map_err(|e| e.at("constant", name))
    }
}
