//! The abstract classes and enumerations in preprocessed headers.

use super::tokens::{past, tokens};

/// What the headers have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Headers {
    /// `apiv::V…`, and the parser's `I…`.
    pub classes: Vec<Class>,
    /// Of both namespaces, those that are no class's own.
    pub enumerations: Vec<Enumeration>,
}

/// An abstract class that the library implements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Class {
    /// `VBuilder`, `IParser`.
    pub name: String,
    /// `nvinfer1::apiv`, `nvonnxparser`.
    pub namespace: String,
    /// Its pure virtual functions, in their order.
    pub methods: Vec<Method>,
}

/// A pure virtual function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Method {
    /// Its name.
    pub name: String,
    /// What it gives.
    pub result: String,
    /// What it takes.
    pub parameters: Vec<Parameter>,
    /// Behind the parameters: `const noexcept`.
    pub qualifiers: String,
}

/// A parameter; nothing is said of its default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// Its type.
    pub kind: String,
}

/// An `enum class`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enumeration {
    /// With its namespace.
    pub name: String,
    /// Names, in their order.
    pub enumerators: Vec<String>,
}

/// What an opening brace belongs to.
enum Scope {
    Namespace(String),
    Other,
}

/// Reads preprocessed headers. What is not TensorRT's is passed over.
pub fn parse(text: &str) -> Headers {
    let tokens = tokens(text);
    let mut headers = Headers::default();
    let mut scopes: Vec<Scope> = Vec::new();
    let mut begin = 0;
    let mut at = 0;
    while at < tokens.len() {
        match tokens[at].as_str() {
            "{" => {
                let head = &tokens[begin..at];
                let namespace = namespace_of(&scopes);
                if let Some(name) = namespace_name(head) {
                    scopes.push(Scope::Namespace(name));
                } else if is_ours(&namespace) && !head.is_empty() {
                    let end = past(&tokens, at, "{", "}");
                    headers.take(&namespace, head, &tokens[at + 1..end - 1]);
                    at = end;
                    begin = end;
                    continue;
                } else {
                    scopes.push(Scope::Other);
                }
                begin = at + 1;
            }
            "}" => {
                scopes.pop();
                begin = at + 1;
            }
            ";" => begin = at + 1,
            _ => {}
        }
        at += 1;
    }
    headers
}

fn is_ours(namespace: &str) -> bool {
    ["nvinfer1", "nvinfer1::apiv", "nvonnxparser"].contains(&namespace)
}

fn namespace_of(scopes: &[Scope]) -> String {
    let names: Vec<&str> = scopes
        .iter()
        .map(|scope| match scope {
            Scope::Namespace(name) => name.as_str(),
            Scope::Other => "{}",
        })
        .collect();
    names.join("::")
}

/// The name in `namespace a::b`; the empty name of one without.
fn namespace_name(head: &[String]) -> Option<String> {
    let head = if head.first()? == "inline" { &head[1..] } else { head };
    (head.first()? == "namespace").then(|| head[1..].concat())
}

impl Headers {
    fn take(&mut self, namespace: &str, head: &[String], body: &[String]) {
        let word = |idx: usize| head.get(idx).map_or("", String::as_str);
        if (word(0), word(1)) == ("enum", "class") {
            let name = format!("{namespace}::{}", word(2));
            self.enumerations.push(Enumeration { name, enumerators: enumerators(body) });
        } else if word(0) == "class" {
            let is_the_librarys = match namespace {
                "nvinfer1::apiv" => word(1).starts_with('V') && word(1) != "VRoot",
                "nvonnxparser" => ["IParser", "IParserError", "IParserRefitter"].contains(&word(1)),
                _ => false,
            };
            if is_the_librarys {
                let methods = statements(body).filter_map(method).collect();
                self.classes.push(Class { name: word(1).into(), namespace: namespace.into(), methods });
            }
        }
    }
}

fn enumerators(body: &[String]) -> Vec<String> {
    let parts = split(body, ",");
    parts.into_iter().filter_map(|part| part.first().cloned()).collect()
}

/// The declarations of a class, without the bodies of functions.
fn statements(body: &[String]) -> impl Iterator<Item = &[String]> {
    let mut rest = body;
    std::iter::from_fn(move || {
        let mut at = 0;
        while at < rest.len() {
            let (is_end, end) = match rest[at].as_str() {
                ";" | ":" => (true, at + 1),
                "{" => (true, past(rest, at, "{", "}")),
                _ => (false, at + 1),
            };
            if is_end {
                let statement = &rest[..at];
                rest = &rest[end..];
                return Some(statement);
            }
            at = end;
        }
        None
    })
}

/// A pure virtual function, if `statement` declares one.
fn method(statement: &[String]) -> Option<Method> {
    let end = statement.len();
    let is_pure = end > 2 && statement[end - 2] == "=" && statement[end - 1] == "0";
    if statement.first()? != "virtual" || !is_pure || statement.contains(&"~".to_owned()) {
        return None;
    }
    let open = statement.iter().position(|token| token == "(")?;
    let close = past(statement, open, "(", ")");
    let inside = &statement[open + 1..close - 1];
    let parameters = split(inside, ",").into_iter().filter(|part| !part.is_empty()).map(parameter);
    Some(Method {
        name: statement[open - 1].clone(),
        result: spaced(&statement[1..open - 1]),
        parameters: parameters.collect(),
        qualifiers: spaced(&statement[close..end - 2]),
    })
}

/// A parameter's type is what is left without its name, if it has one, and its default.
fn parameter(part: &[String]) -> Parameter {
    let part = part.split(|token| token == "=").next().unwrap_or(part);
    let is_name = |token: &str| {
        token.starts_with(|c: char| c.is_alphabetic() || c == '_')
            && !["const", "int", "char"].contains(&token)
    };
    let has_name = match part {
        [.., before, last] => is_name(last) && before != "::" && before != "unsigned" && before != "enum",
        _ => false,
    };
    // `int32_t const size` has a name behind `const`; `Foo const` and `const Foo` have none.
    let only_const_before = part.len() == 2 && part[0] == "const";
    let end = if has_name && !only_const_before { part.len() - 1 } else { part.len() };
    Parameter { kind: spaced(&part[..end]) }
}

/// Parts between `sign`s that lie in no bracket.
fn split<'a>(tokens: &'a [String], sign: &str) -> Vec<&'a [String]> {
    let mut parts = Vec::new();
    let (mut depth, mut begin) = (0_i32, 0);
    for (at, token) in tokens.iter().enumerate() {
        match token.as_str() {
            "(" | "<" | "[" | "{" => depth += 1,
            ")" | ">" | "]" | "}" => depth -= 1,
            _ if token == sign && depth == 0 => {
                parts.push(&tokens[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&tokens[begin..]);
    parts
}

fn spaced(tokens: &[String]) -> String {
    tokens.join(" ")
}
