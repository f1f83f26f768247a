//! Prefill, decode and memory reading, timed.

use std::{
    hint::black_box,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use takt_engine::{
    EngineError, TokenId,
    backend::{
        Backend,
        cpu::{ThreadPool, kernels::ReadProbe},
    },
    kv::LaneId,
    sampler::{Sampler, SamplerState, SamplingParams},
    step::{Detail, LogitsWanted, StepOutput, StepPlan},
};

use crate::demo::percentile;

/// Prompts read; the median counts.
pub const NUM_PREFILLS: usize = 3;
/// Decode steps before those that count.
pub const NUM_WARM_STEPS: usize = 4;
/// Bytes of the read probe: far beyond last-level caches of embedded processors and of most servers.
const PROBE_BYTES: usize = 256 << 20;
/// Reads of the probe; the best counts, since other processes can only slow it down.
const NUM_PROBE_READS: usize = 5;

/// Reading a prompt.
#[derive(Debug, Clone, Copy)]
pub struct Prefill {
    /// Tokens of the prompt.
    pub prompt_len: usize,
    /// Median of the repetitions: start to the first token chosen.
    pub ttft: Duration,
}

impl Prefill {
    /// Prompt tokens a second.
    #[must_use]
    pub fn tok_s(&self) -> f64 {
        self.prompt_len as f64 / self.ttft.as_secs_f64()
    }
}

/// One token after another.
#[derive(Debug, Clone)]
pub struct Decode {
    /// Time of each step.
    pub steps: Vec<Duration>,
}

impl Decode {
    /// Tokens a second.
    #[must_use]
    pub fn tok_s(&self) -> f64 {
        self.steps.len() as f64 / self.steps.iter().sum::<Duration>().as_secs_f64()
    }

    /// Step time that `share` (0 to 1) of the steps stay within.
    #[must_use]
    pub fn itl(&self, share: f64) -> Duration {
        percentile(&self.steps, share)
    }
}

/// A long run in windows of equal length: falling numbers show throttling.
#[derive(Debug, Clone)]
pub struct Sustained {
    /// In order of time.
    pub windows: Vec<Window>,
}

/// One window of a long run.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// End of the window since the start.
    pub until: Duration,
    /// Tokens a second in it.
    pub tok_s: f64,
    /// Slowest step in it.
    pub max_itl: Duration,
}

/// Reads a prompt of `prompt_len` tokens `repetitions` times; the last one stays in lane 0.
///
/// # Errors
/// Whatever the backend reports.
pub fn prefill(
    backend: &mut dyn Backend,
    prompt_len: usize,
    repetitions: usize,
) -> Result<Prefill, EngineError> {
    let (lane, slice_len) = (LaneId(0), backend.capabilities().max_step_tokens);
    let prompt = tokens(backend, prompt_len);
    let mut plan = StepPlan::with_capacity(slice_len, 1);
    let mut times = Vec::with_capacity(repetitions);
    for _ in 0..repetitions.max(1) {
        backend.truncate(lane, 0)?;
        let started = Instant::now();
        for slice_start in (0..prompt_len).step_by(slice_len) {
            let slice_end = prompt_len.min(slice_start + slice_len);
            let wanted = if slice_end == prompt_len { LogitsWanted::Last } else { LogitsWanted::None };
            plan.clear();
            plan.push(lane, &prompt[slice_start..slice_end], wanted);
            plan.last_needs(Detail::Chosen(SamplerState::default()));
            let mut output = backend.run_step(&plan)?;
            if wanted == LogitsWanted::Last {
                black_box(likeliest(&mut output)?);
            }
        }
        times.push(started.elapsed());
    }
    Ok(Prefill { prompt_len, ttft: percentile(&times, 0.5) })
}

/// Decodes `num_tokens` tokens greedily after what lane 0 holds.
///
/// # Errors
/// Whatever the backend reports.
pub fn decode(backend: &mut dyn Backend, num_tokens: usize) -> Result<Decode, EngineError> {
    let mut plan = StepPlan::with_capacity(1, 1);
    let (mut next, mut steps) = (0, Vec::with_capacity(num_tokens));
    for _ in 0..num_tokens {
        let started = Instant::now();
        next = step(backend, &mut plan, next)?;
        steps.push(started.elapsed());
    }
    Ok(Decode { steps })
}

/// Decodes for `length`, falling back to a context of `base_len` whenever the lane is full; stops early when `cancelled`.
///
/// # Errors
/// Whatever the backend reports.
pub fn sustain(
    backend: &mut dyn Backend,
    base_len: usize,
    length: Duration,
    cancelled: &AtomicBool,
    on_window: &mut dyn FnMut(&Window),
) -> Result<Sustained, EngineError> {
    let (lane, capacity) = (LaneId(0), backend.capabilities().lane_capacity);
    let window_length = (length / 20).clamp(Duration::from_millis(500), Duration::from_secs(5));
    let mut plan = StepPlan::with_capacity(1, 1);
    let (started, mut next, mut windows) = (Instant::now(), 0, Vec::new());
    while started.elapsed() < length && !cancelled.load(Ordering::Relaxed) {
        let (window_start, mut num_tokens, mut max_itl) = (Instant::now(), 0_u32, Duration::ZERO);
        while window_start.elapsed() < window_length {
            if backend.committed_len(lane) >= capacity {
                backend.truncate(lane, base_len)?;
            }
            let step_start = Instant::now();
            next = step(backend, &mut plan, next)?;
            max_itl = max_itl.max(step_start.elapsed());
            num_tokens += 1;
        }
        let tok_s = f64::from(num_tokens) / window_start.elapsed().as_secs_f64();
        let window = Window { until: started.elapsed(), tok_s, max_itl };
        on_window(&window);
        windows.push(window);
    }
    Ok(Sustained { windows })
}

/// Bytes a second that `num_threads` threads read from memory, at best.
///
/// # Errors
/// When threads cannot be started.
pub fn read_bandwidth(num_threads: usize) -> Result<f64, EngineError> {
    let (pool, probe) = (ThreadPool::new(num_threads)?, ReadProbe::new(PROBE_BYTES));
    let mut best = 0.0_f64;
    for _ in 0..NUM_PROBE_READS {
        let started = Instant::now();
        black_box(probe.read(&pool));
        best = best.max(probe.num_bytes() as f64 / started.elapsed().as_secs_f64());
    }
    Ok(best)
}

fn step(backend: &mut dyn Backend, plan: &mut StepPlan, token: TokenId) -> Result<TokenId, EngineError> {
    plan.clear();
    plan.push(LaneId(0), &[token], LogitsWanted::Last);
    plan.last_needs(Detail::Chosen(SamplerState::default()));
    likeliest(&mut backend.run_step(plan)?)
}

/// Tokens spread over the vocabulary, so that embedding rows are not all cached.
pub(super) fn tokens(backend: &dyn Backend, len: usize) -> Vec<TokenId> {
    let vocab_size = backend.spec().vocab_size as u64;
    (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9) % vocab_size) as TokenId).collect() // below 2^22
}

/// The greedy choice, as a sequence makes it.
fn likeliest(output: &mut StepOutput<'_>) -> Result<TokenId, EngineError> {
    Sampler::new(&SamplingParams::default())?.sample_row(&mut output.last_row(0)?)
}
