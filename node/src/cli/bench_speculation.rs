//! `takt bench --speculation`: what speculation brings.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use indicatif::{ProgressBar, ProgressStyle};
use takt_engine::{
    backend::{Backend as _, cpu::CpuBackend},
    dir::EngineDir,
    draft::RandomHead,
    engine::{Engine, EngineOptions, MAX_TREE_NODES},
    kv::KvKind,
    quant::WeightKind,
    shapes,
    text::Text,
};

use super::{CliError, engine_args::check_runs_shapes, interrupt::Interrupt, paint, print_json};
use crate::bench::speculation::{
    SpeculationError,
    measured::{self, Course},
    plot,
    profile::Profile,
    prompts,
    report::{MethodRow, Report},
    simulated::{self, ShapeCourse},
};

/// Histograms show so many lengths.
const MAX_LENS: usize = 9;

/// What to measure.
#[derive(Debug)]
pub(super) struct SpeculationBench<'a> {
    pub target: Target<'a>,
    /// Times that everything is measured.
    pub num_passes: usize,
    /// Where to write the picture.
    pub plot: Option<&'a Path>,
    pub as_json: bool,
}

/// On what.
#[derive(Debug)]
pub(super) enum Target<'a> {
    /// An engine directory: real answers.
    Engine {
        dir: &'a Path,
        /// Prompts, one a line; `None` for those of this program.
        data: Option<&'a Path>,
        num_prompts: Option<usize>,
        max_tokens: usize,
    },
    /// Random weights of a known shape: real costs, assumed acceptance.
    Shape { name: &'a str, weights: WeightKind, lm_head: WeightKind, profile: Profile, context_len: usize },
}

impl From<SpeculationError> for CliError {
    fn from(error: SpeculationError) -> Self {
        match error {
            SpeculationError::Engine(error) => Self::Engine(error),
            other => Self::Failed(other.to_string()),
        }
    }
}

pub(super) fn run(
    bench: &SpeculationBench<'_>,
    options: EngineOptions,
    interrupt: &Interrupt,
) -> Result<ExitCode, CliError> {
    let bar = progress(bench.as_json);
    let on_progress = |share: f64| {
        bar.set_position((share * 1000.0) as u64); // within [0, 1000]
        !interrupt.is_raised()
    };
    let report = match &bench.target {
        Target::Engine { .. } => on_engine(bench, options, on_progress),
        Target::Shape { .. } => on_shape(bench, options, on_progress),
    };
    bar.finish_and_clear();
    let report = report?;
    if let Some(path) = bench.plot {
        fs::write(path, plot::svg(&report))
            .map_err(|error| CliError::Failed(format!("cannot write {}: {error}", path.display())))?;
    }
    if bench.as_json {
        let value = serde_json::to_value(&report).map_err(|error| CliError::Failed(error.to_string()))?;
        return print_json(&value);
    }
    show(&report);
    if let Some(path) = bench.plot {
        sayln!("  {} {}", paint::dim("plot"), path.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn on_engine(
    bench: &SpeculationBench<'_>,
    mut options: EngineOptions,
    progress: impl FnMut(f64) -> bool,
) -> Result<Report, CliError> {
    let Target::Engine { dir, data, num_prompts, max_tokens } = bench.target else {
        return Err(CliError::Usage("no engine".into()));
    };
    let lines = match data {
        Some(path) => prompts::read(path)?,
        None => prompts::built_in(),
    };
    let lines = match num_prompts {
        Some(num) => prompts::spread(lines, num),
        None => lines,
    };
    // Before the engine: how long the prompts are says how long a lane must be.
    let Some(text) = Text::open(dir)? else {
        let fact = "has no tokenizer, and prompts are text: build it from a folder with tokenizer.json";
        return Err(CliError::Failed(format!("{} {fact}", dir.display())));
    };
    let course = Course {
        prompts: prompts::encode(&lines, &text)?,
        eos: text.defaults().eos_token_ids.clone(),
        max_tokens,
        num_passes: bench.num_passes,
    };
    options.lane_capacity = Some(course.lane_capacity());
    let max_context = EngineDir::open(dir)?.manifest().spec.max_context;
    course.check(max_context)?;
    let Engine { draft, mut backend, .. } = Engine::open(dir, &options)?;
    let model = dir.display().to_string();
    Ok(measured::run(backend.as_mut(), draft.as_ref(), &course, model, progress)?)
}

fn on_shape(
    bench: &SpeculationBench<'_>,
    mut options: EngineOptions,
    progress: impl FnMut(f64) -> bool,
) -> Result<Report, CliError> {
    let Target::Shape { name, weights, lm_head, ref profile, context_len } = bench.target else {
        return Err(CliError::Usage("no shape".into()));
    };
    check_runs_shapes(options.backend)?;
    let spec = shapes::decoder_spec(name)?;
    options.lane_capacity = Some(simulated::lane_capacity(context_len));
    let mut cpu_options = options.cpu_options(&spec, KvKind::Bf16);
    cpu_options.max_logits_rows = cpu_options.max_logits_rows.max(MAX_TREE_NODES + 1);
    // Each source goes before the next comes: the backend has packed copies, and an 8B model is large enough once.
    let mut backend = {
        let source = shapes::RandomWeights::new(&spec, weights, lm_head, 1)?;
        CpuBackend::new(&spec, &source, &cpu_options)?
    };
    {
        let head = RandomHead::new(&spec, weights, lm_head, 2)?;
        backend.attach_draft(head.spec(), &head)?;
    }
    let course = ShapeCourse { profile: profile.clone(), context_len, num_passes: bench.num_passes };
    let model = format!("{name}, random {weights} weights and draft head");
    Ok(simulated::run(&mut backend, &course, model, progress)?)
}

fn progress(is_hidden: bool) -> ProgressBar {
    let bar = if is_hidden { ProgressBar::hidden() } else { ProgressBar::new(1000) };
    let style = ProgressStyle::with_template("{msg} {wide_bar} {percent} %, {eta} left");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message("speculation");
    bar
}

fn show(report: &Report) {
    sayln!("{}  {}", paint::bold("speculation"), report.model);
    let what = match &report.profile {
        Some(profile) => {
            let chances: Vec<String> = profile.first.iter().map(ToString::to_string).collect();
            format!(
                "{}: profile {} ({}; each further proposal gets {} of what is left)",
                paint::yellow("simulated acceptance"),
                profile.name,
                chances.join(", "),
                profile.further_share
            )
        }
        None => format!(
            "{} prompts, {} tokens, every answer the same by every method",
            report.num_prompts,
            paint::grouped(report.num_tokens)
        ),
    };
    sayln!("  {what}");
    let Report { backend, device, threads, context_len, num_passes, .. } = report;
    sayln!(
        "  {backend} on {device}, {threads} threads, context {context_len}, medians of {num_passes} passes\n"
    );
    let header = format!(
        "  {:<30}{:>10}{:>9}{:>12}{:>9}{:>8}{:>10}{:>11}{:>12}",
        "", "tokens/s", "speed-up", "accept_len", "rounds", "nodes", "draft µs", "verify µs", "round/step"
    );
    sayln!("{}", paint::dim(&header));
    report.methods.iter().for_each(show_method);
    show_lens(report);
    show_tasks(report);
    sayln!();
    if let Some(against) = &report.adaptive_vs_plain {
        let how = if report.profile.is_some() { "simulated: " } else { "" };
        let text = format!("{how}{}", against.text());
        sayln!("  {}", if against.is_slower_than_promised { paint::red(&text) } else { text });
    }
    report.notes.iter().for_each(|note| sayln!("  {}", paint::yellow(note)));
}

fn show_method(row: &MethodRow) {
    let number = |value: Option<f64>, digits: usize| {
        value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
    };
    let speedup = format!("{:>8.2}x", row.speedup);
    sayln!(
        "  {:<30}{:>10.1}{}{:>12}{:>9.0}{:>8}{:>10}{:>11}{:>12}",
        row.name,
        row.tok_s,
        if row.speedup > 1.0 { paint::green(&speedup) } else { speedup },
        number(row.accept_len, 2),
        row.rounds,
        number(row.nodes_per_round, 1),
        number(row.draft_us, 0),
        number(row.verify_us, 0),
        number(row.round_cost, 2),
    );
}

/// How many tokens rounds emit: for the adaptive policies, and the best of the fixed shapes.
fn show_lens(report: &Report) {
    let fixed = report.methods.iter().filter(|row| row.nodes.is_some());
    let best = fixed.max_by(|a, b| a.speedup.total_cmp(&b.speedup));
    let adaptive = report.methods.iter().filter(|row| row.kind == "adaptive");
    let header: String = (1..=MAX_LENS).map(|len| format!("{len:>7}")).collect();
    sayln!("\n{}", paint::dim(&format!("  {:<30}{header}", "tokens of a round, % of rounds")));
    for row in best.into_iter().chain(adaptive) {
        let shares = row.accept_len_shares.iter().take(MAX_LENS);
        let shares: String = shares.map(|share| format!("{:>7.1}", share * 100.0)).collect();
        sayln!("  {:<30}{shares}", row.name);
    }
    for (row, idle_us) in report.methods.iter().filter_map(|row| Some((row, row.idle_us?))) {
        if row.kind == "adaptive" {
            let text = format!("{}: {idle_us:.1} µs of each plain step go to deciding", row.name);
            sayln!("  {}", paint::dim(&text));
        }
    }
}

fn show_tasks(report: &Report) {
    if report.tasks.is_empty() {
        return;
    }
    let header =
        format!("\n  {:<20}{:<10}{:>9}{:>12}{:>10}", "task", "drafter", "prompts", "accept_len", "speed-up");
    sayln!("{}", paint::dim(&header));
    for row in &report.tasks {
        let accept_len = row.accept_len.map_or_else(|| "-".to_owned(), |len| format!("{len:.2}"));
        sayln!(
            "  {:<20}{:<10}{:>9}{accept_len:>12}{:>9.2}x",
            row.task,
            row.drafter,
            row.num_prompts,
            row.speedup
        );
    }
}

/// What `takt bench` was asked for, as far as speculation is concerned.
#[derive(Debug, clap::Args)]
pub(super) struct SpeculationArgs {
    /// Instead: what speculation brings, by drafter and shape of trees, every answer compared with plain decoding's
    #[arg(long, conflicts_with_all = ["deadlines", "sustained"])]
    pub speculation: bool,
    /// With --speculation: prompts, a JSON object a line with "user", and perhaps "system", and "task" or "skill" [default: 12 of several kinds]
    #[arg(long, value_name = "FILE.jsonl", requires = "speculation", conflicts_with = "shape")]
    pub data: Option<PathBuf>,
    /// With --speculation: answer so many of the prompts, evenly spread [default: all]
    #[arg(long, value_name = "N", requires = "speculation", conflicts_with = "shape", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub prompts: Option<u32>,
    /// With --speculation: most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 128, requires = "speculation", conflicts_with = "shape", value_parser = clap::value_parser!(u32).range(2..=100_000))]
    pub max_tokens: u32,
    /// With --speculation: times that everything is measured; medians count
    #[arg(long, value_name = "N", default_value_t = 3, requires = "speculation", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub passes: u32,
    /// With --speculation and --shape: how much is accepted, as that cannot be measured on random weights: good, fair, poor, or chances by depth such as 0.8,0.7,0.6 [default: fair]
    #[arg(long, value_name = "PROFILE", requires_all = ["speculation", "shape"])]
    pub profile: Option<Profile>,
    /// With --speculation: draw speed-up against tree size; with --ros: draw overheads and lateness
    #[arg(long, value_name = "FILE.svg", requires = "drawn")]
    pub plot: Option<PathBuf>,
}

impl SpeculationArgs {
    /// The bench on `dir`.
    pub fn on_engine<'a>(&'a self, dir: &'a Path, as_json: bool) -> SpeculationBench<'a> {
        let target = Target::Engine {
            dir,
            data: self.data.as_deref(),
            num_prompts: self.prompts.map(|num| num as usize),
            max_tokens: self.max_tokens as usize,
        };
        self.bench(target, as_json)
    }

    /// The bench on random weights of the shape `name`.
    pub fn on_shape<'a>(
        &'a self,
        name: &'a str,
        (weights, lm_head): (WeightKind, WeightKind),
        context_len: usize,
        as_json: bool,
    ) -> Result<SpeculationBench<'a>, CliError> {
        let profile = match &self.profile {
            Some(profile) => profile.clone(),
            None => "fair".parse().map_err(CliError::Usage)?,
        };
        Ok(self.bench(Target::Shape { name, weights, lm_head, profile, context_len }, as_json))
    }

    fn bench<'a>(&'a self, target: Target<'a>, as_json: bool) -> SpeculationBench<'a> {
        SpeculationBench { target, num_passes: self.passes as usize, plot: self.plot.as_deref(), as_json }
    }
}
