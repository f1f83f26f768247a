//! Durations as people write them: `200ms`, `1.5s`, `2m`.

use std::time::Duration;

/// Parses a duration with its unit (`us`, `ms`, `s`, `m`).
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let seconds = match &text[digits.len()..] {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "" => return Err(format!("{text:?} has no unit: write {text}ms or {text}s")),
        unit => return Err(format!("unknown unit {unit:?}: expected us, ms, s or m")),
    };
    let number: f64 = digits.trim().parse().map_err(|_| format!("{digits:?} is not a number"))?;
    Duration::try_from_secs_f64(number * seconds).map_err(|_| format!("{text:?} is not a duration from 0 up"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_needs_a_number_and_a_unit() {
        assert_eq!(parse("200ms"), Ok(Duration::from_millis(200)));
        assert_eq!(parse("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse("0ms"), Ok(Duration::ZERO));
        for wrong in ["200", "ms", "-1ms", "1h", "1e400s", "", "NaNs", "1 fortnight"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
