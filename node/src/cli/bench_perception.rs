//! `takt bench --perception`, and the second process it starts.

use std::{path::Path, process::ExitCode, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};
use takt_engine::{
    EngineError, EngineOptions, backend::cuda::GpuShare, engine::BackendKind, quant::WeightKind,
};

use super::{CliError, duration, engine_args::EngineArgs, gpu_options::gpu_options, interrupt::Interrupt};
use super::{paint, print_json};
use crate::{
    bench::gpu::perception::{
        Mode, Place, Settings,
        language::Model,
        measure, plot,
        process::{MAX_FRAMES, Program, serve},
        report::{MAX_P99, MIN_KEPT, Report},
    },
    config::process_environment,
};

/// The hidden command that the second process is.
pub(super) const SECOND_PROCESS: &str = "perception-frames";
/// The model beside perception, when none is named.
const USUAL_SHAPE: &str = "qwen3-4b";

/// Longest `--seconds`: a day.
const MAX_SECONDS: u32 = 86_400;

/// What `takt bench --perception` was asked for.
#[derive(Debug, clap::Args)]
pub(super) struct PerceptionArgs {
    /// Instead: what a stand-in for perception on the same GPU notices of the model in every way of sharing; without DIR or --shape beside qwen3-4b
    #[arg(long, group = "what", conflicts_with_all = ["deadlines", "speculation", "ros", "sustained", "compare"])]
    pub perception: bool,
    /// With --perception: frames a second
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_value = "30,60,100", requires = "perception", value_parser = clap::value_parser!(u32).range(1..=1000))]
    hz: Vec<u32>,
    /// With --perception: how long each rate is measured in each mode and round
    #[arg(long, value_name = "S", default_value_t = 10.0, requires = "perception")]
    seconds: f64,
    /// With --perception: times all modes are measured, in another order each time
    #[arg(long, value_name = "N", default_value_t = 2, requires = "perception", value_parser = clap::value_parser!(u16).range(1..=1000))]
    perception_rounds: u16,
    /// With --perception: what a frame takes alone
    #[arg(long, value_name = "TIME", default_value = "3ms", requires = "perception", value_parser = duration::parse)]
    frame: Duration,
    /// With --perception: ways of sharing
    #[arg(
        long,
        value_name = "NAME,NAME",
        value_delimiter = ',',
        default_value = "none,priority,green_context",
        requires = "perception"
    )]
    modes: Vec<Mode>,
    /// With --perception: where frames are computed
    #[arg(
        long,
        value_name = "NAME,NAME",
        value_delimiter = ',',
        default_value = "in-process,second-process",
        requires = "perception"
    )]
    places: Vec<Place>,
    /// With --perception: multiprocessors of the green context, as `sm_share_percent` in [gpu]
    #[arg(long, value_name = "PERCENT", default_value_t = 50, requires = "perception", value_parser = clap::value_parser!(u8).range(1..=100))]
    sm_share_percent: u8,
    /// With --perception: how long the model sleeps after each step, as `idle_gap_us` in [gpu]
    #[arg(long, value_name = "TIME", default_value = "0us", requires = "perception", value_parser = duration::parse)]
    idle_gap: Duration,
}

/// What else the command line said.
pub(super) struct PerceptionBench<'a> {
    pub dir: Option<&'a Path>,
    pub shape: Option<&'a str>,
    pub kinds: (WeightKind, WeightKind),
    pub plot: Option<&'a Path>,
    pub as_json: bool,
}

pub(super) fn run(
    args: &PerceptionArgs,
    bench: &PerceptionBench<'_>,
    engine: &EngineArgs,
    interrupt: &Interrupt,
) -> Result<ExitCode, CliError> {
    if matches!(engine.backend, BackendKind::Cpu | BackendKind::TensorRt) {
        let fact = "--perception shares a GPU with our own kernels: leave --backend out, or name cuda";
        return Err(CliError::Usage(fact.into()));
    }
    let settings = settings(args, bench, engine.options())?;
    let bar = if bench.as_json { ProgressBar::hidden() } else { ProgressBar::new(1000) };
    let style = ProgressStyle::with_template("{msg:<34} {wide_bar} {elapsed}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let measured = measure(&settings, interrupt.flag(), |what, share| {
        bar.set_message(what.to_owned());
        bar.set_position((share * 1000.0) as u64); // within [0, 1000]
    });
    bar.finish_and_clear();
    if interrupt.is_raised() {
        return Err(CliError::Failed("interrupted".into()));
    }
    let report = measured.map_err(|error| match error {
        EngineError::Unsupported(fact) => CliError::Failed(format!("--perception measures a GPU: {fact}")),
        other => other.into(),
    })?;
    if let Some(path) = bench.plot {
        std::fs::write(path, plot::svg(&report))
            .map_err(|error| CliError::Failed(format!("cannot write {}: {error}", path.display())))?;
    }
    if bench.as_json {
        let value = serde_json::to_value(&report).map_err(|error| CliError::Failed(error.to_string()))?;
        return print_json(&value);
    }
    show(&report);
    if let Some(path) = bench.plot {
        sayln!("\n  {} {}", paint::dim("plot"), path.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn settings(
    args: &PerceptionArgs,
    bench: &PerceptionBench<'_>,
    options: EngineOptions,
) -> Result<Settings, CliError> {
    let length = length(args.seconds, &args.hz, args.perception_rounds)?;
    if args.frame.is_zero() {
        return Err(CliError::Usage("--frame: expected more than 0".into()));
    }
    let (weights, lm_head) = bench.kinds;
    let model = match (bench.dir, bench.shape) {
        (Some(dir), _) => Model::Engine(dir.to_owned()),
        (None, shape) => Model::Shape { name: shape.unwrap_or(USUAL_SHAPE).to_owned(), weights, lm_head },
    };
    let path = std::env::current_exe()
        .map_err(|error| CliError::Failed(format!("this program does not find itself: {error}")))?;
    Ok(Settings {
        model,
        options: EngineOptions { backend: BackendKind::Cuda, ..options },
        sm_share_percent: args.sm_share_percent,
        idle_gap: args.idle_gap,
        modes: args.modes.clone(),
        places: args.places.clone(),
        rates_hz: args.hz.clone(),
        frame: args.frame,
        length,
        num_rounds: args.perception_rounds.into(),
        program: Program { path, args: vec![SECOND_PROCESS.to_owned()] },
    })
}

/// How long each rate is measured, if the frames of all `num_rounds` can be kept.
fn length(seconds: f64, rates_hz: &[u32], num_rounds: u16) -> Result<Duration, CliError> {
    let length = Duration::try_from_secs_f64(seconds).ok().filter(|length| !length.is_zero());
    let length = length.filter(|length| *length <= Duration::from_secs(MAX_SECONDS.into()));
    let length = length.ok_or_else(|| {
        CliError::Usage(format!("--seconds {seconds}: expected more than 0 and at most {MAX_SECONDS}"))
    })?;
    let fastest = rates_hz.iter().copied().max().unwrap_or(0);
    let num_frames = length.as_secs_f64() * f64::from(fastest) * f64::from(num_rounds);
    if num_frames > MAX_FRAMES as f64 {
        return Err(CliError::Usage(format!(
            "{num_rounds} rounds of {seconds} s at {fastest} Hz are {num_frames:.0} frames, expected at most {MAX_FRAMES}: \
             lower --seconds, --hz or --perception-rounds"
        )));
    }
    Ok(length)
}

fn show(report: &Report) {
    sayln!("{}  {}", paint::bold("perception"), report.device);
    let model = report.model_alone.iter();
    let model: Vec<String> =
        model.map(|row| format!("{} {:.1} tokens/s ({})", row.mode, row.tok_s, row.kernels)).collect();
    say!(
        "{}",
        paint::facts(&[
            (
                "frame",
                format!(
                    "{:.2} ms alone, {} convolutions and matrix products on a stream ahead of others",
                    report.frame.alone_ms, report.frame.links
                )
            ),
            ("model", report.model.clone()),
            ("alone", model.join("; ")),
            (
                "kept",
                format!(
                    "of its tokens/s alone, without gaps, with sharing {}",
                    report.kept_against.unwrap_or("-")
                )
            ),
            (
                "measured",
                format!(
                    "{} rounds of {} s, idle gap {} µs, green context of {} %",
                    report.rounds, report.seconds, report.idle_gap_us, report.sm_share_percent
                )
            ),
        ])
    );
    let header = format!(
        "\n  {:<16}{:>5}  {:<14}{:>8}{:>8}{:>9}{:>9}{:>9}{:>9}{:>10}{:>10}{:>8}",
        "frames",
        "Hz",
        "sharing",
        "count",
        "missed",
        "p50 ms",
        "p99 ms",
        "p99.9",
        "max",
        "of alone",
        "tokens/s",
        "kept"
    );
    sayln!("{}", paint::dim(&header));
    for row in &report.rows {
        let ms = row.frame_ms;
        let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
        let over = format!("{:>10}", or_dash(row.p99_over_alone.map(|over| format!("{over:.3}"))));
        let kept = format!("{:>8}", or_dash(row.kept.map(|kept| format!("{:.0} %", kept * 100.0))));
        let judged = |text: String, is_met: Option<bool>| match is_met.filter(|_| row.not_judged.is_none()) {
            None => text,
            Some(true) => paint::green(&text),
            Some(false) => paint::red(&text),
        };
        sayln!(
            "  {:<16}{:>5}  {:<14}{:>8}{:>8}{:>9.3}{:>9.3}{:>9.3}{:>9.3}{}{:>10}{}",
            row.place,
            row.hz,
            row.mode_text(),
            row.frames,
            row.missed,
            ms.p50,
            ms.p99,
            ms.p99_9,
            ms.max,
            judged(over, row.p99_over_alone.map(|over| over <= MAX_P99)),
            or_dash(row.tok_s.map(|tok_s| format!("{tok_s:.1}"))),
            judged(kept, row.kept.map(|kept| kept >= MIN_KEPT)),
        );
    }
    if let Some(why) = report.rows.iter().find_map(|row| row.not_judged.as_ref()) {
        sayln!("\n  * not held against the goals: {why}");
    }
}

/// Frames for another process, as it says on standard input.
#[derive(Debug, clap::Args)]
pub(super) struct FramesArgs {
    /// Links of a frame
    num_links: u32,
}

pub(super) fn run_second_process(args: &FramesArgs) -> Result<ExitCode, CliError> {
    let gpu = gpu_options(GpuShare::None, process_environment);
    serve(&gpu, args.num_links, std::io::stdin(), &mut std::io::stdout())?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_within_a_day_and_its_frames_can_be_kept() {
        assert_eq!(length(0.5, &[30, 100], 2).unwrap(), Duration::from_millis(500));
        assert_eq!(length(86_400.0, &[50], 2).unwrap(), Duration::from_secs(86_400));
        for wrong in [0.0, -1.0, 86_400.5, 1e19, 1e300, f64::NAN, f64::INFINITY] {
            let Err(CliError::Usage(message)) = length(wrong, &[30], 1) else { panic!("{wrong}") };
            assert!(message.contains("more than 0 and at most 86400"), "{message}");
        }
        for (seconds, hz, num_rounds) in [(10_001.0, 1000, 1), (20.0, 1000, 1000)] {
            let Err(CliError::Usage(message)) = length(seconds, &[1, hz], num_rounds) else {
                panic!("{seconds}")
            };
            assert!(message.contains("frames, expected at most 10000000"), "{message}");
        }
    }
}
