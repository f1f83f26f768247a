//! `takt serve`: the node.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use crossbeam_channel::RecvTimeoutError;
use takt_engine::{dir::Manifest, engine::EngineOptions, grammar::ClosingPolicy};

use super::{CliError, form::read_schema, generate::opener, interrupt::Interrupt, paint};
use crate::{
    calibrate::Effort,
    config::{Config, Layers, RosArgs, Value, process_environment},
    request::Form,
    ros::{AskDefaults, RosNode, RosOptions, dds::DdsTransport, transport::Transport},
    scheduler::{bandwidth_server::Bandwidth, class::Class},
    systemd::Service,
    worker::{Drafting, Facts, Worker, WorkerOptions},
};

/// How long a new node listens for another of its name.
const NAME_CLAIM: Duration = Duration::from_millis(600);
/// How often a waiting node looks whether its worker still runs.
const HEALTH_CHECK: Duration = Duration::from_millis(250);

/// Run the ROS 2 node
#[derive(Debug, Args)]
#[command(after_help = "Example: takt serve --engine engines/takt-demo --config jetson-configs/host.toml\n\
    Values: built-in < file < environment (ROS_DOMAIN_ID, …) < command line; --print-config shows them.\n\
    Names: --ros-args -r __node:=NAME -r __ns:=/NAMESPACE")]
pub(super) struct ServeArgs {
    /// Engine directory, written by `takt build`
    #[arg(long, value_name = "DIR")]
    engine: Option<PathBuf>,
    /// Configuration file
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    /// Print every value and where it came from, and end
    #[arg(long)]
    print_config: bool,
    /// What computes: auto, cpu
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
    /// Computing threads; 0: one for each processor the system gives us
    #[arg(long, value_name = "N")]
    threads: Option<u64>,
    /// Requests that advance together
    #[arg(long, value_name = "N")]
    lanes: Option<u64>,
    /// Tokens a lane holds; 0: the model's limit, at most 4096
    #[arg(long, value_name = "N")]
    max_context: Option<u64>,
    /// KV cache format: auto, bf16, fp8, int8
    #[arg(long, value_name = "KIND")]
    kv: Option<String>,
    /// The CPU's arithmetic: auto, f32, int8
    #[arg(long, value_name = "NAME")]
    activations: Option<String>,
}

pub(super) fn run(args: &ServeArgs, ros_args: RosArgs, interrupt: &Interrupt) -> Result<ExitCode, CliError> {
    let config = configuration(args, ros_args)?;
    if args.print_config {
        say!("{}", config.describe());
        return Ok(ExitCode::SUCCESS);
    }
    let dir = config.engine_dir().ok_or_else(|| {
        CliError::Usage("which engine? give --engine DIR, or `dir` in [engine] of the configuration".into())
    })?;
    for consequence in RosOptions::unsupported(process_environment) {
        tracing::warn!("{consequence}");
    }
    if !(config.is_built_in("gpu", "share") && config.is_built_in("gpu", "sm_share_percent")) {
        tracing::warn!(
            "[gpu] of the configuration waits for a GPU backend: this version computes on the CPU"
        );
    }
    let service = Service::from_lookup(process_environment, std::process::id());
    service.status(&format!("opening {}", dir.display()));
    let ros = config.ros(process_environment)?;
    // The name first: a second node must not spend minutes loading an engine to learn that it may not start.
    let transport = DdsTransport::join(&ros)?;
    transport.claim_name(NAME_CLAIM)?;
    let options = options_for(&dir, &config)?;
    let defaults = ask_defaults(&config)?;
    let worker = Worker::spawn(opener(dir.clone(), options), worker_options(&config))?;
    if let Some(form) = &defaults.form {
        // Now rather than with the first sentence: it is refused here, and nobody waits for it later.
        worker.sender().prepare(form).map_err(|error| in_schema_file(&config, &error.to_string()))?;
    }
    for refusal in &worker.facts().refused {
        tracing::warn!("real time: {refusal}");
    }
    let node_name = transport.node().to_string();
    let node = RosNode::start(Box::new(transport), worker.sender(), defaults)?;
    eprint!("{}", banner(&dir, &node_name, &ros, worker.facts(), &config));
    service.ready(&format!("{node_name} answers with {}", dir.display()));
    let outcome = wait(&worker, interrupt, &service);
    service.stopping();
    node.stop_accepting();
    let num_open = node.num_open();
    worker.shut_down(); // answers what is open; the node delivers it
    node.close();
    if outcome.is_ok() {
        eprintln!("stopped; {num_open} open requests were answered `cancelled`");
    }
    outcome.map(|()| ExitCode::SUCCESS)
}

/// All layers of the configuration.
fn configuration(args: &ServeArgs, ros_args: RosArgs) -> Result<Config, CliError> {
    let mut layers = Layers::default();
    if let Some(path) = &args.config {
        layers = layers.file(path);
    }
    layers = layers.environment(process_environment);
    if let Some(dir) = &args.engine {
        layers.set_argument("engine", "dir", Value::Text(dir.display().to_string()), "--engine");
    }
    for (name, value) in [("backend", &args.backend), ("kv", &args.kv), ("activations", &args.activations)] {
        if let Some(text) = value {
            layers.set_argument("engine", name, Value::Text(text.clone()), &format!("--{name}"));
        }
    }
    for (name, flag, value) in [
        ("threads", "--threads", args.threads),
        ("lanes", "--lanes", args.lanes),
        ("max_context", "--max-context", args.max_context),
    ] {
        if let Some(number) = value {
            layers.set_argument("engine", name, Value::Whole(number), flag);
        }
    }
    set_ros_names(&mut layers, ros_args);
    Ok(layers.resolve()?)
}

/// Node name and namespace of `--ros-args`.
pub(super) fn set_ros_names(layers: &mut Layers, ros_args: RosArgs) {
    for (name, rule, value) in
        [("node_name", "-r __node", ros_args.node_name), ("namespace", "-r __ns", ros_args.namespace)]
    {
        if let Some(text) = value {
            layers.set_argument("ros", name, Value::Text(text), rule);
        }
    }
}

/// How the engine in `dir` is opened. A board's file is for many engines: one made for shorter texts gets lanes as long as it allows.
pub(super) fn options_for(dir: &Path, config: &Config) -> Result<EngineOptions, CliError> {
    let mut options = engine_options(config)?;
    // An engine that cannot be read is refused with more to say when it is opened.
    let limit = Manifest::read(dir).map_or(usize::MAX, |manifest| manifest.spec.max_context);
    if let Some(asked) = options.lane_capacity.filter(|asked| *asked > limit) {
        tracing::warn!("max_context {asked}: the model was made for {limit} tokens, and lanes hold as many");
        options.lane_capacity = Some(limit);
    }
    Ok(options)
}

pub(super) fn engine_options(config: &Config) -> Result<EngineOptions, CliError> {
    let automatic = |name| Some(config.count("engine", name)).filter(|count| *count > 0);
    let word = |name| Some(config.text("engine", name)).filter(|word| *word != "auto");
    let (lanes, slice) =
        (config.count("engine", "lanes"), config.count("scheduler", "max_prefill_slice_tokens"));
    Ok(EngineOptions {
        backend: config.text("engine", "backend").parse().map_err(CliError::Usage)?,
        threads: automatic("threads"),
        num_lanes: lanes,
        lane_capacity: automatic("max_context"),
        kv: word("kv").map(str::parse).transpose().map_err(CliError::Usage)?,
        arithmetic: config.text("engine", "activations").parse().map_err(CliError::Usage)?,
        max_step_tokens: lanes.saturating_add(slice),
        speculation: drafting(config) == Drafting::Head,
        max_bytes: Some(config.whole("memory", "budget_mib") << 20).filter(|bytes| *bytes > 0),
        num_snapshots: config.count("scheduler", "prefix_snapshots"),
        ..EngineOptions::default()
    })
}

fn drafting(config: &Config) -> Drafting {
    // The configuration accepts nothing that does not parse.
    config.text("engine", "drafter").parse().unwrap_or_default()
}

pub(super) fn worker_options(config: &Config) -> WorkerOptions {
    WorkerOptions {
        max_prefill_slice_tokens: config.count("scheduler", "max_prefill_slice_tokens"),
        max_section: Duration::from_millis(config.whole("scheduler", "max_section_ms")),
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

fn in_schema_file(config: &Config, fact: &str) -> CliError {
    CliError::Failed(format!("{}, `schema` in [ros]: {fact}", config.text("ros", "schema")))
}

fn ask_defaults(config: &Config) -> Result<AskDefaults, CliError> {
    let path = config.text("ros", "schema");
    let form = match path {
        "" => None,
        path => {
            let spec = read_schema(Path::new(path)).map_err(|error| in_schema_file(config, &error))?;
            Some(Form { spec, closing: ClosingPolicy::Declared })
        }
    };
    Ok(AskDefaults {
        form,
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

/// Until the user ends the node or the worker ends itself. A worker that is stuck no longer feeds the service manager's watchdog.
fn wait(worker: &Worker, interrupt: &Interrupt, service: &Service) -> Result<(), CliError> {
    let mut is_stuck = false;
    loop {
        match interrupt.receiver().recv_timeout(HEALTH_CHECK) {
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) if worker.has_stopped() => {
                return Err(CliError::Failed(
                    "the engine failed and could not be opened again: see the log".into(),
                ));
            }
            Err(RecvTimeoutError::Timeout) => match worker.stuck_for() {
                None => {
                    is_stuck = false;
                    service.keep_alive();
                }
                Some(late) if !is_stuck => {
                    is_stuck = true;
                    let late_s = late.as_secs_f64();
                    tracing::error!(
                        late_s,
                        "the worker is stuck in a section: the node can only be restarted"
                    );
                }
                Some(_) => {}
            },
        }
    }
}

fn banner(dir: &std::path::Path, node: &str, ros: &RosOptions, facts: &Facts, config: &Config) -> String {
    let (backend, spec) = (&facts.capabilities, &facts.manifest.spec);
    let where_ = if ros.localhost_only { "this machine only" } else { "the local network" };
    let deadline = config.default_deadline().map_or("none".into(), |time| format!("{} ms", time.as_millis()));
    let rows = paint::facts(&[
        (
            "engine",
            format!(
                "{} ({}, {} layers, {})",
                dir.display(),
                spec.family,
                spec.num_layers,
                facts.manifest.quantization.weights
            ),
        ),
        (
            "backend",
            format!(
                "{} on {}: {}, {} threads",
                backend.backend, backend.device, backend.kernels, backend.num_threads
            ),
        ),
        (
            "lanes",
            format!(
                "{} x {} tokens, KV cache {} {}",
                backend.num_lanes,
                backend.lane_capacity,
                backend.kv,
                paint::bytes(backend.kv_bytes)
            ),
        ),
        (
            "decode step",
            format!(
                "{:.2} ms, {}",
                facts.decode_step.as_secs_f64() * 1e3,
                if facts.has_stored_costs {
                    "by this device's cost table"
                } else {
                    "measured briefly just now: `takt calibrate` makes promises exact"
                }
            ),
        ),
        ("ros 2", format!("{node} in domain {}, {where_}", ros.domain_id)),
        ("topics", format!("{node}/ask → {node}/answer, {node}/tokens, {node}/status (std_msgs/String)")),
        ("service", format!("{node}/ask (takt_msgs/srv/Ask)")),
        ("deadline", format!("{deadline} unless a request names its own")),
        ("ask it", "takt ask 'Where are you?' --deadline 300ms".into()),
    ]);
    format!("{} {}\n{rows}", paint::bold("takt"), paint::dim(env!("CARGO_PKG_VERSION")))
}
