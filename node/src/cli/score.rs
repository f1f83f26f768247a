//! `takt score`.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use serde_json::json;
use takt_engine::{
    EngineError, TokenId,
    dir::Manifest,
    engine::{DEFAULT_LANE_CAPACITY, Engine},
    score::{score, score_corpus},
    text::{SpecialTokens, Text},
};

use super::{
    CliError,
    engine_args::EngineArgs,
    paint, print_json,
    score_draft::{TreeArg, draft},
};

/// Score given tokens: logits after the last one and mean negative log-likelihood
#[derive(Debug, Args)]
#[command(after_help = "Example: takt score robot-engine --text 'pick the red cup' --json")]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub(super) struct ScoreArgs {
    /// Engine directory, written by `takt build`
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Text as it stands, with the tokens the tokenizer adds to a raw prompt
    #[arg(long, group = "what", allow_hyphen_values = true)]
    text: Option<String>,
    /// Token ids, separated by commas
    #[arg(long, value_name = "1,2,3", value_delimiter = ',', group = "what")]
    token_ids: Option<Vec<TokenId>>,
    /// A text file whose perplexity is measured, in chunks of the context length
    #[arg(long, value_name = "FILE", group = "what")]
    perplexity: Option<PathBuf>,
    /// Tokens of a chunk for --perplexity [default: the model's context, at most 4096]
    #[arg(long, value_name = "N", requires = "perplexity", value_parser = clap::value_parser!(u32).range(2..))]
    chunk: Option<u32>,
    #[command(flatten)]
    engine: EngineArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// What the engine's draft head proposes after the tokens, as well
    #[arg(long)]
    draft: bool,
    /// The token that follows, from which drafts begin [default: the likeliest]
    #[arg(long, value_name = "ID", requires = "draft")]
    next: Option<TokenId>,
    /// Shape of the tree: tokens expanded a level, levels below the first, nodes kept
    #[arg(long, value_name = "top_k=4,levels=4,nodes=16", requires = "draft")]
    tree: Option<TreeArg>,
}

pub(super) fn run(args: &ScoreArgs) -> Result<ExitCode, CliError> {
    match &args.perplexity {
        Some(file) => measure_perplexity(args, file),
        None => score_tokens(args),
    }
}

fn score_tokens(args: &ScoreArgs) -> Result<ExitCode, CliError> {
    let token_ids = match (&args.token_ids, &args.text) {
        (Some(ids), _) => ids.clone(),
        (None, text) => encode(args, text.as_deref().unwrap_or_default())?,
    };
    let mut engine = open(args, token_ids.len())?;
    let found = score(engine.backend.as_mut(), &token_ids)?;
    let drafted = args.draft.then(|| {
        let next = args.next.or_else(|| likeliest(&found.last_logits, 1).first().map(|(id, _)| *id));
        draft(&mut engine, &token_ids, next.unwrap_or_default(), args.tree.unwrap_or_default())
    });
    let drafted = drafted.transpose()?;
    if args.json {
        let mut facts = json!({ "token_ids": token_ids, "last_logits": found.last_logits, "nll": found.nll });
        if let Some(drafted) = &drafted {
            facts["draft"] = drafted.as_json();
        }
        return print_json(&facts);
    }
    let nll =
        found.nll.map_or_else(|| "a single token has none".into(), |nll| format!("{nll:.4} nats a token"));
    say!(
        "{}",
        paint::facts(&[("tokens", token_ids.len().to_string()), ("nll", nll), ("kernels", kernels(&engine))])
    );
    sayln!("  {}", paint::dim("likeliest next"));
    let text = Text::open(&args.dir)?;
    for (id, logit) in likeliest(&found.last_logits, 5) {
        let word = text.as_ref().and_then(|text| text.decode(&[id], false).ok()).unwrap_or_default();
        sayln!("    {id:>7}  {logit:>9.4}  {word:?}");
    }
    if let Some(drafted) = &drafted {
        say!("{}", drafted.as_text(text.as_ref()));
    }
    Ok(ExitCode::SUCCESS)
}

fn measure_perplexity(args: &ScoreArgs, file: &PathBuf) -> Result<ExitCode, CliError> {
    let bytes = std::fs::read(file).map_err(|source| EngineError::Io { path: file.clone(), source })?;
    let corpus = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        CliError::Failed(format!("{}: not UTF-8 at byte {at}: convert the file to UTF-8", file.display()))
    })?;
    let token_ids = encode(args, &corpus)?;
    let chunk_len = args.chunk.map_or(DEFAULT_LANE_CAPACITY, |chunk| chunk as usize);
    let mut engine = open(args, chunk_len.min(token_ids.len().max(2)))?;
    let found = score_corpus(engine.backend.as_mut(), &token_ids, chunk_len)?;
    if args.json {
        return print_json(&json!({
            "file": file, "num_tokens": token_ids.len(), "num_predicted": found.num_predicted,
            "nll": found.nll, "perplexity": found.perplexity(),
        }));
    }
    say!(
        "{}",
        paint::facts(&[
            ("tokens", paint::grouped(token_ids.len() as u64)),
            ("nll", format!("{:.4} nats a token", found.nll)),
            ("perplexity", format!("{:.3}", found.perplexity())),
            ("kernels", kernels(&engine)),
        ])
    );
    Ok(ExitCode::SUCCESS)
}

fn encode(args: &ScoreArgs, text: &str) -> Result<Vec<TokenId>, CliError> {
    Manifest::read(&args.dir)?; // "no engine here" before "no tokenizer here"
    let tokenizer = Text::open(&args.dir)?.ok_or_else(|| {
        CliError::Failed(format!(
            "{}: no tokenizer.json, so only --token-ids can be scored",
            args.dir.display()
        ))
    })?;
    Ok(tokenizer.encode(text, SpecialTokens::Add)?)
}

/// Opens the engine with a lane for `num_tokens`, up to what the model was made for.
fn open(args: &ScoreArgs, num_tokens: usize) -> Result<Engine, CliError> {
    let manifest = Manifest::read(&args.dir)?;
    let max_context = manifest.spec.max_context;
    if args.perplexity.is_none() && num_tokens > max_context {
        return Err(CliError::Failed(format!(
            "{num_tokens} tokens: the model was made for {max_context} at most"
        )));
    }
    let mut options = args.engine.options();
    // A draft begins after one more token.
    let num_tokens = num_tokens + usize::from(args.draft);
    options.lane_capacity = Some(num_tokens.clamp(1, max_context));
    // A long file is scored in windows, of what a lane of the plan holds.
    if args.perplexity.is_some()
        && options.backend == takt_engine::engine::BackendKind::TensorRt
        && let Some(plan) = takt_engine::backend::tensorrt::plan_for_this_machine(&manifest)
    {
        options.lane_capacity = options.lane_capacity.map(|asked| asked.min(plan.lane_capacity));
    }
    options.speculation = args.draft;
    Ok(Engine::open(&args.dir, &options)?)
}

fn kernels(engine: &Engine) -> String {
    let facts = engine.backend.capabilities();
    format!("{} ({}), KV cache {}", facts.backend, facts.kernels, facts.kv)
}

fn likeliest(logits: &[f32], count: usize) -> Vec<(TokenId, f32)> {
    let mut ranked: Vec<(TokenId, f32)> = (0..).zip(logits.iter().copied()).collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    ranked.truncate(count);
    ranked
}
