//! The conjunction of several schemas for the same value, with references followed and `allOf` dissolved.

use serde_json::{Map, Value};

use super::{
    disjoint::is_equal,
    keywords::{self, SAFE},
};
use crate::{Result, grammar::error::refuse};

/// JSON's types as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Types(pub u8);

impl Types {
    pub const NULL: Self = Self(1);
    pub const BOOLEAN: Self = Self(2);
    pub const INTEGER: Self = Self(4);
    /// Any number, integers included.
    pub const NUMBER: Self = Self(4 | 8);
    pub const STRING: Self = Self(16);
    pub const ARRAY: Self = Self(32);
    pub const OBJECT: Self = Self(64);
    pub const ALL: Self = Self(127);

    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "null" => Self::NULL,
            "boolean" => Self::BOOLEAN,
            "integer" => Self::INTEGER,
            "number" => Self::NUMBER,
            "string" => Self::STRING,
            "array" => Self::ARRAY,
            "object" => Self::OBJECT,
            _ => return None,
        })
    }

    fn read(value: &Value, at: &str) -> Result<Self> {
        let wrong =
            || refuse(at, format!("type is {value}, expected the name of a JSON type or a list of such"));
        let one = |value: &Value| value.as_str().and_then(Self::named).ok_or_else(wrong);
        match value {
            Value::Array(names) => {
                names.iter().try_fold(Self(0), |types, name| Ok(Self(types.0 | one(name)?.0)))
            }
            name => one(name),
        }
    }
}

/// What several schemas say about one value together.
#[derive(Debug, Clone)]
pub(super) struct Merged<'a> {
    pub types: Types,
    /// Allowed values; `None` for all.
    pub values: Option<Vec<&'a Value>>,
    pub is_const: bool,
    pub is_safe: bool,
    pub default: Option<&'a Value>,
    /// Schemas with words for one type: all of them hold.
    pub parts: Vec<&'a Map<String, Value>>,
    /// `anyOf` and `oneOf` still to be distributed.
    pub alternatives: Vec<Alternatives<'a>>,
    /// References followed on the way here.
    pub references: Vec<&'a str>,
    /// Of those, the ones whose schema is being added.
    pub following: Vec<&'a str>,
    /// Why nothing can be valid.
    pub never: Option<String>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Alternatives<'a> {
    pub options: &'a [Value],
    pub is_one_of: bool,
}

impl<'a> Merged<'a> {
    /// The conjunction of `schemas`; `root` is where references point into.
    ///
    /// # Errors
    /// [`crate::EngineError::Grammar`] for words that are not understood, or used wrongly.
    pub fn of(root: &'a Value, schemas: &[&'a Value], at: &str) -> Result<Self> {
        let mut merged = Self {
            types: Types::ALL,
            values: None,
            is_const: false,
            is_safe: false,
            default: None,
            parts: Vec::new(),
            alternatives: Vec::new(),
            references: Vec::new(),
            following: Vec::new(),
            never: None,
        };
        for schema in schemas {
            merged.add(root, schema, at)?;
        }
        Ok(merged)
    }

    /// Adds a schema; its own annotations give way to those already there.
    pub fn add(&mut self, root: &'a Value, schema: &'a Value, at: &str) -> Result<()> {
        let schema = match schema {
            Value::Bool(true) => return Ok(()),
            Value::Bool(false) => {
                self.never = Some("its schema is false".into());
                return Ok(());
            }
            Value::Object(schema) => schema,
            other => {
                return Err(refuse(at, format!("a schema is {}, expected an object", brief(other))));
            }
        };
        keywords::check(schema, at)?;
        self.default = self.default.or(schema.get("default"));
        self.is_safe |= schema.get(SAFE) == Some(&Value::Bool(true));
        if let Some(types) = schema.get("type") {
            self.types = Types(self.types.0 & Types::read(types, at)?.0);
        }
        self.add_values(schema, at)?;
        self.parts.push(schema);
        for (word, is_one_of) in [("anyOf", false), ("oneOf", true)] {
            if let Some(options) = schema.get(word) {
                let options = list(options, word, at)?;
                self.alternatives.push(Alternatives { options, is_one_of });
            }
        }
        if let Some(members) = schema.get("allOf") {
            for member in list(members, "allOf", at)? {
                self.add(root, member, at)?;
            }
        }
        if let Some(reference) = schema.get("$ref") {
            let reference = reference
                .as_str()
                .ok_or_else(|| refuse(at, format!("$ref is {}, expected a text", brief(reference))))?;
            self.follow(root, reference, at)?;
        }
        Ok(())
    }

    fn add_values(&mut self, schema: &'a Map<String, Value>, at: &str) -> Result<()> {
        if let Some(value) = schema.get("const") {
            self.is_const = true;
            self.keep_values(std::slice::from_ref(value));
        }
        if let Some(values) = schema.get("enum") {
            self.keep_values(list(values, "enum", at)?);
        }
        Ok(())
    }

    fn keep_values(&mut self, allowed: &'a [Value]) {
        self.values = Some(match self.values.take() {
            None => allowed.iter().collect(),
            Some(values) => {
                values.into_iter().filter(|value| allowed.iter().any(|twin| is_equal(value, twin))).collect()
            }
        });
    }

    fn follow(&mut self, root: &'a Value, reference: &'a str, at: &str) -> Result<()> {
        if self.following.contains(&reference) {
            return Err(recursive(reference, at));
        }
        if self.references.contains(&reference) {
            // Said already, and saying it twice changes nothing.
            return Ok(());
        }
        self.references.push(reference);
        self.following.push(reference);
        self.add(root, resolve(root, reference, at)?, at)?;
        self.following.pop();
        Ok(())
    }
}

/// The refusal of a schema that contains itself.
pub(super) fn recursive(reference: &str, at: &str) -> crate::EngineError {
    let fact = format!(
        "{reference:?} contains itself, so an answer could be nested without end: write the levels out that are needed"
    );
    refuse(at, fact)
}

/// The schema that `reference` names.
pub(super) fn resolve<'a>(root: &'a Value, reference: &str, at: &str) -> Result<&'a Value> {
    let Some(pointer) = reference.strip_prefix('#') else {
        let fact = format!("$ref {reference:?} leads to another document: copy that schema into $defs");
        return Err(refuse(at, fact));
    };
    let pointer = percent_decoded(pointer);
    root.pointer(&pointer).ok_or_else(|| {
        refuse(at, format!("$ref {reference:?} leads nowhere: expected a path such as \"#/$defs/name\""))
    })
}

/// A URI fragment's text; what is no UTF-8 stays as it is.
fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = if bytes[at] == b'%' { text.get(at + 1..at + 3) } else { None };
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => (out.push(byte), at += 3).0,
            None => (out.push(bytes[at]), at += 1).0,
        }
    }
    String::from_utf8(out).unwrap_or_else(|_| text.to_owned())
}

pub(super) fn list<'a>(value: &'a Value, word: &str, at: &str) -> Result<&'a [Value]> {
    match value.as_array() {
        Some(list) if !list.is_empty() => Ok(list),
        _ => Err(refuse(at, format!("{word} is {}, expected a list with at least one entry", brief(value)))),
    }
}

/// A value for a message.
pub(super) fn brief(value: &Value) -> String {
    const MAX_LEN: usize = 60;
    let text = value.to_string();
    if text.chars().count() <= MAX_LEN { text } else { text.chars().take(MAX_LEN).chain(['…']).collect() }
}
