//! The language model beside perception: decodes one token after another for as long as it is told.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use takt_engine::{
    Engine, EngineError, EngineOptions,
    backend::{Backend, Capabilities, cuda::GpuShare},
    dir::Manifest,
    engine::open_weights,
    kv::LaneId,
    quant::WeightKind,
    shapes::{RandomWeights, decoder_spec},
};

use crate::bench::{decode, prefill};

const LANE: LaneId = LaneId(0);
/// Tokens the model has read before it decodes; it goes back there when its lane is full.
const PROMPT_LEN: usize = 32;
/// Tokens of the lane.
const LANE_CAPACITY: usize = 512;
/// Steps before those that count.
const NUM_WARM: usize = 8;
/// How long it decodes before anything beside it counts.
const LEAD: Duration = Duration::from_millis(200);
/// Between two looks for a token that is waited for.
const LOOK: Duration = Duration::from_millis(1);

/// Which model.
#[derive(Debug, Clone)]
pub enum Model {
    /// An engine directory.
    Engine(PathBuf),
    /// Random weights of a known shape, and their formats.
    Shape {
        /// Its name.
        name: String,
        /// Format of the layers.
        weights: WeightKind,
        /// Format of the output head.
        lm_head: WeightKind,
    },
}

impl Model {
    /// For people.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Engine(dir) => dir.display().to_string(),
            Self::Shape { name, weights, .. } => format!("{name}, random {weights} weights"),
        }
    }
}

/// An open model that decodes.
pub struct Speaker {
    backend: Box<dyn Backend>,
    prompt_len: usize,
    idle_gap: Duration,
}

impl std::fmt::Debug for Speaker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Speaker").field("facts", self.backend.capabilities()).finish_non_exhaustive()
    }
}

impl Speaker {
    /// Opens `model` with the GPU shared as `share` says; it sleeps for `idle_gap` after every step.
    ///
    /// # Errors
    /// Those of [`Engine::open`].
    pub fn open(
        model: &Model,
        options: &EngineOptions,
        share: GpuShare,
        idle_gap: Duration,
    ) -> Result<Self, EngineError> {
        let mut options = options.clone();
        options.gpu.share = share;
        // Decoding alone: fewer shapes of steps are captured.
        (options.num_lanes, options.max_step_tokens, options.speculation) = (1, PROMPT_LEN, false);
        options.lane_capacity = Some(LANE_CAPACITY);
        let backend = match model {
            Model::Engine(dir) => {
                let max_context = Manifest::read(dir).map(|found| found.spec.max_context);
                options.lane_capacity = Some(LANE_CAPACITY.min(max_context.unwrap_or(LANE_CAPACITY)));
                Engine::open(dir, &options)?.backend
            }
            Model::Shape { name, weights, lm_head } => {
                let spec = decoder_spec(name)?;
                let source = RandomWeights::new(&spec, *weights, *lm_head, 1)?;
                open_weights(&spec, &source, &options)?
            }
        };
        let prompt_len = PROMPT_LEN.min(backend.capabilities().lane_capacity / 2).max(1);
        let mut speaker = Self { backend, prompt_len, idle_gap };
        prefill(speaker.backend.as_mut(), prompt_len, 1)?;
        speaker.say(NUM_WARM)?;
        Ok(speaker)
    }

    /// Another length of sleep after every step.
    pub fn set_idle_gap(&mut self, idle_gap: Duration) {
        self.idle_gap = idle_gap;
    }

    /// The kernels in use, the multiprocessors they may run on, and so on.
    #[must_use]
    pub fn capabilities(&self) -> &Capabilities {
        self.backend.capabilities()
    }

    /// Tokens a second while `beside` runs, and what that returns. Decoding began before and goes on until after it.
    ///
    /// # Errors
    /// Whatever the backend reports, or `beside`.
    pub fn speak<R: Send>(
        &mut self,
        beside: impl FnOnce() -> Result<R, EngineError> + Send,
    ) -> Result<(f64, R), EngineError> {
        let (stop, num_tokens) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            let (stop, num_tokens) = (&stop, &num_tokens);
            let speaking = scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    self.say(1)?;
                    num_tokens.fetch_add(1, Ordering::Relaxed);
                }
                Ok::<_, EngineError>(())
            });
            thread::sleep(LEAD);
            let (started, before) = (Instant::now(), num_tokens.load(Ordering::Relaxed));
            let found = beside();
            // A window in which no token came would be one without a speed.
            while num_tokens.load(Ordering::Relaxed) == before && !speaking.is_finished() {
                thread::sleep(LOOK);
            }
            let (took, after) = (started.elapsed(), num_tokens.load(Ordering::Relaxed));
            stop.store(true, Ordering::Relaxed);
            let spoken =
                speaking.join().unwrap_or_else(|_| Err(EngineError::Backend("the model panicked".into())));
            spoken?;
            Ok(((after - before) as f64 / took.as_secs_f64().max(1e-9), found?))
        })
    }

    fn say(&mut self, num_tokens: usize) -> Result<(), EngineError> {
        for _ in 0..num_tokens {
            if self.backend.committed_len(LANE) >= self.backend.capabilities().lane_capacity {
                self.backend.truncate(LANE, self.prompt_len)?;
            }
            decode(self.backend.as_mut(), 1)?;
            if !self.idle_gap.is_zero() {
                thread::sleep(self.idle_gap);
            }
        }
        Ok(())
    }
}
