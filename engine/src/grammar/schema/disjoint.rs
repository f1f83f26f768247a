//! Whether two shapes can ever accept the same value, for `oneOf`.

use serde_json::{Value, json};

use super::{NodeId, ObjectShape, Schema, Shape, leaf::LeafCompiler};
use crate::grammar::error::is_contradiction;

/// Decides disjointness. "No" is the answer where it cannot tell.
pub(super) struct Disjoint<'a> {
    schema: &'a Schema,
    leaves: &'a mut LeafCompiler,
}

impl<'a> Disjoint<'a> {
    pub fn new(schema: &'a Schema, leaves: &'a mut LeafCompiler) -> Self {
        Self { schema, leaves }
    }

    /// True when no value is accepted by both.
    pub fn holds(&mut self, one: NodeId, other: NodeId) -> bool {
        let schema = self.schema;
        match (&schema.node(one).shape, &schema.node(other).shape) {
            (Shape::AnyOf(options), _) => options.iter().all(|&option| self.holds(option, other)),
            (_, Shape::AnyOf(options)) => options.iter().all(|&option| self.holds(one, option)),
            (Shape::Leaf(one), Shape::Leaf(other)) => self.leaves_differ(&one.schema, &other.schema),
            (Shape::Object(one), Shape::Object(other)) => {
                self.members_differ(one, other) || self.members_differ(other, one)
            }
            (Shape::Array(_), Shape::Array(_)) => false,
            _ => true,
        }
    }

    /// A member that one object must have and the other cannot have with the same value.
    fn members_differ(&mut self, one: &ObjectShape, other: &ObjectShape) -> bool {
        let required = one.properties.iter().filter(|property| property.is_required);
        required.into_iter().any(|property| match other.property(&property.key) {
            Some(twin) => self.holds(property.value, twin.value),
            None => other.is_closed_by_schema && !other.is_open(),
        })
    }

    fn leaves_differ(&mut self, one: &Value, other: &Value) -> bool {
        if let (Some(one), Some(other)) = (kind(one), kind(other))
            && one != other
        {
            return true;
        }
        let values = |schema: &Value| schema.get("enum").and_then(Value::as_array).cloned();
        if let (Some(one), Some(other)) = (values(one), values(other)) {
            return one.iter().all(|value| !other.iter().any(|twin| is_equal(value, twin)));
        }
        let both = self.leaves.leaf(json!({"allOf": [one, other]}), "");
        both.is_err_and(|error| is_contradiction(&error))
    }
}

/// Equality as JSON Schema has it: 1.0 is 1.
pub(super) fn is_equal(one: &Value, other: &Value) -> bool {
    match (one.as_f64(), other.as_f64()) {
        (Some(one), Some(other)) => one == other,
        _ => one == other,
    }
}

/// A leaf's type, if its schema names one; integers are numbers.
fn kind(schema: &Value) -> Option<&str> {
    let name = schema.get("type").and_then(Value::as_str)?;
    Some(if name == "integer" { "number" } else { name })
}
