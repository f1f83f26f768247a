//! Shapes as a plain JSON schema for llguidance.

use serde_json::{Map, Value, json};

use super::{ArrayShape, NodeId, ObjectShape, Schema, Shape};

/// The whole schema, in which every shape that is used twice is written once.
pub(in crate::grammar) fn emit(schema: &Schema) -> Value {
    let emitter = Emitter { schema, is_shared: shared(schema) };
    let mut root = emitter.inline(schema.root);
    let defs: Map<String, Value> = (0..schema.nodes.len() as u32)
        .map(NodeId)
        .filter(|id| emitter.is_shared[id.0 as usize] && *id != schema.root)
        .map(|id| (name(id), emitter.inline(id)))
        .collect();
    if let (Some(object), false) = (root.as_object_mut(), defs.is_empty()) {
        object.insert("$defs".into(), Value::Object(defs));
    }
    with_settings(root)
}

/// Compact JSON, each character spelled in one way.
pub(super) fn with_settings(schema: Value) -> Value {
    let mut schema = if schema.is_object() { schema } else { json!({"allOf": [schema]}) };
    if let Some(object) = schema.as_object_mut() {
        let settings = json!({"whitespace_flexible": false, "json_allowed_escapes": "nrbtf\\\""});
        object.insert("x-guidance".into(), settings);
    }
    schema
}

struct Emitter<'a> {
    schema: &'a Schema,
    is_shared: Vec<bool>,
}

impl Emitter<'_> {
    fn reference(&self, id: NodeId) -> Value {
        if self.is_shared[id.0 as usize] {
            json!({"$ref": format!("#/$defs/{}", name(id))})
        } else {
            self.inline(id)
        }
    }

    fn inline(&self, id: NodeId) -> Value {
        match &self.schema.node(id).shape {
            Shape::Leaf(leaf) => leaf.schema.clone(),
            Shape::AnyOf(options) => {
                json!({"anyOf": options.iter().map(|&option| self.reference(option)).collect::<Vec<_>>()})
            }
            Shape::Array(array) => self.array(array),
            Shape::Object(object) => self.object(object),
        }
    }

    fn array(&self, array: &ArrayShape) -> Value {
        let mut out = json!({"type": "array", "minItems": array.min_items});
        let prefix: Vec<Value> = array.prefix.iter().map(|&item| self.reference(item)).collect();
        if !prefix.is_empty() {
            out["prefixItems"] = Value::Array(prefix);
        }
        out["items"] = array.items.map_or(Value::Bool(false), |items| self.reference(items));
        if let Some(max_items) = array.max_items {
            out["maxItems"] = json!(max_items);
        }
        out
    }

    fn object(&self, object: &ObjectShape) -> Value {
        let properties: Map<String, Value> = object
            .properties
            .iter()
            .map(|property| (property.name.clone(), self.reference(property.value)))
            .chain(object.forbidden.iter().map(|name| (name.clone(), Value::Bool(false))))
            .collect();
        let required: Vec<&str> = object
            .properties
            .iter()
            .filter(|property| property.is_required)
            .map(|property| property.name.as_str())
            .collect();
        let mut out = json!({"type": "object", "properties": properties, "required": required});
        if !object.patterns.is_empty() {
            let patterns = object.patterns.iter();
            let patterns: Map<String, Value> =
                patterns.map(|entry| (entry.pattern.clone(), self.reference(entry.value))).collect();
            out["patternProperties"] = Value::Object(patterns);
        }
        let additional = object.additional;
        out["additionalProperties"] = additional.map_or(Value::Bool(false), |value| self.reference(value));
        if object.min_properties > 0 {
            out["minProperties"] = json!(object.min_properties);
        }
        if let Some(max_properties) = object.max_properties {
            out["maxProperties"] = json!(max_properties);
        }
        out
    }
}

fn name(id: NodeId) -> String {
    format!("n{}", id.0)
}

/// Which shapes have more than one place; leaves are lexemes, which llguidance shares itself.
fn shared(schema: &Schema) -> Vec<bool> {
    let mut num_uses = vec![0_usize; schema.nodes.len()];
    for node in &schema.nodes {
        for child in children(&node.shape) {
            num_uses[child.0 as usize] += 1;
        }
    }
    let is_leaf = |node_idx: usize| matches!(schema.nodes[node_idx].shape, Shape::Leaf(_));
    num_uses.iter().enumerate().map(|(node_idx, &uses)| uses > 1 && !is_leaf(node_idx)).collect()
}

fn children(shape: &Shape) -> Vec<NodeId> {
    match shape {
        Shape::Leaf(_) => Vec::new(),
        Shape::AnyOf(options) => options.clone(),
        Shape::Array(array) => array.prefix.iter().copied().chain(array.items).collect(),
        Shape::Object(object) => {
            let declared = object.properties.iter().map(|property| property.value);
            let patterns = object.patterns.iter().map(|pattern| pattern.value);
            declared.chain(patterns).chain(object.additional).collect()
        }
    }
}
