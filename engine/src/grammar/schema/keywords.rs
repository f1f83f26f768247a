//! Which words of a schema are understood.

use serde_json::{Map, Value};

use crate::{Result, grammar::error::refuse};

/// Words that say something about values.
const UNDERSTOOD: [&str; 29] = [
    "$ref",
    "allOf",
    "anyOf",
    "oneOf",
    "const",
    "enum",
    "type",
    "items",
    "additionalItems",
    "prefixItems",
    "minItems",
    "maxItems",
    "properties",
    "additionalProperties",
    "patternProperties",
    "required",
    "minProperties",
    "maxProperties",
    "minLength",
    "maxLength",
    "pattern",
    "format",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "default",
    "uniqueItems",
];

/// Words for people and tools.
const ANNOTATIONS: [&str; 21] = [
    "$schema",
    "$id",
    "id",
    "$anchor",
    "$comment",
    "$defs",
    "definitions",
    "$vocabulary",
    "title",
    "description",
    "examples",
    "example",
    "deprecated",
    "readOnly",
    "writeOnly",
    "contentMediaType",
    "contentEncoding",
    "discriminator",
    "externalDocs",
    "xml",
    "components",
];

/// The word that lets a closing take an enumeration's first value.
pub(super) const SAFE: &str = "x-takt-safe";

/// Formats that are checked; others are refused, because nothing would hold the model to them.
const FORMATS: [&str; 10] =
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];

/// Refuses a schema with a word that would be ignored although it restricts values.
pub(super) fn check(schema: &Map<String, Value>, at: &str) -> Result<()> {
    for (word, value) in schema {
        let is_known = UNDERSTOOD.contains(&word.as_str())
            || ANNOTATIONS.contains(&word.as_str())
            || word.starts_with("x-");
        let is_vacuous = word == "uniqueItems" && value == &Value::Bool(false);
        if !is_known || (word == "uniqueItems" && !is_vacuous) {
            return Err(refuse(at, format!("{word:?} is not supported: leave it out{}", instead(word))));
        }
        if word == SAFE && !value.is_boolean() {
            return Err(refuse(at, format!("{SAFE} is {value}, expected true or false")));
        }
    }
    match schema.get("format") {
        Some(Value::String(format)) if !FORMATS.contains(&format.as_str()) => Err(refuse(
            at,
            format!(
                "the format {format:?} is not known: give a pattern instead; known are {}",
                FORMATS.join(", ")
            ),
        )),
        _ => Ok(()),
    }
}

fn instead(word: &str) -> &'static str {
    match word {
        "nullable" => " and write the type as [\"…\", \"null\"]",
        "if" | "then" | "else" | "dependentSchemas" | "dependentRequired" => {
            " and list the cases in anyOf with a const property each"
        }
        "not" => " and say what is allowed",
        "uniqueItems" => ": an answer is not checked for repeated items",
        "unevaluatedProperties" => " and set additionalProperties to false where the properties are",
        _ => "",
    }
}
