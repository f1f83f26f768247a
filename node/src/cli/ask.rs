//! `takt ask`: one question to a running node.

use std::{process::ExitCode, time::Duration};

use clap::Args;
use serde_json::{Value as Json, json};

use super::{
    CliError, duration,
    form::{FormArgs, not_the_models},
    paint, print_json,
};
use crate::{
    config::{Layers, RosArgs, Value, process_environment},
    ros::{Answer, AskClient, Question, RosDuration, RosOptions},
};

/// How much longer than its deadline an answer may take to arrive before the node counts as silent.
const GRACE: Duration = Duration::from_secs(2);
/// Longest wait for an answer without a deadline of its own.
const NO_DEADLINE: Duration = Duration::from_secs(600);

/// Ask a running node over ROS 2
#[derive(Debug, Args)]
#[command(
    after_help = "Example: takt ask 'Go to the lab.' --system 'At: kitchen. Places: kitchen, lab.' --deadline 300ms\n\
    In a form that holds even when time is up: --schema FILE.json, --regex R, or --choice yes --choice no\n\
    Another node: --ros-args -r __node:=NAME -r __ns:=/NAMESPACE, or --node NAME --namespace /NAMESPACE"
)]
pub(super) struct AskArgs {
    /// What to answer
    #[arg(allow_hyphen_values = true)]
    text: String,
    /// System prompt [default: the node's]
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Answer within this time: 300ms, 1.5s [default: the node's]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    deadline: Option<Duration>,
    /// Most tokens of the answer [default: the node's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: Option<u32>,
    /// Name of the node asked
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Its namespace
    #[arg(long, value_name = "/NAMESPACE")]
    namespace: Option<String>,
    /// ROS 2 domain [default: ROS_DOMAIN_ID, or 0]
    #[arg(long, value_name = "ID")]
    domain: Option<u64>,
    /// What carries the question: dds (built in), rcl (the sourced ROS 2; feature `r2r`)
    #[arg(long, value_name = "NAME")]
    transport: Option<String>,
    /// How long to look for the node
    #[arg(long, value_name = "TIME", value_parser = duration::parse, default_value = "5s")]
    wait: Duration,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    form: FormArgs,
}

pub(super) fn run(args: &AskArgs, ros_args: &RosArgs) -> Result<ExitCode, CliError> {
    let form = args.form.form()?;
    if args.deadline.is_some_and(|deadline| deadline.is_zero()) {
        return Err(CliError::Failed("a deadline of 0 leaves no time to answer: give more".into()));
    }
    if !ros_args.parameters.is_empty() {
        return Err(CliError::Usage("-p and --params-file belong to `takt serve`".into()));
    }
    let mut layers = Layers::default().environment(process_environment);
    layers.ros_names(ros_args);
    for (name, value) in [("node_name", &args.node), ("namespace", &args.namespace)] {
        if let Some(text) = value {
            layers.set_argument(
                "ros",
                name,
                Value::Text(text.clone()),
                &format!("--{}", name.trim_end_matches("_name")),
            );
        }
    }
    if let Some(name) = &args.transport {
        layers.set_argument("ros", "transport", Value::Text(name.clone()), "--transport");
    }
    if let Some(id) = args.domain {
        layers.set_argument("ros", "domain_id", Value::Whole(id), "--domain");
    }
    let options =
        RosOptions { remaps: ros_args.remaps.clone(), ..layers.resolve()?.ros(process_environment)? };
    let client = AskClient::connect(&options, args.wait)?;
    let request = Question {
        prompt: args.text.clone(),
        system: args.system.clone().unwrap_or_default(),
        deadline: RosDuration::from_std(args.deadline.unwrap_or_default()),
        max_tokens: args.max_tokens.unwrap_or(0),
        ..Question::default()
    };
    let request = match form {
        Some(form) => request.with_form(form),
        None => request,
    };
    let started = std::time::Instant::now();
    let reply = client.ask(&request, args.deadline.map_or(NO_DEADLINE, |deadline| deadline + GRACE))?;
    let round_trip_ms = started.elapsed().as_secs_f64() * 1e3;
    report(args, &reply, round_trip_ms)
}

fn report(args: &AskArgs, reply: &Answer, round_trip_ms: f64) -> Result<ExitCode, CliError> {
    let is_answer =
        ["complete", "truncated_at_deadline", "closed_at_deadline"].contains(&reply.status.as_str());
    if args.json {
        print_json(&as_json(reply, round_trip_ms))?;
    } else if is_answer {
        sayln!("{}", reply.text);
        let deadline = finite(reply.deadline_ms).map(|ms| format!(" of {ms:.0}")).unwrap_or_default();
        let ttft =
            finite(reply.ttft_ms).map(|ms| format!(", first token after {ms:.1} ms")).unwrap_or_default();
        let line = format!(
            "{}: {} tokens in {:.1}{deadline} ms{ttft}, {round_trip_ms:.1} ms with the way there and back",
            reply.status, reply.num_tokens, reply.total_ms
        );
        eprintln!("{}", paint::dim(&line));
        if !(reply.defaulted_fields.is_empty() && reply.cut_fields.is_empty()) {
            eprintln!("{}", paint::dim(&not_the_models(&reply.defaulted_fields, &reply.cut_fields)));
        }
    }
    if is_answer {
        return Ok(ExitCode::SUCCESS);
    }
    Err(CliError::Failed(format!("{}: {}", reply.status, reply.reason)))
}

fn as_json(reply: &Answer, round_trip_ms: f64) -> Json {
    json!({
        "status": reply.status, "text": reply.text, "reason": reply.reason,
        "earliest_deadline_ms": finite(reply.earliest_deadline_ms), "is_promised": reply.is_promised,
        "defaulted_fields": reply.defaulted_fields, "cut_fields": reply.cut_fields,
        "num_prompt_tokens": reply.num_prompt_tokens, "num_tokens": reply.num_tokens,
        "timings_ms": {
            "queue": reply.queue_ms, "prefill": reply.prefill_ms, "ttft": finite(reply.ttft_ms),
            "total": reply.total_ms, "deadline": finite(reply.deadline_ms), "round_trip": round_trip_ms,
        },
    })
}

fn finite(ms: f64) -> Option<f64> {
    ms.is_finite().then_some(ms)
}
