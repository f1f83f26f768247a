//! `takt generate`: one request through the same worker that serves ROS 2.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use crossbeam_channel::{Receiver, bounded, never, select};
use serde_json::{Value, json};
use takt_engine::{
    EngineError,
    engine::{Engine, EngineOptions},
    sampler::SamplingParams,
    text::{Message, Text},
};

use super::{
    CliError, duration,
    engine_args::EngineArgs,
    form::{FormArgs, not_the_models},
    interrupt::Interrupt,
    paint, print_json,
};
use crate::{
    calibrate::{DeviceKey, Effort},
    request::{Event, Prompt, Reply, Request, RequestId, Status},
    scheduler::{class::Class, cost_table::StoredTable},
    worker::{Drafting, Opened, Worker, WorkerOptions},
};

/// Events of the one request that may wait for the terminal.
const MAX_EVENTS: usize = 4096;

/// Answer one prompt, streamed to the terminal
#[derive(Debug, Args)]
#[command(after_help = "Example: takt generate robot-engine --prompt 'Where are you?' --deadline 200ms")]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub(super) struct GenerateArgs {
    /// Engine directory, written by `takt build`
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// What to answer
    #[arg(long, value_name = "TEXT", group = "what", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// Messages to answer: a JSON list of {"role", "content"}
    #[arg(long, value_name = "FILE.json", group = "what", conflicts_with_all = ["system", "raw"])]
    chat: Option<PathBuf>,
    /// System prompt
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    system: Option<String>,
    /// Take the prompt as it is, without the chat template
    #[arg(long)]
    raw: bool,
    /// Most tokens of the answer [default: what the context has room for]
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// A text that ends the answer; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Answer within this time with what there is: 200ms, 1.5s
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    deadline: Option<Duration>,
    /// Tokens of prompt and answer together [default: the model's, at most 4096]
    #[arg(long, value_name = "N")]
    max_context: Option<usize>,
    #[command(flatten)]
    engine: EngineArgs,
    /// Who proposes tokens to verify together: auto (the engine's draft head), lookup (what was said before), off
    #[arg(long, value_name = "WHO", default_value = "auto")]
    drafter: Drafting,
    /// Plain decoding: as --drafter off
    #[arg(long)]
    no_speculation: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    form: FormArgs,
}

/// How tokens are chosen; what is not given comes from the model.
#[derive(Debug, Args)]
struct SamplingArgs {
    /// 0 is greedy [default: the model's]
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Keep the K likeliest tokens
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Keep the smallest set of probability P
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Keep tokens at least P times as likely as the likeliest
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,
    /// Seed of the random choices
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

pub(super) fn run(args: &GenerateArgs, interrupt: &Interrupt) -> Result<ExitCode, CliError> {
    let prompt = prompt(args)?;
    let form = args.form.form()?;
    let mut options = args.engine.options();
    options.lane_capacity = args.max_context;
    let drafting = if args.no_speculation { Drafting::Off } else { args.drafter };
    options.speculation = drafting == Drafting::Head;
    let worker = Worker::spawn(
        opener(args.dir.clone(), options),
        WorkerOptions {
            queue_len: 1,
            effort: Effort::LEAST,
            drafting,
            process_end: interrupt.receiver().clone(),
            ..WorkerOptions::default()
        },
    )?;
    let sender = worker.sender();
    if let Some(form) = &form {
        // Ahead of the clock: compiling is no part of the time allowed. A refusal comes again as the reply.
        let _ = sender.prepare(form);
    }
    let defaults = worker.facts().text.defaults().sampling.params(args.sampling.seed);
    let (events_in, events) = bounded(MAX_EVENTS);
    let (id, arrived) = (RequestId::next(), Instant::now());
    let request = Request {
        id,
        prompt,
        arrived,
        // Beyond what the clock can count is as good as none.
        deadline: args.deadline.and_then(|allowed| arrived.checked_add(allowed)),
        // One request alone: it is answered with what there is, never refused for want of time.
        class: Class::Interactive,
        max_tokens: args.max_tokens,
        sampling: Some(args.sampling.over(defaults)),
        stop: args.stop.clone(),
        form,
        events: events_in,
        admission: None,
    };
    sender
        .submit(request)
        .map_err(|_| CliError::Failed("the worker stopped before the request arrived".into()))?;
    let reply = follow(&events, interrupt, !args.json, || sender.cancel(id))?;
    worker.shut_down();
    report(args, &reply)
}

/// Opens an engine with its text for a worker.
pub(super) fn opener(dir: PathBuf, options: EngineOptions) -> crate::worker::Opener {
    Box::new(move || {
        let Engine { manifest, backend, draft, .. } = Engine::open(&dir, &options)?;
        let text = Text::open(&dir)?.ok_or_else(|| no_tokenizer(&dir))?;
        let path = StoredTable::path(&dir, &DeviceKey::of(backend.as_ref()).file_stem());
        let costs = StoredTable::read(&path).unwrap_or_else(|error| {
            tracing::warn!("{error}");
            None
        });
        Ok(Opened { backend, text: Arc::new(text), manifest, draft, costs })
    })
}

fn no_tokenizer(dir: &Path) -> EngineError {
    EngineError::Input(format!(
        "{}: the engine has no tokenizer.json, so it can only be scored by token ids: build it again with the tokenizer \
         beside the weights",
        dir.display()
    ))
}

fn prompt(args: &GenerateArgs) -> Result<Prompt, CliError> {
    if let Some(path) = &args.chat {
        return read_chat(path);
    }
    let text = args.prompt.clone().unwrap_or_default();
    if args.raw {
        return Ok(Prompt::Raw(text));
    }
    let system = args.system.iter().map(|system| ("system".to_owned(), system.clone()));
    Ok(Prompt::Chat(system.chain([("user".to_owned(), text)]).collect()))
}

fn read_chat(path: &Path) -> Result<Prompt, CliError> {
    let failed = |fact: String| CliError::Failed(format!("{}: {fact}", path.display()));
    let bytes = std::fs::read(path).map_err(|error| failed(format!("cannot be read: {error}")))?;
    let messages: Vec<Message> = serde_json::from_slice(&bytes)
        .map_err(|error| failed(format!("{error}; expected [{{\"role\": \"user\", \"content\": \"…\"}}]")))?;
    if messages.is_empty() {
        return Err(failed("no messages: there is nothing to answer".into()));
    }
    Ok(Prompt::Chat(messages.into_iter().map(|message| (message.role, message.content)).collect()))
}

impl SamplingArgs {
    fn over(&self, defaults: SamplingParams) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_k: self.top_k.or(defaults.top_k),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            seed: self.seed,
        }
    }
}

/// Shows text as it comes until the reply does; Ctrl-C calls `cancel` once and waits for what there is.
fn follow(
    events: &Receiver<Event>,
    interrupt: &Interrupt,
    shows_text: bool,
    cancel: impl Fn(),
) -> Result<Reply, CliError> {
    let mut interrupts = interrupt.receiver().clone();
    loop {
        select! {
            recv(interrupts) -> _ => {
                cancel();
                interrupts = never();
            }
            recv(events) -> event => match event {
                Ok(Event::Tokens { text, .. }) if shows_text => {
                    say!("{text}");
                }
                Ok(Event::Tokens { .. }) => {}
                Ok(Event::Reply(reply)) => return Ok(*reply),
                Err(_) => return Err(CliError::Failed("the worker stopped without a reply".into())),
            },
        }
    }
}

fn report(args: &GenerateArgs, reply: &Reply) -> Result<ExitCode, CliError> {
    let is_answer =
        matches!(reply.status, Status::Complete | Status::TruncatedAtDeadline | Status::ClosedAtDeadline);
    if args.json {
        print_json(&as_json(reply))?;
    } else {
        if !reply.text.is_empty() {
            sayln!();
        }
        if is_answer || reply.status == Status::Cancelled {
            eprintln!("{}", paint::dim(&summary(reply)));
        }
        if let Some(closing) = &reply.closing {
            eprintln!("{}", paint::dim(&not_the_models(&closing.defaulted_fields, &closing.cut_fields)));
        }
    }
    if is_answer {
        return Ok(ExitCode::SUCCESS);
    }
    if reply.status == Status::Cancelled {
        return Err(CliError::Failed("cancelled".into()));
    }
    let reason = reply.reason.clone().unwrap_or_else(|| "no reason given".into());
    Err(CliError::Failed(format!("{}: {reason}", reply.status.name())))
}

fn summary(reply: &Reply) -> String {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let deadline = reply.timings.deadline.map(|time| format!(" of {:.0}", ms(time))).unwrap_or_default();
    let ttft =
        reply.timings.ttft.map(|time| format!(", first token after {:.1} ms", ms(time))).unwrap_or_default();
    let speed = decode_tok_s(reply).map(|speed| format!(", {speed:.0} tokens/s")).unwrap_or_default();
    let rounds = reply.speculation.map(|counts| format!(", {:.1} tokens a round", counts.accept_len()));
    let rounds = rounds.unwrap_or_default();
    format!(
        "{} ({}): {} tokens in {:.1}{deadline} ms{ttft}{speed}{rounds}",
        reply.status.name(),
        reply.finish_reason,
        reply.token_ids.len(),
        ms(reply.timings.total),
    )
}

/// Tokens after the first over the time after it; `None` for fewer than two tokens.
fn decode_tok_s(reply: &Reply) -> Option<f64> {
    let time = reply.timings.total.checked_sub(reply.timings.ttft?)?.as_secs_f64();
    (reply.token_ids.len() > 1 && time > 0.0).then(|| (reply.token_ids.len() - 1) as f64 / time)
}

fn as_json(reply: &Reply) -> Value {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let mut object = json!({
        "status": reply.status, "text": reply.text, "token_ids": reply.token_ids,
        "prompt_token_ids": reply.prompt_token_ids, "finish_reason": reply.finish_reason,
        "defaulted_fields": reply.closing.as_ref().map_or(&[][..], |closing| &closing.defaulted_fields),
        "timings_ms": {
            "queue": ms(reply.timings.queue), "prefill": ms(reply.timings.prefill),
            "ttft": reply.timings.ttft.map(ms), "total": ms(reply.timings.total),
            "deadline": reply.timings.deadline.map(ms),
        },
        "decode_tok_s": decode_tok_s(reply), "speculation": reply.speculation.map(|counts| json!({
            "rounds": counts.rounds, "drafted": counts.drafted, "accepted": counts.accepted,
            "accept_len": counts.accept_len(),
        })),
    });
    if let Some(closing) = &reply.closing {
        object["cut_fields"] = json!(closing.cut_fields);
    }
    if let Some(reason) = &reply.reason {
        object["reason"] = json!(reason);
    }
    if reply.status == Status::Rejected {
        object["earliest_deadline_ms"] = json!(reply.earliest_deadline.map(ms));
    }
    object
}
