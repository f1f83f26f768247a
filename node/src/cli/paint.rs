//! Colours, where the terminal has them and `NO_COLOR` does not forbid them, and aligned columns.

use owo_colors::{OwoColorize as _, Stream, Style};

/// `text` in `style` on standard output, or plain.
pub(super) fn paint(text: &str, style: Style) -> String {
    text.if_supports_color(Stream::Stdout, |text| text.style(style)).to_string()
}

/// Bold.
pub(super) fn bold(text: &str) -> String {
    paint(text, Style::new().bold())
}

/// Secondary text.
pub(super) fn dim(text: &str) -> String {
    paint(text, Style::new().dimmed())
}

/// What the model said.
pub(super) fn cyan(text: &str) -> String {
    paint(text, Style::new().cyan())
}

/// Good news.
pub(super) fn green(text: &str) -> String {
    paint(text, Style::new().green())
}

/// Something to notice.
pub(super) fn yellow(text: &str) -> String {
    paint(text, Style::new().yellow())
}

/// Bad news.
pub(super) fn red(text: &str) -> String {
    paint(text, Style::new().red())
}

/// Bytes with a binary unit.
pub(super) fn bytes(count: u64) -> String {
    let value = count as f64;
    match count {
        0..0x400 => format!("{count} B"),
        0x400..0x10_0000 => format!("{:.1} KiB", value / 1024.0),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", value / f64::from(1 << 20)),
        _ => format!("{:.2} GiB", value / f64::from(1 << 30)),
    }
}

/// A number with groups of three digits.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `label  value` with the values in one column.
pub(super) fn facts(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0);
    rows.iter().map(|(label, value)| format!("  {} {value}\n", dim(&format!("{label:<width$} ")))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_bytes_have_units() {
        assert_eq!(grouped(7), "7");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(grouped(123_456), "123,456");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(20 << 20), "20.0 MiB");
    }
}
