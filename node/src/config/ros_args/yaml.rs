//! YAML as ROS 2 reads it: events with their lines, scalars typed as rcl types them, and bounds on everything.
//!
//! rcl's types are those of YAML 1.1 and C, not of YAML 1.2: `yes` and `off` are booleans, `0x10` is 16, `010` is 8, and
//! `null` is a string. Aliases are refused, as rcl does: without them nothing can grow beyond the size of its file.

use std::borrow::Cow;

use saphyr_parser::{Event, Parser, ScalarStyle, StrInput, Tag};

use crate::ros::ParameterValue;

/// Deepest nesting of maps that is read.
pub const MAX_DEPTH: usize = 32;
/// Most of somebody's text that is quoted in an error.
const MAX_QUOTED_CHARS: usize = 60;

/// What is wrong, and where.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    /// Line, from 1.
    pub line: usize,
    /// What was found and what is expected.
    pub fact: String,
}

impl Fault {
    /// A fault in `line`.
    pub fn new(line: usize, fact: impl Into<String>) -> Self {
        Self { line, fact: fact.into() }
    }
}

/// What stands in a text, one item after the other; documents are run together.
pub struct Items<'a> {
    parser: Parser<'a, StrInput<'a>>,
}

/// One item.
#[derive(Debug)]
pub enum Item<'a> {
    /// A scalar: text, style, tag.
    Scalar(Cow<'a, str>, ScalarStyle, Option<Cow<'a, Tag>>),
    /// `[`, whatever its tag: `!!python/tuple` is what launch files write for a tuple.
    ListStart,
    /// `]`.
    ListEnd,
    /// `{`.
    MapStart,
    /// `}`.
    MapEnd,
    /// Nothing comes any more.
    End,
}

impl Item<'_> {
    /// For messages: what it is.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Scalar(..) => "a single value",
            Self::ListStart | Self::ListEnd => "a list",
            Self::MapStart | Self::MapEnd => "a map",
            Self::End => "the end",
        }
    }
}

impl<'a> Items<'a> {
    /// The items of `text`.
    pub fn new(text: &'a str) -> Self {
        Self { parser: Parser::new_from_str(text) }
    }

    /// The next item and its line.
    ///
    /// # Errors
    /// Wrong YAML, and aliases.
    pub fn next(&mut self) -> Result<(Item<'a>, usize), Fault> {
        loop {
            let (event, span) = match self.parser.next_event() {
                None => return Ok((Item::End, 1)),
                Some(Ok(found)) => found,
                Some(Err(error)) => return Err(Fault::new(error.marker().line(), quoted(error.info()))),
            };
            let line = span.start.line();
            let item = match event {
                Event::Nothing | Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd => {
                    continue;
                }
                Event::StreamEnd => Item::End,
                Event::Alias(_) => return Err(Fault::new(line, "an alias (*name): ROS 2 supports none")),
                Event::Scalar(text, style, _, tag) => Item::Scalar(text, style, tag),
                Event::SequenceStart(..) => Item::ListStart,
                Event::SequenceEnd => Item::ListEnd,
                Event::MappingStart(..) => Item::MapStart,
                Event::MappingEnd => Item::MapEnd,
            };
            return Ok((item, line));
        }
    }

    /// The value that begins with `first`, which stands in `line`: a scalar or a list.
    ///
    /// # Errors
    /// A map, no value, a list of lists or of several types.
    pub fn value(&mut self, first: &Item<'_>, line: usize) -> Result<ParameterValue, Fault> {
        match first {
            Item::Scalar(text, style, tag) => {
                scalar(text, *style, tag.as_deref()).map_err(|fact| Fault::new(line, fact))
            }
            Item::ListStart => self.list(line),
            other => Err(Fault::new(line, format!("{} found, a value or a list expected", other.kind()))),
        }
    }

    fn list(&mut self, start: usize) -> Result<ParameterValue, Fault> {
        let mut list = None;
        loop {
            let (item, line) = self.next()?;
            match item {
                // Nothing says of what it is a list. Strings are as good as any: whoever takes the value looks whether it is empty.
                Item::ListEnd => return Ok(list.unwrap_or(ParameterValue::StringArray(Vec::new()))),
                Item::Scalar(text, style, tag) => {
                    let value =
                        scalar(&text, style, tag.as_deref()).map_err(|fact| Fault::new(line, fact))?;
                    push(&mut list, value).map_err(|fact| Fault::new(line, fact))?;
                }
                Item::End => return Err(Fault::new(start, "a list without end")),
                other => {
                    let fact = format!("{} found within a list, single values expected", other.kind());
                    return Err(Fault::new(line, fact));
                }
            }
        }
    }
}

/// Appends to a list whose type is that of its first element.
fn push(list: &mut Option<ParameterValue>, value: ParameterValue) -> Result<(), String> {
    use ParameterValue as V;
    match (list, value) {
        (Some(V::BoolArray(items)), V::Bool(value)) => items.push(value),
        (Some(V::IntegerArray(items)), V::Integer(value)) => items.push(value),
        (Some(V::DoubleArray(items)), V::Double(value)) => items.push(value),
        (Some(V::StringArray(items)), V::String(value)) => items.push(value),
        (Some(list), value) => {
            let (kind, value_kind) = (list.type_name(), value.type_name());
            let hint = match (&*list, &value) {
                (V::IntegerArray(_), V::Double(_)) | (V::DoubleArray(_), V::Integer(_)) => {
                    "; write 1.0 for a double"
                }
                _ => "",
            };
            let value = quoted(&value.to_string());
            return Err(format!(
                "{value} ({value_kind}) in a list that began as {kind}: one type expected{hint}"
            ));
        }
        (list @ None, value) => {
            *list = Some(match value {
                V::Bool(value) => V::BoolArray(vec![value]),
                V::Integer(value) => V::IntegerArray(vec![value]),
                V::Double(value) => V::DoubleArray(vec![value]),
                V::String(value) => V::StringArray(vec![value]),
                other => return Err(format!("{} in a list", other.type_name())),
            });
        }
    }
    Ok(())
}

/// The single value or list that `text` is.
///
/// # Errors
/// What was found and what is expected.
pub fn parse_value(text: &str) -> Result<ParameterValue, String> {
    let read = || {
        let mut items = Items::new(text);
        let (first, line) = items.next()?;
        match &first {
            Item::End => return Err(Fault::new(line, "no value found, one expected")),
            Item::MapStart => {
                return Err(Fault::new(
                    line,
                    "a map found, a value or a list expected: quote a text that contains a colon",
                ));
            }
            _ => {}
        }
        let value = items.value(&first, line)?;
        match items.next()? {
            (Item::End, _) => Ok(value),
            (_, line) => Err(Fault::new(line, "a second value found, one expected")),
        }
    };
    read().map_err(|fault| fault.fact)
}

/// Types a scalar as rcl does.
fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<ParameterValue, String> {
    if style != ScalarStyle::Plain || tag.is_some_and(|tag| tag.is_yaml_core_schema() && tag.suffix == "str")
    {
        return Ok(ParameterValue::String(text.to_owned()));
    }
    Ok(match text {
        "" => return Err("no value found, one expected: an empty text is written ''".to_owned()),
        "Y" | "y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            ParameterValue::Bool(true)
        }
        "N" | "n" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            ParameterValue::Bool(false)
        }
        _ => integer(text)
            .map(ParameterValue::Integer)
            .or_else(|| double(text).map(ParameterValue::Double))
            .unwrap_or_else(|| ParameterValue::String(text.to_owned())),
    })
}

/// As C's `strtoll` with base 0.
fn integer(text: &str) -> Option<i64> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let (radix, digits) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(digits) => (16, digits),
        None if digits.len() > 1 && digits.starts_with('0') => (8, digits),
        None => (10, digits),
    };
    // Rust's parser takes a second sign, C's does not.
    if !digits.starts_with(|c: char| c.is_digit(radix)) {
        return None;
    }
    i64::from_str_radix(&format!("{sign}{digits}"), radix).ok()
}

/// As C's `strtod`, less hexadecimal floating point; and YAML's own words for infinity and not-a-number.
fn double(text: &str) -> Option<f64> {
    match text {
        ".nan" | ".NaN" | ".NAN" => return Some(f64::NAN),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => return Some(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => return Some(f64::NEG_INFINITY),
        _ => {}
    }
    let value: f64 = text.parse().ok()?;
    // A number too large for a double stays text, as in rcl.
    let is_overflow = value.is_infinite() && text.contains(|c: char| c.is_ascii_digit());
    (!is_overflow).then_some(value)
}

/// `text` for an error message: in one line and not too long.
pub fn quoted(text: &str) -> String {
    let in_line = |c: char| if c.is_control() { ' ' } else { c };
    let mut short: String = text.chars().take(MAX_QUOTED_CHARS).map(in_line).collect();
    if text.chars().nth(MAX_QUOTED_CHARS).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::{ParameterValue as V, *};

    #[test]
    fn scalars_have_the_types_rcl_gives_them() {
        for (text, value) in [
            ("true", V::Bool(true)),
            ("Yes", V::Bool(true)),
            ("on", V::Bool(true)),
            ("y", V::Bool(true)),
            ("off", V::Bool(false)),
            ("N", V::Bool(false)),
            ("tRue", V::String("tRue".into())),
            ("5", V::Integer(5)),
            ("+5", V::Integer(5)),
            ("-5", V::Integer(-5)),
            ("0x10", V::Integer(16)),
            ("-0X1f", V::Integer(-31)),
            ("010", V::Integer(8)),
            ("08", V::Double(8.0)),
            ("0", V::Integer(0)),
            ("9223372036854775807", V::Integer(i64::MAX)),
            ("-9223372036854775808", V::Integer(i64::MIN)),
            ("9223372036854775808", V::Double(9_223_372_036_854_775_808.0)),
            ("1_000", V::String("1_000".into())),
            ("+-5", V::String("+-5".into())),
            ("--5", V::String("--5".into())),
            ("0x", V::String("0x".into())),
            ("1.5", V::Double(1.5)),
            ("1.", V::Double(1.0)),
            (".5", V::Double(0.5)),
            ("-1e3", V::Double(-1000.0)),
            ("1e400", V::String("1e400".into())),
            (".inf", V::Double(f64::INFINITY)),
            ("-.INF", V::Double(f64::NEG_INFINITY)),
            ("infinity", V::Double(f64::INFINITY)),
            (".infinity", V::String(".infinity".into())),
            (".nAN", V::String(".nAN".into())),
            ("null", V::String("null".into())),
            ("~", V::String("~".into())),
            ("\"5\"", V::String("5".into())),
            ("'true'", V::String("true".into())),
            ("''", V::String(String::new())),
            ("!!str 5", V::String("5".into())),
            ("!!int 5", V::Integer(5)),
            ("http://host:80/x", V::String("http://host:80/x".into())),
            ("you are a robot", V::String("you are a robot".into())),
            ("|\n 5\n 6\n", V::String("5\n6\n".into())),
        ] {
            assert_eq!(parse_value(text).unwrap(), value, "{text:?}");
        }
        assert!(matches!(parse_value(".nan").unwrap(), V::Double(nan) if nan.is_nan()));
    }

    #[test]
    fn lists_have_one_type_and_tuples_are_lists() {
        for (text, value) in [
            ("[1, 2]", V::IntegerArray(vec![1, 2])),
            ("[1.0, .inf]", V::DoubleArray(vec![1.0, f64::INFINITY])),
            ("[true, no]", V::BoolArray(vec![true, false])),
            ("[a, '7']", V::StringArray(vec!["a".into(), "7".into()])),
            ("!!python/tuple [0, 1]", V::IntegerArray(vec![0, 1])),
            ("!!python/tuple\n- 0\n- 1\n", V::IntegerArray(vec![0, 1])),
            ("[]", V::StringArray(vec![])),
        ] {
            assert_eq!(parse_value(text).unwrap(), value, "{text:?}");
        }
        for (text, part) in [
            ("[1, 2.0]", "2.0 (double) in a list that began as integer array: one type expected; write 1.0"),
            ("[a, 7]", "7 (integer) in a list that began as string array"),
            ("[[1], [2]]", "a list found within a list"),
            ("[{a: 1}]", "a map found within a list"),
            ("[1, ]", ""),
            ("[,]", ""),
        ] {
            match parse_value(text) {
                Ok(value) => assert_eq!((text, value), ("[1, ]", V::IntegerArray(vec![1]))),
                Err(fault) => assert!(fault.contains(part), "{text}: {fault}"),
            }
        }
    }

    #[test]
    fn what_is_not_one_value_is_refused() {
        for (text, part) in [
            ("", "no value"),
            ("# a comment", "no value"),
            ("a: b", "quote a text that contains a colon"),
            ("{}", "a map"),
            ("a\n---\nb", "a second value"),
            ("*a", ""),
            ("[1, 2", ""),
            ("'open", ""),
            ("@at", ""),
            ("]", ""),
        ] {
            let fault = parse_value(text).unwrap_err();
            assert!(fault.contains(part) && !fault.is_empty(), "{text:?}: {fault}");
        }
    }
}
