//! Formats that llguidance reads more widely than their definitions, as patterns that are no wider.

/// The pattern for `format`; `None` where llguidance's own is as strict as the definition, or the format is not known.
///
/// Seconds end at 59: a leap second is valid at one instant of a year only, which no pattern can tell. Lengths of names stay within the limits
/// of RFC 5321 (section 4.5.3.1) and RFC 1035 (section 2.3.4), which count over several parts.
pub(super) fn pattern(format: &str) -> Option<String> {
    const TIME: &str = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,9})?(?:[zZ]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])";
    const LABEL: &str = "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,58}[a-zA-Z0-9])?";
    const ATOM: &str = "[a-zA-Z0-9!#$%&'*+\\-/=?^_`{|}~]{1,20}";
    let date = || {
        let leap_year = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)";
        format!(
            "(?:[0-9]{{4}}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|\
             02-(?:0[1-9]|1[0-9]|2[0-8]))|{leap_year}-02-29)"
        )
    };
    let body = match format {
        "date" => date(),
        "time" => TIME.to_owned(),
        "date-time" => format!("{}[tT]{TIME}", date()),
        "hostname" => format!("{LABEL}(?:\\.{LABEL}){{0,3}}"),
        "email" => format!("{ATOM}(?:\\.{ATOM}){{0,2}}@{LABEL}(?:\\.{LABEL}){{0,3}}"),
        _ => return None,
    };
    Some(format!("^{body}$"))
}

#[cfg(test)]
mod tests {
    use crate::grammar::schema::pattern::pattern_matches;

    #[test]
    fn leap_days_are_in_leap_years_and_names_are_bounded() {
        for (format, text, expected) in [
            ("date", "2024-02-29", true),
            ("date", "2000-02-29", true),
            ("date", "1900-02-29", false),
            ("date", "2023-02-29", false),
            ("date", "2023-04-31", false),
            ("time", "23:59:59.25+05:30", true),
            ("time", "12:00:60Z", false),
            ("date-time", "2024-02-29T00:00:00Z", true),
            ("email", "a.b+c@example.org", true),
            ("email", "a..b@example.org", false),
            ("hostname", "robot-7.lab", true),
            ("hostname", "-robot", false),
        ] {
            let pattern = super::pattern(format).unwrap();
            assert_eq!(pattern_matches(&pattern, text, "").unwrap(), expected, "{format} {text}");
        }
        assert_eq!(super::pattern("uuid"), None);
    }
}
