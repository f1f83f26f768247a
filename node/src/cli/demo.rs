//! `takt demo`: what the terminal shows of the robot and the node.

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;
use crossbeam_channel::{Receiver, bounded};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::{CliError, interrupt::Interrupt, paint, print_json};
use crate::{
    config::process_environment,
    demo::{
        Asker, Exchange, Happening, NodeProcess, Pace, PreparedEngine, RobotState, Situation, Summary,
        find_model, play, prepare_engine, screen_room,
    },
    ros::{AskClient, RosOptions},
};

/// Columns of the left part of a line, before the bar or the state.
const LEFT_WIDTH: usize = 60;
/// Columns of a latency bar.
const BAR_WIDTH: usize = 16;
/// From when on the user is told that the node is still starting.
const LONG_START: Duration = Duration::from_secs(5);
/// Longest wait for the node to be found once it is up.
const DISCOVERY: Duration = Duration::from_secs(10);

/// Watch a robot ask a language model over ROS 2, and act on the answers
#[derive(Debug, Args)]
#[command(after_help = "Example: takt demo --fast")]
pub(super) struct DemoArgs {
    /// A few seconds instead of about 25
    #[arg(long)]
    fast: bool,
    /// Folder of the model [default: models/takt-demo, looked for from here and from the program upwards]
    #[arg(long, value_name = "FOLDER")]
    model: Option<PathBuf>,
    /// Print one JSON object at the end, and nothing else
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &DemoArgs, interrupt: &Interrupt) -> Result<ExitCode, CliError> {
    let model = args.model.clone().map_or_else(|| find_model("give --model FOLDER"), Ok)?;
    let script = Situation::read_all(&model)?;
    let ros = own_network("takt_demo");
    if !args.json {
        sayln!("{}\n", headline());
    }
    let engine = prepare(&model, interrupt)?;
    let mut node = start_node(&engine, &ros, interrupt)?;
    if !args.json {
        say!("{}", introduction(&model, &engine, &node, &ros));
    }
    let client = AskClient::connect(&ros, DISCOVERY).map_err(|error| match node.is_running() {
        true => CliError::from(error),
        false => CliError::Failed(format!("the node ended:\n{}", node.last_words())),
    })?;
    let started = Instant::now();
    let summary = watch(args, &script, client, interrupt)?;
    let took = started.elapsed();
    drop(node);
    if args.json {
        print_json(&as_json(&engine, &summary, took))?;
    } else {
        say!("{}", closing(&engine, &script, &summary, took));
    }
    outcome(&script, &summary, interrupt)
}

/// Loopback, in a domain that other nodes of this machine hardly use. Domains above 101 would overlap Linux's ephemeral ports.
pub(super) fn own_network(node_name: &str) -> RosOptions {
    let domain_id = 40 + u16::try_from(std::process::id() % 60).unwrap_or(0);
    RosOptions { domain_id, node_name: node_name.into(), localhost_only: true, ..RosOptions::default() }
}

pub(super) fn prepare(model: &std::path::Path, interrupt: &Interrupt) -> Result<PreparedEngine, CliError> {
    let style = ProgressStyle::with_template("  building the engine  {bar:32} {pos}/{len} tensors");
    let bar = ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let prepared = prepare_engine(model, &cache_folder(), interrupt.flag(), &mut |progress| {
        bar.set_length(progress.total as u64);
        bar.set_position(progress.done as u64);
    });
    bar.finish_and_clear();
    Ok(prepared?)
}

/// `$XDG_CACHE_HOME/takt`, `~/.cache/takt`, or a temporary folder.
fn cache_folder() -> PathBuf {
    let set = |name| process_environment(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_CACHE_HOME")
        .filter(|folder| folder.is_absolute())
        .or_else(|| set("HOME").map(|home| home.join(".cache")))
        .unwrap_or_else(std::env::temp_dir)
        .join("takt")
}

fn start_node(
    engine: &PreparedEngine,
    ros: &RosOptions,
    interrupt: &Interrupt,
) -> Result<NodeProcess, CliError> {
    let mut is_told = false;
    let node = NodeProcess::start(&engine.dir, ros, &[], |waited| {
        if waited >= LONG_START && !is_told {
            is_told = true;
            eprintln!("{}", paint::dim("the node is still opening its engine; Ctrl-C ends both"));
        }
        !interrupt.is_raised()
    });
    Ok(node?)
}

/// Plays the script and shows what happens.
fn watch(
    args: &DemoArgs,
    script: &[Situation],
    client: AskClient,
    interrupt: &Interrupt,
) -> Result<Summary, CliError> {
    let failed = |error: std::io::Error| CliError::Failed(format!("cannot start a thread: {error}"));
    let asker = Asker::start(client).map_err(failed)?;
    let (screen, happenings) = bounded(screen_room(script));
    let pace = if args.fast { Pace::FAST } else { Pace::NORMAL };
    std::thread::scope(|scope| {
        let robot = std::thread::Builder::new()
            .name("control".into())
            .spawn_scoped(scope, move || play(script, pace, &asker, &screen, interrupt.flag()))
            .map_err(failed)?;
        let exchanges = show(&happenings, script, args.json);
        let times = robot.join().map_err(|_| CliError::Failed("the control loop panicked".into()))?;
        Ok(Summary { exchanges, times })
    })
}

fn show(happenings: &Receiver<Happening>, script: &[Situation], is_silent: bool) -> Vec<Exchange> {
    let mut exchanges = Vec::with_capacity(script.len());
    for happening in happenings {
        let text = match &happening {
            Happening::SceneReset(scene) => scene_line(scene),
            Happening::Asked(idx) => question_line(*idx, &script[*idx]),
            Happening::Answered(exchange) => answer_lines(exchange, &script[exchange.situation_idx]),
        };
        if !is_silent {
            say!("{text}");
        }
        if let Happening::Answered(exchange) = happening {
            exchanges.push(*exchange);
        }
    }
    exchanges
}

fn headline() -> String {
    format!(
        "{} {}",
        paint::bold("takt demo"),
        paint::dim("a robot asks a language model over ROS 2; its control loop never waits for the answer")
    )
}

fn introduction(
    model: &std::path::Path,
    engine: &PreparedEngine,
    node: &NodeProcess,
    ros: &RosOptions,
) -> String {
    let built = engine
        .built_in
        .map_or_else(|| "built before".to_owned(), |time| format!("built in {:.1} s", time.as_secs_f64()));
    let model = std::env::current_dir().ok().and_then(|here| model.strip_prefix(here).ok()).unwrap_or(model);
    paint::facts(&[
        (
            "engine",
            format!(
                "{} as {}, {}, {built}",
                model.display(),
                engine.manifest.quantization.weights,
                paint::bytes(engine.manifest.total_bytes())
            ),
        ),
        (
            "node",
            format!(
                "takt serve in a process of its own, ready after {:.1} s",
                node.ready_after.as_secs_f64()
            ),
        ),
        ("network", format!("ROS 2 domain {}, loopback only, service /{}/ask", ros.domain_id, ros.node_name)),
        ("robot", "10 Hz control loop; every question has a deadline".into()),
    ]) + "\n"
}

fn scene_line(scene: &RobotState) -> String {
    let held = scene.gripper.as_deref().unwrap_or("nothing");
    format!(
        "   {}\n\n",
        paint::dim(&format!("the scene is set again: robot at {}, holding {held}", scene.at))
    )
}

fn question_line(idx: usize, situation: &Situation) -> String {
    let state = RobotState::parse(&situation.system);
    let held = state.gripper.map(|thing| format!(", holds {thing}")).unwrap_or_default();
    let people = if state.people_near { ", people near" } else { "" };
    let state = format!("{}, {} %{held}{people}", state.at, state.battery);
    format!(
        "{} {} {}\n",
        paint::dim(&format!("{:>2}", idx + 1)),
        left(&format!("“{}”", situation.user), paint::bold),
        paint::dim(&state)
    )
}

fn answer_lines(exchange: &Exchange, situation: &Situation) -> String {
    let mut text = format!("   {}\n", paint::cyan(&exchange.text));
    let words = exchange.action.describe();
    let (mark, line) = if exchange.is_expected {
        (paint::green("✓"), left(&words, str::to_owned))
    } else {
        (paint::red("✗"), left(&words, paint::red))
    };
    text += &format!(" {mark} {line} {}\n", latency_bar(exchange));
    if !exchange.is_expected {
        text += &format!("   {}\n", paint::dim(&format!("expected {}", situation.answer)));
    }
    text + "\n"
}

/// `text` in the left columns, styled; longer text pushes what follows to the right.
fn left(text: &str, style: fn(&str) -> String) -> String {
    let gap = LEFT_WIDTH.saturating_sub(text.chars().count());
    format!("{}{:gap$}", style(text), "")
}

/// How much of the time allowed was used.
fn latency_bar(exchange: &Exchange) -> String {
    let (ms, allowed) = (exchange.round_trip.as_secs_f64() * 1e3, exchange.deadline.as_secs_f64() * 1e3);
    let filled = ((ms / allowed) * BAR_WIDTH as f64).ceil().clamp(1.0, BAR_WIDTH as f64) as usize; // 1 to 16
    let bar = format!("{}{}", "━".repeat(filled), "─".repeat(BAR_WIDTH - filled));
    let numbers = format!("{ms:>6.1} of {allowed:.0} ms");
    if !exchange.is_in_time() {
        return paint::red(&format!("{bar} {numbers}, late"));
    }
    let cut = match exchange.status.as_str() {
        "complete" => "",
        "rejected" => ", refused at once",
        _ => ", cut at the deadline",
    };
    format!(
        "{} {numbers}{}",
        if filled * 4 > BAR_WIDTH * 3 { paint::yellow(&bar) } else { paint::green(&bar) },
        paint::yellow(cut)
    )
}

fn closing(engine: &PreparedEngine, script: &[Situation], summary: &Summary, took: Duration) -> String {
    let (asked, times) = (script.len(), &summary.times);
    let ms = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);
    let share = |count: usize| {
        let text = format!("{count} of {asked}");
        if count == asked { paint::green(&text) } else { paint::yellow(&text) }
    };
    let shortest = script.iter().map(|s| s.deadline_ms).min().unwrap_or(0);
    let longest = script.iter().map(|s| s.deadline_ms).max().unwrap_or(0);
    let facts = paint::facts(&[
        (
            "answers",
            format!(
                "{} came, {} valid JSON, {} as expected",
                share(summary.count(|e| e.status != "lost")),
                share(summary.count(|e| e.is_json)),
                share(summary.count(|e| e.is_expected))
            ),
        ),
        (
            "deadlines",
            format!("{} kept, of {shortest} to {longest} ms", share(summary.count(Exchange::is_in_time))),
        ),
        (
            "latency",
            format!(
                "p50 {}, p99 {}, max {}, asked to answered over ROS 2",
                ms(summary.latency(0.5)),
                ms(summary.latency(0.99)),
                ms(summary.latency(1.0))
            ),
        ),
        (
            "control loop",
            format!(
                "{} ticks, {} went by while an answer was on its way; late by p50 {}, p99 {}, max {}",
                times.num_ticks,
                times.ticks_while_waiting,
                ms(times.jitter(0.5)),
                ms(times.jitter(0.99)),
                ms(times.jitter(1.0))
            ),
        ),
    ]);
    format!(
        "{}\n{facts}\n{}\n",
        paint::bold(&format!("{} questions in {:.1} s", summary.exchanges.len(), took.as_secs_f64())),
        paint::dim(&format!(
            "Try it yourself:  takt serve --engine {}   and   takt ask 'Go to the lab.'",
            with_tilde(&engine.dir)
        ))
    )
}

/// `path` as one would type it.
fn with_tilde(path: &std::path::Path) -> String {
    let home = process_environment("HOME").filter(|home| home.len() > 1);
    match home.and_then(|home| path.strip_prefix(home).ok().map(|rest| rest.display().to_string())) {
        Some(rest) => format!("~/{rest}"),
        None => path.display().to_string(),
    }
}

fn outcome(script: &[Situation], summary: &Summary, interrupt: &Interrupt) -> Result<ExitCode, CliError> {
    if interrupt.is_raised() {
        return Err(CliError::Failed("the demo was interrupted".into()));
    }
    let num_answered = summary.count(|exchange| exchange.status != "lost");
    if num_answered == script.len() {
        return Ok(ExitCode::SUCCESS);
    }
    Err(CliError::Failed(format!(
        "{} of {} questions were not answered",
        script.len() - num_answered,
        script.len()
    )))
}

fn as_json(engine: &PreparedEngine, summary: &Summary, took: Duration) -> Value {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let exchanges: Vec<Value> = summary
        .exchanges
        .iter()
        .map(|exchange| {
            json!({
                "status": exchange.status, "text": exchange.text, "valid_json": exchange.is_json,
                "expected": exchange.is_expected, "in_time": exchange.is_in_time(),
                "round_trip_ms": ms(exchange.round_trip), "deadline_ms": ms(exchange.deadline),
                "ttft_ms": exchange.ttft_ms, "tokens": exchange.num_tokens,
            })
        })
        .collect();
    let times = &summary.times;
    json!({
        "engine": engine.dir, "seconds": took.as_secs_f64(), "questions": exchanges.len(),
        "answered": summary.count(|e| e.status != "lost"), "valid_json": summary.count(|e| e.is_json),
        "expected": summary.count(|e| e.is_expected), "deadlines_kept": summary.count(Exchange::is_in_time),
        "latency_ms": {"p50": ms(summary.latency(0.5)), "p99": ms(summary.latency(0.99)), "max": ms(summary.latency(1.0))},
        "control_loop": {
            "ticks": times.num_ticks, "ticks_while_waiting": times.ticks_while_waiting,
            "late_ms": {"p50": ms(times.jitter(0.5)), "p99": ms(times.jitter(0.99)), "max": ms(times.jitter(1.0))},
            "longest_work_ms": ms(times.longest_work()),
        },
        "exchanges": exchanges,
    })
}
