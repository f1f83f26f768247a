//! The engine behind `takt serve`: opened and closed by the node's lifecycle, with what its parameters say then.

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crossbeam_channel::Receiver;
use takt_engine::{
    backend::{
        cuda::{GpuOptions, GpuShare},
        tensorrt::plan_for_this_machine,
    },
    dir::Manifest,
    engine::{BackendKind, EngineOptions},
    grammar::ClosingPolicy,
    sampler::SamplingParams,
};

use super::{CliError, form::read_schema, generate::opener, gpu_options::gpu_options};
use crate::{
    calibrate::Effort,
    config::{Config, process_environment},
    request::Form,
    ros::{AskDefaults, Engine, Ready, message::EngineInfo},
    rt::{self, Told},
    scheduler::{bandwidth_server::Bandwidth, class::Class},
    worker::{Drafting, Facts, GpuManners, Worker, WorkerOptions},
};

/// The worker, while there is one.
#[derive(Debug, Clone, Default)]
pub(super) struct SharedWorker(Arc<Mutex<Option<Worker>>>);

impl SharedWorker {
    fn lock(&self) -> MutexGuard<'_, Option<Worker>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of it.
    pub fn facts(&self) -> Option<Facts> {
        self.lock().as_ref().map(|worker| worker.facts().clone())
    }

    /// How long it has been expected to say that it lives; `None` while it does, and while there is none.
    pub fn stuck_for(&self) -> Option<Duration> {
        self.lock().as_ref().and_then(Worker::stuck_for)
    }

    /// Whether it broke and could not be started again.
    pub fn has_stopped(&self) -> bool {
        self.lock().as_ref().is_some_and(Worker::has_stopped)
    }
}

/// Opens and closes the worker.
pub(super) struct ServedEngine {
    config: Arc<Mutex<Config>>,
    worker: SharedWorker,
    process_end: Receiver<()>,
    /// A node that is configured again is refused the same again.
    told: Told,
}

impl ServedEngine {
    /// `process_end` is closed when the node is to end, even while an engine is being opened.
    pub fn new(config: Arc<Mutex<Config>>, worker: SharedWorker, process_end: Receiver<()>) -> Self {
        Self { config, worker, process_end, told: Told::default() }
    }
}

impl Engine for ServedEngine {
    fn open(&mut self) -> Result<Ready, String> {
        // As it is now: parameters that change meanwhile hold for the next time.
        let config = self.config.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let dir = config.engine_dir().ok_or("which engine? set the parameter engine.dir")?;
        let options = options_for(&dir, &config).map_err(|error| error.to_string())?;
        let defaults = ask_defaults(&config, &SentenceForm::default())?;
        let how = WorkerOptions { process_end: self.process_end.clone(), ..worker_options(&config) };
        let worker = Worker::spawn(opener(dir.clone(), options), how).map_err(|error| error.to_string())?;
        let requests = worker.sender();
        if let Some(form) = &defaults.form {
            // Now rather than with the first sentence: it is refused here, and nobody waits for it later.
            requests.prepare(form).map_err(|error| in_schema_file(&config, &error.to_string()))?;
        }
        let refused = worker.facts().refused.clone();
        let facts = rt::cautions(&config.realtime()).into_iter().chain(refused.iter().cloned());
        for news in self.told.news(facts) {
            tracing::warn!("real time: {news}");
        }
        let info = engine_info(&dir, worker.facts(), drafting(&config));
        *self.worker.lock() = Some(worker);
        Ok(Ready { requests, info, refused })
    }

    fn close(&mut self) {
        // Taken out first: nobody who asks for facts waits for the last section.
        let worker = self.worker.lock().take();
        if let Some(worker) = worker {
            worker.shut_down();
        }
    }
}

fn engine_info(dir: &Path, facts: &Facts, drafting: Drafting) -> EngineInfo {
    let (backend, manifest) = (&facts.capabilities, &facts.manifest);
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    EngineInfo {
        engine_dir: dir.display().to_string(),
        architecture: manifest.spec.family.to_string(),
        weights: manifest.quantization.weights.to_string(),
        kv_cache: backend.kv.to_string(),
        backend: backend.backend.to_owned(),
        device: backend.device.clone(),
        kernels: backend.kernels.clone(),
        num_layers: count(manifest.spec.num_layers),
        vocab_size: count(manifest.spec.vocab_size),
        num_lanes: count(backend.num_lanes),
        max_context: count(backend.lane_capacity),
        weight_bytes: backend.weight_bytes_per_step,
        kv_cache_bytes: backend.kv_bytes,
        drafter: match drafting {
            Drafting::Head if facts.has_draft_head => "eagle3",
            Drafting::Lookup => "lookup",
            Drafting::Head | Drafting::Off => "off",
        }
        .to_owned(),
        decode_step_ms: facts.decode_step.as_secs_f64() * 1e3,
        has_stored_costs: facts.has_stored_costs,
        ..EngineInfo::default()
    }
}

/// How the engine in `dir` is opened. A board's file is for many engines: one made for shorter texts gets lanes as long as it allows.
pub(super) fn options_for(dir: &Path, config: &Config) -> Result<EngineOptions, CliError> {
    let mut options = engine_options(config).map_err(CliError::Usage)?;
    // An engine that cannot be read is refused with more to say when it is opened.
    let manifest = Manifest::read(dir).ok();
    let limit = manifest.as_ref().map_or(usize::MAX, |manifest| manifest.spec.max_context);
    if let Some(asked) = options.lane_capacity.filter(|asked| *asked > limit) {
        tracing::warn!("max_context {asked}: the model was made for {limit} tokens, and lanes hold as many");
        options.lane_capacity = Some(limit);
    }
    if options.backend == BackendKind::TensorRt
        && let Some(plan) = manifest.as_ref().and_then(plan_for_this_machine)
    {
        keep_to_plan(&mut options, plan.num_lanes, plan.lane_capacity);
    }
    Ok(options)
}

/// A plan has the lanes it was built with: a board's file asks for what most engines have.
fn keep_to_plan(options: &mut EngineOptions, num_lanes: usize, lane_capacity: usize) {
    if options.num_lanes > num_lanes {
        tracing::warn!(
            "lanes {}: the TensorRT plan has {num_lanes}, and as many are used",
            options.num_lanes
        );
        options.num_lanes = num_lanes;
    }
    if let Some(asked) = options.lane_capacity.filter(|asked| *asked > lane_capacity) {
        tracing::warn!(
            "max_context {asked}: lanes of the TensorRT plan hold {lane_capacity} tokens, and no more are used"
        );
        options.lane_capacity = Some(lane_capacity);
    }
}

pub(super) fn engine_options(config: &Config) -> Result<EngineOptions, String> {
    let automatic = |name| Some(config.count("engine", name)).filter(|count| *count > 0);
    let word = |name| Some(config.text("engine", name)).filter(|word| *word != "auto");
    let (lanes, slice) =
        (config.count("engine", "lanes"), config.count("scheduler", "max_prefill_slice_tokens"));
    Ok(EngineOptions {
        backend: config.text("engine", "backend").parse()?,
        threads: automatic("threads"),
        num_lanes: lanes,
        lane_capacity: automatic("max_context"),
        kv: word("kv").map(str::parse).transpose()?,
        arithmetic: config.text("engine", "activations").parse()?,
        max_step_tokens: lanes.saturating_add(slice),
        speculation: drafting(config) == Drafting::Head,
        max_bytes: Some(config.whole("memory", "budget_mib") << 20).filter(|bytes| *bytes > 0),
        num_snapshots: config.count("scheduler", "prefix_snapshots"),
        gpu: GpuOptions {
            weights: config.text("gpu", "weights").parse()?,
            ..gpu_options(gpu_share(config), process_environment)
        },
        ..EngineOptions::default()
    })
}

fn gpu_share(config: &Config) -> GpuShare {
    match config.text("gpu", "share") {
        "priority" => GpuShare::Priority,
        "none" => GpuShare::None,
        // The configuration accepts nothing else but `green_context`.
        _ => GpuShare::GreenContext {
            percent: u8::try_from(config.whole("gpu", "sm_share_percent")).unwrap_or(100),
        },
    }
}

fn drafting(config: &Config) -> Drafting {
    // The configuration accepts nothing that does not parse.
    config.text("engine", "drafter").parse().unwrap_or_default()
}

pub(super) fn worker_options(config: &Config) -> WorkerOptions {
    WorkerOptions {
        max_prefill_slice_tokens: config.count("scheduler", "max_prefill_slice_tokens"),
        max_section: Duration::from_millis(config.whole("scheduler", "max_section_ms")),
        gpu: GpuManners {
            max_section: Some(Duration::from_millis(config.whole("gpu", "max_section_ms")))
                .filter(|most| !most.is_zero()),
            idle_gap: Duration::from_micros(config.whole("gpu", "idle_gap_us")),
        },
        background: Bandwidth {
            budget: Duration::from_millis(config.whole("scheduler", "background_budget_ms")),
            period: Duration::from_millis(config.whole("scheduler", "background_period_ms")),
        },
        effort: Effort::BRIEF,
        queue_len: config.count("scheduler", "queue_len"),
        prefix_snapshots: config.count("scheduler", "prefix_snapshots"),
        reply_margin: Duration::from_micros(config.whole("scheduler", "reply_margin_us")),
        drafting: drafting(config),
        realtime: config.realtime(),
        ..WorkerOptions::default()
    }
}

fn in_schema_file(config: &Config, fact: &str) -> String {
    format!("{}, `schema` in [ros]: {fact}", config.text("ros", "schema"))
}

/// The form of answers to plain sentences, read anew only when another file is named.
#[derive(Debug, Default)]
pub(super) struct SentenceForm(Mutex<Option<(String, Form)>>);

impl SentenceForm {
    /// What the configuration says.
    ///
    /// # Errors
    /// Why the file is no schema.
    pub fn of(&self, config: &Config) -> Result<Option<Form>, String> {
        let path = config.text("ros", "schema");
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if path.is_empty() {
            *known = None;
        } else if known.as_ref().is_none_or(|(known, _)| known != path) {
            let spec = read_schema(Path::new(path)).map_err(|error| in_schema_file(config, &error))?;
            *known = Some((path.to_owned(), Form { spec, closing: ClosingPolicy::Declared }));
        }
        Ok(known.as_ref().map(|(_, form)| form.clone()))
    }
}

/// What holds for requests.
///
/// # Errors
/// Why the schema of sentences cannot be.
pub(super) fn ask_defaults(config: &Config, form: &SentenceForm) -> Result<AskDefaults, String> {
    let form = form.of(config)?;
    let of_class = |class: &str| match config.count("scheduler", &format!("max_open_{class}")) {
        0 => usize::MAX,
        max => max,
    };
    let sampling = config.flag("sampling", "override_engine").then(|| SamplingParams {
        temperature: config.number("sampling", "temperature") as f32,
        top_k: Some(config.count("sampling", "top_k")).filter(|top_k| *top_k > 0),
        top_p: config.number("sampling", "top_p") as f32,
        min_p: config.number("sampling", "min_p") as f32,
        seed: 0,
    });
    Ok(AskDefaults {
        form,
        sampling,
        max_of_class: Class::ALL.map(|class| of_class(class.name())),
        speculate: config.flag("engine", "speculate"),
        system: config.text("ros", "system_prompt").to_owned(),
        deadline: config.default_deadline(),
        class: if config.text("scheduler", "default_class") == "control" {
            Class::Control
        } else {
            Class::Interactive
        },
        max_tokens: Some(config.count("scheduler", "default_max_tokens")),
        max_in_flight: config.count("scheduler", "queue_len").saturating_add(config.count("engine", "lanes")),
        ..AskDefaults::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_no_more_and_no_longer_lanes_than_its_plan_and_as_few_as_it_asks_for() {
        for ((num_lanes, lane_capacity), expected) in [
            ((4, Some(4096)), (2, Some(512))),
            ((4, None), (2, None)),
            ((2, Some(512)), (2, Some(512))),
            ((1, Some(4096)), (1, Some(512))),
            ((4, Some(100)), (2, Some(100))),
        ] {
            let mut options = EngineOptions { num_lanes, lane_capacity, ..EngineOptions::default() };
            keep_to_plan(&mut options, 2, 512);
            assert_eq!((options.num_lanes, options.lane_capacity), expected);
        }
    }
}
