//! A JSON Schema, brought into a form that both the mask and the closing are made from.
//!
//! References are followed, combinations (`allOf`, siblings of `$ref`) merged, types told apart. What is left is a small set of [`Shape`]s.
//! [`emit`] writes them as a plain schema for llguidance; [`super::closing`] walks them. Two readers of one source cannot disagree on what
//! a schema means. Where JSON Schema leaves more open than an answer needs, the shapes are narrower, never wider: no undeclared
//! keys beside declared ones, numbers that F64 holds, one way of writing a text.

mod build;
mod disjoint;
pub(super) mod emit;
mod fill;
mod format;
mod keywords;
mod leaf;
mod merge;
mod parts;
mod pattern;

pub(super) use build::build;
pub(super) use fill::{Fill, escaped};
pub(super) use leaf::{Leaf, LeafEnd};
pub(super) use pattern::check_regex;

/// Index of a shape in its [`Schema`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct NodeId(pub u32);

/// A schema as a graph without cycles; children come before their parents.
#[derive(Debug)]
pub(super) struct Schema {
    pub nodes: Vec<Node>,
    pub root: NodeId,
}

impl Schema {
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }
}

/// One value's schema.
#[derive(Debug)]
pub(super) struct Node {
    pub shape: Shape,
    /// What stands in for the value when the model did not begin it; `None` where the policy has nothing.
    pub fill: Option<Fill>,
    /// Levels of nesting below, itself included.
    pub depth: usize,
    /// Of alternatives: the first is declared safe, so it is taken wherever it still fits.
    pub prefers_first: bool,
}

/// What a value may be.
#[derive(Debug)]
pub(super) enum Shape {
    /// A string, number, boolean, null or enumeration of such: one automaton.
    Leaf(Leaf),
    /// An object.
    Object(ObjectShape),
    /// An array.
    Array(ArrayShape),
    /// Any of several.
    AnyOf(Vec<NodeId>),
}

/// Keys in the order in which they are written: declared ones, then matches of patterns, then others.
#[derive(Debug, Default)]
pub(super) struct ObjectShape {
    pub properties: Vec<Property>,
    /// Names that no value fits.
    pub forbidden: Vec<String>,
    /// Keys by pattern.
    pub patterns: Vec<PatternProperty>,
    /// The value of every other key; `None` for no other keys.
    pub additional: Option<NodeId>,
    pub min_properties: usize,
    pub max_properties: Option<usize>,
    /// True when the schema itself forbids other keys, false when only the shape does.
    pub is_closed_by_schema: bool,
}

#[derive(Debug)]
pub(super) struct Property {
    pub name: String,
    /// The name as JSON text, quotes included.
    pub key: Box<[u8]>,
    pub value: NodeId,
    pub is_required: bool,
}

#[derive(Debug)]
pub(super) struct PatternProperty {
    pub pattern: String,
    /// Keys as JSON text.
    pub keys: Leaf,
    pub value: NodeId,
}

#[derive(Debug)]
pub(super) struct ArrayShape {
    pub prefix: Vec<NodeId>,
    /// Items after the prefix; `None` for none.
    pub items: Option<NodeId>,
    pub min_items: usize,
    pub max_items: Option<usize>,
}

impl ArrayShape {
    /// The shape of item `item_idx`; `None` where no item may be.
    pub fn item(&self, item_idx: usize) -> Option<NodeId> {
        if self.max_items.is_some_and(|max_items| item_idx >= max_items) {
            return None;
        }
        self.prefix.get(item_idx).copied().or(self.items)
    }
}

impl ObjectShape {
    pub fn property(&self, key: &[u8]) -> Option<&Property> {
        self.properties.iter().find(|property| &*property.key == key)
    }

    /// The value's shape for a key as JSON text.
    pub fn value(&self, key: &[u8]) -> Option<NodeId> {
        if let Some(property) = self.property(key) {
            return Some(property.value);
        }
        let pattern = self.patterns.iter().find(|pattern| pattern.keys.accepts(key));
        pattern.map(|pattern| pattern.value).or(self.additional)
    }

    /// True when keys may come that are not declared.
    pub fn is_open(&self) -> bool {
        !self.patterns.is_empty() || self.additional.is_some()
    }
}
