//! From a JSON Schema document to shapes.

mod items;
mod members;
mod values;

use std::collections::HashMap;

use serde_json::Value;

use super::{
    Fill, Node, NodeId, Schema, Shape,
    disjoint::Disjoint,
    fill::fill,
    leaf::LeafCompiler,
    merge::{Merged, Types, brief, recursive},
};
use crate::{
    Result,
    grammar::{
        closing::{is_valid, walk},
        error::refuse,
        limits::{MAX_FILL_BYTES, MAX_NODES, MAX_ONE_OF, MAX_VALUE_DEPTH},
        spec::ClosingPolicy,
    },
};

/// Brings the schema `document` into shapes, every one of which has a closing from every state.
///
/// # Errors
/// [`crate::EngineError::Grammar`] with the place of what is not supported, contradicts itself, or has no closing under `policy`.
pub(in crate::grammar) fn build(document: &Value, policy: ClosingPolicy) -> Result<Schema> {
    let mut builder = Builder {
        document,
        policy,
        leaves: LeafCompiler::default(),
        schema: Schema { nodes: Vec::new(), root: NodeId(0) },
        open_references: Vec::new(),
        known: HashMap::new(),
        free: Vec::new(),
        num_merges: 0,
    };
    let root = match builder.value(&[document], "")? {
        Built::Node(root) => root,
        Built::Never(why) => return Err(refuse("", format!("nothing is valid: {why}"))),
    };
    builder.require_fill(root, "")?;
    builder.schema.root = root;
    Ok(builder.schema)
}

/// What a schema came to.
#[derive(Debug, Clone)]
enum Built {
    Node(NodeId),
    /// No value is valid; says why.
    Never(String),
}

/// What a schema says about the choice among alternatives.
#[derive(Debug, Clone, Copy, Default)]
struct Chosen<'a> {
    default: Option<&'a Value>,
    /// The first alternative is declared safe.
    is_safe: bool,
}

struct Builder<'a> {
    document: &'a Value,
    policy: ClosingPolicy,
    leaves: LeafCompiler,
    schema: Schema,
    /// References whose schema an enclosing value is described by.
    open_references: Vec<&'a str>,
    /// Schemas that were built before, by what they were built from.
    known: HashMap<Vec<*const Value>, Built>,
    /// Shapes for any value, by the levels of nesting left.
    free: Vec<NodeId>,
    num_merges: usize,
}

impl<'a> Builder<'a> {
    /// The shape of values that all of `schemas` accept.
    fn value(&mut self, schemas: &[&'a Value], at: &str) -> Result<Built> {
        let key: Vec<*const Value> = schemas.iter().map(|schema| std::ptr::from_ref(*schema)).collect();
        if let Some(built) = self.known.get(&key) {
            return Ok(built.clone());
        }
        let merged = Merged::of(self.document, schemas, at)?;
        if let Some(reference) = merged.references.iter().find(|name| self.open_references.contains(name)) {
            return Err(recursive(reference, at));
        }
        let built = self.merged(merged, at)?;
        self.known.insert(key, built.clone());
        Ok(built)
    }

    /// The shape of what was merged: alternatives are distributed over the rest first.
    fn merged(&mut self, mut merged: Merged<'a>, at: &str) -> Result<Built> {
        self.num_merges += 1;
        if self.num_merges > MAX_NODES {
            let fact = format!("its combinations come to more than {MAX_NODES} schemas: make it simpler");
            return Err(refuse(at, fact));
        }
        if let Some(why) = merged.never {
            return Ok(Built::Never(why));
        }
        let Some(alternatives) = merged.alternatives.pop() else {
            return self.single(&merged, at);
        };
        let default = merged.default.take();
        // What is said beside the alternatives is said of the choice among them.
        let is_safe = std::mem::take(&mut merged.is_safe);
        let mut options = Vec::new();
        let mut why = String::new();
        for option in alternatives.options {
            let mut branch = merged.clone();
            branch.add(self.document, option, at)?;
            match self.merged(branch, at)? {
                Built::Node(id) => options.push(id),
                Built::Never(reason) => why = reason,
            }
        }
        if alternatives.is_one_of {
            self.check_disjoint(&options, at)?;
        }
        self.any_of(options, why, Chosen { default, is_safe }, at)
    }

    fn any_of(
        &mut self,
        mut options: Vec<NodeId>,
        why: String,
        chosen: Chosen<'_>,
        at: &str,
    ) -> Result<Built> {
        options.dedup();
        match (options.as_slice(), chosen.default) {
            ([], _) => return Ok(Built::Never(format!("no alternative is valid: {why}"))),
            (&[only], None) => return Ok(Built::Node(only)),
            _ => {}
        }
        let first = self.schema.node(options[0]).fill.clone().filter(|_| chosen.is_safe);
        let id = self.node_id(Shape::AnyOf(options), chosen.default, first.map(Fill::chosen), at)?;
        self.schema.nodes[id.0 as usize].prefers_first = chosen.is_safe;
        Ok(Built::Node(id))
    }

    fn check_disjoint(&mut self, options: &[NodeId], at: &str) -> Result<()> {
        if options.len() > MAX_ONE_OF {
            let fact = format!(
                "oneOf has {} alternatives, at most {MAX_ONE_OF} are possible: write anyOf",
                options.len()
            );
            return Err(refuse(at, fact));
        }
        for (idx, &one) in options.iter().enumerate() {
            for &other in &options[idx + 1..] {
                if !Disjoint::new(&self.schema, &mut self.leaves).holds(one, other) {
                    let fact = "alternatives of oneOf may hold at the same time: write anyOf, or give each a required \
                                property with a const of its own";
                    return Err(refuse(at, fact.into()));
                }
            }
        }
        Ok(())
    }

    /// The shape of a conjunction without alternatives.
    fn single(&mut self, merged: &Merged<'a>, at: &str) -> Result<Built> {
        if let Some(values) = &merged.values {
            return self.enumeration(merged, values, at);
        }
        let types = self.types(merged);
        if types == Types::ALL {
            return self.free_value(merged.default, at);
        }
        let mut options = Vec::new();
        let mut why = "its types exclude each other".to_owned();
        for build in [Self::scalars, Self::object, Self::array] {
            match build(self, merged, types, at)? {
                Some(Built::Node(id)) => options.push(id),
                Some(Built::Never(reason)) => why = reason,
                None => {}
            }
        }
        if let [only] = options[..] {
            // The one place where the annotations of this very schema belong.
            return self.annotated(only, merged, at);
        }
        self.any_of(options, why, Chosen { default: merged.default, is_safe: false }, at)
    }

    /// Gives a node just built the annotations of its schema.
    fn annotated(&mut self, id: NodeId, merged: &Merged<'a>, at: &str) -> Result<Built> {
        match merged.default {
            None => Ok(Built::Node(id)),
            Some(_) => {
                let shape = self.copy(id);
                self.node(shape, merged.default, None, at)
            }
        }
    }

    /// A shape that can be annotated by itself: leaves are copied, others wrapped.
    fn copy(&self, id: NodeId) -> Shape {
        match &self.schema.node(id).shape {
            Shape::Leaf(leaf) => Shape::Leaf(leaf.clone()),
            _ => Shape::AnyOf(vec![id]),
        }
    }

    fn node(
        &mut self,
        shape: Shape,
        default: Option<&Value>,
        chosen: Option<Fill>,
        at: &str,
    ) -> Result<Built> {
        self.node_id(shape, default, chosen, at).map(Built::Node)
    }

    fn node_id(
        &mut self,
        mut shape: Shape,
        default: Option<&Value>,
        chosen: Option<Fill>,
        at: &str,
    ) -> Result<NodeId> {
        let depth = 1 + walk::depth_below(&self.schema, &shape);
        if depth > MAX_VALUE_DEPTH {
            let fact = format!("values are nested deeper than {MAX_VALUE_DEPTH} levels");
            return Err(refuse(at, fact));
        }
        if self.schema.nodes.len() >= MAX_NODES {
            return Err(refuse(
                at,
                format!("the schema comes to more than {MAX_NODES} values: make it simpler"),
            ));
        }
        let default_text = default.map(|value| value.to_string().into_bytes());
        if let Shape::Leaf(leaf) = &mut shape {
            let safe = chosen.as_ref().filter(|fill| !fill.fields.is_empty()).map(|fill| fill.text.clone());
            leaf.default = default_text.clone().map(Into::into).or(safe);
        }
        let from_policy = fill(&self.schema, &shape, self.policy);
        let id = NodeId(self.schema.nodes.len() as u32);
        self.schema.nodes.push(Node { shape, fill: chosen.or(from_policy), depth, prefers_first: false });
        if let (Some(default), Some(text)) = (default, default_text) {
            if text.len() > MAX_FILL_BYTES || !is_valid(&self.schema, id, &text) {
                let fact = format!("the default {} does not fit its own schema", brief(default));
                return Err(refuse(at, fact));
            }
            let node = &mut self.schema.nodes[id.0 as usize];
            let is_only =
                node.fill.as_ref().is_some_and(|fill| fill.fields.is_empty() && *fill.text == *text);
            if !is_only {
                node.fill = Some(Fill::value(text));
            }
        }
        Ok(id)
    }

    /// Refuses a value that may be left unbegun and has nothing to stand in.
    fn require_fill(&self, id: NodeId, at: &str) -> Result<()> {
        if self.schema.node(id).fill.is_some() {
            return Ok(());
        }
        let fact = "has no closing: when time is up before the model begins it, nothing can stand in. Give it a default, \
                    a const, or an enum or anyOf marked \"x-takt-safe\": true (its first alternative), or let it be null";
        Err(refuse(at, fact.into()))
    }
}
