//! `takt bench`.

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;
use serde_json::{Value, json};
use takt_engine::{
    backend::Backend,
    engine::{BackendKind, Engine, open_weights},
    memory::peak_rss_bytes,
    quant::WeightKind,
    shapes,
};

use super::{
    CliError, bench_compare,
    bench_deadlines::{self, DeadlineBench},
    bench_gpu::{self, GpuBenchArgs, GpuFigures},
    bench_perception::{self, PerceptionArgs, PerceptionBench},
    bench_ros::{self, RosBenchArgs},
    bench_speculation::{self, SpeculationArgs},
    duration,
    engine_args::EngineArgs,
    interrupt::Interrupt,
    paint, print_json,
};
use crate::bench::{
    Decode, NUM_PREFILLS, NUM_WARM_STEPS, PowerMeter, Prefill, Sustained,
    compare::{Comparison, rival::LlamaBench},
    decode,
    gpu::bandwidth::DeviceBandwidth,
    prefill, read_bandwidth, sustain,
};

/// Measure how fast a model runs on this machine
#[derive(Debug, Args)]
#[command(
    after_help = "Examples: takt bench engines/takt-demo\n          takt bench --shape qwen3-0.6b --weights nvfp4 --sustained 60s\n          takt bench --deadlines engines/takt-demo\n          takt bench --speculation engines/takt-demo --plot speculation.svg\n          takt bench --ros --plot ros.svg\n          takt bench --shape qwen3-8b --weights int4 --backend cuda\n          takt bench --perception --plot perception.svg\n          takt bench --shape qwen3-0.6b --compare llama-bench=llama.cpp/llama-bench,model=llama.cpp/qwen3-0.6b-q4_0.gguf"
)]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(true))]
#[command(group = clap::ArgGroup::new("drawn").args(["speculation", "ros", "perception"]))]
pub(super) struct BenchArgs {
    /// Engine directory, written by `takt build`
    #[arg(value_name = "DIR", group = "what")]
    dir: Option<PathBuf>,
    /// Random weights of a known shape: qwen3-0.6b, qwen3-1.7b, qwen3-4b, qwen3-8b, llama-3.2-1b, llama-3.1-8b
    #[arg(long, value_name = "NAME", group = "what", conflicts_with = "dir")]
    shape: Option<String>,
    /// Format of the shape's weights: bf16, fp8, nvfp4, int4 [default: nvfp4]
    #[arg(long, value_name = "KIND", requires = "shape")]
    weights: Option<WeightKind>,
    /// Format of the shape's output head [default: bf16 for bf16 weights, else fp8]
    #[arg(long, value_name = "KIND", requires = "shape")]
    lm_head: Option<WeightKind>,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 128)]
    prompt_len: usize,
    /// Tokens decoded
    #[arg(long, value_name = "N", default_value_t = 128)]
    tokens: usize,
    /// Then decode for this long and report speed over time
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    sustained: Option<Duration>,
    /// Instead: beside llama.cpp, in turn: llama-bench=PATH,model=FILE.gguf
    #[arg(long, value_name = "RIVAL", conflicts_with_all = ["sustained", "deadlines", "speculation", "ros"])]
    compare: Option<String>,
    /// With --compare: how often each side is measured; medians count
    #[arg(long, value_name = "N", default_value_t = 5, requires = "compare", value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Instead: how well deadlines are kept, in virtual time against other policies and in real time
    #[arg(long, requires = "dir")]
    deadlines: bool,
    /// With --deadlines: requests each policy plays in virtual time
    #[arg(long, value_name = "N", default_value_t = 1_000_000, requires = "deadlines", value_parser = clap::value_parser!(u32).range(100..=100_000_000))]
    requests: u32,
    /// With --deadlines: how long to ask in real time, without and with other load on the cores
    #[arg(long, value_name = "TIME", default_value = "20s", requires = "deadlines", value_parser = duration::parse)]
    real_time: Duration,
    /// With --deadlines: random answers cut, closed and judged
    #[arg(long, value_name = "N", default_value_t = 100_000, requires = "deadlines", value_parser = clap::value_parser!(u32).range(0..=10_000_000))]
    cuts: u32,
    /// With --deadlines: requests a second in real time
    #[arg(long, value_name = "R", default_value_t = 40.0, requires = "deadlines")]
    rate: f64,
    #[command(flatten)]
    speculation: SpeculationArgs,
    #[command(flatten)]
    ros: RosBenchArgs,
    #[command(flatten)]
    perception: PerceptionArgs,
    #[command(flatten)]
    gpu: GpuBenchArgs,
    #[command(flatten)]
    engine: EngineArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl BenchArgs {
    /// Formats of a shape's weights and of its output head.
    fn kinds(&self) -> (WeightKind, WeightKind) {
        let weights = self.weights.unwrap_or(WeightKind::Nvfp4);
        let default_head = if weights == WeightKind::Bf16 { WeightKind::Bf16 } else { WeightKind::Fp8 };
        (weights, self.lm_head.unwrap_or(default_head))
    }
}

/// A loaded model and what loading it took.
struct Loaded {
    name: String,
    backend: Box<dyn Backend>,
    load: Duration,
    engine_bytes: u64,
    /// An engine directory, not a shape.
    is_engine: bool,
    /// What the memory of its device gives; `None` on the CPU.
    device: Option<DeviceBandwidth>,
}

/// Everything measured.
struct Measured {
    prefill: Prefill,
    decode: Decode,
    sustained: Option<Sustained>,
    /// Bytes a second.
    read_bandwidth: f64,
    gpu: Option<GpuFigures>,
    watts: Option<f64>,
    /// Before the bandwidth probe takes its own memory.
    peak_rss_bytes: Option<u64>,
}

pub(super) fn run(args: &BenchArgs, interrupt: &Interrupt) -> Result<ExitCode, CliError> {
    args.gpu.check(args.engine.backend)?;
    if args.prompt_len == 0 || args.tokens == 0 {
        return Err(CliError::Usage("--prompt-len and --tokens must be at least 1".into()));
    }
    if let (true, Some(dir)) = (args.deadlines, &args.dir) {
        if !(args.rate.is_finite() && args.rate > 0.0) {
            return Err(CliError::Usage(format!("--rate {}: expected more than 0", args.rate)));
        }
        let bench = DeadlineBench {
            dir,
            num_requests: args.requests as usize,
            length: args.real_time,
            rate: args.rate,
            num_cuts: args.cuts as usize,
            as_json: args.json,
        };
        return bench_deadlines::run(&bench, args.engine.options(), interrupt);
    }
    if args.speculation.speculation {
        // Clap does not hold it to this, as directory and shape exclude each other.
        if args.speculation.profile.is_some() && args.shape.is_none() {
            let fact = "--profile belongs to --shape: on an engine acceptance is measured";
            return Err(CliError::Usage(fact.into()));
        }
        let bench = match (&args.dir, &args.shape) {
            (Some(dir), _) => args.speculation.on_engine(dir, args.json),
            (None, shape) => {
                let name = shape.as_deref().unwrap_or_default();
                args.speculation.on_shape(name, args.kinds(), args.prompt_len, args.json)?
            }
        };
        return bench_speculation::run(&bench, args.engine.options(), interrupt);
    }
    if args.ros.ros {
        let plot = args.speculation.plot.as_deref();
        let node_args = args.ros.node_args(&args.engine)?;
        return bench_ros::run(&args.ros, args.dir.as_deref(), &node_args, plot, args.json, interrupt);
    }
    if args.perception.perception {
        let bench = PerceptionBench {
            dir: args.dir.as_deref(),
            shape: args.shape.as_deref(),
            kinds: args.kinds(),
            plot: args.speculation.plot.as_deref(),
            as_json: args.json,
        };
        return bench_perception::run(&args.perception, &bench, &args.engine, interrupt);
    }
    if args.compare.is_some() && args.engine.backend.is_gpu() {
        let fact = "--compare holds both against the processor's memory: leave --backend out";
        return Err(CliError::Usage(fact.into()));
    }
    let rival = args.compare.as_deref().map(LlamaBench::parse).transpose();
    let rival = rival.map_err(|error| CliError::Usage(error.to_string()))?;
    let mut loaded = load(args)?;
    if let Some(rival) = rival {
        let (prompt_len, num_tokens, num_rounds) = (args.prompt_len, args.tokens, usize::from(args.rounds));
        let comparison = Comparison { rival, prompt_len, num_tokens, num_rounds };
        return bench_compare::run(&loaded.name, loaded.backend.as_mut(), &comparison, args.json, interrupt);
    }
    let measured = measure(args, &mut loaded, interrupt)?;
    if args.json {
        return print_json(&as_json(&loaded, &measured));
    }
    say!("{}", as_text(&loaded, &measured));
    Ok(ExitCode::SUCCESS)
}

fn load(args: &BenchArgs) -> Result<Loaded, CliError> {
    let mut options = args.engine.options();
    let capacity = args.prompt_len.saturating_add(args.tokens).saturating_add(NUM_WARM_STEPS);
    options.lane_capacity = Some(capacity);
    let mut device = None;
    if options.backend == BackendKind::TensorRt && args.shape.is_some() {
        let fact = "--backend tensorrt runs plans, which are built of engine directories: give one instead of --shape";
        return Err(CliError::Usage(fact.into()));
    }
    if options.backend.is_gpu() {
        let (dir, shape) = (args.dir.as_deref(), args.shape.as_deref());
        options.lane_capacity = Some(args.gpu.lane_capacity(capacity, args.prompt_len, dir, shape)?);
        device = Some(bench_gpu::device_bandwidth(&options)?);
    }
    if options.backend == BackendKind::TensorRt {
        // As long as the plan's, whose kinds of steps are measured as far as they fit.
        options.lane_capacity = None;
    }
    let started = Instant::now();
    let Some(shape) = &args.shape else {
        let dir = args.dir.clone().unwrap_or_default();
        let Engine { manifest, backend, .. } = Engine::open(&dir, &options)?;
        let (load, engine_bytes) = (started.elapsed(), manifest.total_bytes());
        let name = dir.display().to_string();
        return Ok(Loaded { name, backend, load, engine_bytes, is_engine: true, device });
    };
    let spec = shapes::decoder_spec(shape)?;
    let (weights, lm_head) = args.kinds();
    let source = shapes::RandomWeights::new(&spec, weights, lm_head, 1)?;
    let started = Instant::now(); // making random numbers is not loading
    let backend = open_weights(&spec, &source, &options)?;
    let (load, engine_bytes) = (started.elapsed(), backend.capabilities().weight_bytes_per_step);
    Ok(Loaded {
        name: format!("{shape}, random {weights} weights"),
        backend,
        load,
        engine_bytes,
        is_engine: false,
        device,
    })
}

fn measure(args: &BenchArgs, loaded: &mut Loaded, interrupt: &Interrupt) -> Result<Measured, CliError> {
    let backend = loaded.backend.as_mut();
    let prefill = prefill(backend, args.prompt_len, NUM_PREFILLS)?;
    decode(backend, NUM_WARM_STEPS)?;
    let meter = PowerMeter::start();
    let decode = decode(backend, args.tokens)?;
    let watts = meter.and_then(|meter| meter.watts());
    let sustained = match args.sustained {
        None => None,
        Some(length) => Some(sustain(backend, args.prompt_len, length, interrupt.flag(), &mut |window| {
            if !args.json {
                let (until, max_ms) = (window.until.as_secs_f64(), window.max_itl.as_secs_f64() * 1e3);
                eprintln!("  {until:>6.1} s  {:>8.1} tokens/s  slowest {max_ms:.2} ms", window.tok_s);
            }
        })?),
    };
    let gpu = loaded
        .device
        .map(|bandwidth| args.gpu.measure(backend, bandwidth, (args.prompt_len, args.tokens), interrupt));
    let gpu = gpu.transpose()?;
    let peak_rss_bytes = peak_rss_bytes();
    let read_bandwidth = match &gpu {
        Some(gpu) => gpu.bandwidth.read,
        None => read_bandwidth(backend.capabilities().num_threads)?,
    };
    Ok(Measured { prefill, decode, sustained, read_bandwidth, gpu, watts, peak_rss_bytes })
}

/// Peak memory over the engine's files and the KV cache, the least it could be; nothing for a shape, whose weights were made in this process.
fn peak_ratio(loaded: &Loaded, measured: &Measured) -> Option<f64> {
    let held = (loaded.engine_bytes + loaded.backend.capabilities().kv_bytes) as f64;
    measured.peak_rss_bytes.filter(|_| loaded.is_engine).map(|peak| peak as f64 / held)
}

/// The share of what memory gives: on a GPU weights and cache over a copy's bytes, on the CPU weights over those read.
fn bandwidth_share(loaded: &Loaded, measured: &Measured) -> f64 {
    let of_weights = weight_bandwidth(loaded, measured) / measured.read_bandwidth;
    measured.gpu.as_ref().and_then(GpuFigures::share).unwrap_or(of_weights)
}

fn weight_bandwidth(loaded: &Loaded, measured: &Measured) -> f64 {
    loaded.backend.capabilities().weight_bytes_per_step as f64 * measured.decode.tok_s()
}

fn as_json(loaded: &Loaded, measured: &Measured) -> Value {
    let facts = loaded.backend.capabilities();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let Measured { prefill, decode, .. } = measured;
    let sustained = measured.sustained.as_ref().map(|sustained| {
        let windows = sustained.windows.iter();
        windows
            .map(|w| json!({"until_s": w.until.as_secs_f64(), "tok_s": w.tok_s, "max_itl_ms": ms(w.max_itl)}))
            .collect::<Vec<_>>()
    });
    json!({
        "model": loaded.name, "load_s": loaded.load.as_secs_f64(), "engine_bytes": loaded.engine_bytes,
        "kv_bytes": facts.kv_bytes, "peak_rss_bytes": measured.peak_rss_bytes, "peak_ratio": peak_ratio(loaded, measured),
        "prompt_len": prefill.prompt_len, "prefill_tok_s": prefill.tok_s(),
        "decode_tok_s": decode.tok_s(), "ttft_ms": ms(prefill.ttft),
        "itl_ms": {"p50": ms(decode.itl(0.5)), "p99": ms(decode.itl(0.99)), "max": ms(decode.itl(1.0))},
        "weight_bytes_per_token": facts.weight_bytes_per_step,
        "read_bandwidth_gb_s": measured.read_bandwidth / 1e9,
        "bandwidth_share": bandwidth_share(loaded, measured), "gpu": measured.gpu.as_ref().map(GpuFigures::as_json),
        "power_w": measured.watts, "backend": facts.backend, "kernels": facts.kernels, "kv": facts.kv,
        "threads": facts.num_threads, "device": facts.device, "sustained": sustained,
    })
}

fn peak_memory(loaded: &Loaded, measured: &Measured) -> String {
    let Some(peak) = measured.peak_rss_bytes.map(paint::bytes) else { return "unknown".into() };
    let [engine, kv] = [loaded.engine_bytes, loaded.backend.capabilities().kv_bytes].map(paint::bytes);
    match peak_ratio(loaded, measured) {
        Some(ratio) => format!("{peak}, {ratio:.2} of the engine's {engine} and {kv} of KV cache"),
        None => format!("{peak}, with the random numbers that were packed"),
    }
}

fn as_text(loaded: &Loaded, measured: &Measured) -> String {
    let facts = loaded.backend.capabilities();
    let ms = |time: Duration| format!("{:.2} ms", time.as_secs_f64() * 1e3);
    let Measured { prefill, decode, .. } = measured;
    let achieved = weight_bandwidth(loaded, measured);
    let share = achieved / measured.read_bandwidth;
    let cached = if share > 1.0 { ", more than memory gives: the weights stay in the caches" } else { "" };
    let mut rows = vec![
        (
            "backend",
            format!(
                "{} on {}: {}, {} threads, KV cache {}",
                facts.backend, facts.device, facts.kernels, facts.num_threads, facts.kv
            ),
        ),
        ("load", format!("{:.2} s, {}", loaded.load.as_secs_f64(), paint::bytes(loaded.engine_bytes))),
        (
            "prefill",
            format!(
                "{:.0} tokens/s, {} tokens to the first answer token in {}",
                prefill.tok_s(),
                prefill.prompt_len,
                ms(prefill.ttft)
            ),
        ),
        (
            "decode",
            format!(
                "{:.1} tokens/s; a token takes p50 {}, p99 {}, max {}",
                decode.tok_s(),
                ms(decode.itl(0.5)),
                ms(decode.itl(0.99)),
                ms(decode.itl(1.0))
            ),
        ),
        (
            "bandwidth",
            format!(
                "{:.2} GB/s of weights, {:.0} % of the {:.2} GB/s this {} reads{cached}",
                achieved / 1e9,
                share * 100.0,
                measured.read_bandwidth / 1e9,
                if measured.gpu.is_some() { "device" } else { "machine" }
            ),
        ),
        ("peak memory", peak_memory(loaded, measured)),
        (
            "power",
            measured
                .watts
                .map_or("not told by this machine".into(), |watts| format!("{watts:.1} W while decoding")),
        ),
    ];
    if let Some((first, last)) =
        measured.sustained.as_ref().and_then(|s| s.windows.first().zip(s.windows.last()))
    {
        let change = (last.tok_s / first.tok_s - 1.0) * 100.0;
        rows.push((
            "sustained",
            format!("{:.1} tokens/s at first, {:.1} at last ({change:+.1} %)", first.tok_s, last.tok_s),
        ));
    }
    let gpu = measured.gpu.as_ref().map_or_else(String::new, |gpu| format!("\n{}", gpu.as_text()));
    format!("{}\n{}{gpu}", paint::bold(&loaded.name), paint::facts(&rows))
}
