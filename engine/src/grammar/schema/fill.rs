//! What stands in for a value that the model did not begin.

use super::{ArrayShape, NodeId, ObjectShape, Schema, Shape, leaf::Leaf};
use crate::grammar::{limits::MAX_FILL_BYTES, spec::ClosingPolicy};

/// A whole value as JSON text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::grammar) struct Fill {
    pub text: Box<[u8]>,
    /// JSON pointers, from the value, to what stands in; a constant is nobody's choice and is not listed.
    pub fields: Vec<String>,
    /// True with a constant in it. Where a constant tells alternatives apart, taking this one decides something that nobody declared.
    pub decides: bool,
}

impl Fill {
    /// A value that stands in as a whole.
    pub fn value(text: impl Into<Box<[u8]>>) -> Self {
        Self { text: text.into(), fields: vec![String::new()], decides: false }
    }

    /// The only value there is.
    pub fn constant(text: impl Into<Box<[u8]>>) -> Self {
        let text = text.into();
        Self { decides: *text != *b"null", text, fields: Vec::new() }
    }

    /// One of several alternatives, taken because the schema or the policy says so: the choice itself is not the model's.
    pub fn chosen(self) -> Self {
        let fields = if self.fields.is_empty() { vec![String::new()] } else { self.fields };
        Self { fields, decides: false, ..self }
    }
}

/// What the policy has for `shape`, whose parts are in `nodes`; a declared default, `const` or safe `enum` comes before this.
pub(super) fn fill(nodes: &Schema, shape: &Shape, policy: ClosingPolicy) -> Option<Fill> {
    let fill = match shape {
        Shape::Leaf(leaf) => fill_leaf(leaf, policy),
        Shape::AnyOf(options) => fill_any(nodes, options, policy),
        Shape::Array(array) => fill_array(nodes, array),
        Shape::Object(object) => fill_object(nodes, object),
    };
    fill.filter(|fill| fill.text.len() <= MAX_FILL_BYTES)
}

fn fill_leaf(leaf: &Leaf, policy: ClosingPolicy) -> Option<Fill> {
    if leaf.is_constant() {
        return Some(Fill::constant(leaf.shortest()));
    }
    if leaf.accepts(b"null") {
        return Some(Fill::value(*b"null"));
    }
    (policy == ClosingPolicy::Minimal).then(|| Fill::value(leaf.shortest()))
}

/// The shortest alternative that decides nothing.
fn fill_any(nodes: &Schema, options: &[NodeId], policy: ClosingPolicy) -> Option<Fill> {
    if let [only] = options {
        return nodes.node(*only).fill.clone();
    }
    let fills = options.iter().filter_map(|&option| nodes.node(option).fill.as_ref());
    let allowed = fills.filter(|fill| !fill.decides || policy == ClosingPolicy::Minimal);
    allowed.min_by_key(|fill| fill.text.len()).cloned().map(Fill::chosen)
}

fn fill_array(nodes: &Schema, array: &ArrayShape) -> Option<Fill> {
    let mut parts = Parts::new(b'[');
    for item_idx in 0..array.min_items {
        parts.add(&item_idx.to_string(), b"", nodes.node(array.item(item_idx)?).fill.as_ref()?);
    }
    Some(parts.close(b']'))
}

fn fill_object(nodes: &Schema, object: &ObjectShape) -> Option<Fill> {
    let mut parts = Parts::new(b'{');
    let mut num_missing = object.min_properties;
    let chosen = |nodes: &Schema, id: NodeId| nodes.node(id).fill.clone();
    for property in object.properties.iter().filter(|property| property.is_required) {
        parts.add(&property.name, &property.key, &chosen(nodes, property.value)?);
        num_missing = num_missing.saturating_sub(1);
    }
    for property in object.properties.iter().filter(|property| !property.is_required) {
        if num_missing == 0 {
            break;
        }
        if let Some(fill) = chosen(nodes, property.value) {
            parts.add(&property.name, &property.key, &fill);
            num_missing -= 1;
        }
    }
    (num_missing == 0).then(|| parts.close(b'}'))
}

/// An array or object being written.
struct Parts {
    text: Vec<u8>,
    fields: Vec<String>,
    decides: bool,
}

impl Parts {
    fn new(open: u8) -> Self {
        Self { text: vec![open], fields: Vec::new(), decides: false }
    }

    fn add(&mut self, name: &str, key: &[u8], fill: &Fill) {
        if self.text.len() > 1 {
            self.text.push(b',');
        }
        self.text.extend_from_slice(key);
        if !key.is_empty() {
            self.text.push(b':');
        }
        self.text.extend_from_slice(&fill.text);
        self.decides |= fill.decides;
        self.fields.extend(fill.fields.iter().map(|field| format!("/{}{field}", escaped(name))));
    }

    fn close(mut self, close: u8) -> Fill {
        if self.text.len() == 1 {
            // Nothing in it: the empty value itself stands in.
            self.fields.push(String::new());
        }
        self.text.push(close);
        Fill { text: self.text.into(), fields: self.fields, decides: self.decides }
    }
}

/// A key as a step of a JSON pointer (RFC 6901, section 3).
pub(in crate::grammar) fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}
