//! JSON as Python writes it, from and to template values.

use minijinja::{Error, ErrorKind, Value, value::ValueKind};

/// Deeper values than this are refused rather than risking the stack.
const MAX_DEPTH: usize = 100;

/// The arguments of `json.dumps` that templates use.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Style {
    pub ensure_ascii: bool,
    pub indent: Option<usize>,
    pub sort_keys: bool,
}

/// `value` as Python's `json.dumps` prints it.
///
/// # Errors
/// When it holds something that JSON cannot, or is nested too deeply.
pub(super) fn to_string(value: &Value, style: Style) -> Result<String, Error> {
    let mut writer = Writer { out: String::new(), style, depth: 0 };
    writer.value(value)?;
    Ok(writer.out)
}

/// A JSON document as a template value.
pub(super) fn to_value(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(flag) => Value::from(*flag),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(integer), ..) => Value::from(integer),
            (_, Some(integer), _) => Value::from(integer),
            (_, _, float) => Value::from(float.unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(items) => items.iter().map(to_value).collect(),
        serde_json::Value::Object(fields) => {
            Value::from_pairs(fields.iter().map(|(name, value)| (name.clone(), to_value(value))))
        }
    }
}

struct Writer {
    out: String,
    style: Style,
    depth: usize,
}

impl Writer {
    fn value(&mut self, value: &Value) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&number(value)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Map => self.map(value)?,
            ValueKind::Seq | ValueKind::Iterable => self.seq(value)?,
            other => {
                return Err(Error::new(ErrorKind::InvalidOperation, format!("tojson cannot write {other}")));
            }
        }
        Ok(())
    }

    fn seq(&mut self, value: &Value) -> Result<(), Error> {
        let mut is_empty = true;
        self.open('[')?;
        for item in value.try_iter()? {
            self.separate(&mut is_empty);
            self.value(&item)?;
        }
        self.close(']', is_empty);
        Ok(())
    }

    fn map(&mut self, value: &Value) -> Result<(), Error> {
        let mut keys: Vec<_> = value.try_iter()?.collect();
        if self.style.sort_keys {
            keys.sort_by_cached_key(ToString::to_string);
        }
        let mut is_empty = true;
        self.open('{')?;
        for key in keys {
            self.separate(&mut is_empty);
            self.key(&key)?;
            self.out.push_str(": ");
            self.value(&value.get_item(&key)?)?;
        }
        self.close('}', is_empty);
        Ok(())
    }

    /// Python turns numbers, booleans and `None` into strings.
    fn key(&mut self, key: &Value) -> Result<(), Error> {
        let mut inner = Self { out: String::new(), ..*self };
        match key.kind() {
            ValueKind::String => {
                return {
                    self.string(key.as_str().unwrap_or_default());
                    Ok(())
                };
            }
            ValueKind::None | ValueKind::Bool | ValueKind::Number => inner.value(key)?,
            other => {
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("tojson cannot write a key of type {other}"),
                ));
            }
        }
        self.string(&inner.out);
        Ok(())
    }

    fn open(&mut self, bracket: char) -> Result<(), Error> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                format!("tojson: nested deeper than {MAX_DEPTH}"),
            ));
        }
        self.out.push(bracket);
        Ok(())
    }

    fn separate(&mut self, is_empty: &mut bool) {
        if !*is_empty {
            self.out.push_str(if self.style.indent.is_some() { "," } else { ", " });
        }
        *is_empty = false;
        self.new_line();
    }

    fn close(&mut self, bracket: char, is_empty: bool) {
        self.depth -= 1;
        if !is_empty {
            self.new_line();
        }
        self.out.push(bracket);
    }

    fn new_line(&mut self) {
        if let Some(indent) = self.style.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent.min(16) * self.depth));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for character in text.chars() {
            match character {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                other if other < ' ' || (self.style.ensure_ascii && !(' '..='~').contains(&other)) => {
                    let mut units = [0; 2];
                    let escapes = other.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}"));
                    self.out.extend(escapes);
                }
                other => self.out.push(other),
            }
        }
        self.out.push('"');
    }
}

/// Python prints infinities as `Infinity`, and floats so that they read back; so does `{:?}`, whose exponents need a sign and two digits.
fn number(value: &Value) -> String {
    let Some(float) = f64::try_from(value.clone()).ok().filter(|_| !value.is_integer()) else {
        return value.to_string();
    };
    if float.is_nan() {
        return "NaN".into();
    }
    if float.is_infinite() {
        return if float > 0.0 { "Infinity" } else { "-Infinity" }.into();
    }
    let is_plain = float == 0.0 || (1e-4..1e16).contains(&float.abs());
    if is_plain {
        let text = format!("{float}");
        return if text.contains('.') { text } else { text + ".0" };
    }
    let text = format!("{float:e}");
    let Some((mantissa, exponent)) = text.split_once('e') else { return text };
    let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
    format!("{mantissa}e{sign}{digits:0>2}")
}
