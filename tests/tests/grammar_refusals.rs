//! Forms that are bad, unbounded or too large are refused with the place and the reason.

use serde_json::{Value, json};
use takt_engine::grammar::{ClosingPolicy, GrammarSpec};
use takt_tests::grammar::{TOKENS, grammar, refusal, whole};

#[test]
fn catastrophic_patterns_close_or_are_refused_by_the_number_of_their_states() {
    let states = Err("more than 20000 states");
    for (pattern, expected) in [
        ("^(a+)+$", Ok(1)),
        ("^(a|aa)+$", Ok(1)),
        ("^(a|b)*a(a|b){20}$", states),
        ("^([a-z]{1,50}){1,50}$", states),
        ("(.*a){12}", Ok(12)),
        ("^(((((a{0,100}){0,100}){0,100}){0,100}){0,100})$", states),
        ("^(?=x)y$", Err("look-around")),
        ("^\\p{L}{1,200}\\p{N}{1,200}$", states),
    ] {
        // A JSON text has two quotes more.
        for (spec, num_quotes) in [
            (GrammarSpec::Regex(pattern.into()), 0),
            (GrammarSpec::JsonSchema(json!({"type": "string", "pattern": pattern})), 2),
        ] {
            match (TOKENS.compiler.compile(&spec, ClosingPolicy::Minimal), expected) {
                (Ok(grammar), Ok(len)) => {
                    assert_eq!(grammar.close(b"").unwrap().bytes.len(), len + num_quotes, "{pattern}");
                }
                (Err(error), Err(reason)) => {
                    assert!(error.to_string().contains(reason), "{pattern}: {error}")
                }
                (found, _) => panic!("{pattern}: {found:?}, expected {expected:?}"),
            }
        }
    }
}

#[test]
fn a_value_without_a_closing_is_refused_with_its_place() {
    let object = |name: &str, schema: Value| json!({"type": "object", "properties": {name: schema}, "required": [name]});
    for (schema, place) in [
        (object("speed", json!({"type": "number"})), "/speed"),
        (object("a/b", json!({"type": "string"})), "/a~1b"),
        (object("kind", json!({"enum": ["x", "y"]})), "/kind"),
        (object("flag", json!({"type": "boolean"})), "/flag"),
        (object("pose", object("x", json!({"type": "number"}))), "/pose/x"),
        (object("list", json!({"type": "array", "items": {"type": "string"}})), "/list/*"),
        (
            object("list", json!({"type": "array", "prefixItems": [{"type": "null"}, {"type": "string"}]})),
            "/list/1",
        ),
        (json!({"type": "string"}), ""),
        (json!({"properties": {"optional": {"type": "integer"}}}), "/optional"),
        (json!({"type": "object", "additionalProperties": {"type": "null"}}), ""),
        (json!({"anyOf": [{"type": "null"}, object("n", json!({"type": "integer"}))]}), "/n"),
        (json!({"anyOf": [{"const": "go"}, {"const": "stop"}]}), ""),
        (
            json!({"oneOf": [object("do", json!({"const": "go"})), object("do", json!({"const": "stop"}))]}),
            "",
        ),
    ] {
        assert_eq!(refusal(&schema).0, place, "{schema}");
        grammar(&schema, ClosingPolicy::Minimal).unwrap();
    }
}

#[test]
fn what_is_not_understood_is_refused_by_name() {
    let deep = (0..200)
        .fold(json!({"type": "null"}), |inner, _| json!({"type": "array", "items": inner, "maxItems": 1}));
    let fifty = (0..60).fold(json!({"type": "null"}), |inner, _| json!({"items": inner}));
    let recursive = json!({"$ref": "#/$defs/n", "$defs": {"n": {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"}}}}});
    let huge = json!({"type": "null", "description": "x".repeat(1 << 20)});
    for (schema, place, reason) in [
        (json!({"type": "null", "not": {}}), "", "\"not\" is not supported"),
        (json!({"properties": {"a": {"if": true}}}), "/a", "\"if\" is not supported"),
        (json!({"properties": {"a": {"type": "array", "uniqueItems": true}}}), "/a", "uniqueItems"),
        (json!({"properties": {"a": {"nullable": true}}}), "/a", "[\"…\", \"null\"]"),
        (json!({"properties": {"a": {"format": "iri"}}}), "/a", "give a pattern"),
        (json!({"type": "strin"}), "", "type is \"strin\""),
        (json!({"type": 3}), "", "type is 3"),
        (json!({"enum": []}), "", "at least one"),
        (json!({"$ref": "http://example.org/s"}), "", "another document"),
        (json!({"$ref": "#/$defs/missing"}), "", "leads nowhere"),
        (json!({"$ref": "#"}), "", "contains itself"),
        (recursive, "/next", "contains itself"),
        (json!({"type": "null", "x-takt-safe": 1}), "", "expected true or false"),
        (json!(false), "", "nothing is valid"),
        (json!([]), "", "expected an object"),
        (json!({"type": "integer", "minimum": 3, "maximum": 2}), "", "nothing is valid"),
        (json!({"type": "integer", "minimum": "3"}), "", "expected a number"),
        (json!({"type": "number", "multipleOf": 0}), "", "multipleOf is 0"),
        (json!({"type": "string", "minLength": 3, "maxLength": 2}), "", "nothing is valid"),
        (json!({"type": "string", "minLength": 100000}), "", "minLength is 100000"),
        (json!({"type": "array", "items": {}, "minItems": 100000}), "", "minItems is 100000"),
        (
            json!({"type": "array", "minItems": 2, "maxItems": 1, "items": {"type": "null"}}),
            "",
            "nothing is valid",
        ),
        (json!({"allOf": [{"type": "string"}, {"type": "null"}]}), "", "nothing is valid"),
        (
            json!({"type": "object", "properties": {"a": false}, "required": ["a"]}),
            "",
            "the required /a cannot be",
        ),
        (json!({"const": 1, "type": "string"}), "", "nothing is valid"),
        (json!({"type": "integer", "default": "x"}), "", "does not fit its own schema"),
        (
            json!({"oneOf": [{"type": "integer", "default": 1}, {"type": "number", "default": 2}]}),
            "",
            "anyOf",
        ),
        (json!({"type": "string", "pattern": "a(", "default": ""}), "", "unclosed group"),
        (json!({"type": "string", "pattern": "^(?!a)b$", "default": "b"}), "", "look-around"),
        (json!({"required": "a"}), "", "expected a list"),
        (json!({"properties": []}), "", "expected an object"),
        (deep, "", "deeper"),
        (fifty, "/*", "deeper than"),
        (huge, "", "at most"),
    ] {
        let (at, fact) = refusal(&schema);
        assert!(fact.contains(reason), "{schema}: {fact}");
        assert!(at == place || at.starts_with("/*/*"), "{schema}: {at}: {fact}");
    }
}

#[test]
fn a_schema_that_multiplies_is_refused_by_its_size_or_its_depth() {
    let error = |schema: &Value| grammar(schema, ClosingPolicy::Minimal).map(|_| ()).unwrap_err().to_string();
    let mut defs = serde_json::Map::new();
    defs.insert("l0".into(), json!({"type": "null"}));
    for level in 1..40 {
        let below = format!("#/$defs/l{}", level - 1);
        let object =
            |name: &str| json!({"type": "object", "properties": {name: {"$ref": below}}, "required": [name]});
        defs.insert(format!("l{level}"), json!({"anyOf": [object("a"), object("b")]}));
    }
    let shared = json!({"$ref": "#/$defs/l39", "$defs": defs});
    assert!(error(&shared).contains("nested deeper than 48 levels"), "{}", error(&shared));
    let pair = json!({"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]});
    let product = json!({"allOf": vec![pair; 12]});
    assert!(error(&product).contains("more than 5000 schemas"), "{}", error(&product));
    let wide = |num_fields: usize| {
        let fields: serde_json::Map<String, Value> = (0..num_fields)
            .map(|number| (format!("field_{number}"), json!({"type": "integer", "default": 0})))
            .collect();
        json!({"type": "object", "properties": fields})
    };
    // On a test's thread, whose stack is as small as any.
    grammar(&wide(256), ClosingPolicy::Declared).unwrap();
    assert!(refusal(&wide(257)).1.contains("257 properties"));
    let deep = (0..47).fold(json!({"type": "null"}), |inner, _| json!({"items": inner}));
    let deep = grammar(&deep, ClosingPolicy::Declared).unwrap();
    assert_eq!(whole(&deep, &"[".repeat(47)).0, "[".repeat(47) + &"]".repeat(47));
    let disjoint: Vec<Value> = (0..25).map(|number| json!({ "const": number })).collect();
    assert!(refusal(&json!({"oneOf": disjoint})).1.contains("25 alternatives"));
    assert!(refusal(&json!({"oneOf": disjoint[..24]})).1.contains("no closing"));
}
