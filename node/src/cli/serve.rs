//! `takt serve`: the node.

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use clap::Args;
use crossbeam_channel::RecvTimeoutError;

use super::{
    CliError,
    interrupt::Interrupt,
    paint,
    served_engine::{SentenceForm, ServedEngine, SharedWorker, ask_defaults},
};
use crate::{
    config::{Config, Layers, RosArgs, Value, process_environment, schema::KEYS},
    ros::{
        NodeSettings, RosNode, RosOptions, TransportKind, endpoints::Endpoints, join, lifecycle::Change,
        parameters::Fixed, qos_overrides::QosOverride, transport::Transport,
    },
    systemd::Service,
    worker::Facts,
};

/// How long a new node listens for another of its name.
const NAME_CLAIM: Duration = Duration::from_millis(600);
/// How often a waiting node looks whether its worker still runs and its transport still hears.
const HEALTH_CHECK: Duration = Duration::from_millis(250);

/// Run the ROS 2 node
#[derive(Debug, Args)]
#[command(after_help = "Example: takt serve --engine engines/takt-demo --config jetson-configs/host.toml\n\
    Values: built-in < file < environment (ROS_DOMAIN_ID, …) < ROS parameters < command line; --print-config shows them.\n\
    ROS: --ros-args -r __node:=NAME -r __ns:=/NAMESPACE -p scheduler.queue_len:=8 --params-file FILE --log-level LEVEL")]
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
    /// What computes: auto, cpu, cuda, tensorrt
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
    /// What carries the node: dds (built in), rcl (the sourced ROS 2; feature `r2r`)
    #[arg(long, value_name = "NAME")]
    transport: Option<String>,
}

pub(super) fn run(args: &ServeArgs, ros_args: &RosArgs, interrupt: &Interrupt) -> Result<ExitCode, CliError> {
    let config = configuration(args, ros_args)?;
    if args.print_config {
        say!("{}", config.describe());
        return Ok(ExitCode::SUCCESS);
    }
    let autostart = config.flag("ros", "autostart");
    if autostart && config.engine_dir().is_none() {
        return Err(CliError::Usage(
            "which engine? give --engine DIR, or `dir` in [engine] of the configuration".into(),
        ));
    }
    for notice in config.notices() {
        tracing::warn!("{notice}");
    }
    for (logger, _) in &ros_args.log_levels.loggers {
        tracing::warn!("--log-level {logger}:=… is ignored: give one level for all, or RUST_LOG");
    }
    let on_gpu = config.text("engine", "backend").parse().is_ok_and(takt_engine::engine::BackendKind::is_gpu);
    let gpu_keys = KEYS.iter().filter(|key| key.section == "gpu");
    if !on_gpu && !gpu_keys.clone().all(|key| config.is_built_in(key.section, key.name)) {
        tracing::warn!("[gpu] of the configuration has no effect: the engine runs on the CPU");
    }
    let service = Service::from_lookup(process_environment, std::process::id());
    let ros = RosOptions { remaps: ros_args.remaps.clone(), ..config.ros(process_environment)? };
    if ros.transport == TransportKind::Dds {
        for consequence in RosOptions::unsupported(process_environment) {
            tracing::warn!("{consequence}");
        }
    }
    // The name first: a second node must not spend minutes loading an engine to learn that it may not start.
    let transport = join(&ros)?;
    transport.claim_name(NAME_CLAIM)?;
    let worker = SharedWorker::default();
    let settings = NodeSettings {
        endpoints: Endpoints::new(ros.names()?, config.qos_overrides().clone()),
        rosout: ros_args.log_outputs.rosout,
        ..node_settings(transport.as_ref(), config, &worker, interrupt)?
    };
    let config = Arc::clone(&settings.config);
    let node_name = transport.node().to_string();
    let node = RosNode::start(transport, settings)?;
    if autostart {
        service.status("opening the engine");
        if let Err(reason) = node.bring_up()
            && !interrupt.is_raised()
        {
            return Err(CliError::Failed(reason));
        }
        if let Some(facts) = worker.facts() {
            eprint!("{}", banner(&node_name, &ros, &facts, &lock(&config)));
        }
    } else {
        eprintln!(
            "{node_name} is unconfigured: `ros2 lifecycle set {node_name} configure` opens the engine, `activate` makes it answer"
        );
    }
    if !interrupt.is_raised() {
        service.ready(&format!("{node_name} is {}", node.state().label()));
    }
    let outcome = wait(&node, &worker, interrupt, &service);
    service.stopping();
    node.stop_accepting();
    let num_open = node.num_open();
    // Answers what is open; the node delivers it. Fails only if it was shut down before.
    let _ = node.change(Change::ShutDown);
    node.close();
    if outcome.is_ok() {
        eprintln!("stopped; {num_open} open requests were answered `cancelled`");
    }
    outcome.map(|()| ExitCode::SUCCESS)
}

fn lock(config: &Mutex<Config>) -> MutexGuard<'_, Config> {
    config.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the node is made of.
fn node_settings(
    transport: &dyn Transport,
    config: Config,
    worker: &SharedWorker,
    interrupt: &Interrupt,
) -> Result<NodeSettings, CliError> {
    let form = SentenceForm::default();
    let defaults = ask_defaults(&config, &form).map_err(CliError::Failed)?;
    let (use_sim_time, fixed) = (config.flag("ros", "use_sim_time"), qos_parameters(&config));
    let config = Arc::new(Mutex::new(config));
    let engine =
        Box::new(ServedEngine::new(Arc::clone(&config), worker.clone(), interrupt.receiver().clone()));
    Ok(NodeSettings {
        config,
        derive: Box::new(move |config| ask_defaults(config, &form)),
        use_sim_time,
        fixed,
        ..NodeSettings::new(transport, engine, defaults)
    })
}

/// Overridden qualities of service, as the parameters they were said with.
fn qos_parameters(config: &Config) -> Vec<Fixed> {
    let fixed = |said: &QosOverride| Fixed {
        name: said.name.clone(),
        value: said.value.clone(),
        description: format!("quality of service of {}", said.topic),
    };
    config.qos_overrides().iter().map(fixed).collect()
}

/// All layers of the configuration.
fn configuration(args: &ServeArgs, ros_args: &RosArgs) -> Result<Config, CliError> {
    let mut layers = Layers::default();
    if let Some(path) = &args.config {
        layers = layers.file(path);
    }
    layers = layers.environment(process_environment).ros_arguments(ros_args);
    if let Some(dir) = &args.engine {
        layers.set_argument("engine", "dir", Value::Text(dir.display().to_string()), "--engine");
    }
    for (name, value) in [("backend", &args.backend), ("kv", &args.kv), ("activations", &args.activations)] {
        if let Some(text) = value {
            layers.set_argument("engine", name, Value::Text(text.clone()), &format!("--{name}"));
        }
    }
    if let Some(name) = &args.transport {
        layers.set_argument("ros", "transport", Value::Text(name.clone()), "--transport");
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
    Ok(layers.resolve()?)
}

/// Until the user ends the node, the worker ends itself or the node goes deaf. A worker that is stuck no longer feeds the service manager's
/// watchdog.
fn wait(
    node: &RosNode,
    worker: &SharedWorker,
    interrupt: &Interrupt,
    service: &Service,
) -> Result<(), CliError> {
    let mut is_stuck = false;
    loop {
        match interrupt.receiver().recv_timeout(HEALTH_CHECK) {
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) if worker.has_stopped() => {
                return Err(CliError::Failed(
                    "the engine failed and could not be opened again: see the log".into(),
                ));
            }
            Err(RecvTimeoutError::Timeout) => node.check_hearing()?,
        }
        match worker.stuck_for() {
            None => {
                is_stuck = false;
                service.keep_alive();
            }
            Some(late) if !is_stuck => {
                is_stuck = true;
                let late_s = late.as_secs_f64();
                tracing::error!(
                    late_s,
                    "the worker is stuck in a section, or in giving up an engine that failed: the node can only be restarted"
                );
            }
            Some(_) => {}
        }
    }
}

fn banner(node: &str, ros: &RosOptions, facts: &Facts, config: &Config) -> String {
    let dir = config.engine_dir().unwrap_or_default();
    let (backend, spec) = (&facts.capabilities, &facts.manifest.spec);
    let where_ = if ros.localhost_only { "this machine only" } else { "the local network" };
    let through = if ros.transport == TransportKind::Rcl { ", through rcl" } else { "" };
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
        ("ros 2", format!("{node} in domain {}, {where_}{through}", ros.domain_id)),
        ("topics", format!("{node}/ask → {node}/answer, {node}/tokens, {node}/status (std_msgs/String)")),
        ("typed", format!("{node}/prompt → {node}/stream, {node}/sentence, {node}/reply (takt_msgs)")),
        ("service", format!("{node}/ask (takt_msgs/srv/Ask)")),
        ("action", format!("{node}/generate (takt_msgs/action/Generate)")),
        ("deadline", format!("{deadline} unless a request names its own")),
        ("ask it", "takt ask 'Where are you?' --deadline 300ms".into()),
    ]);
    format!("{} {}\n{rows}", paint::bold("takt"), paint::dim(env!("CARGO_PKG_VERSION")))
}
