//! A picture of a run: lanes from top to bottom, time from left to right.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use super::{Demand, Outcome, Run};
use crate::scheduler::class::Class;

const LEFT: f64 = 70.0;
const TOP: f64 = 64.0;
const ROW: f64 = 34.0;
const MIN_WIDTH: f64 = 900.0;
const MAX_WIDTH: f64 = 20_000.0;
/// A section shorter than this many pixels can hardly be seen.
const SECTION_WIDTH: f64 = 6.0;

/// An SVG of the sections that `run` kept of `demands`: slices dark, decode steps light, a colour for each class; a line where a
/// request came (dotted) and a tick at its deadline, red where it was missed; refused requests as crosses above the lanes.
#[must_use]
pub fn svg(demands: &[Demand], run: &Run, num_lanes: usize) -> String {
    let end = run.records.last().map_or(Duration::from_millis(1), |record| record.start + record.took);
    let width = (run.records.len() as f64 * SECTION_WIDTH).clamp(MIN_WIDTH, MAX_WIDTH);
    let scale = width / end.as_secs_f64().max(1e-9);
    let x = |at: Duration| LEFT + at.as_secs_f64() * scale;
    let height = TOP + ROW * num_lanes as f64 + 46.0;
    let mut out = String::new();
    let _ = writeln!(
        out,
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{:.0}" height="{height:.0}" font-family="sans-serif" font-size="12">"#,
        LEFT + width + 20.0
    );
    out.push_str(r##"<rect width="100%" height="100%" fill="#ffffff"/>"##);
    legend(&mut out);
    for lane in 0..num_lanes {
        let y = TOP + ROW * lane as f64;
        let _ = writeln!(out, r##"<text x="8" y="{:.1}" fill="#444">lane {lane}</text>"##, y + 20.0);
        let _ = writeln!(
            out,
            r##"<rect x="{LEFT}" y="{:.1}" width="{width:.1}" height="{:.1}" fill="#f4f5f7"/>"##,
            y + 3.0,
            ROW - 6.0
        );
    }
    let lanes = sections(&mut out, demands, run, &x, scale);
    requests(&mut out, demands, run, &lanes, end, &x);
    axis(&mut out, end, TOP + ROW * num_lanes as f64, &x);
    out.push_str("</svg>\n");
    out
}

fn legend(out: &mut String) {
    let mut at = LEFT;
    for class in Class::ALL {
        let (dark, light) = colours(class);
        let _ = writeln!(
            out,
            r##"<rect x="{at}" y="10" width="14" height="12" fill="{dark}"/><rect x="{}" y="10" width="14" height="12" fill="{light}"/><text x="{}" y="21" fill="#222">{}: prompt, answer</text>"##,
            at + 14.0,
            at + 34.0,
            class.name()
        );
        at += 250.0;
    }
    let _ = writeln!(
        out,
        r##"<text x="{at}" y="21" fill="#222">dotted: arrival, tick: deadline, red: missed, ×: refused</text>"##
    );
}

fn colours(class: Class) -> (&'static str, &'static str) {
    match class {
        Class::Control => ("#1f5fbf", "#8ab6f0"),
        Class::Interactive => ("#2f8f5b", "#9ad6b4"),
        Class::Background => ("#8a6d3b", "#dcc9a3"),
    }
}

/// Draws the sections; returns the lane each request was last seen in.
fn sections(
    out: &mut String,
    demands: &[Demand],
    run: &Run,
    x: &impl Fn(Duration) -> f64,
    scale: f64,
) -> BTreeMap<usize, usize> {
    let mut lanes = BTreeMap::new();
    for record in &run.records {
        let parts = record.slice.iter().map(|&(lane, demand, len)| (lane, demand, Some(len)));
        let parts = parts.chain(record.decodes.iter().map(|&(lane, demand)| (lane, demand, None)));
        for (lane, demand, slice) in parts {
            let Some(asked) = demands.get(demand) else { continue };
            lanes.insert(demand, lane.0);
            let (dark, light) = colours(asked.class);
            let what = slice.map_or_else(|| "one token".to_owned(), |len| format!("{len} prompt tokens"));
            let _ = writeln!(
                out,
                r##"<rect x="{:.2}" y="{:.1}" width="{:.2}" height="{:.1}" fill="{}" stroke="#fff" stroke-width="0.3"><title>request {demand}, {what}, {:.2} ms</title></rect>"##,
                x(record.start),
                TOP + ROW * lane.0 as f64 + 5.0,
                (record.took.as_secs_f64() * scale).max(0.5),
                ROW - 10.0,
                if slice.is_some() { dark } else { light },
                record.took.as_secs_f64() * 1e3,
            );
        }
    }
    lanes
}

fn requests(
    out: &mut String,
    demands: &[Demand],
    run: &Run,
    lanes: &BTreeMap<usize, usize>,
    end: Duration,
    x: &impl Fn(Duration) -> f64,
) {
    for (idx, (demand, outcome)) in demands.iter().zip(&run.outcomes).enumerate() {
        if demand.arrival > end {
            continue;
        }
        let at = x(demand.arrival);
        if let Outcome::Rejected { .. } = outcome {
            let _ = writeln!(
                out,
                r##"<text x="{:.1}" y="{}" fill="#b3261e" font-weight="bold">×<title>request {idx}: refused</title></text>"##,
                at - 4.0,
                TOP - 6.0
            );
            continue;
        }
        let Some(&lane) = lanes.get(&idx) else { continue };
        let (top, bottom) = (TOP + ROW * lane as f64, TOP + ROW * (lane + 1) as f64);
        let _ = writeln!(
            out,
            r##"<line x1="{at:.1}" x2="{at:.1}" y1="{top:.1}" y2="{bottom:.1}" stroke="#555" stroke-dasharray="2,3"/>"##
        );
        let Some(allowed) = demand.allowed.filter(|&allowed| demand.arrival + allowed <= end) else {
            continue;
        };
        let is_missed = match *outcome {
            Outcome::Replied { at, num_tokens, .. } => num_tokens == 0 || at > demand.arrival + allowed,
            Outcome::Rejected { .. } => false,
        };
        let (at, colour) = (x(demand.arrival + allowed), if is_missed { "#d00000" } else { "#111111" });
        let _ = writeln!(
            out,
            r##"<path d="M{at:.1},{top:.1} v{:.1} M{:.1},{top:.1} h6" stroke="{colour}" stroke-width="1.5"><title>deadline of request {idx}</title></path>"##,
            bottom - top,
            at - 3.0
        );
    }
}

fn axis(out: &mut String, end: Duration, y: f64, x: &impl Fn(Duration) -> f64) {
    let end_ms = end.as_secs_f64() * 1e3;
    let step = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 5000.0, 20_000.0]
        .into_iter()
        .find(|step| end_ms / step <= 24.0)
        .unwrap_or(100_000.0);
    let mut ms = 0.0;
    while ms <= end_ms {
        let at = x(Duration::from_secs_f64(ms / 1e3));
        let _ = writeln!(
            out,
            r##"<line x1="{at:.1}" x2="{at:.1}" y1="{y:.1}" y2="{:.1}" stroke="#888"/><text x="{at:.1}" y="{:.1}" fill="#444" text-anchor="middle">{ms:.0} ms</text>"##,
            y + 6.0,
            y + 20.0
        );
        ms += step;
    }
}
