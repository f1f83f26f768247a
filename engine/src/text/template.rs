//! `chat_template.jinja`, rendered as Hugging Face transformers does.

use std::{collections::BTreeMap, io};

use minijinja::{Environment, Error, ErrorKind, Value, syntax::SyntaxConfig, value::Kwargs};

use super::{
    chat::{ChatOptions, Message},
    civil::CivilTime,
    python_json,
};
use crate::{EngineError, Result};

/// Template instructions one rendering may run. A published template needs some dozens a message.
const MAX_INSTRUCTIONS: u64 = 5_000_000;
/// Bytes one rendering may produce; no model here reads prompts of that size.
const MAX_OUTPUT: usize = 16 << 20;
/// Bytes of a template's source. The longest published ones have some 30 kB.
const MAX_SOURCE: usize = 1 << 20;
/// The name has no extension, so nothing is escaped.
const NAME: &str = "chat_template";

/// A compiled chat template.
///
/// Differences from transformers that remain are minijinja's from Jinja2: `{% include %}`, `{% import %}` and custom extensions are unknown.
#[derive(Debug)]
pub(super) struct ChatTemplate {
    environment: Environment<'static>,
}

impl ChatTemplate {
    /// Compiles a template whose variables include the model's special tokens (`bos_token`, …).
    ///
    /// # Errors
    /// What is wrong with the template, and where.
    pub fn new(source: &str, special_tokens: &BTreeMap<String, String>) -> Result<Self, String> {
        if source.len() > MAX_SOURCE {
            return Err(format!("a chat template of {} bytes, expected at most {MAX_SOURCE}", source.len()));
        }
        let mut environment = Environment::new();
        let mut syntax = SyntaxConfig::builder();
        syntax.trim_blocks(true).lstrip_blocks(true);
        environment.set_syntax(syntax.build().map_err(|error| describe(&error))?);
        environment.set_fuel(Some(MAX_INSTRUCTIONS));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", raise_exception);
        for (name, text) in special_tokens {
            environment.add_global(name.clone(), Value::from(text.as_str()));
        }
        environment
            .add_template_owned(NAME, without_generation_tags(source))
            .map_err(|error| describe(&error))?;
        Ok(Self { environment })
    }

    /// The conversation as one text.
    ///
    /// # Errors
    /// [`EngineError::Input`] when the template refuses these messages, [`EngineError::Text`] when it fails.
    pub fn render(&self, messages: &[Message], options: &ChatOptions) -> Result<String> {
        let mut output = BoundedOutput::default();
        let template =
            self.environment.get_template(NAME).map_err(|error| EngineError::Text(describe(&error)))?;
        match template.render_captured_to(context(messages, options), &mut output) {
            Ok(_) => String::from_utf8(output.bytes)
                .map_err(|error| EngineError::Text(format!("chat template: {error}"))),
            Err(_) if output.overflowed => {
                Err(EngineError::Text(format!("the chat template wrote more than {MAX_OUTPUT} bytes")))
            }
            Err(error) => Err(refusal(&error).unwrap_or_else(|| EngineError::Text(describe(&error)))),
        }
    }
}

/// The variables that transformers gives a template, apart from the special tokens.
fn context(messages: &[Message], options: &ChatOptions) -> Value {
    let message_value = |message: &Message| {
        Value::from_pairs([
            ("role", Value::from(message.role.as_str())),
            ("content", Value::from(message.content.as_str())),
        ])
    };
    let mut pairs = vec![
        ("messages".to_owned(), messages.iter().map(message_value).collect::<Value>()),
        ("tools".to_owned(), Value::from(())),
        ("documents".to_owned(), Value::from(())),
        ("add_generation_prompt".to_owned(), Value::from(options.add_generation_prompt)),
    ];
    if let Some(now) = options.now {
        pairs.push((
            "strftime_now".to_owned(),
            Value::from_function(move |format: String| strftime(now, &format)),
        ));
    }
    pairs.extend(options.variables.iter().map(|(name, value)| (name.clone(), python_json::to_value(value))));
    Value::from_pairs(pairs)
}

fn strftime(now: CivilTime, format: &str) -> Result<String, Error> {
    now.format(format).map_err(|fact| Error::new(ErrorKind::InvalidOperation, fact))
}

/// Python's `json.dumps` as transformers calls it: nothing escaped for HTML, nothing sorted unless asked.
fn to_json(value: Value, options: Kwargs) -> Result<String, Error> {
    let style = python_json::Style {
        ensure_ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        indent: options.get::<Option<usize>>("indent")?,
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    python_json::to_string(&value, style)
}

/// What a template says by `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Refusal(message)))
}

fn refusal(error: &Error) -> Option<EngineError> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(Refusal(message)) = current.downcast_ref() {
            return Some(EngineError::Input(format!("the chat template refuses these messages: {message}")));
        }
        cause = current.source();
    }
    None
}

fn describe(error: &Error) -> String {
    match error.kind() {
        ErrorKind::OutOfFuel => format!("the chat template ran more than {MAX_INSTRUCTIONS} instructions"),
        _ => format!("chat template: {error}"),
    }
}

/// `{% generation %}` marks the assistant's text for training; transformers renders what is inside. Turned into a condition that holds.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag)) = rest.split_once("{%") {
        out.push_str(before);
        out.push_str("{%");
        rest = tag;
        let Some((inner, after)) = tag.split_once("%}") else { break };
        let is_mark = |character: char| character == '-' || character == '+' || character.is_whitespace();
        let replacement = match inner.trim_matches(is_mark) {
            "generation" => ("generation", "if true"),
            "endgeneration" => ("endgeneration", "endif"),
            _ => continue,
        };
        out.push_str(&inner.replace(replacement.0, replacement.1));
        out.push_str("%}");
        rest = after;
    }
    out + rest
}

/// Takes at most [`MAX_OUTPUT`] bytes.
#[derive(Debug, Default)]
struct BoundedOutput {
    bytes: Vec<u8>,
    overflowed: bool,
}

impl io::Write for BoundedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_OUTPUT {
            self.overflowed = true;
            return Err(io::Error::other("chat template output too long"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
