//! Pictures as text.

/// `text` as the content of an element or attribute.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Whether every tag is closed by its own, with nothing but one element at the top, and no bare `&` or `<` in between.
#[cfg(test)]
pub(super) fn assert_well_formed(svg: &str) {
    let (mut open, mut rest, mut num_roots): (Vec<&str>, &str, usize) = (Vec::new(), svg.trim(), 0);
    while let Some(start) = rest.find('<') {
        let text = &rest[..start];
        assert!(text.trim().is_empty() || !open.is_empty(), "text outside: {text:?}");
        for (at, _) in text.match_indices('&') {
            assert!(["&amp;", "&lt;", "&gt;", "&quot;"].iter().any(|e| text[at..].starts_with(e)), "{text}");
        }
        let end = start + rest[start..].find('>').expect("a tag ends");
        let tag = &rest[start + 1..end];
        rest = &rest[end + 1..];
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "{svg}");
            continue;
        }
        let name = tag.split([' ', '/']).next().unwrap();
        assert!(name.chars().all(char::is_alphanumeric) && !name.is_empty(), "{tag}");
        num_roots += usize::from(open.is_empty());
        if !tag.ends_with('/') {
            open.push(name);
        }
    }
    assert!(open.is_empty() && num_roots == 1 && rest.is_empty(), "{open:?} {num_roots}");
}
