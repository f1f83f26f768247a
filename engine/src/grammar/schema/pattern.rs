//! Patterns of strings and keys, brought into a form that llguidance quotes correctly.

use regex_syntax::hir::{Class, ClassUnicode, ClassUnicodeRange, Hir, HirKind};

use crate::{
    Result,
    grammar::{
        error::{guarded, refuse, shortened},
        limits::{MAX_REGEX_BYTES, parser_limits},
    },
};

/// `pattern` without the control characters that no answer can contain, where they would be quoted wrongly.
///
/// llguidance's derivre (0.3.13) takes a class with all control characters, such as `[^"]`, to contain the escapes `\\"` and `\\\\` as well.
/// Without those that JSON spells only as `\\u00XX`, which answers do not use, the class is quoted character by character.
///
/// # Errors
/// [`crate::EngineError::Grammar`] for a pattern that is none, or longer than the limit.
pub(super) fn quotable(pattern: &str, at: &str) -> Result<String> {
    if pattern.len() > MAX_REGEX_BYTES {
        let fact = format!("a pattern of {} bytes, at most {MAX_REGEX_BYTES} are possible", pattern.len());
        return Err(refuse(at, fact));
    }
    let parsed = check_regex(&llguidance::regex_to_lark(pattern, "dw"), at)?;
    let mut is_changed = false;
    let rewritten = without_controls(parsed, &mut is_changed);
    Ok(if is_changed { rewritten.to_string() } else { pattern.to_owned() })
}

/// Reads a regex.
///
/// # Errors
/// [`crate::EngineError::Grammar`] saying what is wrong with it.
pub(in crate::grammar) fn check_regex(regex: &str, at: &str) -> Result<Hir> {
    regex_syntax::Parser::new().parse(regex).map_err(|error| {
        let fact = error.to_string();
        let why = fact.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        refuse(at, format!("{:?} is no regex of the supported kind: {}", shortened(regex), shortened(why)))
    })
}

fn without_controls(hir: Hir, is_changed: &mut bool) -> Hir {
    match hir.into_kind() {
        HirKind::Empty => Hir::empty(),
        HirKind::Literal(literal) => Hir::literal(literal.0),
        HirKind::Look(look) => Hir::look(look),
        HirKind::Class(class) => Hir::class(narrowed(class, is_changed)),
        HirKind::Repetition(mut repetition) => {
            repetition.sub = Box::new(without_controls(*repetition.sub, is_changed));
            Hir::repetition(repetition)
        }
        HirKind::Capture(capture) => without_controls(*capture.sub, is_changed),
        HirKind::Concat(parts) => {
            Hir::concat(parts.into_iter().map(|part| without_controls(part, is_changed)).collect())
        }
        HirKind::Alternation(parts) => {
            Hir::alternation(parts.into_iter().map(|part| without_controls(part, is_changed)).collect())
        }
    }
}

fn narrowed(class: Class, is_changed: &mut bool) -> Class {
    match class {
        Class::Unicode(mut class) if class.iter().any(|range| range.start() < ' ') => {
            *is_changed = true;
            // All but the ones with a letter of their own: \b \t \n \f \r.
            let bare = [('\0', '\u{7}'), ('\u{b}', '\u{b}'), ('\u{e}', '\u{1f}')];
            class.difference(&ClassUnicode::new(bare.map(|(start, end)| ClassUnicodeRange::new(start, end))));
            Class::Unicode(class)
        }
        class => class,
    }
}

/// True when `pattern`, as JSON Schema reads it (anywhere in the text), matches `text`.
pub(super) fn pattern_matches(pattern: &str, text: &str, at: &str) -> Result<bool> {
    guarded(at, || {
        let regex = llguidance::regex_to_lark(pattern, "dw");
        let mut builder = llguidance::derivre::RegexBuilder::new();
        let expression = builder.mk_regex_for_serach(&regex).map_err(|error| error.to_string())?;
        let fuel = parser_limits().initial_lexer_fuel;
        let mut regex = builder.to_regex_limited(expression, fuel).map_err(|error| error.to_string())?;
        Ok(regex.is_match(text))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_classes_with_control_characters_are_rewritten() {
        for pattern in ["^[a-z]+$", "^\\d{2}/x$", "a|b"] {
            assert_eq!(quotable(pattern, "").unwrap(), pattern);
        }
        let rewritten = quotable("^[^\"]{2}$", "").unwrap();
        assert!(!pattern_matches(&rewritten, "\u{1}\u{1}", "").unwrap(), "{rewritten}");
        for (text, expected) in [("ab", true), ("é\n", true), ("a\"", false), ("abc", false)] {
            assert_eq!(pattern_matches(&rewritten, text, "").unwrap(), expected, "{rewritten} {text:?}");
        }
        assert!(quotable("a(", "/x").unwrap_err().to_string().contains("/x"));
    }
}
