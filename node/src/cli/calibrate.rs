//! `takt calibrate`.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use takt_engine::engine::Engine;

use super::{
    CliError,
    interrupt::Interrupt,
    paint, print_json,
    served_engine::{options_for, worker_options},
};
use crate::{
    calibrate::{DeviceKey, Effort, grid_of, measure},
    clock::MonotonicClock,
    config::{Layers, RealtimeSettings, process_environment},
    rt,
    scheduler::cost_table::{Cost, CostTable, SectionKind, SectionShape, StoredTable},
};

/// The worker's cores and limits, for a command.
const AS_THE_SERVICE: &str =
    "sudo systemd-run --pty --uid=takt --slice=takt.slice -p LimitRTPRIO=60 -p LimitMEMLOCK=infinity";

/// Measure what sections cost on this device, so that deadlines can be promised
#[derive(Debug, Args)]
#[command(after_help = "Example: takt calibrate engines/takt-demo --config jetson-configs/host.toml\n\
    Use the configuration of the node: costs hold for its lanes, context, threads, KV format and real-time settings.\n\
    The table is kept in DIR/costs, one for each device, power mode and configuration.")]
pub(super) struct CalibrateArgs {
    /// Engine directory, written by `takt build`
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Configuration file of the node
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    /// Sections of each kind, size and context
    #[arg(long, value_name = "N", default_value_t = Effort::THOROUGH.num_samples as u32, value_parser = clap::value_parser!(u32).range(10..=1_000_000))]
    samples: u32,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &CalibrateArgs, interrupt: &Interrupt) -> Result<ExitCode, CliError> {
    let mut layers = Layers::default();
    if let Some(path) = &args.config {
        layers = layers.file(path);
    }
    let config = layers.environment(process_environment).resolve()?;
    let refused = take_the_workers_place(&config.realtime())?;
    let (options, worker) = (options_for(&args.dir, &config)?, worker_options(&config));
    let mut backend = Engine::open(&args.dir, &options)?.backend;
    let grid = grid_of(backend.as_ref(), worker.max_prefill_slice_tokens);
    let effort = Effort { num_samples: args.samples as usize, ..Effort::THOROUGH };
    let key = DeviceKey::of(backend.as_ref());
    let bar = bar(grid.num_cells(), args.json);
    let measured = measure(backend.as_mut(), &MonotonicClock, &grid, effort, |num_done| {
        bar.set_position(num_done as u64);
        !interrupt.is_raised()
    })?;
    bar.finish_and_clear();
    let costs = measured.ok_or_else(|| CliError::Failed("interrupted: no cost table was written".into()))?;
    let table = CostTable::new(grid, &costs);
    let path = StoredTable::path(&args.dir, &key.file_stem());
    StoredTable::of(&table, key.facts().to_vec(), args.samples)
        .write(&path)
        .map_err(|error| CliError::Failed(error.to_string()))?;
    if args.json {
        return print_json(&to_json(&table, &key, &path, &refused));
    }
    show(&table);
    sayln!("\nwritten to {}; every node on this device and configuration promises by it", path.display());
    Ok(ExitCode::SUCCESS)
}

/// Runs on as the node's worker would. Costs of other cores would be promised as if they were the worker's; what else is refused makes them
/// longer at most, and is returned.
fn take_the_workers_place(settings: &RealtimeSettings) -> Result<Vec<String>, CliError> {
    if !settings.cores.is_empty() {
        rt::pin(&settings.cores).map_err(|refusal| {
            CliError::Failed(format!(
                "{refusal}; nothing was measured, because the node would promise by what other cores take: calibrate where the service runs \
                 (`{AS_THE_SERVICE} takt calibrate …`), or name cores that are there, `cores` in [realtime] of the configuration"
            ))
        })?;
    }
    let refused = rt::apply(settings);
    for refusal in &refused {
        tracing::warn!("real time: {refusal}; costs are measured without it");
    }
    Ok(refused)
}

fn bar(num_cells: usize, is_silent: bool) -> ProgressBar {
    if is_silent {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("measuring {wide_bar} {pos}/{len} kinds of section, {eta} left");
    ProgressBar::new(num_cells as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn ms(cost: std::time::Duration) -> f64 {
    cost.as_secs_f64() * 1e3
}

/// One line a size, at the shortest and the longest context.
fn show(table: &CostTable) {
    let header = format!(
        "{:<9}{:>6}{:>9}{:>10}{:>10}{:>10}{:>12}",
        "section", "size", "context", "p50", "p99", "worst", "promised at"
    );
    sayln!("{}", paint::dim(&header));
    let contexts = &table.grid().context_lens;
    let shown: Vec<usize> = contexts.first().into_iter().chain(contexts.last()).copied().collect();
    for (shape, cost, _) in table.rows().filter(|(shape, ..)| shown.contains(&shape.context_len)) {
        let SectionShape { kind, size, context_len } = shape;
        let bound = ms(table.bound(shape));
        let Cost { p50, p99, worst } = cost;
        sayln!(
            "{:<9}{size:>6}{context_len:>9}{:>7.2} ms{:>7.2} ms{:>7.2} ms{bound:>9.2} ms",
            kind.name(),
            ms(p50),
            ms(p99),
            ms(worst)
        );
    }
    sayln!("\nstall, counted once a promise: {:.2} ms", ms(table.bounds().stall()));
}

fn to_json(table: &CostTable, key: &DeviceKey, path: &std::path::Path, refused: &[String]) -> Value {
    let rows: Vec<Value> = table
        .rows()
        .map(|(shape, cost, _)| {
            json!({
                "kind": shape.kind.name(), "size": shape.size, "context_len": shape.context_len,
                "p50_ms": ms(cost.p50), "p99_ms": ms(cost.p99), "worst_ms": ms(cost.worst),
                "bound_ms": ms(table.bound(shape)),
            })
        })
        .collect();
    let device: serde_json::Map<String, Value> =
        key.facts().iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    let sizes: serde_json::Map<String, Value> = SectionKind::ALL
        .iter()
        .map(|&kind| (kind.name().to_owned(), json!(table.grid().sizes(kind))))
        .collect();
    json!({
        "path": path.display().to_string(), "device": device, "sizes": sizes, "stall_ms": ms(table.bounds().stall()),
        "realtime_refused": refused, "rows": rows,
    })
}
