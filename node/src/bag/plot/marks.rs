//! Marks: a reply's colour says its class, its shape how it ended.

use std::{collections::HashSet, fmt::Write as _};

use super::{super::row::ReplyRow, escape};
use crate::{request::Status, scheduler::class::Class};

/// Marks that would lie on each other are drawn once: so far apart are those that do not.
const CELL: f64 = 1.5;
const MISSED: &str = "#c5221f";
const LATE: &str = "#e37400";

/// What is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Shape {
    /// A whole answer.
    Disc,
    /// An answer that the deadline ended.
    Ring,
    /// Failed.
    Cross,
    /// Cancelled.
    Diamond,
    /// Refused.
    Tick,
    /// After its deadline.
    Late,
}

/// A mark.
#[derive(Debug, Clone, PartialEq)]
pub struct Mark {
    /// Across the paper.
    pub x: f64,
    /// Down the paper.
    pub y: f64,
    /// Its shape.
    pub shape: Shape,
    colour: &'static str,
    tip: String,
}

impl Mark {
    /// The mark of a reply, at the upper edge.
    pub fn of(row: &ReplyRow, x: f64) -> Self {
        let shape = match row.status {
            _ if row.is_late() => Shape::Late,
            Status::Complete => Shape::Disc,
            Status::TruncatedAtDeadline | Status::ClosedAtDeadline => Shape::Ring,
            Status::Rejected => Shape::Tick,
            Status::Cancelled => Shape::Diamond,
            Status::Failed => Shape::Cross,
        };
        let colour = match (row.is_late(), row.is_promised) {
            (true, true) => MISSED,
            (true, false) => LATE,
            _ => colour(row.class),
        };
        let deadline = row.deadline_ms.map(|ms| format!(" of {ms:.1}")).unwrap_or_default();
        let tip = format!("{}: {:.1}{deadline} ms, {}", row.request_id, row.total_ms, row.status.name());
        Self { x, y: 0.0, shape, colour, tip }
    }

    /// The mark of a prompt without a reply.
    pub fn unanswered(x: f64, request_id: &str) -> Self {
        Self { x, y: 0.0, shape: Shape::Cross, colour: MISSED, tip: format!("{request_id}: no reply") }
    }

    fn draw(&self, out: &mut String) {
        let Self { x, y, colour, .. } = self;
        let _ = match self.shape {
            Shape::Disc => {
                write!(out, r#"<circle cx="{x:.1}" cy="{y:.1}" r="2.8" fill="{colour}" fill-opacity="0.75""#)
            }
            Shape::Ring => write!(
                out,
                r##"<circle cx="{x:.1}" cy="{y:.1}" r="3.2" fill="#ffffff" stroke="{colour}" stroke-width="1.4""##
            ),
            Shape::Late => write!(
                out,
                r##"<circle cx="{x:.1}" cy="{y:.1}" r="4.6" fill="{colour}" stroke="#ffffff" stroke-width="1""##
            ),
            Shape::Cross => write!(
                out,
                r#"<path d="M{:.1},{:.1} l7,7 m0,-7 l-7,7" stroke="{colour}" stroke-width="2" fill="none""#,
                x - 3.5,
                y - 3.5
            ),
            Shape::Diamond => write!(
                out,
                r##"<path d="M{x:.1},{:.1} l4,4 l-4,4 l-4,-4 z" stroke="{colour}" fill="#ffffff" stroke-width="1.2""##,
                y - 4.0
            ),
            Shape::Tick => write!(
                out,
                r#"<path d="M{x:.1},{:.1} v10" stroke="{colour}" stroke-width="1.6" fill="none""#,
                y - 5.0
            ),
        };
    }
}

fn colour(class: Class) -> &'static str {
    match class {
        Class::Control => "#1f5fbf",
        Class::Interactive => "#2f8f5b",
        Class::Background => "#8a6d3b",
    }
}

/// Draws marks, the last on top; of those that lie on each other one.
pub fn draw<'a>(out: &mut String, marks: impl Iterator<Item = &'a Mark>) {
    let cell = |at: f64| (at / CELL).round() as i64; // on the paper
    let mut drawn = HashSet::new();
    for mark in marks {
        if drawn.insert((cell(mark.x), cell(mark.y), mark.shape, mark.colour)) {
            mark.draw(out);
            let _ = match mark.shape {
                Shape::Late | Shape::Cross => {
                    writeln!(out, "><title>{}</title>{}", escape(&mark.tip), close(mark.shape))
                }
                _ => writeln!(out, "/>"),
            };
        }
    }
}

fn close(shape: Shape) -> &'static str {
    if shape == Shape::Cross { "</path>" } else { "</circle>" }
}

/// What marks mean, in a line.
pub fn legend(out: &mut String, left: f64, y: f64) {
    let control = colour(Class::Control);
    let entries = [
        (Shape::Disc, control, "control"),
        (Shape::Disc, colour(Class::Interactive), "interactive"),
        (Shape::Disc, colour(Class::Background), "background"),
        (Shape::Ring, "#555555", "ended by the deadline"),
        (Shape::Late, MISSED, "promise missed"),
        (Shape::Late, LATE, "late, not promised"),
        (Shape::Diamond, "#555555", "cancelled"),
        (Shape::Cross, "#555555", "failed"),
        (Shape::Tick, "#555555", "refused"),
    ];
    let mut x = left + 5.0;
    for (shape, colour, label) in entries {
        Mark { x, y, shape, colour, tip: String::new() }.draw(out);
        let _ =
            writeln!(out, r##"/><text x="{:.1}" y="{:.1}" fill="#222">{label}</text>"##, x + 10.0, y + 4.0);
        x += 32.0 + 6.4 * label.len() as f64;
    }
}
