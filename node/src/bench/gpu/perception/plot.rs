//! The report as a picture: how long frames take in each mode, and how much of its speed the model keeps.

use std::fmt::Write as _;

use super::report::{MAX_P99, Report, RowReport};
use crate::bench::svg::escape;

const WIDTH: f64 = 900.0;
const LEFT: f64 = 230.0;
const PLOT_WIDTH: f64 = 430.0;
const TOP: f64 = 86.0;
const ROW_HEIGHT: f64 = 22.0;
/// Space between two rates.
const GROUP_GAP: f64 = 14.0;
const FOOT: f64 = 48.0;

/// A logarithmic axis of milliseconds.
struct Axis {
    low: f64,
    high: f64,
}

impl Axis {
    fn of(rows: &[RowReport]) -> Self {
        let positive = |ms: &f64| *ms > 0.0 && ms.is_finite();
        let least = rows.iter().map(|row| row.frame_ms.p50).filter(positive).fold(f64::INFINITY, f64::min);
        let most = rows.iter().map(|row| row.frame_ms.max).filter(positive).fold(0.0, f64::max);
        if most <= 0.0 || !least.is_finite() {
            return Self { low: 1.0, high: 10.0 };
        }
        Self { low: least / 1.2, high: (most * 1.2).max(least * 2.0) }
    }

    fn x(&self, ms: f64) -> f64 {
        let share = (ms.max(self.low) / self.low).ln() / (self.high / self.low).ln();
        LEFT + share.clamp(0.0, 1.0) * PLOT_WIDTH
    }

    /// 1, 2 and 5 times powers of ten within it.
    fn marks(&self) -> Vec<f64> {
        let powers = (-4..6).flat_map(|power| [1.0, 2.0, 5.0].map(|times| times * 10_f64.powi(power)));
        powers.filter(|mark| (self.low..=self.high).contains(mark)).collect()
    }
}

fn colour(mode: &str) -> &'static str {
    match mode {
        "alone" => "#5f6670",
        "none" => "#b3261e",
        "priority" => "#e05a00",
        _ => "#1f5fbf",
    }
}

/// A self-contained SVG: a row for each mode, place and rate, a bar from the median to p99, a thin one on to p99.9, a dot at the largest.
#[must_use]
pub fn svg(report: &Report) -> String {
    let axis = Axis::of(&report.rows);
    let mut tops = Vec::with_capacity(report.rows.len());
    let mut end = TOP;
    for (idx, row) in report.rows.iter().enumerate() {
        let before = idx.checked_sub(1).and_then(|before| report.rows.get(before));
        if before.is_some_and(|before| (before.place, before.hz) != (row.place, row.hz)) {
            end += GROUP_GAP;
        }
        tops.push(end);
        end += ROW_HEIGHT;
    }
    let height = end + FOOT;
    let mut out = String::new();
    let _ = writeln!(
        out,
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">"#
    );
    // White whatever the viewer's background is.
    out.push_str("<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n");
    titles(&mut out, report);
    for mark in axis.marks() {
        let x = axis.x(mark);
        let _ = writeln!(
            out,
            r##"<line x1="{x:.1}" y1="{TOP}" x2="{x:.1}" y2="{end}" stroke="#e3e6ea"/><text x="{x:.1}" y="{:.1}" fill="#555" text-anchor="middle">{mark} ms</text>"##,
            end + 18.0
        );
    }
    for (row, top) in report.rows.iter().zip(tops) {
        draw(&mut out, &axis, row, top + ROW_HEIGHT / 2.0);
    }
    out.push_str("</svg>\n");
    out
}

fn titles(out: &mut String, report: &Report) {
    let _ = writeln!(
        out,
        r##"<text x="24" y="26" fill="#222" font-size="15">Perception beside {} on {}</text>"##,
        escape(&report.model),
        escape(&report.device)
    );
    let _ = writeln!(
        out,
        r##"<text x="24" y="46" fill="#555">a frame of {:.2} ms alone; bar: p50 to p99, thin: to p99.9, dot: largest; {} rounds of {} s, idle gap {} µs, green context of {} %</text>"##,
        report.frame.alone_ms, report.rounds, report.seconds, report.idle_gap_us, report.sm_share_percent
    );
    let _ = writeln!(
        out,
        r##"<text x="24" y="64" fill="#555">right: p99 over alone (goal {MAX_P99}), and the share of its tokens that the model keeps{}</text>"##,
        if report.rows.iter().any(|row| row.not_judged.is_some()) { "; *: not got, not judged" } else { "" }
    );
}

fn draw(out: &mut String, axis: &Axis, row: &RowReport, y: f64) {
    let (colour, ms) = (colour(row.mode), row.frame_ms);
    let [p50, p99, p99_9, max] = [ms.p50, ms.p99, ms.p99_9, ms.max].map(|ms| axis.x(ms));
    let _ = writeln!(
        out,
        r##"<text x="{:.1}" y="{:.1}" fill="#222" text-anchor="end">{} {} Hz, {}</text>"##,
        LEFT - 12.0,
        y + 4.0,
        row.place,
        row.hz,
        row.mode_text()
    );
    let _ = writeln!(
        out,
        r#"<rect x="{p50:.1}" y="{:.1}" width="{:.1}" height="10" fill="{colour}"/><line x1="{p99:.1}" y1="{y:.1}" x2="{p99_9:.1}" y2="{y:.1}" stroke="{colour}" stroke-width="2"/><circle cx="{max:.1}" cy="{y:.1}" r="3" fill="{colour}"/>"#,
        y - 5.0,
        (p99 - p50).max(1.5)
    );
    let percent =
        |share: Option<f64>| share.map_or_else(String::new, |s| format!(", {:.0} % kept", s * 100.0));
    let over = row.p99_over_alone.map_or_else(|| "alone".to_owned(), |over| format!("{over:.2}"));
    let _ = writeln!(
        out,
        r##"<text x="{:.1}" y="{:.1}" fill="#222">{over}{}</text>"##,
        LEFT + PLOT_WIDTH + 16.0,
        y + 4.0,
        percent(row.kept)
    );
}

#[cfg(test)]
mod tests {
    use super::{super::report::tests::example, *};
    use crate::bench::svg::assert_well_formed;

    #[test]
    fn the_picture_has_every_row_and_is_well_formed() {
        let report = example();
        let picture = svg(&report);
        assert_well_formed(&picture);
        assert_eq!(picture.matches("<circle").count(), report.rows.len());
        assert!(picture.contains("a &lt;GPU&gt;") && picture.contains("2.00, 80 % kept"), "{picture}");
        let empty = Report { rows: Vec::new(), ..report };
        assert_well_formed(&svg(&empty));
    }
}
