//! Classes that record, as C++.

use std::fmt::Write as _;

use super::parse::{Class, Enumeration, Headers, Method};

/// `recorded.h` and `recorded.cpp`.
pub fn emit(headers: &Headers) -> (String, String) {
    let mut header = String::from("#pragma once\n#include \"object.h\"\n");
    let mut source = String::from("#include \"recorded.h\"\n\nnamespace standin {\n");
    for enumeration in &headers.enumerations {
        source += &enumerator_names(enumeration);
    }
    source += "}  // namespace standin\n\n#include \"show.h\"\n";
    for class in &headers.classes {
        for method in &class.methods {
            let _ = writeln!(header, "#define STANDIN_HAS_{}_{} 1", class.name, method.name);
        }
    }
    for class in &headers.classes {
        let (declared, defined) = recorded(class);
        header += &in_namespace(class, &declared);
        source += &in_namespace(class, &defined);
    }
    (header, source)
}

fn enumerator_names(enumeration: &Enumeration) -> String {
    let Enumeration { name, enumerators } = enumeration;
    let mut text = format!("[[maybe_unused]] static std::string enumerator({name} value) {{\n");
    for enumerator in enumerators {
        let _ = writeln!(text, "    if (value == {name}::{enumerator}) return \"{enumerator}\";");
    }
    text + "    return std::to_string(static_cast<long long>(value));\n}\n"
}

/// Types are named as the header names them, so what is made lies where the header's names are seen.
fn in_namespace(class: &Class, text: &str) -> String {
    let outer = class.namespace.split("::").next().unwrap_or_default();
    format!("namespace standin {{ namespace of_{outer} {{ using namespace {outer};\n{text}}} }}\n")
}

/// `IBuilder` of `VBuilder`.
fn public_name(class: &Class) -> String {
    class.name.strip_prefix('V').map_or_else(|| class.name.clone(), |rest| format!("I{rest}"))
}

fn recorded(class: &Class) -> (String, String) {
    let public = public_name(class);
    let name = format!("Recorded{}", &public[1..]);
    let mut declared = format!(
        "class {name} : public {}::{} {{\npublic:\n    const standin::Object* self = nullptr;\n",
        class.namespace, class.name
    );
    let mut defined =
        format!("static_assert(!std::is_abstract_v<{name}>, \"all of {} is there\");\n", class.name);
    let mut hooks = String::from("protected:\n");
    for method in &class.methods {
        let Method { name: called, result, qualifiers, .. } = method;
        let (typed, named) = (typed(method), named(method));
        let _ = writeln!(declared, "    {result} {called}({typed}) {qualifiers} override;");
        let _ = writeln!(hooks, "    virtual {result} on_{called}({typed}) {qualifiers};");
        let _ = writeln!(
            defined,
            "{result} {name}::{called}({typed}) {qualifiers} {{\n    \
             standin::Call call(self, \"{public}\", \"{called}\", {{{}}}, {});\n    \
             if (call.fails()) {};\n    return on_{called}({named});\n}}",
            shown(method),
            can_fail(method),
            failure(method),
        );
        let _ = writeln!(
            defined,
            "{result} {name}::on_{called}({}) {qualifiers} {{ {}; }}",
            types(method),
            default(method)
        );
    }
    declared += &hooks;
    declared += "};\n";
    (declared, defined)
}

fn listed(method: &Method, each: impl Fn(usize, &str) -> String) -> String {
    let parameters = method.parameters.iter().enumerate();
    parameters.map(|(idx, parameter)| each(idx, &parameter.kind)).collect::<Vec<_>>().join(", ")
}

fn types(method: &Method) -> String {
    listed(method, |_, kind| kind.into())
}

fn typed(method: &Method) -> String {
    listed(method, |idx, kind| format!("{kind} a{idx}"))
}

fn named(method: &Method) -> String {
    listed(method, |idx, _| format!("a{idx}"))
}

fn shown(method: &Method) -> String {
    listed(method, |idx, _| format!("standin::show(a{idx})"))
}

/// Whether it does something that can fail: gives a pointer, a bool or an index, and does not only ask.
pub fn can_fail(method: &Method) -> bool {
    let asks = [
        "get",
        "is",
        "all",
        "are",
        "has",
        "platformHas",
        "supports",
        "query",
        "can",
        "desc",
        "node",
        "file",
        "func",
        "local",
        "data",
    ];
    let does = match method.result.as_str() {
        "bool" => true,
        "int32_t" => method.name.starts_with("add") || method.name == "inferShapes",
        result => result.ends_with('*'),
    };
    does && !asks.iter().any(|ask| method.name.starts_with(ask))
}

/// What it gives when it fails.
fn failure(method: &Method) -> &'static str {
    match method.result.as_str() {
        "int32_t" => "return -1",
        _ => default(method),
    }
}

fn default(method: &Method) -> &'static str {
    match method.result.as_str() {
        "void" => "return",
        result if result.ends_with('&') => "return standin::nothing()",
        _ => "return {}",
    }
}
