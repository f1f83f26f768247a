//! From a JSON Schema document to shapes.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::{
    ArrayShape, Fill, Node, NodeId, ObjectShape, PatternProperty, Property, Schema, Shape,
    disjoint::Disjoint,
    fill::{escaped, fill},
    leaf::LeafCompiler,
    merge::{Merged, Types, brief, recursive},
    parts::{ArrayParts, ObjectParts, number_schema, string_schema},
    pattern::{pattern_matches, quotable},
};
use crate::{
    EngineError, Result,
    grammar::{
        closing::{is_valid, walk},
        error::{is_contradiction, refuse},
        limits::{FREE_VALUE_DEPTH, MAX_FILL_BYTES, MAX_NODES, MAX_ONE_OF, MAX_PROPERTIES, MAX_VALUE_DEPTH},
        spec::ClosingPolicy,
    },
};

/// Brings the schema `document` into shapes, every one of which has a closing from every state.
///
/// # Errors
/// [`EngineError::Grammar`] with the place of what is not supported, contradicts itself, or has no closing under `policy`.
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

    /// The types that are possible; a schema with words for one type only is meant for that type.
    fn types(&self, merged: &Merged<'_>) -> Types {
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
    fn free_value(&mut self, default: Option<&'a Value>, at: &str) -> Result<Built> {
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
    fn scalars(&mut self, merged: &Merged<'a>, types: Types, at: &str) -> Result<Option<Built>> {
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
    fn enumeration(&mut self, merged: &Merged<'a>, values: &[&'a Value], at: &str) -> Result<Built> {
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
    fn fitting(&mut self, rest: &Merged<'a>, values: &[&'a Value], at: &str) -> Result<Vec<&'a Value>> {
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
    fn constant(&mut self, value: &Value, at: &str) -> Result<NodeId> {
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

    fn object(&mut self, merged: &Merged<'a>, types: Types, at: &str) -> Result<Option<Built>> {
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

    fn object_of(&mut self, parts: &ObjectParts<'a>, at: &str) -> Result<Built> {
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
    fn lacks_members(&self, shape: &ObjectShape) -> bool {
        let fillable =
            shape.properties.iter().filter(|property| self.schema.node(property.value).fill.is_some());
        fillable.count() < shape.min_properties
    }

    /// Keys by pattern and all others.
    fn open_keys(&mut self, parts: &ObjectParts<'a>, shape: &mut ObjectShape, at: &str) -> Result<()> {
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

    fn array(&mut self, merged: &Merged<'a>, types: Types, at: &str) -> Result<Option<Built>> {
        if !types.contains(Types::ARRAY) {
            return Ok(None);
        }
        let parts = ArrayParts::of(&merged.parts, at)?;
        let depth = self.open_references.len();
        self.open_references.extend(&merged.references);
        let built = self.array_of(&parts, at);
        self.open_references.truncate(depth);
        built.map(Some)
    }

    fn array_of(&mut self, parts: &ArrayParts<'a>, at: &str) -> Result<Built> {
        let mut max_items = parts.max_items;
        let mut prefix = Vec::new();
        for item_idx in 0..parts.prefix_len.min(max_items.unwrap_or(usize::MAX)) {
            let place = format!("{at}/{item_idx}");
            match self.value(&parts.item(item_idx), &place)? {
                Built::Node(id) => {
                    // The first item of an array that may be empty is never left unbegun: the array is closed instead.
                    if item_idx > 0 || parts.min_items > 0 {
                        self.require_fill(id, &place)?;
                    }
                    prefix.push(id);
                }
                Built::Never(_) => {
                    max_items = Some(item_idx);
                    break;
                }
            }
        }
        let place = format!("{at}/*");
        let has_more = max_items.is_none_or(|max_items| max_items > prefix.len());
        let items = match parts.rest() {
            _ if !has_more => None,
            Some(schemas) if schemas.is_empty() => Some(self.free_value(None, &place)?),
            Some(schemas) => Some(self.value(&schemas, &place)?),
            None => None,
        };
        let items = match items {
            Some(Built::Node(id)) => Some(id),
            Some(Built::Never(_)) | None => None,
        };
        if let Some(items) = items {
            let may_be_unbegun = !prefix.is_empty() || parts.min_items > 0 || max_items != Some(1);
            if may_be_unbegun {
                self.require_fill(items, &place)?;
            }
        } else {
            max_items = Some(max_items.unwrap_or(usize::MAX).min(prefix.len()));
        }
        if let Some(max_items) = max_items.filter(|&max_items| max_items < parts.min_items) {
            let why = format!("{} items are demanded, at most {max_items} are possible", parts.min_items);
            return Ok(Built::Never(why));
        }
        let shape = ArrayShape { prefix, items, min_items: parts.min_items, max_items };
        self.node(Shape::Array(shape), None, None, at)
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

fn property(name: &str, value: NodeId, is_required: bool) -> Property {
    let key = Value::String(name.to_owned()).to_string().into_bytes().into();
    Property { name: name.to_owned(), key, value, is_required }
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

/// A leaf that nothing matches is one alternative less; any other refusal stays one.
fn contradiction(error: EngineError) -> Result<String> {
    if is_contradiction(&error) { Ok(error.to_string()) } else { Err(error) }
}
