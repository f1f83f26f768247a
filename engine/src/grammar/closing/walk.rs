//! A begun JSON value laid over its shape.

use std::collections::HashMap;

use super::{
    Closing, object,
    partial::{ArrayEnd, Partial, read},
};
use crate::grammar::{
    limits::MAX_VALUE_DEPTH,
    schema::{ArrayShape, Fill, Leaf, LeafEnd, NodeId, Schema, Shape},
};

/// The closing of `text`; `None` when the schema accepts nothing that begins like this.
pub(in crate::grammar) fn close(schema: &Schema, text: &[u8]) -> Option<Closing> {
    let partial = read(text, MAX_VALUE_DEPTH)?;
    Walk { schema, known: HashMap::new() }.value(schema.root, &partial)
}

/// True when `text` is a whole value of the shape `id`.
pub(in crate::grammar) fn is_valid(schema: &Schema, id: NodeId, text: &[u8]) -> bool {
    let Some(partial) = read(text, MAX_VALUE_DEPTH) else { return false };
    let closing = Walk { schema, known: HashMap::new() }.value(id, &partial);
    closing.is_some_and(|closing| closing.bytes.is_empty())
}

/// Levels of nesting below a shape.
pub(in crate::grammar) fn depth_below(schema: &Schema, shape: &Shape) -> usize {
    let deepest =
        |ids: &mut dyn Iterator<Item = NodeId>| ids.map(|id| schema.node(id).depth).max().unwrap_or(0);
    match shape {
        Shape::Leaf(_) => 0,
        // An alternative is no level of the value, but one of the walk.
        Shape::AnyOf(options) => deepest(&mut options.iter().copied()),
        Shape::Array(array) => deepest(&mut array.prefix.iter().copied().chain(array.items)),
        Shape::Object(object) => {
            let declared = object.properties.iter().map(|property| property.value);
            let patterns = object.patterns.iter().map(|pattern| pattern.value);
            deepest(&mut declared.chain(patterns).chain(object.additional))
        }
    }
}

/// One closing being found.
pub(super) struct Walk<'s> {
    pub schema: &'s Schema,
    /// Outcomes for arrays and objects, by shape and address: alternatives would walk the same parts again and again.
    known: HashMap<(NodeId, usize), Option<Closing>>,
}

impl Walk<'_> {
    /// The closing of a value; `None` when it does not have this shape.
    pub fn value(&mut self, id: NodeId, partial: &Partial<'_>) -> Option<Closing> {
        if *partial == Partial::Unbegun {
            return self.schema.node(id).fill.as_ref().map(filled);
        }
        let schema = self.schema;
        match (&schema.node(id).shape, partial) {
            (Shape::Leaf(leaf), Partial::Scalar { text, is_whole }) => end_leaf(leaf, text, *is_whole),
            (Shape::Leaf(_), _) | (Shape::Array(_) | Shape::Object(_), Partial::Scalar { .. }) => None,
            (shape, partial) => {
                let key = (id, std::ptr::from_ref(partial) as usize);
                if let Some(known) = self.known.get(&key) {
                    return known.clone();
                }
                let closing = match (shape, partial) {
                    (Shape::AnyOf(options), partial) => self.alternatives(id, options, partial),
                    (Shape::Array(array), Partial::Array { items, end }) => self.array(array, items, end),
                    (Shape::Object(shape), Partial::Object { members, end }) => {
                        object::close(self, shape, members, end)
                    }
                    _ => None,
                };
                self.known.insert(key, closing.clone());
                closing
            }
        }
    }

    /// True for a whole value of this shape.
    pub fn accepts(&mut self, id: NodeId, partial: &Partial<'_>) -> bool {
        self.value(id, partial).is_some_and(|closing| closing.bytes.is_empty())
    }

    /// The shortest of the alternatives' closings; of equal ones, that which leaves most to the model. A first alternative that is declared safe
    /// is taken wherever it still fits.
    fn alternatives(&mut self, id: NodeId, options: &[NodeId], partial: &Partial<'_>) -> Option<Closing> {
        if let Some(closing) = self.declared(id, partial) {
            return Some(closing);
        }
        let closings: Vec<Closing> =
            options.iter().filter_map(|&option| self.value(option, partial)).collect();
        let is_choice = closings.windows(2).any(|pair| pair[0].bytes != pair[1].bytes);
        let safe = options.first().filter(|_| self.schema.node(id).prefers_first);
        let safe = safe.and_then(|&first| self.value(first, partial));
        let mut chosen = match safe {
            Some(closing) => closing,
            None => closings.into_iter().min_by_key(|closing| {
                (closing.bytes.len(), closing.defaulted_fields.len() + closing.cut_fields.len())
            })?,
        };
        if is_choice && !chosen.bytes.is_empty() && !chosen.cut_fields.iter().any(String::is_empty) {
            // More than one alternative still fitted, so which it became was not the model's to say.
            chosen.cut_fields.push(String::new());
        }
        Some(chosen)
    }

    /// A begun scalar becomes the default declared beside the alternatives, where it begins like it and is not whole as it is.
    fn declared(&mut self, id: NodeId, partial: &Partial<'_>) -> Option<Closing> {
        let Partial::Scalar { text, is_whole: false } = partial else { return None };
        let fill = self.schema.node(id).fill.as_ref().filter(|fill| fill.fields == [""])?;
        let rest = fill.text.strip_prefix(*text)?;
        let Shape::AnyOf(options) = &self.schema.node(id).shape else { return None };
        let is_valid_now = options.iter().any(|&option| self.accepts(option, partial));
        (!is_valid_now).then(|| Closing {
            bytes: rest.to_vec(),
            defaulted_fields: fill.fields.clone(),
            cut_fields: Vec::new(),
        })
    }

    fn array(&mut self, shape: &ArrayShape, items: &[Partial<'_>], end: &ArrayEnd<'_>) -> Option<Closing> {
        for (item_idx, item) in items.iter().enumerate() {
            let id = shape.item(item_idx)?;
            if !self.accepts(id, item) {
                return None;
            }
        }
        let mut closing = Closing::default();
        let mut num_items = items.len();
        match end {
            ArrayEnd::Whole => return (num_items >= shape.min_items).then_some(closing),
            ArrayEnd::Opened | ArrayEnd::Item => {}
            ArrayEnd::Comma => {
                self.add_item(shape, num_items, &Partial::Unbegun, &mut closing)?;
                num_items += 1;
            }
            ArrayEnd::Inside(item) => {
                self.add_item(shape, num_items, item, &mut closing)?;
                num_items += 1;
            }
        }
        for item_idx in num_items..shape.min_items {
            if item_idx > 0 {
                closing.bytes.push(b',');
            }
            self.add_item(shape, item_idx, &Partial::Unbegun, &mut closing)?;
        }
        closing.bytes.push(b']');
        Some(closing)
    }

    fn add_item(
        &mut self,
        shape: &ArrayShape,
        item_idx: usize,
        item: &Partial<'_>,
        closing: &mut Closing,
    ) -> Option<()> {
        let inner = self.value(shape.item(item_idx)?, item)?;
        append(closing, &item_idx.to_string(), inner);
        Some(())
    }
}

/// Adds the closing of the part `name`.
pub(super) fn append(closing: &mut Closing, name: &str, inner: Closing) {
    closing.bytes.extend_from_slice(&inner.bytes);
    let within = |field: String| format!("/{name}{field}");
    closing.defaulted_fields.extend(inner.defaulted_fields.into_iter().map(within));
    closing.cut_fields.extend(inner.cut_fields.into_iter().map(within));
}

fn filled(fill: &Fill) -> Closing {
    Closing { bytes: fill.text.to_vec(), defaulted_fields: fill.fields.clone(), cut_fields: Vec::new() }
}

fn end_leaf(leaf: &Leaf, text: &[u8], is_whole: bool) -> Option<Closing> {
    if is_whole {
        return leaf.accepts(text).then(Closing::default);
    }
    let here = || vec![String::new()];
    Some(match leaf.end(text)? {
        LeafEnd::Whole { is_only: true } => Closing::default(),
        LeafEnd::Whole { is_only: false } => Closing { cut_fields: here(), ..Closing::default() },
        LeafEnd::Needs { text, is_only: true } => Closing { bytes: text, ..Closing::default() },
        LeafEnd::Needs { text, is_only: false } => {
            Closing { bytes: text, cut_fields: here(), ..Closing::default() }
        }
        LeafEnd::Default { text } => Closing { bytes: text, defaulted_fields: here(), ..Closing::default() },
    })
}
