//! What perception noticed, in figures.

use std::time::Duration;

use serde::Serialize;
use takt_engine::backend::Multiprocessors;

use super::{Mode, Place, chain::Frames};
use crate::demo::percentile;

/// A frame's p99 beside the model may be so many times its p99 alone.
pub const MAX_P99: f64 = 1.05;
/// The model keeps so much of its tokens a second.
pub const MIN_KEPT: f64 = 0.8;

/// What holds for all rows.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The device.
    pub device: String,
    /// The model.
    pub model: String,
    /// Links of a frame's chain.
    pub num_links: u32,
    /// What a frame took when its length was chosen.
    pub frame: Duration,
    /// How long the model slept after each step.
    pub idle_gap: Duration,
    /// Percent of the multiprocessors that a green context was asked for.
    pub sm_share_percent: u8,
    /// Rounds.
    pub num_rounds: usize,
    /// Length of each rate in a round.
    pub length: Duration,
}

/// The model with no frames beside it, and without gaps.
#[derive(Debug, Clone)]
pub struct Alone {
    /// How the GPU is shared with nobody, as it was asked for.
    pub mode: Mode,
    /// Tokens a second.
    pub tok_s: f64,
    /// The kernels, in words.
    pub kernels: String,
    /// That the context really has.
    pub multiprocessors: Option<Multiprocessors>,
}

/// What was measured of one mode, place and rate, over all rounds.
#[derive(Debug, Clone)]
pub struct Row {
    /// How the GPU was shared.
    pub mode: Mode,
    /// Where frames were computed.
    pub place: Place,
    /// Frames a second.
    pub hz: u32,
    frames: Frames,
    tok_s: Vec<f64>,
}

impl Alone {
    /// What was really opened: a green context that could not be had, or one of the whole device, which keeps nothing free for others, is a
    /// stream of low priority.
    fn share(&self) -> Mode {
        let is_part = self.multiprocessors.is_some_and(|found| found.used < found.all);
        if self.mode == Mode::GreenContext && !is_part { Mode::Priority } else { self.mode }
    }
}

impl Row {
    /// Of nothing yet.
    #[must_use]
    pub fn new(mode: Mode, place: Place, hz: u32) -> Self {
        Self { mode, place, hz, frames: Frames::default(), tok_s: Vec::new() }
    }

    /// Adds a round's frames, and the tokens a second of the model beside them.
    pub fn add(&mut self, frames: Frames, tok_s: Option<f64>) {
        self.frames.times.extend(frames.times);
        self.frames.num_missed += frames.num_missed;
        self.tok_s.extend(tok_s);
    }

    fn within_ms(&self, share: f64) -> f64 {
        percentile(&self.frames.times, share).as_secs_f64() * 1e3
    }
}

/// Everything, as `--json` prints it.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The device.
    pub device: String,
    /// The model.
    pub model: String,
    /// A frame: links of its chain, and what it took when its length was chosen.
    pub frame: FrameFacts,
    /// How long the model slept after each step beside frames.
    pub idle_gap_us: u64,
    /// Percent of the multiprocessors that a green context was asked for.
    pub sm_share_percent: u8,
    /// Times every row was measured.
    pub rounds: usize,
    /// How long, each time.
    pub seconds: f64,
    /// The model's speed with no frames beside it and without gaps, mode by mode.
    pub model_alone: Vec<ModelRow>,
    /// The mode whose speed alone every `kept` is held against: `none`, or the first measured where that was left out.
    pub kept_against: Option<&'static str>,
    /// By place, rate and mode.
    pub rows: Vec<RowReport>,
}

/// A frame.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct FrameFacts {
    /// A convolution and a product each.
    pub links: u32,
    /// With nobody else at work.
    pub alone_ms: f64,
}

/// The model with no frames beside it, and without gaps.
#[derive(Debug, Clone, Serialize)]
pub struct ModelRow {
    /// Name of the mode.
    pub mode: &'static str,
    /// Tokens a second.
    pub tok_s: f64,
    /// Kernels and multiprocessors.
    pub kernels: String,
}

/// One row.
#[derive(Debug, Clone, Serialize)]
pub struct RowReport {
    /// Name of the mode that was asked for.
    pub mode: &'static str,
    /// Name of the mode that was really got, in any of the rounds.
    pub share: &'static str,
    /// That the model's kernels ran on.
    pub multiprocessors: Option<Multiprocessors>,
    /// Name of the place.
    pub place: &'static str,
    /// Frames a second.
    pub hz: u32,
    /// Frames measured.
    pub frames: usize,
    /// Beats at which the frame before was not done.
    pub missed: usize,
    /// Milliseconds from launch to done.
    pub frame_ms: FrameMs,
    /// p99 over that of the frame alone at the same place and rate.
    pub p99_over_alone: Option<f64>,
    /// The model's tokens a second meanwhile.
    pub tok_s: Option<f64>,
    /// Over those it makes with no frames beside it, without gaps and in the mode that the report's `kept_against` names: what a gap costs is
    /// in it.
    pub kept: Option<f64>,
    /// Whether p99 is at most 1.05 of that alone while the model keeps 80 %.
    pub meets_goal: Option<bool>,
    /// Why the goal does not hold for this row.
    pub not_judged: Option<String>,
}

impl RowReport {
    /// The mode that was asked for, with a star where it could not be had.
    #[must_use]
    pub fn mode_text(&self) -> String {
        format!("{}{}", self.mode, if self.not_judged.is_some() { "*" } else { "" })
    }
}

/// Percentiles of frame times.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct FrameMs {
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99.9th percentile.
    pub p99_9: f64,
    /// Largest.
    pub max: f64,
}

impl Report {
    /// Of all that was measured.
    #[must_use]
    pub fn of(facts: &Facts, mut rows: Vec<Row>, alone: Vec<Alone>) -> Self {
        rows.sort_by_key(|row| (row.place as u8, row.hz, row.mode as u8));
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
        let of_mode = |mode: Mode| {
            let found: Vec<f64> = alone.iter().filter(|one| one.mode == mode).map(|one| one.tok_s).collect();
            (!found.is_empty()).then(|| mean(&found))
        };
        // Standing alone is standing on the whole device; without that mode, the first that was measured must do.
        let has_none = alone.iter().any(|one| one.mode == Mode::None);
        let kept_against = if has_none { Some(Mode::None) } else { alone.first().map(|one| one.mode) };
        let standalone = kept_against.and_then(of_mode);
        // One round without what was asked for is enough to say so.
        let got_of = |mode: Mode| {
            let of_mode = || alone.iter().filter(move |one| one.mode == mode);
            of_mode().find(|one| one.share() != mode).or_else(|| of_mode().next())
        };
        let modes = Mode::SHARED.into_iter().filter_map(|mode| {
            let kernels = got_of(mode)?.kernels.clone();
            Some(ModelRow { mode: mode.name(), tok_s: of_mode(mode)?, kernels })
        });
        let p99_alone = |row: &Row| {
            let same = |other: &&Row| (other.mode, other.place, other.hz) == (Mode::Alone, row.place, row.hz);
            rows.iter().find(same).filter(|_| row.mode != Mode::Alone).map(|alone| alone.within_ms(0.99))
        };
        let reports = rows.iter().map(|row| {
            let p99 = row.within_ms(0.99);
            let p99_over_alone = p99_alone(row).filter(|alone| *alone > 0.0).map(|alone| p99 / alone);
            let tok_s = (!row.tok_s.is_empty()).then(|| mean(&row.tok_s));
            let kept = tok_s.zip(standalone).filter(|(_, all)| *all > 0.0).map(|(tok_s, all)| tok_s / all);
            let got = got_of(row.mode);
            let share = got.map_or(row.mode, Alone::share);
            let not_judged = (share != row.mode).then(|| {
                let kernels = got.map_or("", |got| got.kernels.as_str());
                format!(
                    "no {} of a part of the device was got, but {} ({kernels})",
                    row.mode.name(),
                    share.name()
                )
            });
            let meets_goal = p99_over_alone.zip(kept).map(|(p99, kept)| p99 <= MAX_P99 && kept >= MIN_KEPT);
            RowReport {
                mode: row.mode.name(),
                share: share.name(),
                multiprocessors: got.and_then(|got| got.multiprocessors),
                place: row.place.name(),
                hz: row.hz,
                frames: row.frames.times.len(),
                missed: row.frames.num_missed,
                frame_ms: FrameMs {
                    p50: row.within_ms(0.5),
                    p99,
                    p99_9: row.within_ms(0.999),
                    max: row.within_ms(1.0),
                },
                p99_over_alone,
                tok_s,
                kept,
                meets_goal: meets_goal.filter(|_| not_judged.is_none()),
                not_judged,
            }
        });
        Self {
            device: facts.device.clone(),
            model: facts.model.clone(),
            frame: FrameFacts { links: facts.num_links, alone_ms: facts.frame.as_secs_f64() * 1e3 },
            idle_gap_us: u64::try_from(facts.idle_gap.as_micros()).unwrap_or(u64::MAX),
            sm_share_percent: facts.sm_share_percent,
            rounds: facts.num_rounds,
            seconds: facts.length.as_secs_f64(),
            model_alone: modes.collect(),
            kept_against: kept_against.map(Mode::name),
            rows: reports.collect(),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn row(mode: Mode, hz: u32, times_ms: &[u64], tok_s: Option<f64>) -> Row {
        let mut row = Row::new(mode, Place::InProcess, hz);
        let times = times_ms.iter().map(|&ms| Duration::from_millis(ms)).collect();
        row.add(Frames { times, num_missed: 1 }, tok_s);
        row
    }

    fn facts() -> Facts {
        Facts {
            device: "a <GPU>".into(),
            model: "a model".into(),
            num_links: 7,
            frame: Duration::from_millis(3),
            idle_gap: Duration::from_micros(200),
            sm_share_percent: 40,
            num_rounds: 2,
            length: Duration::from_secs(5),
        }
    }

    fn alone(mode: Mode, tok_s: f64, num_sms: u32) -> Alone {
        Alone {
            mode,
            tok_s,
            kernels: format!("sm_87, {num_sms} of 16 multiprocessors"),
            multiprocessors: Some(Multiprocessors { used: num_sms, all: 16 }),
        }
    }

    pub fn example() -> Report {
        let mut both = row(Mode::None, 30, &[20, 40], Some(90.0));
        both.add(Frames { times: vec![Duration::from_millis(30)], num_missed: 0 }, Some(70.0));
        let rows = vec![
            row(Mode::GreenContext, 30, &[20, 21], Some(85.0)),
            both,
            row(Mode::Alone, 30, &[20, 20], None),
            row(Mode::Alone, 100, &[2], None),
        ];
        Report::of(
            &facts(),
            rows,
            vec![
                alone(Mode::GreenContext, 95.0, 8),
                alone(Mode::None, 90.0, 16),
                alone(Mode::None, 110.0, 16),
            ],
        )
    }

    #[test]
    fn a_green_context_that_could_not_be_had_in_some_round_is_said_and_not_judged() {
        let rows = || {
            vec![row(Mode::Alone, 30, &[20, 20], None), row(Mode::GreenContext, 30, &[20, 20], Some(85.0))]
        };
        let fell_back = vec![alone(Mode::GreenContext, 100.0, 8), alone(Mode::GreenContext, 100.0, 16)];
        let report = Report::of(&facts(), rows(), fell_back);
        assert_eq!(report.kept_against, Some("green_context"), "there is nothing else");
        let green = &report.rows[1];
        assert_eq!((green.mode, green.share, green.meets_goal), ("green_context", "priority", None));
        assert_eq!(green.multiprocessors, Some(Multiprocessors { used: 16, all: 16 }));
        assert!(green.not_judged.as_deref().unwrap().contains("16 of 16"), "{green:?}");
        assert_eq!(green.mode_text(), "green_context*");

        let report = Report::of(&facts(), rows(), vec![alone(Mode::GreenContext, 100.0, 8)]);
        let green = &report.rows[1];
        assert_eq!((green.share, green.meets_goal, &green.not_judged), ("green_context", Some(true), &None));
    }

    #[test]
    fn a_mode_is_held_against_the_frame_and_the_model_alone() {
        let report = example();
        let of: Vec<_> = report.rows.iter().map(|row| (row.hz, row.mode)).collect();
        assert_eq!(of, [(30, "alone"), (30, "none"), (30, "green_context"), (100, "alone")]);
        let [alone, none, green, _] = &report.rows[..] else { panic!("{report:?}") };
        assert_eq!((alone.p99_over_alone, alone.kept, alone.meets_goal), (None, None, None));
        assert_eq!((none.frames, none.missed, none.frame_ms.max), (3, 1, 40.0));
        assert_eq!((none.p99_over_alone, none.tok_s, none.kept), (Some(2.0), Some(80.0), Some(0.8)));
        assert_eq!(none.meets_goal, Some(false), "the frame takes twice as long");
        assert_eq!(
            (green.p99_over_alone, green.kept, green.meets_goal),
            (Some(1.05), Some(0.85), Some(true))
        );
        assert_eq!((report.kept_against, none.share), (Some("none"), "none"));
        assert_eq!(green.multiprocessors, Some(Multiprocessors { used: 8, all: 16 }));
        assert_eq!(report.model_alone.iter().map(|row| row.tok_s).collect::<Vec<_>>(), [100.0, 95.0]);
    }
}
