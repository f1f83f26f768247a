//! Attributes of a node.

use super::{Result, RunError, proto::AttributeProto};

/// An attribute's value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Attribute {
    Float(f32),
    Int(i64),
    Ints(Vec<i64>),
}

/// Attributes by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Attributes(Vec<(String, Attribute)>);

impl Attributes {
    /// Reads them; each has to be among `known`: what is not understood would change what is computed.
    pub fn read(attributes: &[AttributeProto], known: &[&str]) -> Result<Self> {
        attributes.iter().map(|attribute| one(attribute, known)).collect::<Result<_>>().map(Self)
    }

    fn get(&self, name: &str) -> Option<&Attribute> {
        self.0.iter().find(|(own, _)| own == name).map(|(_, value)| value)
    }

    pub fn int(&self, name: &str) -> Result<Option<i64>> {
        match self.get(name) {
            None => Ok(None),
            Some(Attribute::Int(value)) => Ok(Some(*value)),
            Some(other) => Err(RunError(format!("attribute {name} is {other:?}, not an integer"))),
        }
    }

    pub fn float(&self, name: &str) -> Result<Option<f32>> {
        match self.get(name) {
            None => Ok(None),
            Some(Attribute::Float(value)) => Ok(Some(*value)),
            Some(other) => Err(RunError(format!("attribute {name} is {other:?}, not a float"))),
        }
    }

    pub fn ints(&self, name: &str) -> Result<Option<&[i64]>> {
        match self.get(name) {
            None => Ok(None),
            Some(Attribute::Ints(values)) => Ok(Some(values)),
            Some(other) => Err(RunError(format!("attribute {name} is {other:?}, not integers"))),
        }
    }

    /// Refuses another value of `name` than `only`, which it also has when it is not given.
    pub fn only(&self, name: &str, only: i64) -> Result<()> {
        match self.int(name)? {
            Some(value) if value != only => {
                Err(RunError(format!("attribute {name} is {value}, only {only} is done here")))
            }
            _ => Ok(()),
        }
    }
}

fn one(attribute: &AttributeProto, known: &[&str]) -> Result<(String, Attribute)> {
    let name = &attribute.name;
    if !known.contains(&name.as_str()) {
        return Err(RunError(format!("attribute {name} is not known here")));
    }
    let value = match attribute.r#type {
        1 => Attribute::Float(attribute.f),
        2 => Attribute::Int(attribute.i),
        7 => Attribute::Ints(attribute.ints.clone()),
        kind => return Err(RunError(format!("attribute {name} is of type {kind}, which is not known here"))),
    };
    Ok((name.clone(), value))
}
