//! What the words for one type say together, over all schemas of a conjunction.

use serde_json::{Map, Value, json};

use super::{
    format,
    merge::{brief, list},
    pattern::quotable,
};
use crate::{
    Result,
    grammar::{
        error::refuse,
        limits::{MAX_MIN_ITEMS, MAX_MIN_LENGTH, MAX_NUMBER, MAX_STEP_DECIMALS, NUMBER_DIGITS, NUMBER_STEP},
    },
};

type Part<'a> = &'a Map<String, Value>;

/// A count among a schema's words; the strictest of several.
fn count(parts: &[Part<'_>], word: &str, stricter: fn(u64, u64) -> u64, at: &str) -> Result<Option<u64>> {
    let mut strictest = None;
    for value in parts.iter().filter_map(|part| part.get(word)) {
        // 2.0 is an integer to JSON Schema.
        let number = value.as_u64().or_else(|| {
            value
                .as_f64()
                .filter(|number| *number >= 0.0 && number.fract() == 0.0)
                .map(|number| number as u64)
        });
        let number = number.ok_or_else(|| {
            refuse(at, format!("{word} is {}, expected an integer from 0 up", brief(value)))
        })?;
        strictest = Some(strictest.map_or(number, |other| stricter(other, number)));
    }
    Ok(strictest)
}

fn count_to(parts: &[Part<'_>], word: &str, limit: u64, at: &str) -> Result<usize> {
    let number = count(parts, word, u64::max, at)?.unwrap_or(0);
    if number > limit {
        return Err(refuse(at, format!("{word} is {number}, at most {limit} is possible")));
    }
    Ok(number as usize)
}

fn max_count(parts: &[Part<'_>], word: &str, at: &str) -> Result<Option<usize>> {
    Ok(count(parts, word, u64::min, at)?.map(|number| usize::try_from(number).unwrap_or(usize::MAX)))
}

/// The schema of numbers within all bounds, and within what F64 holds.
pub(super) fn number_schema(parts: &[Part<'_>], is_integer: bool, at: &str) -> Result<Value> {
    // (bound, whether it is excluded)
    let (mut low, mut high) = ((-MAX_NUMBER, false), (MAX_NUMBER, false));
    let mut step: Option<f64> = None;
    for part in parts {
        let (minimum, maximum) = (number(part, "minimum", at)?, number(part, "maximum", at)?);
        low = higher(
            low,
            minimum.map(|bound| (bound, part.get("exclusiveMinimum") == Some(&Value::Bool(true)))),
        );
        high = lower(
            high,
            maximum.map(|bound| (bound, part.get("exclusiveMaximum") == Some(&Value::Bool(true)))),
        );
        low = higher(low, number(part, "exclusiveMinimum", at)?.map(|bound| (bound, true)));
        high = lower(high, number(part, "exclusiveMaximum", at)?.map(|bound| (bound, true)));
        if let Some(of) = number(part, "multipleOf", at)? {
            // Within so many digits F64 tells all multiples apart, and prints each as one.
            let limit = 10_f64.powi(NUMBER_DIGITS - num_decimals(of, at)?).min(MAX_NUMBER);
            low = higher(low, Some((-limit, false)));
            high = lower(high, Some((limit, false)));
            if step.is_some_and(|step| step != of) {
                return Err(refuse(at, "two values of multipleOf for the same number: give one".into()));
            }
            step = Some(of);
        }
    }
    if low.0 > MAX_NUMBER || high.0 < -MAX_NUMBER {
        let fact =
            format!("numbers beyond ±{MAX_NUMBER} are not supported: not every integer there is one in F64");
        return Err(refuse(at, fact));
    }
    let mut schema = json!({"type": if is_integer { "integer" } else { "number" }});
    schema[if low.1 { "exclusiveMinimum" } else { "minimum" }] = exact(low.0);
    schema[if high.1 { "exclusiveMaximum" } else { "maximum" }] = exact(high.0);
    // Without it a model may write decimals for ever.
    if let Some(step) = step.or((!is_integer).then_some(NUMBER_STEP)) {
        schema["multipleOf"] = exact(step);
    }
    Ok(schema)
}

/// Decimals of a step; refuses those that llguidance's arithmetic of remainders (32 bits) cannot hold.
fn num_decimals(step: f64, at: &str) -> Result<i32> {
    if step <= 0.0 {
        return Err(refuse(at, format!("multipleOf is {step}, expected a number above 0")));
    }
    let (mut whole, mut decimals) = (step, 0_i32);
    while whole.fract() != 0.0 && decimals <= MAX_STEP_DECIMALS {
        (whole, decimals) = (whole * 10.0, decimals + 1);
    }
    if decimals > MAX_STEP_DECIMALS || whole * 10.0 + 9.0 * 10_f64.powi(decimals) >= f64::from(u32::MAX) {
        let fact = format!(
            "multipleOf is {step}, expected at most {MAX_STEP_DECIMALS} decimals and not more than 300000000 times the last one"
        );
        return Err(refuse(at, fact));
    }
    Ok(decimals)
}

/// A bound as the text it was written as: 5, not 5.0.
fn exact(number: f64) -> Value {
    if number.fract() == 0.0 && number.abs() <= MAX_NUMBER { json!(number as i64) } else { json!(number) }
}

fn higher(bound: (f64, bool), other: Option<(f64, bool)>) -> (f64, bool) {
    match other {
        Some(other) if other.0 > bound.0 || (other.0 == bound.0 && other.1) => other,
        _ => bound,
    }
}

fn lower(bound: (f64, bool), other: Option<(f64, bool)>) -> (f64, bool) {
    match other {
        Some(other) if other.0 < bound.0 || (other.0 == bound.0 && other.1) => other,
        _ => bound,
    }
}

fn number(part: Part<'_>, word: &str, at: &str) -> Result<Option<f64>> {
    match part.get(word) {
        // Draft 4 marks the neighbouring bound.
        Some(Value::Bool(_)) if word.starts_with("exclusive") => Ok(None),
        None => Ok(None),
        Some(value) => {
            let number = value.as_f64().filter(|number| number.is_finite());
            number
                .map(Some)
                .ok_or_else(|| refuse(at, format!("{word} is {}, expected a number", brief(value))))
        }
    }
}

/// The schema of strings that fit all lengths, patterns and formats.
pub(super) fn string_schema(parts: &[Part<'_>], at: &str) -> Result<Value> {
    let mut schema = json!({"type": "string"});
    let min_length = count_to(parts, "minLength", MAX_MIN_LENGTH, at)?;
    if min_length > 0 {
        schema["minLength"] = json!(min_length);
    }
    if let Some(max_length) = max_count(parts, "maxLength", at)? {
        if max_length < min_length {
            let fact = format!("Unsatisfiable schema: minLength is {min_length}, maxLength is {max_length}");
            return Err(refuse(at, fact));
        }
        schema["maxLength"] = json!(max_length);
    }
    let mut others = Vec::new();
    for word in ["pattern", "format"] {
        for value in parts.iter().filter_map(|part| part.get(word)) {
            let Some(text) = value.as_str() else {
                return Err(refuse(at, format!("{word} is {}, expected a text", brief(value))));
            };
            let (word, text) = match (word, format::pattern(text)) {
                ("pattern", _) => ("pattern", quotable(text, at)?),
                (_, Some(pattern)) => ("pattern", pattern),
                (_, None) => ("format", text.to_owned()),
            };
            match schema.get(word) {
                None => schema[word] = json!(text),
                Some(first) if *first == json!(text) => {}
                Some(_) => others.push(json!({"type": "string", word: text})),
            }
        }
    }
    if !others.is_empty() {
        schema["allOf"] = Value::Array(others);
    }
    Ok(schema)
}

/// What is said about an object's members.
pub(super) struct ObjectParts<'a> {
    members: Vec<Members<'a>>,
    /// Declared and required names in order of appearance.
    pub names: Vec<String>,
    pub required: Vec<String>,
    pub min_properties: usize,
    pub max_properties: Option<usize>,
}

struct Members<'a> {
    properties: Option<&'a Map<String, Value>>,
    patterns: Option<&'a Map<String, Value>>,
    additional: Option<&'a Value>,
}

impl<'a> ObjectParts<'a> {
    pub fn of(parts: &[Part<'a>], at: &str) -> Result<Self> {
        let mut object = Self {
            members: Vec::new(),
            names: Vec::new(),
            required: Vec::new(),
            min_properties: count_to(parts, "minProperties", MAX_MIN_ITEMS, at)?,
            max_properties: max_count(parts, "maxProperties", at)?,
        };
        for part in parts {
            let (properties, patterns) = (map(part, "properties", at)?, map(part, "patternProperties", at)?);
            let additional = part.get("additionalProperties");
            for name in properties.iter().flat_map(|properties| properties.keys()) {
                object.note(name);
            }
            if properties.is_some() || patterns.is_some() || additional.is_some() {
                object.members.push(Members { properties, patterns, additional });
            }
        }
        for part in parts {
            let Some(names) = part.get("required") else { continue };
            let Some(names) = names.as_array() else {
                return Err(refuse(at, format!("required is {}, expected a list of names", brief(names))));
            };
            for name in names {
                let Some(name) = name.as_str() else {
                    return Err(refuse(at, format!("required lists {}, expected a name", brief(name))));
                };
                object.note(name);
                if !object.required.iter().any(|known| known == name) {
                    object.required.push(name.to_owned());
                }
            }
        }
        Ok(object)
    }

    fn note(&mut self, name: &str) {
        if !self.names.iter().any(|known| known == name) {
            self.names.push(name.to_owned());
        }
    }

    /// Everything that is said about the member `name`.
    pub fn schemas_of(&self, name: &str, matches: impl Fn(&str) -> Result<bool>) -> Result<Vec<&'a Value>> {
        let mut schemas = Vec::new();
        for members in &self.members {
            let before = schemas.len();
            schemas.extend(members.properties.and_then(|properties| properties.get(name)));
            for (pattern, schema) in members.patterns.into_iter().flatten() {
                if matches(pattern)? {
                    schemas.push(schema);
                }
            }
            if schemas.len() == before {
                schemas.extend(members.additional);
            }
        }
        Ok(schemas)
    }

    /// Patterns of keys with everything said about their values.
    pub fn patterns(&self, at: &str) -> Result<Vec<(&'a str, Vec<&'a Value>)>> {
        let mut with_patterns = self.members.iter().filter(|members| members.patterns.is_some());
        let Some(first) = with_patterns.next() else { return Ok(Vec::new()) };
        if with_patterns.next().is_some() {
            let fact = "patternProperties in more than one of the combined schemas: write them in one";
            return Err(refuse(at, fact.into()));
        }
        let others = self.members.iter().filter(|members| members.patterns.is_none());
        let others: Vec<&Value> = others.filter_map(|members| members.additional).collect();
        let patterns = first.patterns.into_iter().flatten();
        Ok(patterns.map(|(pattern, schema)| (pattern.as_str(), [&[schema][..], &others].concat())).collect())
    }

    /// What is said about members that no name or pattern covers; `None` when there are none.
    ///
    /// A schema that declares names and says nothing of others gets no others: the answer is valid without them, and shorter.
    pub fn additional(&self) -> Option<Vec<&'a Value>> {
        let said: Vec<&Value> = self.members.iter().filter_map(|members| members.additional).collect();
        let has_patterns = self.members.iter().any(|members| members.patterns.is_some());
        if said.contains(&&Value::Bool(false))
            || (said.is_empty() && (has_patterns || !self.names.is_empty()))
        {
            None
        } else {
            Some(said)
        }
    }

    /// True when the schema itself rules out members that are not declared.
    pub fn forbids_others(&self) -> bool {
        self.members.iter().any(|members| members.additional == Some(&Value::Bool(false)))
    }
}

fn map<'a>(part: Part<'a>, word: &str, at: &str) -> Result<Option<&'a Map<String, Value>>> {
    match part.get(word) {
        None => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map)),
        Some(other) => Err(refuse(at, format!("{word} is {}, expected an object", brief(other)))),
    }
}

/// What is said about an array's items.
pub(super) struct ArrayParts<'a> {
    members: Vec<Items<'a>>,
    pub prefix_len: usize,
    pub min_items: usize,
    pub max_items: Option<usize>,
}

struct Items<'a> {
    prefix: &'a [Value],
    rest: Option<&'a Value>,
}

impl<'a> ArrayParts<'a> {
    pub fn of(parts: &[Part<'a>], at: &str) -> Result<Self> {
        let mut members = Vec::new();
        for part in parts {
            // Before draft 2020-12 a list of `items` was what `prefixItems` is now.
            let (prefix, rest) = match (part.get("prefixItems"), part.get("items")) {
                (Some(prefix), rest) => (list(prefix, "prefixItems", at)?, rest),
                (None, Some(Value::Array(prefix))) => (prefix.as_slice(), part.get("additionalItems")),
                (None, rest) => (&[][..], rest),
            };
            if !prefix.is_empty() || rest.is_some() {
                members.push(Items { prefix, rest });
            }
        }
        Ok(Self {
            prefix_len: members.iter().map(|items| items.prefix.len()).max().unwrap_or(0),
            members,
            min_items: count_to(parts, "minItems", MAX_MIN_ITEMS, at)?,
            max_items: max_count(parts, "maxItems", at)?,
        })
    }

    /// Everything that is said about item `item_idx` of the prefix.
    pub fn item(&self, item_idx: usize) -> Vec<&'a Value> {
        self.members.iter().filter_map(|items| items.prefix.get(item_idx).or(items.rest)).collect()
    }

    /// What is said about items after the prefix; `None` when there are none, as after a prefix that says nothing of more.
    pub fn rest(&self) -> Option<Vec<&'a Value>> {
        let said: Vec<&Value> = self.members.iter().filter_map(|items| items.rest).collect();
        if said.is_empty() && self.prefix_len > 0 && self.min_items <= self.prefix_len {
            None
        } else {
            Some(said)
        }
    }
}
