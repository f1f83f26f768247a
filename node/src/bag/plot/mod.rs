//! The recording as a picture: over time, how much of its deadline each reply took.

use std::fmt::Write as _;

use super::{
    recording::{NodeRecord, Recording},
    report::Selection,
    row::ReplyRow,
};
use axis::{Axis, clock};
use marks::{Mark, Shape};

mod axis;
mod marks;

const WIDTH: f64 = 1100.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = 24.0;
const PLOT_WIDTH: f64 = WIDTH - LEFT - RIGHT;
const TOP: f64 = 74.0;
const PLOT_HEIGHT: f64 = 260.0;
/// A row of marks under the plot (what was refused, what has no deadline), and what is between plot and rows.
const ROW_HEIGHT: f64 = 20.0;
const ROWS_GAP: f64 = 10.0;
/// Above a panel its title, below it the axis.
const PANEL_HEAD: f64 = 30.0;
const PANEL_FOOT: f64 = 44.0;
/// Shares up to here are always shown, shares above the other end stand at the upper edge.
const SHARES: (f64, f64) = (1.25, 3.0);
/// Late replies that get their name.
const MAX_LABELS: usize = 5;
/// Late replies for whose name a place is looked for.
const MAX_CANDIDATES: usize = 200;
/// A label's height, and what is taken for a character's width.
const LABEL: (f64, f64) = (13.0, 6.6);

/// A self-contained SVG with a panel for each of `nodes`, what `selection` chose of `recording`.
#[must_use]
pub fn svg(recording: &Recording, nodes: &[NodeRecord<'_>], selection: &Selection) -> String {
    let (_, end_ns) = recording.span_ns.unwrap_or_default();
    let length_s = recording.seconds(end_ns);
    let end_s = selection.until_s.unwrap_or(length_s).min(length_s);
    let time = Axis {
        start: selection.since_s,
        end: end_s.max(selection.since_s + 1e-3),
        from: LEFT,
        to: LEFT + PLOT_WIDTH,
    };
    let (mut body, mut top) = (String::new(), TOP);
    for node in nodes {
        let panel = Panel::of(recording, node, time, top + PANEL_HEAD);
        panel.draw(&mut body, node.name);
        top = panel.bottom() + PANEL_FOOT;
    }
    let height = top + 10.0;
    let mut out = String::new();
    let _ = writeln!(
        out,
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">"#
    );
    // White whatever the viewer's background is.
    out.push_str("<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n");
    let _ = writeln!(
        out,
        r##"<text x="{LEFT}" y="26" fill="#222" font-size="16">Replies and their deadlines, {} of recording</text>"##,
        clock(length_s)
    );
    marks::legend(&mut out, LEFT, 48.0);
    out.push_str(&body);
    out.push_str("</svg>\n");
    out
}

/// What is drawn of a node.
struct Panel<'a> {
    time: Axis,
    share: Axis,
    /// Late ones last, so that they lie on top.
    points: Vec<(&'a ReplyRow, Mark)>,
    rows: Vec<(&'static str, Vec<Mark>)>,
    counts: String,
}

impl<'a> Panel<'a> {
    fn of(recording: &Recording, node: &NodeRecord<'a>, time: Axis, top: f64) -> Self {
        let share_of =
            |row: &ReplyRow| Some(row.total_ms / row.deadline_ms.filter(|_| row.slack_ms().is_some())?);
        let max_share = node.replies.iter().filter_map(|row| share_of(row)).fold(SHARES.0, f64::max);
        let share =
            Axis { start: 0.0, end: (max_share * 1.06).min(SHARES.1), from: top + PLOT_HEIGHT, to: top };
        let x_of = |log_ns: u64| time.place(recording.seconds(log_ns));
        let (mut points, mut refused, mut open) = (Vec::new(), Vec::new(), Vec::new());
        for &row in &node.replies {
            let x = x_of(row.times.log_ns);
            let mut mark = Mark::of(row, x);
            match share_of(row) {
                Some(taken) => {
                    mark.y = share.place(taken.min(share.end));
                    points.push((row, mark));
                }
                None if mark.shape == Shape::Tick => refused.push(mark),
                None => open.push(mark),
            }
        }
        points.sort_by_key(|(row, _)| row.is_late());
        let unanswered = node
            .asked
            .unanswered
            .iter()
            .map(|prompt| Mark::unanswered(x_of(prompt.times.log_ns), &prompt.request_id));
        let rows = [("refused", refused), ("no deadline", open), ("no reply", unanswered.collect())];
        let mut rows: Vec<(&'static str, Vec<Mark>)> =
            rows.into_iter().filter(|(_, marks)| !marks.is_empty()).collect();
        for (idx, (_, marks)) in rows.iter_mut().enumerate() {
            let y = top + PLOT_HEIGHT + ROWS_GAP + ROW_HEIGHT * (idx as f64 + 0.5);
            marks.iter_mut().for_each(|mark| mark.y = y);
        }
        let num_promised = points.iter().filter(|(row, _)| row.is_promised).count();
        let num_missed = points.iter().filter(|(row, _)| row.is_promised && row.is_late()).count();
        let counts =
            format!("{} replies, {num_promised} promised, {num_missed} of them missed", node.replies.len());
        Self { time, share, points, rows, counts }
    }

    fn bottom(&self) -> f64 {
        let rows = ROW_HEIGHT * self.rows.len() as f64;
        self.share.from + if rows > 0.0 { ROWS_GAP + rows } else { 0.0 }
    }

    fn draw(&self, out: &mut String, name: &str) {
        let Axis { from: bottom, to: top, .. } = self.share;
        let _ = writeln!(
            out,
            r##"<text x="{LEFT}" y="{:.1}" fill="#222" font-size="14" font-weight="bold">{}<tspan dx="12" fill="#555" font-size="12" font-weight="normal">{}</tspan></text>"##,
            top - 10.0,
            escape(name),
            self.counts
        );
        let deadline = self.share.place(1.0);
        let _ = writeln!(
            out,
            r##"<rect x="{LEFT}" y="{top:.1}" width="{PLOT_WIDTH}" height="{:.1}" fill="#fdf0ee"/>"##,
            deadline - top
        );
        self.grid(out);
        let _ = writeln!(
            out,
            r##"<line x1="{LEFT}" x2="{:.1}" y1="{deadline:.1}" y2="{deadline:.1}" stroke="#333" stroke-width="1.4"/>
<path d="M{LEFT},{top:.1} V{:.1} H{:.1}" fill="none" stroke="#888"/>
<text x="22" y="{:.1}" fill="#222" text-anchor="middle" transform="rotate(-90 22 {:.1})">time taken, share of the deadline</text>"##,
            LEFT + PLOT_WIDTH,
            self.bottom(),
            LEFT + PLOT_WIDTH,
            (top + bottom) / 2.0,
            (top + bottom) / 2.0
        );
        for (label, marks) in &self.rows {
            let y = marks.first().map_or(bottom, |mark| mark.y);
            let _ = writeln!(
                out,
                r##"<line x1="{LEFT}" x2="{:.1}" y1="{:.1}" y2="{:.1}" stroke="#d5d8dc"/><text x="{:.1}" y="{:.1}" fill="#444" text-anchor="end" font-size="11">{label}</text>"##,
                LEFT + PLOT_WIDTH,
                y - ROW_HEIGHT / 2.0,
                y - ROW_HEIGHT / 2.0,
                LEFT - 8.0,
                y + 4.0
            );
        }
        let points = self.points.iter().map(|(_, mark)| mark);
        marks::draw(out, points.chain(self.rows.iter().flat_map(|(_, marks)| marks)));
        self.labels(out);
    }

    fn grid(&self, out: &mut String) {
        let step = if self.share.end > 1.8 { 0.5 } else { 0.25 };
        let mut share = 0.0;
        while share <= self.share.end {
            let y = self.share.place(share);
            let _ = writeln!(
                out,
                r##"<line x1="{LEFT}" x2="{:.1}" y1="{y:.1}" y2="{y:.1}" stroke="#e3e5e8"/><text x="{:.1}" y="{:.1}" fill="#444" text-anchor="end">{:.0} %</text>"##,
                LEFT + PLOT_WIDTH,
                LEFT - 8.0,
                y + 4.0,
                share * 100.0
            );
            share += step;
        }
        for (at, label) in self.time.times() {
            let (x, bottom) = (self.time.place(at), self.bottom());
            let _ = writeln!(
                out,
                r##"<line x1="{x:.1}" x2="{x:.1}" y1="{bottom:.1}" y2="{:.1}" stroke="#888"/><text x="{x:.1}" y="{:.1}" fill="#444" text-anchor="middle">{label}</text>"##,
                bottom + 5.0,
                bottom + 19.0
            );
        }
    }

    /// Names the latest replies, where there is room beside the others.
    fn labels(&self, out: &mut String) {
        let mut late: Vec<&(&ReplyRow, Mark)> = self.points.iter().filter(|(row, _)| row.is_late()).collect();
        let slack = |row: &ReplyRow| row.slack_ms().unwrap_or_default();
        late.sort_by(|(a, _), (b, _)| b.is_promised.cmp(&a.is_promised).then(slack(a).total_cmp(&slack(b))));
        // Boxes where nothing more is written: of labels, and of the late marks themselves.
        let mut taken: Vec<Place> = late.iter().map(|point| Place::around(&point.1)).collect();
        let mut num_labels = 0;
        for (row, mark) in late.into_iter().take(MAX_CANDIDATES) {
            let deadline_ms = row.deadline_ms.unwrap_or_default();
            let text = format!("{}: {:.0} of {deadline_ms:.0} ms", row.request_id, row.total_ms);
            let width = LABEL.1 * text.chars().count() as f64;
            // To the left where the right has no room.
            let is_right = mark.x + 9.0 + width <= LEFT + PLOT_WIDTH;
            let start = if is_right { mark.x + 9.0 } else { mark.x - 9.0 - width };
            // Away from its own mark it keeps its distance, or it would seem to be another's.
            let (left, right) =
                if is_right { (start, start + width + 14.0) } else { (start - 14.0, start + width) };
            let place = Place { left, right, middle: mark.y - 5.0 };
            if num_labels < MAX_LABELS && start > LEFT && taken.iter().all(|other| !place.overlaps(other)) {
                num_labels += 1;
                taken.push(place);
                let colour = if row.is_promised { "#8c1d18" } else { "#8a4600" };
                let _ = writeln!(
                    out,
                    r##"<text x="{start:.1}" y="{:.1}" fill="{colour}" font-size="11" textLength="{width:.0}" lengthAdjust="spacingAndGlyphs">{}</text>"##,
                    mark.y - 1.0,
                    escape(&text)
                );
            }
        }
    }
}

/// A box as high as a label.
#[derive(Debug, Clone, Copy)]
struct Place {
    left: f64,
    right: f64,
    middle: f64,
}

impl Place {
    fn around(mark: &Mark) -> Self {
        Self { left: mark.x - 5.0, right: mark.x + 5.0, middle: mark.y }
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.left < other.right && other.left < self.right && (self.middle - other.middle).abs() < LABEL.0
    }
}

fn escape(text: &str) -> String {
    let escaped = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;");
    // Names may hold what XML may not.
    escaped.chars().filter(|c| !c.is_control()).collect()
}
