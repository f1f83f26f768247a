//! The report as a picture: speed-up against the nodes that are verified.

use std::fmt::Write as _;

use super::report::{MethodRow, Report};
use crate::bench::svg::escape;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 480.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 64.0;
const PLOT_WIDTH: f64 = 520.0;
const PLOT_HEIGHT: f64 = 350.0;

/// One line of the picture.
struct Series {
    label: String,
    colour: &'static str,
    /// Nodes and speed-up, by nodes.
    points: Vec<(f64, f64)>,
}

/// Where numbers are on the paper.
struct Scale {
    max_nodes: f64,
    max_speedup: f64,
}

impl Scale {
    fn x(&self, nodes: f64) -> f64 {
        LEFT + (nodes - 1.0) / (self.max_nodes - 1.0).max(1.0) * PLOT_WIDTH
    }

    fn y(&self, speedup: f64) -> f64 {
        TOP + PLOT_HEIGHT * (1.0 - speedup / self.max_speedup)
    }
}

/// A self-contained SVG: a line for each drafter's chains and for the trees of each width, plain decoding dashed at 1, the adaptive policies
/// as horizontal lines.
#[must_use]
pub fn svg(report: &Report) -> String {
    let (series, adaptive) = (series_of(&report.methods), adaptive_of(&report.methods));
    let points = series.iter().flat_map(|series| series.points.iter().copied());
    let speedups = points.clone().map(|(_, speedup)| speedup).chain(adaptive.iter().map(|row| row.speedup));
    let scale = Scale {
        max_nodes: points.map(|(nodes, _)| nodes).fold(8.0, f64::max),
        max_speedup: (speedups.fold(1.0, f64::max) * 1.1 * 2.0).ceil() / 2.0,
    };
    let mut out = String::new();
    let _ = writeln!(
        out,
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">"#
    );
    // White whatever the viewer's background is.
    out.push_str("<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n");
    titles(&mut out, report);
    axes(&mut out, &scale);
    horizontals(&mut out, &scale, &adaptive);
    for (idx, series) in series.iter().enumerate() {
        draw(&mut out, &scale, series);
        legend(&mut out, 1 + adaptive.len() + idx, &series.label, series.colour, "");
    }
    out.push_str("</svg>\n");
    out
}

fn series_of(rows: &[MethodRow]) -> Vec<Series> {
    let colours = ["#1f5fbf", "#2f8f5b", "#8a3fa0", "#b3261e", "#8a6d3b"];
    let mut all: Vec<Series> = Vec::new();
    for row in rows {
        let (Some(nodes), Some(top_k)) = (row.nodes, row.top_k) else { continue };
        let drafter = if row.drafter == Some("lookup") { "lookup" } else { "EAGLE-3" };
        let label = match row.kind {
            "chain" => format!("{drafter} chains"),
            _ => format!("{drafter} trees, {top_k} wide"),
        };
        // A narrow tree may not have as many nodes as it has room for.
        let point = (row.nodes_per_round.unwrap_or(nodes as f64), row.speedup);
        match all.iter_mut().find(|series| series.label == label) {
            Some(series) => series.points.push(point),
            None => {
                let colour = colours[all.len() % colours.len()];
                all.push(Series { label, colour, points: vec![point] });
            }
        }
    }
    all
}

fn adaptive_of(rows: &[MethodRow]) -> Vec<&MethodRow> {
    rows.iter().filter(|row| row.kind == "adaptive").collect()
}

fn titles(out: &mut String, report: &Report) {
    let acceptance = match &report.profile {
        Some(profile) => format!("simulated acceptance, profile {}", profile.name),
        None => format!("measured on {} prompts", report.num_prompts),
    };
    let _ = writeln!(
        out,
        r##"<text x="{LEFT}" y="24" fill="#222" font-size="15">Speculative decoding: {}</text>"##,
        escape(&report.model)
    );
    let _ = writeln!(
        out,
        r##"<text x="{LEFT}" y="44" fill="#555">{}; {}, {} threads, context {}</text>"##,
        escape(&acceptance),
        escape(&report.device),
        report.threads,
        report.context_len
    );
}

fn axes(out: &mut String, scale: &Scale) {
    let (right, bottom) = (LEFT + PLOT_WIDTH, TOP + PLOT_HEIGHT);
    let step = if scale.max_speedup > 4.0 { 1.0 } else { 0.5 };
    let mut speedup = 0.0;
    while speedup <= scale.max_speedup + 1e-9 {
        let y = scale.y(speedup);
        let _ = writeln!(
            out,
            r##"<line x1="{LEFT}" x2="{right}" y1="{y:.1}" y2="{y:.1}" stroke="#e3e5e8"/><text x="{:.1}" y="{:.1}" fill="#444" text-anchor="end">{speedup}</text>"##,
            LEFT - 8.0,
            y + 4.0
        );
        speedup += step;
    }
    for nodes in [1.0, 2.0, 4.0, 8.0, 16.0, 24.0, 32.0, 48.0, 64.0] {
        if nodes <= scale.max_nodes {
            let x = scale.x(nodes);
            let _ = writeln!(
                out,
                r##"<line x1="{x:.1}" x2="{x:.1}" y1="{bottom}" y2="{}" stroke="#888"/><text x="{x:.1}" y="{}" fill="#444" text-anchor="middle">{nodes}</text>"##,
                bottom + 5.0,
                bottom + 19.0
            );
        }
    }
    let _ = writeln!(
        out,
        r##"<path d="M{LEFT},{TOP} V{bottom} H{right}" fill="none" stroke="#888"/>
<text x="{:.1}" y="{:.1}" fill="#222" text-anchor="middle">nodes verified in a round</text>
<text x="20" y="{:.1}" fill="#222" text-anchor="middle" transform="rotate(-90 20 {:.1})">speed-up over plain decoding</text>"##,
        LEFT + PLOT_WIDTH / 2.0,
        bottom + 42.0,
        TOP + PLOT_HEIGHT / 2.0,
        TOP + PLOT_HEIGHT / 2.0
    );
}

/// Plain decoding and the adaptive policies, with their entries of the legend.
fn horizontals(out: &mut String, scale: &Scale, adaptive: &[&MethodRow]) {
    let mut line = |speedup: f64, label: &str, colour: &str, dashes: &str, place: usize| {
        let y = scale.y(speedup);
        let _ = writeln!(
            out,
            r#"<line x1="{LEFT}" x2="{}" y1="{y:.1}" y2="{y:.1}" stroke="{colour}" stroke-width="1.6" stroke-dasharray="{dashes}"/>"#,
            LEFT + PLOT_WIDTH
        );
        legend(out, place, label, colour, dashes);
    };
    line(1.0, "plain decoding", "#444444", "4,4", 0);
    for (idx, row) in adaptive.iter().enumerate() {
        let colour = if row.drafter == Some("lookup") { "#c98a00" } else { "#e05a00" };
        line(row.speedup, &format!("{}, {:.2}x", row.name, row.speedup), colour, "9,3", 1 + idx);
    }
}

fn draw(out: &mut String, scale: &Scale, series: &Series) {
    let at: Vec<String> = series
        .points
        .iter()
        .map(|&(nodes, speedup)| format!("{:.1},{:.1}", scale.x(nodes), scale.y(speedup)))
        .collect();
    let _ = writeln!(
        out,
        r#"<polyline points="{}" fill="none" stroke="{}" stroke-width="1.8"/>"#,
        at.join(" "),
        series.colour
    );
    for &(nodes, speedup) in &series.points {
        let _ = writeln!(
            out,
            r#"<circle cx="{:.1}" cy="{:.1}" r="3.5" fill="{}"><title>{}: {nodes:.0} nodes, {speedup:.2}x</title></circle>"#,
            scale.x(nodes),
            scale.y(speedup),
            series.colour,
            escape(&series.label)
        );
    }
}

fn legend(out: &mut String, place: usize, label: &str, colour: &str, dashes: &str) {
    let (x, y) = (LEFT + PLOT_WIDTH + 24.0, TOP + 14.0 + 22.0 * place as f64);
    let _ = writeln!(
        out,
        r##"<line x1="{x}" x2="{}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"/><text x="{}" y="{}" fill="#222">{}</text>"##,
        x + 28.0,
        x + 36.0,
        y + 4.0,
        escape(label)
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{speculation::method::Method, svg::assert_well_formed};

    fn report(model: &str) -> Report {
        let rows = Method::all(true, true, 64).into_iter().enumerate();
        let methods: Vec<MethodRow> = rows
            .map(|(idx, method)| MethodRow { speedup: 1.0 + idx as f64 / 8.0, ..MethodRow::named(method) })
            .collect();
        Report {
            model: model.into(),
            acceptance: "measured",
            profile: None,
            backend: "cpu",
            device: "a <board> & more".into(),
            threads: 2,
            has_head: true,
            num_prompts: 12,
            num_passes: 3,
            num_tokens: 100,
            context_len: 60,
            identical: Some(true),
            methods,
            tasks: Vec::new(),
            adaptive_vs_plain: None,
            costs: Vec::new(),
            notes: Vec::new(),
        }
    }

    #[test]
    fn the_picture_is_well_formed_and_says_what_it_shows() {
        let mut report = report("engines/<demo> & \"co\"");
        let picture = svg(&report);
        assert_well_formed(&picture);
        for label in [
            "nodes verified in a round",
            "speed-up over plain decoding",
            "plain decoding",
            "EAGLE-3 chains",
            "EAGLE-3 trees, 2 wide",
            "EAGLE-3 trees, 4 wide",
            "lookup chains",
            "EAGLE-3 adaptive",
            "lookup adaptive",
            "engines/&lt;demo&gt; &amp; &quot;co&quot;",
            "measured on 12 prompts",
            "fill=\"#ffffff\"",
        ] {
            assert!(picture.contains(label), "{label}");
        }
        assert!(!picture.contains("NaN") && !picture.contains("inf"));
        let profile: super::super::profile::Profile = "poor".parse().unwrap();
        report.profile = Some((&profile).into());
        report.methods.clear();
        let empty = svg(&report);
        assert_well_formed(&empty);
        assert!(empty.contains("simulated acceptance, profile poor"));
    }
}
