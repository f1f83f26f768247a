//! What perception notices of the language model on the same GPU, and what is left of the model's speed: a chain of convolutions and matrix
//! products at a camera's rates, alone and beside a model that decodes all the time, in every way of sharing.
//!
//! | module | concept |
//! |---|---|
//! | [`chain`] | a frame's work, and frames at a rate |
//! | [`process`] | the same in a second process |
//! | [`language`] | the model beside it |
//! | [`report`], [`plot`] | what came of it, in figures and as a picture |

pub mod chain;
pub mod language;
pub mod plot;
pub mod process;
pub mod report;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use takt_engine::{
    EngineError, EngineOptions,
    backend::{Capabilities, cuda::GpuShare},
};

use super::device;
use chain::{Chain, Frames};
use language::{Model, Speaker};
use process::{Program, SecondProcess};
use report::{Alone, Report, Row};

/// Between two looks whether to go on.
const LOOK: Duration = Duration::from_millis(50);

/// How the GPU is shared while frames are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The model does not run.
    Alone,
    /// On an ordinary stream, on all multiprocessors.
    None,
    /// On a stream of the lowest priority.
    Priority,
    /// In a green context.
    GreenContext,
}

impl Mode {
    /// Those in which the model runs.
    pub const SHARED: [Self; 3] = [Self::None, Self::Priority, Self::GreenContext];

    /// As the configuration's `share` names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Alone => "alone",
            Self::None => "none",
            Self::Priority => "priority",
            Self::GreenContext => "green_context",
        }
    }

    fn share(self, percent: u8) -> Option<GpuShare> {
        match self {
            Self::Alone => None,
            Self::None => Some(GpuShare::None),
            Self::Priority => Some(GpuShare::Priority),
            Self::GreenContext => Some(GpuShare::GreenContext { percent }),
        }
    }
}

impl std::str::FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::SHARED.into_iter().find(|mode| mode.name() == text);
        found.ok_or_else(|| format!("unknown mode {text:?}: expected none, priority or green_context"))
    }
}

/// Where frames are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the model's process, in the context that the CUDA runtime would use.
    InProcess,
    /// In a process of their own.
    SecondProcess,
}

impl Place {
    /// Both.
    pub const ALL: [Self; 2] = [Self::InProcess, Self::SecondProcess];

    /// As reports name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::InProcess => "in-process",
            Self::SecondProcess => "second-process",
        }
    }
}

impl std::str::FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|place| place.name() == text);
        found.ok_or_else(|| format!("unknown place {text:?}: expected in-process or second-process"))
    }
}

/// What is measured.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The model.
    pub model: Model,
    /// How it is opened; the share is each mode's.
    pub options: EngineOptions,
    /// Percent of the multiprocessors of a green context.
    pub sm_share_percent: u8,
    /// How long the model sleeps after each step.
    pub idle_gap: Duration,
    /// Modes beside [`Mode::Alone`].
    pub modes: Vec<Mode>,
    /// Places.
    pub places: Vec<Place>,
    /// Frames a second.
    pub rates_hz: Vec<u32>,
    /// What a frame takes alone.
    pub frame: Duration,
    /// How long each rate is measured in each round.
    pub length: Duration,
    /// Times all modes are measured, each time in another order.
    pub num_rounds: usize,
    /// How the second process is started.
    pub program: Program,
}

/// Measures everything; `on_step` hears what comes next and the share that is done. Stops early when `cancelled`.
///
/// # Errors
/// [`EngineError::Unsupported`] without a GPU, [`EngineError::Backend`] when the device or the second process fails, those of opening the
/// model, [`EngineError::Interrupted`] when `cancelled`.
pub fn measure(
    settings: &Settings,
    cancelled: &AtomicBool,
    mut on_step: impl FnMut(&str, f64),
) -> Result<Report, EngineError> {
    on_step("the frame's length", 0.0);
    let device = device()?;
    let mut chain = Chain::open(&settings.options.gpu)?;
    let frame = chain.calibrate(settings.frame)?;
    let second = settings.places.contains(&Place::SecondProcess);
    let second = second.then(|| SecondProcess::start(&settings.program, chain.num_links())).transpose()?;
    let mut bench = Bench { settings, chain, second, rows: Vec::new(), alone: Vec::new(), cancelled };
    let modes: Vec<Mode> = std::iter::once(Mode::Alone).chain(settings.modes.iter().copied()).collect();
    let num_steps = settings.num_rounds * modes.len();
    for round in 0..settings.num_rounds {
        for place in 0..modes.len() {
            // Another one first in every round: what warms up or cools down meets all of them.
            let mode = modes[(place + round) % modes.len()];
            let done = (round * modes.len() + place) as f64 / num_steps.max(1) as f64;
            on_step(&format!("round {} of {}: {}", round + 1, settings.num_rounds, mode.name()), done);
            bench.mode(mode)?;
        }
    }
    let Bench { chain, rows, alone, .. } = bench;
    let facts = report::Facts {
        device: device.key(),
        model: settings.model.name(),
        num_links: chain.num_links(),
        frame,
        idle_gap: settings.idle_gap,
        sm_share_percent: settings.sm_share_percent,
        num_rounds: settings.num_rounds,
        length: settings.length,
    };
    Ok(Report::of(&facts, rows, alone))
}

struct Bench<'a> {
    settings: &'a Settings,
    chain: Chain,
    second: Option<SecondProcess>,
    rows: Vec<Row>,
    alone: Vec<Alone>,
    cancelled: &'a AtomicBool,
}

impl Bench<'_> {
    /// Everything of a mode, with the model opened for it and closed again.
    fn mode(&mut self, mode: Mode) -> Result<(), EngineError> {
        let settings = self.settings;
        let share = mode.share(settings.sm_share_percent);
        let open = |share| Speaker::open(&settings.model, &settings.options, share, settings.idle_gap);
        let mut speaker = share.map(open).transpose()?;
        if let Some(speaker) = &mut speaker {
            self.check_goes_on()?;
            // Without gaps: what they cost is part of what the model gives up for its neighbours.
            speaker.set_idle_gap(Duration::ZERO);
            let (tok_s, ()) = speaker.speak(|| {
                sleep_unless(self.cancelled, settings.length);
                Ok(())
            })?;
            speaker.set_idle_gap(settings.idle_gap);
            let Capabilities { kernels, multiprocessors, .. } = speaker.capabilities();
            self.alone.push(Alone {
                mode,
                tok_s,
                kernels: kernels.clone(),
                multiprocessors: *multiprocessors,
            });
        }
        for &place in &settings.places {
            for &hz in &settings.rates_hz {
                self.check_goes_on()?;
                let (tok_s, frames) = match &mut speaker {
                    None => (None, self.frames(place, hz)?),
                    Some(speaker) => {
                        let (tok_s, frames) = speaker.speak(|| self.frames(place, hz))?;
                        (Some(tok_s), frames)
                    }
                };
                self.row(mode, place, hz).add(frames, tok_s);
            }
        }
        Ok(())
    }

    fn frames(&mut self, place: Place, hz: u32) -> Result<Frames, EngineError> {
        let length = self.settings.length;
        match (place, &mut self.second) {
            (Place::SecondProcess, Some(second)) => second.run(hz, length, self.cancelled),
            (Place::SecondProcess, None) => Err(EngineError::Backend("no second process was started".into())),
            (Place::InProcess, _) => self.chain.run(hz, length, self.cancelled),
        }
    }

    fn row(&mut self, mode: Mode, place: Place, hz: u32) -> &mut Row {
        let is_it = |row: &Row| (row.mode, row.place, row.hz) == (mode, place, hz);
        let idx = self.rows.iter().position(is_it).unwrap_or_else(|| {
            self.rows.push(Row::new(mode, place, hz));
            self.rows.len() - 1
        });
        &mut self.rows[idx]
    }

    fn check_goes_on(&self) -> Result<(), EngineError> {
        if self.cancelled.load(Ordering::Relaxed) { Err(EngineError::Interrupted) } else { Ok(()) }
    }
}

/// Sleeps for `length`; ends within [`LOOK`] of being cancelled.
fn sleep_unless(cancelled: &AtomicBool, length: Duration) {
    let started = Instant::now();
    while !cancelled.load(Ordering::Relaxed) {
        let left = length.saturating_sub(started.elapsed());
        if left.is_zero() {
            return;
        }
        thread::sleep(left.min(LOOK));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_cancelled_sleeps_no_longer() {
        // Years of sleep: this test ends only because of the flag.
        sleep_unless(&AtomicBool::new(true), Duration::MAX);
        let cancelled = AtomicBool::new(false);
        thread::scope(|scope| {
            let sleeping = scope.spawn(|| sleep_unless(&cancelled, Duration::MAX));
            cancelled.store(true, Ordering::Relaxed);
            sleeping.join().unwrap();
        });
    }
}
