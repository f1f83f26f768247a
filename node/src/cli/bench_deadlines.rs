//! `takt bench --deadlines`: how well promises are kept.

use std::{path::Path, process::ExitCode, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use takt_engine::engine::EngineOptions;

use super::{CliError, generate::opener, interrupt::Interrupt, paint, print_json};
use crate::{
    bench::{
        deadlines::{Asking, LOADS, RealTime, VirtualRow, capacity, real_time, virtual_time},
        forms::{Cuts, cut_at_random},
    },
    calibrate::Effort,
    worker::{Worker, WorkerOptions},
};

/// Lanes, as a node has them by default.
const NUM_LANES: usize = 4;
/// Deadlines asked for in real time.
const DEADLINES_MS: (u64, u64) = (20, 200);

/// What to measure.
#[derive(Debug, Clone, Copy)]
pub(super) struct DeadlineBench<'a> {
    pub dir: &'a Path,
    /// Requests played in virtual time by each policy, over all loads.
    pub num_requests: usize,
    /// Real time, each without and with other load on the same cores.
    pub length: Duration,
    pub rate: f64,
    /// Answers with a form that are cut, closed and judged.
    pub num_cuts: usize,
    pub as_json: bool,
}

pub(super) fn run(
    bench: &DeadlineBench<'_>,
    options: EngineOptions,
    interrupt: &Interrupt,
) -> Result<ExitCode, CliError> {
    // Longer than a node at its start: what is measured here is how promises are kept, not how a brief calibration is.
    let effort = Effort { num_samples: 200, most: Duration::from_secs(20), idle_gap: Duration::ZERO };
    let worker_options =
        WorkerOptions { effort, process_end: interrupt.receiver().clone(), ..WorkerOptions::default() };
    let slice = worker_options.max_prefill_slice_tokens;
    let num_lanes = NUM_LANES;
    let options = EngineOptions { num_lanes, max_step_tokens: num_lanes + slice, ..options };
    let worker = Worker::spawn(opener(bench.dir.to_owned(), options), worker_options)?;
    let table = std::sync::Arc::clone(&worker.facts().costs);
    let bar = progress("virtual time", bench.as_json);
    let num_each = (bench.num_requests / (2 * LOADS.len())).max(1);
    let rows = virtual_time(&table, num_lanes, num_each, |share| {
        bar.set_position((share * 1000.0) as u64); // within [0, 1000]
        !interrupt.is_raised()
    });
    bar.finish_and_clear();
    let mut real = Vec::new();
    for has_load in [false, true] {
        if interrupt.is_raised() {
            return Err(CliError::Failed("interrupted".into()));
        }
        if !bench.as_json {
            eprintln!("real time, {:.0} s {} ...", bench.length.as_secs_f64(), load_text(has_load));
        }
        let asking = Asking { length: bench.length, rate: bench.rate, deadlines_ms: DEADLINES_MS, has_load };
        let found = real_time(&worker.sender(), &asking, 5);
        real.push(found.map_err(|_| CliError::Failed("the worker stopped: see the log".into()))?);
    }
    let (text, vocab_size) = (&worker.facts().text, worker.facts().manifest.spec.vocab_size);
    let bar = progress("forms", bench.as_json);
    let cuts = cut_at_random(text, vocab_size, bench.num_cuts, |share| {
        bar.set_position((share * 1000.0) as u64); // within [0, 1000]
        !interrupt.is_raised()
    });
    bar.finish_and_clear();
    let device = worker.facts().capabilities.device.clone();
    worker.shut_down();
    if bench.as_json {
        print_json(&json!({
            "device": device, "lanes": num_lanes, "capacity_per_s": capacity(&table, num_lanes),
            "virtual": rows, "real": real, "forms": cuts.as_ref().ok(),
            "forms_error": cuts.as_ref().err().map(ToString::to_string),
        }))?;
        return verdict(&cuts?);
    }
    sayln!(
        "{}  {device}, {num_lanes} lanes, {:.1} requests/s at full load",
        paint::bold("deadlines"),
        capacity(&table, num_lanes)
    );
    show_virtual(&rows, num_each);
    show_real(&real, bench);
    let cuts = cuts?;
    show_cuts(&cuts);
    verdict(&cuts)
}

/// A closed answer that is not valid is a failure, however it is printed.
fn verdict(cuts: &Cuts) -> Result<ExitCode, CliError> {
    match cuts.num_cuts - cuts.num_valid {
        0 => Ok(ExitCode::SUCCESS),
        num_wrong => {
            Err(CliError::Failed(format!("{num_wrong} closed answers were not valid: please report them")))
        }
    }
}

fn progress(what: &'static str, is_hidden: bool) -> ProgressBar {
    let bar = if is_hidden { ProgressBar::hidden() } else { ProgressBar::new(1000) };
    let style = ProgressStyle::with_template("{msg} {wide_bar} {percent} %, {eta} left");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message(what);
    bar
}

fn load_text(has_load: bool) -> &'static str {
    if has_load { "with other threads keeping every core busy" } else { "with nothing else to do" }
}

fn show_virtual(rows: &[VirtualRow], num_each: usize) {
    sayln!("\nvirtual time, {} requests a row, the costs of this device", paint::grouped(num_each as u64));
    let header = format!(
        "  {:<6}{:<9}{:<13}{:>10}{:>10}{:>10}{:>12}{:>8}",
        "load", "arrivals", "policy", "promised", "missed", "in time", "in time/s", "busy"
    );
    sayln!("{}", paint::dim(&header));
    for row in rows {
        let (report, control) = (&row.report, &row.report.control);
        let missed = format!("{:>10}", paint::grouped(control.num_missed));
        sayln!(
            "  {:<6}{:<9}{:<13}{:>10}{}{:>10}{:>12.1}{:>7.0}%",
            format!("{}x", row.load),
            row.arrivals,
            row.policy,
            paint::grouped(control.num_requests - control.num_rejected),
            if control.num_missed > 0 { paint::red(&missed) } else { paint::green(&missed) },
            paint::grouped(control.num_answered),
            control.num_answered as f64 / report.length_s,
            report.utilisation * 100.0,
        );
    }
}

fn show_real(rows: &[RealTime], bench: &DeadlineBench<'_>) {
    sayln!(
        "\nreal time, {:.0} s at {:.0} requests/s, deadlines of {} to {} ms",
        bench.length.as_secs_f64(),
        bench.rate,
        DEADLINES_MS.0,
        DEADLINES_MS.1
    );
    for row in rows {
        sayln!("  {}", load_text(row.has_load));
        sayln!(
            "    {} sent, {} promised, {} refused, {} let in without a promise; {} answered in time, {} of them whole",
            row.num_sent,
            row.num_promised,
            row.num_rejected,
            row.num_unpromised,
            row.num_answered,
            row.num_complete
        );
        sayln!(
            "    late {:.2} %, more than 2 ms late {:.2} %; lateness p99 {:.2} ms, max {:.2} ms; early by {:.1} ms at the median",
            row.share_late * 100.0,
            row.share_late_2ms * 100.0,
            row.late_p99_ms,
            row.late_max_ms,
            row.early_p50_ms
        );
        sayln!("    refusals took p99 {:.2} ms, max {:.2} ms", row.rejection_p99_ms, row.rejection_max_ms);
    }
}

fn show_cuts(cuts: &Cuts) {
    let grouped = |number: usize| paint::grouped(number as u64);
    sayln!(
        "\nforms, {} random answers of {} schemas cut at random, closed and judged; masks over {} tokens",
        grouped(cuts.num_cuts),
        cuts.num_schemas,
        grouped(cuts.vocab_size)
    );
    for wrong in &cuts.wrong {
        sayln!("  {} {wrong}", paint::red("wrong"));
    }
    let num_fields = cuts.num_model_fields + cuts.num_defaulted_fields + cuts.num_cut_fields;
    let share = |part: usize| 100.0 * part as f64 / num_fields.max(1) as f64;
    let valid = format!("{} of {} valid", grouped(cuts.num_valid), grouped(cuts.num_cuts));
    sayln!(
        "  {}; of their values {:.1} % the (random) model's, {:.1} % stand in, {:.1} % cut",
        if cuts.num_valid == cuts.num_cuts { paint::green(&valid) } else { paint::red(&valid) },
        share(cuts.num_model_fields),
        share(cuts.num_defaulted_fields),
        share(cuts.num_cut_fields)
    );
    let header = format!("  {:<24}{:>10}{:>10}{:>10}{:>10}", "µs", "count", "p50", "p99", "max");
    sayln!("{}", paint::dim(&header));
    for row in &cuts.spent {
        sayln!(
            "  {:<24}{:>10}{:>10.1}{:>10.1}{:>10.1}  {}",
            row.what,
            grouped(row.num_samples),
            row.p50_us,
            row.p99_us,
            row.max_us,
            paint::dim(&row.max_at)
        );
    }
}
