//! What goes into a model and comes out, as the model declares it.

use std::collections::HashMap;

use super::{
    Result, RunError,
    element::Element,
    proto::{Dimension, ValueInfoProto},
};

/// A dimension that is declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Dim {
    Fixed(usize),
    /// Equal wherever the name is.
    Named(String),
}

/// An input or output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Port {
    pub name: String,
    pub element: Element,
    pub dims: Vec<Dim>,
}

impl Port {
    pub fn read(info: &ValueInfoProto) -> Result<Self> {
        let named = |fact: &str| RunError(fact.into()).at("port", &info.name);
        let tensor = info.r#type.as_ref().and_then(|kind| kind.tensor_type.as_ref());
        let tensor = tensor.ok_or_else(|| named("no tensor"))?;
        let shape = tensor.shape.as_ref().ok_or_else(|| named("no shape"))?;
        let dim = |dim: &Option<Dimension>| match dim {
            Some(Dimension::Value(len)) => usize::try_from(*len).ok().map(Dim::Fixed),
            Some(Dimension::Name(name)) => Some(Dim::Named(name.clone())),
            None => None,
        };
        let dims: Option<Vec<Dim>> = shape.dim.iter().map(|one| dim(&one.value)).collect();
        let element = Element::of_onnx(i64::from(tensor.elem_type)).map_err(|e| e.at("port", &info.name))?;
        Ok(Self {
            name: info.name.clone(),
            element,
            dims: dims.ok_or_else(|| named("a dimension that is none"))?,
        })
    }

    /// Checks that a tensor of `element` and `dims` is one of these; `named` has what names of dimensions stand for so far.
    pub fn check(&self, element: Element, dims: &[usize], named: &mut HashMap<String, usize>) -> Result<()> {
        let mut fits = element == self.element && dims.len() == self.dims.len();
        for (declared, &len) in self.dims.iter().zip(dims) {
            fits &= match declared {
                Dim::Fixed(fixed) => *fixed == len,
                Dim::Named(name) => *named.entry(name.clone()).or_insert(len) == len,
            };
        }
        match fits {
            true => Ok(()),
            false => {
                let fact = format!(
                    "{element:?} {dims:?} is given, declared is {:?} {:?}, and elsewhere {named:?}",
                    self.element, self.dims
                );
                Err(RunError(fact).at("port", &self.name))
            }
        }
    }
}
