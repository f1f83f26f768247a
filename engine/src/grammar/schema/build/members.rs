//! Objects.

use serde_json::{Value, json};

use super::{Builder, Built};
use crate::{
    Result,
    grammar::{
        error::refuse,
        limits::MAX_PROPERTIES,
        schema::{
            NodeId, ObjectShape, PatternProperty, Property, Shape,
            fill::escaped,
            merge::{Merged, Types},
            parts::ObjectParts,
            pattern::{pattern_matches, quotable},
        },
        spec::ClosingPolicy,
    },
};

impl<'a> Builder<'a> {
    pub(super) fn object(&mut self, merged: &Merged<'a>, types: Types, at: &str) -> Result<Option<Built>> {
        if !types.contains(Types::OBJECT) {
            return Ok(None);
        }
        let parts = ObjectParts::of(&merged.parts, at)?;
        let depth = self.open_references.len();
        self.open_references.extend(&merged.references);
        let built = self.object_of(&parts, at);
        self.open_references.truncate(depth);
        built.map(Some)
    }

    pub(super) fn object_of(&mut self, parts: &ObjectParts<'a>, at: &str) -> Result<Built> {
        if parts.names.len() > MAX_PROPERTIES {
            let fact = format!(
                "an object of {} properties, at most {MAX_PROPERTIES} are possible",
                parts.names.len()
            );
            return Err(refuse(at, fact));
        }
        let mut shape = ObjectShape {
            min_properties: parts.min_properties,
            max_properties: parts.max_properties,
            is_closed_by_schema: parts.forbids_others(),
            ..ObjectShape::default()
        };
        for name in &parts.names {
            let place = format!("{at}/{}", escaped(name));
            let is_required = parts.required.contains(name);
            let schemas = parts.schemas_of(name, |pattern| pattern_matches(pattern, name, &place))?;
            match self.value(&schemas, &place)? {
                Built::Node(value) => {
                    self.require_fill(value, &place)?;
                    shape.properties.push(property(name, value, is_required));
                }
                Built::Never(why) if is_required => {
                    return Ok(Built::Never(format!("the required {place} cannot be: {why}")));
                }
                Built::Never(_) => shape.forbidden.push(name.clone()),
            }
        }
        self.open_keys(parts, &mut shape, at)?;
        check_counts(&mut shape, at)?;
        if let Some(why) = impossible_count(&shape) {
            return Ok(Built::Never(why));
        }
        if let (true, Some(place)) = (self.lacks_members(&shape), shape.properties.first()) {
            let fact = format!(
                "{} properties are demanded, fewer have a default: give one to {}/{} or another",
                shape.min_properties, at, place.name
            );
            return Err(refuse(at, fact));
        }
        self.node(Shape::Object(shape), None, None, at)
    }

    /// True when an object cut behind its first brace could not be given the members it needs.
    pub(super) fn lacks_members(&self, shape: &ObjectShape) -> bool {
        let fillable =
            shape.properties.iter().filter(|property| self.schema.node(property.value).fill.is_some());
        fillable.count() < shape.min_properties
    }

    /// Keys by pattern and all others.
    pub(super) fn open_keys(
        &mut self,
        parts: &ObjectParts<'a>,
        shape: &mut ObjectShape,
        at: &str,
    ) -> Result<()> {
        let place = format!("{at}/*");
        for (pattern, schemas) in parts.patterns(at)? {
            if let Built::Node(value) = self.value(&schemas, &place)? {
                let pattern = quotable(pattern, &place)?;
                let keys = self.leaves.leaf(json!({"type": "string", "pattern": pattern}), &place)?;
                for property in &shape.properties {
                    if keys.accepts(&property.key) {
                        let fact = format!(
                            "the property also matches the pattern {pattern:?}: make the pattern narrower"
                        );
                        return Err(refuse(&format!("{at}/{}", escaped(&property.name)), fact));
                    }
                }
                self.require_fill(value, &place)?;
                shape.patterns.push(PatternProperty { pattern, keys, value });
            }
        }
        if let Some(schemas) = parts.additional() {
            let built =
                if schemas.is_empty() { self.free_value(None, &place) } else { self.value(&schemas, &place) };
            if let Built::Node(value) = built? {
                self.require_fill(value, &place)?;
                shape.additional = Some(value);
            }
        }
        if shape.is_open() && self.policy == ClosingPolicy::Declared {
            let fact = "keys of the model's own choice: cut after a comma, one would have to be invented. List the \
                        properties and set additionalProperties to false, or ask for minimal closings";
            return Err(refuse(at, fact.into()));
        }
        Ok(())
    }
}

/// A declared property.
pub(super) fn property(name: &str, value: NodeId, is_required: bool) -> Property {
    let key = Value::String(name.to_owned()).to_string().into_bytes().into();
    Property { name: name.to_owned(), key, value, is_required }
}

/// Bounds on the number of properties that the mask can hold a model to.
fn check_counts(shape: &mut ObjectShape, at: &str) -> Result<()> {
    let num_required = shape.properties.iter().filter(|property| property.is_required).count();
    if shape.min_properties <= num_required {
        shape.min_properties = 0;
    }
    if !shape.is_open() && shape.max_properties.is_some_and(|max| max >= shape.properties.len()) {
        shape.max_properties = None;
    }
    if shape.is_open() && shape.min_properties > 0 {
        let fact = "minProperties of an object with keys of the model's own choice is not supported: require properties by name";
        return Err(refuse(at, fact.into()));
    }
    Ok(())
}

fn impossible_count(shape: &ObjectShape) -> Option<String> {
    let num_required = shape.properties.iter().filter(|property| property.is_required).count();
    if let Some(max) = shape.max_properties.filter(|&max| max < num_required.max(shape.min_properties)) {
        return Some(format!(
            "{} properties are demanded, maxProperties is {max}",
            num_required.max(shape.min_properties)
        ));
    }
    (shape.properties.len() < shape.min_properties).then(|| {
        format!("minProperties is {}, {} are possible", shape.min_properties, shape.properties.len())
    })
}
