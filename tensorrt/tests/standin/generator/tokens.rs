//! Preprocessed C++ as words and signs.

/// Words, numbers, strings, and signs of one character, but `::` and `&&`, which are two. Without comments and attributes.
pub fn tokens(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let len = match first {
            c if c.is_whitespace() => c.len_utf8(),
            '#' => line_len(rest),
            '/' if rest.starts_with("//") => line_len(rest),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |end| end + 2),
            '"' | '\'' => take(&mut found, rest, quoted_len(rest, first)),
            c if is_word(c) => take(&mut found, rest, rest.find(|c| !is_word(c)).unwrap_or(rest.len())),
            _ if rest.starts_with("::") || rest.starts_with("&&") => take(&mut found, rest, 2),
            c => take(&mut found, rest, c.len_utf8()),
        };
        rest = &rest[len..];
    }
    without_attributes(&found)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn take(found: &mut Vec<String>, rest: &str, len: usize) -> usize {
    found.push(rest[..len].to_owned());
    len
}

fn line_len(text: &str) -> usize {
    text.find('\n').unwrap_or(text.len())
}

fn quoted_len(text: &str, quote: char) -> usize {
    let mut is_escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if c == quote && !is_escaped {
            return at + 1;
        }
        is_escaped = c == '\\' && !is_escaped;
    }
    text.len()
}

/// `[[…]]` and `__attribute__((…))` say nothing of a signature.
fn without_attributes(tokens: &[String]) -> Vec<String> {
    let mut kept = Vec::with_capacity(tokens.len());
    let mut at = 0;
    while at < tokens.len() {
        let is = |offset: usize, sign: &str| tokens.get(at + offset).is_some_and(|token| token == sign);
        if is(0, "[") && is(1, "[") {
            at = past(tokens, at, "[", "]");
        } else if is(0, "__attribute__") {
            at = past(tokens, at + 1, "(", ")");
        } else {
            kept.push(tokens[at].clone());
            at += 1;
        }
    }
    kept
}

/// Behind what closes the bracket at `at`.
pub fn past(tokens: &[String], at: usize, open: &str, close: &str) -> usize {
    let mut depth = 0_usize;
    for (idx, token) in tokens.iter().enumerate().skip(at) {
        if token == open {
            depth += 1;
        } else if token == close {
            depth = depth.saturating_sub(1);
            if depth == 0 {
                return idx + 1;
            }
        }
    }
    tokens.len()
}
