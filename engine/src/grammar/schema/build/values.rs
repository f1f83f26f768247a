//! Values without parts, enumerations, constants, and values of which nothing is said.

use serde_json::{Value, json};

use super::{Builder, Built, Chosen, members::property};
use crate::{
    EngineError, Result,
    grammar::{
        closing::is_valid,
        error::{is_contradiction, refuse},
        limits::FREE_VALUE_DEPTH,
        schema::{
            ArrayShape, Fill, NodeId, ObjectShape, Shape,
            merge::{Merged, Types, brief},
            parts::{number_schema, string_schema},
        },
        spec::ClosingPolicy,
    },
};

impl<'a> Builder<'a> {
    /// The types that are possible; a schema with words for one type only is meant for that type.
    pub(super) fn types(&self, merged: &Merged<'_>) -> Types {
        if merged.types != Types::ALL {
            return merged.types;
        }
        let says = |words: &[&str]| {
            merged.parts.iter().any(|part| words.iter().any(|&word| part.contains_key(word)))
        };
        let mut types = Types(0);
        for (words, of) in [
            (
                &[
                    "properties",
                    "required",
                    "additionalProperties",
                    "patternProperties",
                    "minProperties",
                    "maxProperties",
                ][..],
                Types::OBJECT,
            ),
            (&["items", "prefixItems", "minItems", "maxItems", "additionalItems"], Types::ARRAY),
            (&["pattern", "format", "minLength", "maxLength"], Types::STRING),
            (&["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"], Types::NUMBER),
        ] {
            if says(words) {
                types.0 |= of.0;
            }
        }
        if types.0 == 0 { Types::ALL } else { types }
    }

    /// A value that nothing is said about, nested a few levels at most.
    pub(super) fn free_value(&mut self, default: Option<&'a Value>, at: &str) -> Result<Built> {
        if self.policy == ClosingPolicy::Declared {
            let fact = "nothing is said about the value: give it a type, so that it can be completed";
            return Err(refuse(at, fact.into()));
        }
        while self.free.len() <= FREE_VALUE_DEPTH {
            let mut options = Vec::new();
            for name in ["null", "boolean", "string"] {
                let leaf = self.leaves.leaf(json!({ "type": name }), at)?;
                options.push(self.node_id(Shape::Leaf(leaf), None, None, at)?);
            }
            let number = self.leaves.leaf(number_schema(&[], false, at)?, at)?;
            options.push(self.node_id(Shape::Leaf(number), None, None, at)?);
            if let Some(&inner) = self.free.last() {
                let array =
                    ArrayShape { prefix: Vec::new(), items: Some(inner), min_items: 0, max_items: None };
                options.push(self.node_id(Shape::Array(array), None, None, at)?);
                let object = ObjectShape { additional: Some(inner), ..ObjectShape::default() };
                options.push(self.node_id(Shape::Object(object), None, None, at)?);
            }
            let id = self.node_id(Shape::AnyOf(options), None, None, at)?;
            self.free.push(id);
        }
        let Some(&id) = self.free.last() else { return Ok(Built::Never("no value".into())) };
        match default {
            None => Ok(Built::Node(id)),
            Some(_) => self.node(Shape::AnyOf(vec![id]), default, None, at),
        }
    }

    /// Null, booleans, numbers and strings, each by its type.
    pub(super) fn scalars(&mut self, merged: &Merged<'a>, types: Types, at: &str) -> Result<Option<Built>> {
        let mut schemas = Vec::new();
        if types.contains(Types::NULL) {
            schemas.push(json!({"type": "null"}));
        }
        if types.contains(Types::BOOLEAN) {
            schemas.push(json!({"type": "boolean"}));
        }
        if types.contains(Types::INTEGER) {
            schemas.push(number_schema(&merged.parts, !types.contains(Types::NUMBER), at)?);
        }
        let mut never = None;
        if types.contains(Types::STRING) {
            match string_schema(&merged.parts, at) {
                Ok(schema) => schemas.push(schema),
                Err(error) => never = Some(contradiction(error)?),
            }
        }
        let mut options = Vec::new();
        for schema in schemas {
            match self.leaves.leaf(schema, at) {
                Ok(leaf) => options.push(self.node_id(Shape::Leaf(leaf), None, None, at)?),
                Err(error) => never = Some(contradiction(error)?),
            }
        }
        if options.is_empty() {
            return Ok(never.map(Built::Never));
        }
        self.any_of(options, String::new(), Chosen::default(), at).map(Some)
    }

    /// An enumeration or constant.
    pub(super) fn enumeration(
        &mut self,
        merged: &Merged<'a>,
        values: &[&'a Value],
        at: &str,
    ) -> Result<Built> {
        let rest = Merged { values: None, default: None, ..merged.clone() };
        let fitting = self.fitting(&rest, values, at)?;
        let (scalars, compound): (Vec<&Value>, Vec<&Value>) =
            fitting.iter().copied().partition(|value| !value.is_object() && !value.is_array());
        let mut options = Vec::new();
        if !scalars.is_empty() {
            let leaf = self.leaves.leaf(json!({ "enum": scalars }), at)?;
            options.push(self.node_id(Shape::Leaf(leaf), None, None, at)?);
        }
        for value in compound {
            options.push(self.constant(value, at)?);
        }
        let first = fitting.first().copied();
        let chosen = first.filter(|_| merged.is_safe || fitting.len() == 1);
        let chosen = chosen.map(|value| match fitting.len() {
            1 => Fill::constant(value.to_string().into_bytes()),
            _ => Fill::value(value.to_string().into_bytes()),
        });
        match (options.as_slice(), merged.default, &chosen) {
            ([], _, _) => {
                let listed = brief(&json!(values));
                Ok(Built::Never(format!("none of the values {listed} fits the rest of the schema")))
            }
            (&[only], None, None) => Ok(Built::Node(only)),
            (&[only], default, _) => {
                let shape = self.copy(only);
                self.node(shape, default, chosen, at)
            }
            (_, default, _) => self.node(Shape::AnyOf(options), default, chosen, at),
        }
    }

    /// The values that the rest of their schema accepts.
    pub(super) fn fitting(
        &mut self,
        rest: &Merged<'a>,
        values: &[&'a Value],
        at: &str,
    ) -> Result<Vec<&'a Value>> {
        let typed: Vec<&Value> = values.iter().copied().filter(|value| has_type(value, rest.types)).collect();
        let words_only_types = self.types(&Merged { types: Types::ALL, ..rest.clone() }) == Types::ALL;
        if words_only_types || typed.is_empty() {
            return Ok(typed);
        }
        // Only whether values fit is asked, so nothing needs to be closable.
        let policy = std::mem::replace(&mut self.policy, ClosingPolicy::Minimal);
        let known = std::mem::take(&mut self.known);
        let built = self.single(rest, at);
        (self.policy, self.known) = (policy, known);
        match built? {
            Built::Never(_) => Ok(Vec::new()),
            Built::Node(id) => {
                let fits = |value: &&Value| is_valid(&self.schema, id, value.to_string().as_bytes());
                Ok(typed.into_iter().filter(fits).collect())
            }
        }
    }

    /// The shape of exactly `value`.
    pub(super) fn constant(&mut self, value: &Value, at: &str) -> Result<NodeId> {
        let shape = match value {
            Value::Array(items) => {
                let prefix = items.iter().map(|item| self.constant(item, at)).collect::<Result<Vec<_>>>()?;
                let len = prefix.len();
                Shape::Array(ArrayShape { prefix, items: None, min_items: len, max_items: Some(len) })
            }
            Value::Object(members) => {
                let mut properties = Vec::new();
                for (name, value) in members {
                    properties.push(property(name, self.constant(value, at)?, true));
                }
                Shape::Object(ObjectShape { properties, is_closed_by_schema: true, ..ObjectShape::default() })
            }
            scalar => Shape::Leaf(self.leaves.leaf(json!({ "enum": [scalar] }), at)?),
        };
        self.node_id(shape, None, Some(Fill::constant(value.to_string().into_bytes())), at)
    }
}

fn has_type(value: &Value, types: Types) -> bool {
    types.contains(match value {
        Value::Null => Types::NULL,
        Value::Bool(_) => Types::BOOLEAN,
        Value::Number(number) if number.as_f64().is_some_and(|number| number.fract() == 0.0) => {
            Types::INTEGER
        }
        Value::Number(_) => Types::NUMBER,
        Value::String(_) => Types::STRING,
        Value::Array(_) => Types::ARRAY,
        Value::Object(_) => Types::OBJECT,
    })
}

/// A leaf that nothing matches is one alternative less; any other refusal stays one.
fn contradiction(error: EngineError) -> Result<String> {
    if is_contradiction(&error) { Ok(error.to_string()) } else { Err(error) }
}
