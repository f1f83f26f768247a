//! Reads a configuration file, reporting every fault at once with its line.

use std::{ops::Range, path::Path};

use toml::de::{DeTable, DeValue};

use super::{
    schema::{Accepts, KEYS, position},
    value::Value,
};

/// One value of a file.
#[derive(Debug, PartialEq)]
pub struct Entry {
    /// Position in [`KEYS`].
    pub key_idx: usize,
    /// The value, accepted by the key.
    pub value: Value,
    /// Line in the file, from 1.
    pub line: usize,
}

/// Parses `text` (of `path`, for messages).
///
/// # Errors
/// Every fault, each with path and line: syntax, unknown sections and keys with the nearest known one, wrong values.
pub fn parse(text: &str, path: &Path) -> Result<Vec<Entry>, Vec<String>> {
    let (table, syntax) = DeTable::parse_recoverable(text);
    if !syntax.is_empty() {
        return Err(syntax.iter().map(|error| at(path, text, error.span(), error.message())).collect());
    }
    let (mut entries, mut faults) = (Vec::new(), Vec::new());
    for (section, contents) in table.get_ref() {
        let DeValue::Table(keys) = contents.get_ref() else {
            let fact = format!(
                "key `{}` stands outside any [section]{}",
                section.get_ref(),
                home_of(section.get_ref())
            );
            faults.push(at(path, text, Some(section.span()), &fact));
            continue;
        };
        if !sections().any(|known| known == section.get_ref()) {
            let fact = format!(
                "unknown section [{}]{}",
                section.get_ref(),
                did_you_mean(section.get_ref(), sections())
            );
            faults.push(at(path, text, Some(section.span()), &fact));
            continue;
        }
        for (name, value) in keys {
            match entry(section.get_ref(), name.get_ref(), value.get_ref()) {
                Ok((key_idx, value)) => {
                    entries.push(Entry { key_idx, value, line: line_of(text, name.span()) });
                }
                Err(fact) => faults.push(at(path, text, Some(name.span()), &fact)),
            }
        }
    }
    if faults.is_empty() { Ok(entries) } else { Err(faults) }
}

fn entry(section: &str, name: &str, value: &DeValue<'_>) -> Result<(usize, Value), String> {
    let Some(key_idx) = position(section, name) else {
        let known = || KEYS.iter().filter(|key| key.section == section).map(|key| key.name);
        let hints = [did_you_mean(name, known()), home_of(name)];
        let hint = hints.into_iter().find(|hint| !hint.is_empty());
        let hint = hint.unwrap_or_else(|| format!(": known are {}", known().collect::<Vec<_>>().join(", ")));
        return Err(format!("unknown key `{name}` in [{section}]{hint}"));
    };
    let accepts = KEYS[key_idx].accepts;
    let value = convert(value, accepts)
        .ok_or_else(|| format!("`{name}`: a {} found, {accepts} expected", value.type_str()))?;
    let value = value.for_key(accepts);
    value.check(accepts).map_err(|fact| format!("`{name}`: {fact}"))?;
    Ok((key_idx, value))
}

/// The value; what a key `accepts` decides what a list is one of, since an empty one does not tell.
fn convert(value: &DeValue<'_>, accepts: Accepts) -> Option<Value> {
    Some(match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Boolean(flag) => Value::Flag(*flag),
        DeValue::Integer(_) => Value::Whole(whole(value)?),
        DeValue::Float(number) => Value::Number(number.as_str().replace('_', "").parse().ok()?),
        DeValue::Array(items) if matches!(accepts, Accepts::Texts) => {
            let text = |item: &DeValue<'_>| item.as_str().map(str::to_owned);
            Value::Texts(items.iter().map(|item| text(item.get_ref())).collect::<Option<_>>()?)
        }
        DeValue::Array(items) => {
            Value::Wholes(items.iter().map(|item| whole(item.get_ref())).collect::<Option<_>>()?)
        }
        _ => return None,
    })
}

fn whole(value: &DeValue<'_>) -> Option<u64> {
    let integer = value.as_integer()?;
    u64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

fn sections() -> impl Iterator<Item = &'static str> {
    let mut last = "";
    KEYS.iter()
        .map(|key| key.section)
        .filter(move |section| std::mem::replace(&mut last, section) != *section)
}

/// ": did you mean `x`?" for the nearest of `known`, when one is near.
pub(super) fn did_you_mean<Name: AsRef<str>>(word: &str, known: impl Iterator<Item = Name>) -> String {
    let nearest = known
        .map(|candidate| (strsim::normalized_damerau_levenshtein(word, candidate.as_ref()), candidate))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((similarity, candidate)) if similarity >= 0.5 => {
            format!(": did you mean `{}`?", candidate.as_ref())
        }
        _ => String::new(),
    }
}

/// ": it belongs into [x]" for a key that some section has.
fn home_of(name: &str) -> String {
    let home = KEYS.iter().find(|key| key.name == name);
    home.map(|key| format!(": it belongs into [{}]", key.section)).unwrap_or_default()
}

fn at(path: &Path, text: &str, span: Option<Range<usize>>, fact: &str) -> String {
    match span {
        Some(span) => format!("{}:{}: {fact}", path.display(), line_of(text, span)),
        None => format!("{}: {fact}", path.display()),
    }
}

fn line_of(text: &str, span: Range<usize>) -> usize {
    text.bytes().take(span.start).filter(|byte| *byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Vec<String> {
        parse(text, Path::new("robot.toml")).unwrap_err()
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line_and_the_nearest_known_one() {
        let found = faults("[scheduler]\nqueue_len = 8\ndefault_deadlin_ms = 5\n");
        assert_eq!(
            found,
            [
                "robot.toml:3: unknown key `default_deadlin_ms` in [scheduler]: did you mean `default_deadline_ms`?"
            ]
        );
    }

    #[test]
    fn an_unknown_key_near_no_other_is_refused_with_all_known_ones() {
        let found = faults("[scheduler]\nxyzzy = 8\n");
        assert!(found[0].contains("unknown key `xyzzy` in [scheduler]: known are "), "{found:?}");
        assert!(found[0].contains("queue_len"), "{found:?}");
    }

    #[test]
    fn all_faults_are_listed_at_once() {
        let found = faults(
            "lanes = 2\n[enigne]\n[ros]\ndomain_id = 233\nlocalhost_only = \"yes\"\nlanes = 4\nnode_name = 1.5\n",
        );
        let expected = [
            "robot.toml:1: key `lanes` stands outside any [section]: it belongs into [engine]",
            "robot.toml:2: unknown section [enigne]: did you mean `engine`?",
            "robot.toml:4: `domain_id`: 233 found, a whole number from 0 to 232 expected",
            "robot.toml:5: `localhost_only`: \"yes\" found, true or false expected",
            "robot.toml:6: unknown key `lanes` in [ros]: it belongs into [engine]",
            "robot.toml:7: `node_name`: 1.5 found, text expected",
        ];
        for line in expected {
            assert!(found.iter().any(|fault| fault == line), "{line:?} not in {found:#?}");
        }
        assert_eq!(found.len(), expected.len(), "{found:#?}");
    }

    #[test]
    fn a_syntax_fault_has_its_line() {
        let found = faults("[engine]\nlanes = = 3\n");
        assert!(found[0].starts_with("robot.toml:2: "), "{found:?}");
    }

    #[test]
    fn negative_numbers_and_mixed_lists_are_refused_not_wrapped() {
        assert_eq!(faults("[engine]\nlanes = -1\n").len(), 1);
        assert_eq!(faults("[realtime]\ncores = [0, \"1\"]\n").len(), 1);
        assert_eq!(faults("[board]\nengines = [\"qwen3-4b nvfp4\", 1]\n").len(), 1);
    }
}
