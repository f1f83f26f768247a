//! The report as a picture: how transport overheads, decisions and the control loop's lateness are spread.

use std::{fmt::Write as _, time::Duration};

use super::report::Report;
use crate::{bench::svg::escape, demo::percentile};

const WIDTH: f64 = 900.0;
const LEFT: f64 = 210.0;
const PLOT_WIDTH: f64 = 520.0;
const TOP: f64 = 78.0;
const ROW_HEIGHT: f64 = 36.0;
/// The highest bar of a row.
const BAR_HEIGHT: f64 = 25.0;
/// Title above a panel's rows, and axis below them.
const PANEL_HEAD: f64 = 26.0;
const PANEL_FOOT: f64 = 52.0;
/// Bars in a tenfold.
const BINS: f64 = 16.0;

const IDLE: &str = "#1f5fbf";
const BUSY: &str = "#e05a00";
const NO_NODE: &str = "#5f6670";

/// A spread of values.
struct Strip<'a> {
    label: String,
    colour: &'static str,
    values: &'a [Duration],
}

/// Strips over one axis.
struct Panel<'a> {
    title: &'static str,
    strips: Vec<Strip<'a>>,
}

/// A logarithmic axis in milliseconds, whole tenfolds long.
struct Axis {
    /// Powers of ten at its ends.
    low: i32,
    high: i32,
}

impl Axis {
    /// Long enough for all of `strips`.
    fn of(strips: &[Strip<'_>]) -> Self {
        let values = strips.iter().flat_map(|strip| strip.values).map(|value| in_ms(*value));
        let (low, high) =
            values.fold((f64::INFINITY, 0.0_f64), |(low, high), ms| (low.min(ms), high.max(ms)));
        if high <= 0.0 {
            return Self { low: -2, high: 1 };
        }
        // Within the range of an i32: a `Duration` has less than 40 powers of ten.
        let (low, high) = (low.log10().floor() as i32, high.log10().ceil() as i32);
        Self { low, high: high.max(low + 1) }
    }

    fn x(&self, ms: f64) -> f64 {
        let share = (ms.log10() - f64::from(self.low)) / f64::from(self.high - self.low);
        LEFT + share.clamp(0.0, 1.0) * PLOT_WIDTH
    }

    /// Edges of the bars.
    fn edges(&self) -> Vec<f64> {
        let num_bins = f64::from(self.high - self.low) * BINS;
        let edge = |i: u32| 10_f64.powf(f64::from(self.low) + f64::from(i) / BINS);
        (0..=num_bins as u32).map(edge).collect() // a few hundred at most
    }
}

/// A microsecond at least: what the clock shows as nothing has no logarithm.
fn in_ms(value: Duration) -> f64 {
    value.max(Duration::from_micros(1)).as_secs_f64() * 1e3
}

/// A self-contained SVG: a histogram for each row of the report, over logarithmic axes; lines at p50, p99 and the largest value.
#[must_use]
pub fn svg(report: &Report) -> String {
    let panels = panels(report);
    let height_of = |panel: &Panel<'_>| PANEL_HEAD + ROW_HEIGHT * panel.strips.len() as f64 + PANEL_FOOT;
    let height = TOP + panels.iter().map(height_of).sum::<f64>();
    let mut out = String::new();
    let _ = writeln!(
        out,
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">"#
    );
    // White whatever the viewer's background is.
    out.push_str("<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n");
    titles(&mut out, report);
    let mut top = TOP;
    for panel in &panels {
        draw(&mut out, panel, top);
        top += height_of(panel);
    }
    out.push_str("</svg>\n");
    out
}

fn colour(state: &str) -> &'static str {
    if state.ends_with("idle") {
        IDLE
    } else if state.ends_with("busy") {
        BUSY
    } else {
        NO_NODE
    }
}

fn panels(report: &Report) -> Vec<Panel<'_>> {
    let trips = report.round_trips.iter().map(|row| Strip {
        label: format!("{}, node {}", row.door.name(), row.node),
        colour: colour(row.node),
        values: &row.overheads,
    });
    let decisions = report.decisions.iter().map(|row| Strip {
        label: format!("{} {}, node {}", row.door.name(), row.decision, row.node),
        colour: colour(row.node),
        values: &row.times,
    });
    let loops = report.control_loop.iter().map(|row| Strip {
        label: row.beside.clone(),
        colour: colour(&row.beside),
        values: &row.late,
    });
    vec![
        Panel { title: "Transport overhead of a round trip", strips: trips.collect() },
        Panel { title: "Sent to decided: accepted or refused", strips: decisions.collect() },
        Panel { title: "Lateness of a 100 Hz control loop on the same machine", strips: loops.collect() },
    ]
}

fn titles(out: &mut String, report: &Report) {
    let (machine, load) = (&report.machine, &report.load);
    let worker =
        report.node.worker.as_ref().map_or(String::new(), |worker| format!(", worker {}", worker.policy));
    let _ = writeln!(
        out,
        r##"<text x="24" y="26" fill="#222" font-size="15">Asking over ROS 2: {}, {} cores{}</text>"##,
        escape(&machine.processor),
        machine.cores,
        escape(&worker)
    );
    let busy_threads = match load.busy_threads {
        0 => String::new(),
        num => format!(", {num} busy threads"),
    };
    let _ = writeln!(
        out,
        r##"<text x="24" y="47" fill="#555">busy: {} background requests open on {} lanes{busy_threads}; solid line: p50, dashed: p99, dot: largest; each row to its own scale</text>"##,
        load.open_requests, load.lanes
    );
}

fn draw(out: &mut String, panel: &Panel<'_>, top: f64) {
    let (axis, rows_top) = (Axis::of(&panel.strips), top + PANEL_HEAD);
    let bottom = rows_top + ROW_HEIGHT * panel.strips.len() as f64;
    let _ = writeln!(
        out,
        r##"<text x="24" y="{:.1}" fill="#222" font-size="13" font-weight="bold">{}</text>
<text x="{:.1}" y="{:.1}" fill="#555" text-anchor="end">p50</text><text x="{:.1}" y="{:.1}" fill="#555" text-anchor="end">p99, max (ms)</text>"##,
        top + 12.0,
        panel.title,
        LEFT + PLOT_WIDTH + 56.0,
        top + 12.0,
        WIDTH - 20.0,
        top + 12.0,
    );
    grid(out, &axis, rows_top, bottom);
    for (idx, strip) in panel.strips.iter().enumerate() {
        draw_strip(out, &axis, strip, rows_top + ROW_HEIGHT * (idx + 1) as f64);
    }
}

/// Powers of ten, with their names below.
fn grid(out: &mut String, axis: &Axis, top: f64, bottom: f64) {
    for power in axis.low..=axis.high {
        let ms = 10_f64.powi(power);
        let x = axis.x(ms);
        let name = if power < 0 { format!("{:.0} µs", ms * 1e3) } else { format!("{ms:.0} ms") };
        let _ = writeln!(
            out,
            r##"<line x1="{x:.1}" x2="{x:.1}" y1="{top:.1}" y2="{:.1}" stroke="#e3e5e8"/><text x="{x:.1}" y="{:.1}" fill="#444" text-anchor="middle">{name}</text>"##,
            bottom + 4.0,
            bottom + 18.0
        );
    }
}

fn draw_strip(out: &mut String, axis: &Axis, strip: &Strip<'_>, base: f64) {
    let Strip { label, colour, values } = strip;
    let _ = writeln!(
        out,
        r##"<text x="{:.1}" y="{:.1}" fill="#222" text-anchor="end">{}</text><line x1="{LEFT}" x2="{:.1}" y1="{base:.1}" y2="{base:.1}" stroke="#c4c8cd"/>"##,
        LEFT - 12.0,
        base - 7.0,
        escape(label),
        LEFT + PLOT_WIDTH
    );
    if values.is_empty() {
        return;
    }
    bars(out, axis, strip, base);
    let of = |share| in_ms(percentile(values, share));
    for (share, dashes) in [(0.5, ""), (0.99, "3,2")] {
        let x = axis.x(of(share));
        let _ = writeln!(
            out,
            r##"<line x1="{x:.1}" x2="{x:.1}" y1="{:.1}" y2="{base:.1}" stroke="#222" stroke-width="1.2" stroke-dasharray="{dashes}"/>"##,
            base - BAR_HEIGHT - 3.0
        );
    }
    let _ = writeln!(
        out,
        r##"<circle cx="{:.1}" cy="{:.1}" r="3" fill="{colour}" stroke="#222"><title>{}: largest of {} {:.3} ms</title></circle>"##,
        axis.x(of(1.0)),
        base - 4.0,
        escape(label),
        values.len(),
        of(1.0)
    );
    let _ = writeln!(
        out,
        r##"<text x="{:.1}" y="{:.1}" fill="#222" text-anchor="end">{}</text><text x="{:.1}" y="{:.1}" fill="#222" text-anchor="end">{}, {}</text>"##,
        LEFT + PLOT_WIDTH + 56.0,
        base - 7.0,
        number(of(0.5)),
        WIDTH - 20.0,
        base - 7.0,
        number(of(0.99)),
        number(of(1.0))
    );
}

/// The histogram as one outline.
fn bars(out: &mut String, axis: &Axis, strip: &Strip<'_>, base: f64) {
    let edges = axis.edges();
    let mut counts = vec![0_usize; edges.len().saturating_sub(1)];
    for value in strip.values {
        let bin = edges.partition_point(|edge| *edge <= in_ms(*value)).saturating_sub(1);
        let last = counts.len() - 1; // an axis is at least a tenfold long
        counts[bin.min(last)] += 1;
    }
    let highest = counts.iter().copied().max().unwrap_or(1).max(1) as f64;
    let mut path = format!("M{LEFT},{base:.1}");
    for (count, ends) in counts.iter().zip(edges.windows(2)) {
        let y = base - BAR_HEIGHT * *count as f64 / highest;
        let _ = write!(path, " L{:.1},{y:.1} L{:.1},{y:.1}", axis.x(ends[0]), axis.x(ends[1]));
    }
    let _ = writeln!(
        out,
        r#"<path d="{path} L{:.1},{base:.1} Z" fill="{colour}" fill-opacity="0.45" stroke="{colour}"/>"#,
        LEFT + PLOT_WIDTH,
        colour = strip.colour
    );
}

/// Three digits that count.
fn number(ms: f64) -> String {
    match ms {
        ms if ms < 0.0995 => format!("{ms:.3}"),
        ms if ms < 9.95 => format!("{ms:.2}"),
        ms if ms < 99.5 => format!("{ms:.1}"),
        ms => format!("{ms:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{
        ros::report::{Machine, sample},
        svg::assert_well_formed,
    };

    #[test]
    fn the_picture_is_well_formed_and_shows_every_row() {
        let machine = Machine { processor: "a <board> & \"co\"".into(), cores: 4, ..Machine::default() };
        let report = Report { machine, ..sample() };
        let picture = svg(&report);
        assert_well_formed(&picture);
        for label in [
            "topic, node idle",
            "action accepted, node busy",
            "service refused, node idle",
            "no node",
            "a &lt;board&gt; &amp; &quot;co&quot;",
            "8 background requests open on 4 lanes",
            "100 µs",
            "10 ms",
        ] {
            assert!(picture.contains(label), "{label} in {picture}");
        }
        assert!(!picture.contains("NaN") && !picture.contains("inf"));
    }

    #[test]
    fn rows_without_values_are_drawn_empty() {
        let mut report = sample();
        report.round_trips.iter_mut().for_each(|row| row.overheads.clear());
        report.control_loop.clear();
        let picture = svg(&report);
        assert_well_formed(&picture);
        assert!(picture.contains("topic, node idle") && !picture.contains("NaN"));
    }

    #[test]
    fn an_axis_holds_all_values_between_its_ends() {
        let values = [Duration::ZERO, Duration::from_micros(30), Duration::from_millis(70)];
        let strip = Strip { label: String::new(), colour: IDLE, values: &values };
        let axis = Axis::of(&[strip]);
        assert_eq!((axis.low, axis.high), (-3, 2));
        assert_eq!((axis.x(1e-3), axis.x(100.0)), (LEFT, LEFT + PLOT_WIDTH));
        assert_eq!(axis.edges().len(), 5 * 16 + 1);
    }
}
